//! What can be typed: commands, flags, examples. No behaviour.

use camino::Utf8PathBuf;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::Override;
use crate::config::keys::{self, KEYS, Key, Kind};
use crate::report;

/// A real, current, production-like PostgreSQL on any machine with one command.
#[derive(Debug, Parser)]
#[command(name = "seedbed", version, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Environment: a file of conf/ (default: SEEDBED_ENV, default_env, dev)
    #[arg(long, global = true, value_name = "NAME")]
    pub env: Option<String>,
    /// Branch: an environment of its own; `git`: the one that git is on (default: SEEDBED_BRANCH, none)
    #[arg(long, global = true, value_name = "NAME")]
    pub branch: Option<String>,
    /// Project folder (default: SEEDBED_PROJECT, nearest parent with conf/, flyway.conf or flyway.toml)
    #[arg(long, global = true, value_name = "DIR")]
    pub project: Option<Utf8PathBuf>,
    /// One JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Only results, warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Details as well
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// No progress bars
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Answer questions with yes
    #[arg(long, global = true)]
    pub yes: bool,
    /// Override one configuration key, as `seedbed config` names it
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Global {
    /// How reports look.
    pub fn look(&self) -> report::Options {
        report::Options {
            verbosity: match (self.quiet, self.verbose) {
                (true, _) => report::Verbosity::Quiet,
                (false, true) => report::Verbosity::Verbose,
                (false, false) => report::Verbosity::Normal,
            },
            color: match self.color {
                Color::Auto => report::ColorWhen::Auto,
                Color::Always => report::ColorWhen::Always,
                Color::Never => report::ColorWhen::Never,
            },
            no_progress: self.no_progress,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the database: seeded, migrated, with accounts; only what is missing is done
    #[command(after_help = "Example: seedbed up")]
    Up(Up),
    /// Replace the database by a clean seeded one
    #[command(after_help = "Example: seedbed reset")]
    Reset(Reset),
    /// Bring back the database that the last `reset --keep` has replaced
    #[command(after_help = "Example: seedbed undo-reset")]
    UndoReset,
    /// Frozen servers, from which `reset` clones
    #[command(subcommand, after_help = "Example: seedbed images list")]
    Images(Images),
    /// Environments beside the default one, and points to come back to
    #[command(
        subcommand,
        after_help = "Example: seedbed up --branch add-orders\n         \
                      seedbed branch list\n         \
                      seedbed branch save before-orders"
    )]
    Branch(Branch),
    /// A database of its own for each test: copies of the one that `reset` would give
    #[command(subcommand, after_help = "Example: DATABASE_URL=$(seedbed db create) make test")]
    Db(Db),
    /// Replace the database by a chosen snapshot, or load a file into it
    #[command(after_help = "Example: seedbed seed --snapshot latest\n         \
                            seedbed seed --file extra.sql.gz")]
    Seed(Seed),
    /// Stop the server
    #[command(after_help = "Example: seedbed down --volumes")]
    Down(Down),
    /// Server, database, schema version, pending scripts, where the data came from
    #[command(after_help = "Example: seedbed status --json")]
    Status,
    /// Print the connection URL
    #[command(after_help = "Example: psql \"$(seedbed url)\"")]
    Url(Url),
    /// Open psql, the server's own if this machine has none
    #[command(after_help = "Example: seedbed psql -- -c 'select 1'")]
    Psql(Psql),
    /// Run the pending scripts
    #[command(after_help = "Example: seedbed migrate --dry-run")]
    Migrate(Migrate),
    /// Show every script and its state
    #[command(after_help = "Example: seedbed info --of-state pending")]
    Info(Info),
    /// Compare the history with the files, or the files with another git revision
    #[command(after_help = "Example: seedbed validate\n         \
                            seedbed validate --against origin/main")]
    Validate(Validate),
    /// Make the history agree with the files: failed rows, missing files, checksums
    #[command(after_help = "Example: seedbed repair")]
    Repair(Repair),
    /// Count what is in the database as a version
    #[command(after_help = "Example: seedbed baseline --baseline-version 5")]
    Baseline(FlywayFlags),
    /// Drop everything from the managed schemas (disabled unless the environment enables it)
    #[command(after_help = "Example: seedbed clean --clean-disabled=false")]
    Clean(FlywayFlags),
    /// Run undo scripts, newest first
    #[command(after_help = "Example: seedbed undo\n         seedbed undo --target 5")]
    Undo(Undo),
    /// Make the next script
    #[command(after_help = "Example: seedbed new \"add orders\"")]
    New(New),
    /// Accounts and grants
    #[command(subcommand, after_help = "Example: seedbed users check")]
    Users(Users),
    /// Make, look at and check snapshots
    #[command(subcommand, after_help = "Example: seedbed snapshot create --env prod")]
    Snapshot(Snapshot),
    /// Prove this checkout's migrations on production-like data
    #[command(after_help = "Example: seedbed ci --junit target/seedbed.xml -- make test")]
    Ci(Ci),
    /// Check Docker, image, tools, store, source, clock; each line with the fix
    #[command(after_help = "Example: seedbed doctor")]
    Doctor,
    /// Print each effective setting and where it came from
    #[command(after_help = "Example: seedbed config --env prod")]
    Config,
    /// Write the project layout into an empty repository
    #[command(after_help = "Example: seedbed init")]
    Init,
    /// Print shell completions
    #[command(after_help = "Example: seedbed completions bash > /etc/bash_completion.d/seedbed")]
    Completions { shell: clap_complete::Shell },
    /// Print the man page
    #[command(after_help = "Example: seedbed man | man -l -")]
    Man,
}

impl Command {
    /// As it is typed, for locks and messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Up(_) => "up",
            Self::Reset(_) => "reset",
            Self::UndoReset => "undo-reset",
            Self::Images(_) => "images",
            Self::Branch(_) => "branch",
            Self::Db(_) => "db",
            Self::Seed(_) => "seed",
            Self::Down(_) => "down",
            Self::Status => "status",
            Self::Url(_) => "url",
            Self::Psql(_) => "psql",
            Self::Migrate(_) => "migrate",
            Self::Info(_) => "info",
            Self::Validate(_) => "validate",
            Self::Repair(_) => "repair",
            Self::Baseline(_) => "baseline",
            Self::Clean(_) => "clean",
            Self::Undo(_) => "undo",
            Self::New(_) => "new",
            Self::Users(_) => "users",
            Self::Snapshot(_) => "snapshot",
            Self::Ci(_) => "ci",
            Self::Doctor => "doctor",
            Self::Config => "config",
            Self::Init => "init",
            Self::Completions { .. } => "completions",
            Self::Man => "man",
        }
    }

    /// The name, if what it does replaces a database or needs the right to.
    pub fn replaces(&self) -> Option<&'static str> {
        match self {
            Self::Up(_) | Self::Reset(_) | Self::Seed(_) | Self::Ci(_) => Some(self.name()),
            Self::UndoReset => Some(self.name()),
            Self::Branch(Branch::Save { .. }) => Some("branch save"),
            Self::Branch(Branch::Restore { .. }) => Some("branch restore"),
            Self::Users(Users::Check) => Some("users check"),
            Self::Db(Db::Create { .. }) => Some("db create"),
            Self::Db(Db::Drop { .. }) => Some("db drop"),
            _ => None,
        }
    }

    /// Whether it is about all of the project's environments, whichever is meant by `--branch`.
    pub fn is_about_all(&self) -> bool {
        matches!(self, Self::Branch(Branch::List | Branch::Delete { .. }))
    }
}

#[derive(Debug, Args)]
pub struct Up {
    /// What to fill a new database with: `latest`, `none`, `files` or a snapshot's id; `same` with --fresh
    #[arg(long, value_name = "WHAT")]
    pub seed: Option<String>,
    /// Build a new database even though there is one
    #[arg(long)]
    pub fresh: bool,
    /// Take the next fitting snapshot when the newest is damaged
    #[arg(long)]
    pub skip_damaged: bool,
    /// Take only a snapshot that was proved
    #[arg(long)]
    pub proved: bool,
}

#[derive(Debug, Args)]
pub struct Reset {
    /// What to fill the database with: `latest`, `same` (what it came from), `none`, `files` or a
    /// snapshot's id
    #[arg(long, value_name = "WHAT")]
    pub seed: Option<String>,
    /// Take the next fitting snapshot when the newest is damaged
    #[arg(long)]
    pub skip_damaged: bool,
    /// Keep what is replaced, for `undo-reset`
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Images {
    /// List the images, newest first
    List,
    /// Remove what is old or too much; only shows it without --yes
    #[command(after_help = "Example: seedbed images prune --yes")]
    Prune,
}

#[derive(Debug, Subcommand)]
pub enum Branch {
    /// Each environment of the project: whether it runs, where, its data, its saved points
    #[command(after_help = "Example: seedbed branch list --json")]
    List,
    /// Remove a branch's environment with all of its data (asks; --yes)
    #[command(after_help = "Example: seedbed branch delete add-orders --yes")]
    Delete { name: String },
    /// Save the database as it is now, to come back to it
    #[command(after_help = "Example: seedbed branch save before-orders\n         \
                            seedbed branch save before-orders --replace")]
    Save {
        name: String,
        /// Instead of an older point of this name
        #[arg(long)]
        replace: bool,
    },
    /// Replace the database by a saved point
    #[command(after_help = "Example: seedbed branch restore before-orders")]
    Restore { name: String },
    /// Remove a saved point
    #[command(after_help = "Example: seedbed branch forget before-orders")]
    Forget { name: String },
}

#[derive(Debug, Subcommand)]
pub enum Db {
    /// Lend databases and print their URLs, one a line
    ///
    /// Each is a copy of a frozen template: what `reset` would give with the rows that the live
    /// database came from. The template of this checkout is made where it is missing. The server
    /// has to run.
    #[command(after_help = "Example: DATABASE_URL=$(seedbed db create) make test\n         \
                            seedbed db create --count 4 --ttl 1h --label nightly")]
    Create {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MOST_DATABASES))]
        count: u32,
        /// When a later run may drop them, once nobody is in them: 90m, 12h, 2d
        #[arg(long, value_name = "AGE", default_value = "1d")]
        ttl: String,
        /// Who has them, for `db list` (default: the process that asked)
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
    },
    /// List the databases that are lent, oldest first
    #[command(after_help = "Example: seedbed db list --json")]
    List,
    /// Drop databases that were lent, and end the sessions in them
    #[command(after_help = "Example: seedbed db drop \"$DATABASE_URL\"\n         \
                            seedbed db drop --all")]
    Drop {
        /// Names or URLs
        #[arg(value_name = "NAME|URL", required_unless_present = "all", conflicts_with = "all")]
        databases: Vec<String>,
        /// All that are lent of this environment's database
        #[arg(long)]
        all: bool,
    },
}

/// More is a typing error: a server has a hundred connections.
const MOST_DATABASES: i64 = 1000;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["snapshot", "file"]))]
pub struct Seed {
    /// `latest` or a snapshot's id (its beginning is enough)
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Load this .sql, .sql.gz or pg_dump -Fc file into the current database
    #[arg(long, value_name = "FILE")]
    pub file: Option<Utf8PathBuf>,
    /// Stop migrating at this version
    #[arg(long, value_name = "VERSION", conflicts_with = "file")]
    pub to: Option<String>,
    /// Take the next fitting snapshot when the newest is damaged
    #[arg(long, conflicts_with = "file")]
    pub skip_damaged: bool,
}

#[derive(Debug, Args)]
pub struct Down {
    /// Remove the server's data as well
    #[arg(long)]
    pub volumes: bool,
}

#[derive(Debug, Args)]
pub struct Url {
    /// Another account than the one that migrates
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

#[derive(Debug, Args)]
pub struct Psql {
    /// Another account than the one that migrates
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Handed to psql
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// Flyway's settings as flags of its verbs: `outOfOrder` is `--out-of-order`, made from the table of
/// keys. Flags that are true or false take no value or `=false`.
#[derive(Debug, Clone, Default)]
pub struct FlywayFlags {
    pub settings: Vec<Override>,
}

/// Keys that are ours and flags of Flyway's verbs all the same.
const ALSO: [&str; 3] =
    ["migrate.lock_timeout_ms", "migrate.lock_retries", "migrate.undo_locations"];

fn flag_name(key: &str) -> String {
    let (_, last) = key.split_once('.').unwrap_or(("", key));
    keys::variable_name(last).to_ascii_lowercase().replace('_', "-")
}

fn flags() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.name.starts_with("flyway.") || ALSO.contains(&key.name))
}

impl FromArgMatches for FlywayFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Vec::new();
        for key in flags() {
            let Ok(Some(values)) = matches.try_get_many::<String>(key.name) else { continue };
            let flag = format!("--{}", flag_name(key.name));
            for value in values {
                if key.kind != Kind::Map {
                    let key = key.name.to_owned();
                    settings.push(Override { key, value: value.clone(), flag: flag.clone() });
                } else if let Some((name, value)) = value.split_once('=') {
                    let key = format!("{}.{name}", key.name);
                    settings.push(Override { key, value: value.to_owned(), flag: flag.clone() });
                } else {
                    let message = format!("`{value}`: expected NAME=VALUE");
                    return Err(clap::Error::raw(ErrorKind::ValueValidation, message));
                }
            }
        }
        Ok(Self { settings })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for FlywayFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(flags().map(|key| {
            let arg = Arg::new(key.name)
                .long(flag_name(key.name))
                .help(key.doc)
                .help_heading("Flyway's settings")
                .hide_short_help(!SHOWN_FIRST.contains(&key.name));
            let arg = match key.name {
                "flyway.undoSqlMigrationPrefix" => arg.visible_alias("undo-prefix"),
                _ => arg,
            };
            match key.kind {
                Kind::Flag => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("true|false"),
                Kind::Map => arg.action(ArgAction::Append).value_name("NAME=VALUE"),
                Kind::List => arg.value_name("A,B"),
                Kind::Text
                | Kind::Integer
                | Kind::Bytes
                | Kind::Path
                | Kind::Duration
                | Kind::DatabaseUrl
                | Kind::Choice(_) => arg.value_name("VALUE").allow_hyphen_values(true),
            }
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// What `-h` shows; `--help` shows all.
const SHOWN_FIRST: [&str; 9] = [
    "flyway.target",
    "flyway.outOfOrder",
    "flyway.group",
    "flyway.mixed",
    "flyway.cherryPick",
    "flyway.baselineOnMigrate",
    "flyway.baselineVersion",
    "flyway.ignoreMigrationPatterns",
    "flyway.placeholders",
];

#[derive(Debug, Args)]
pub struct Migrate {
    /// Print the SQL that would run, and run nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub flyway: FlywayFlags,
}

#[derive(Debug, Args)]
pub struct Info {
    /// Only migrations from this version on
    #[arg(long, value_name = "VERSION", alias = "info-since-version")]
    pub since_version: Option<String>,
    /// Only migrations up to this version
    #[arg(long, value_name = "VERSION", alias = "info-until-version")]
    pub until_version: Option<String>,
    /// Only what was installed from then on: 2026-11-23, or with a time of day
    #[arg(long, value_name = "DATE", alias = "info-since-date")]
    pub since_date: Option<String>,
    /// Only what was installed until then
    #[arg(long, value_name = "DATE", alias = "info-until-date")]
    pub until_date: Option<String>,
    /// Only these states: pending, success, out-of-order
    #[arg(long, value_name = "STATE", value_delimiter = ',', alias = "info-of-state")]
    pub of_state: Vec<String>,
    /// Print versions and descriptions alone, separated by commas
    #[arg(long)]
    pub migration_ids: bool,
    #[command(flatten)]
    pub flyway: FlywayFlags,
}

#[derive(Debug, Args)]
pub struct Validate {
    /// Compare the files with this git revision instead: changed, removed, colliding versions
    #[arg(long, value_name = "REVISION")]
    pub against: Option<String>,
    #[command(flatten)]
    pub flyway: FlywayFlags,
}

#[derive(Debug, Args)]
pub struct Repair {
    /// Take over the history table of Flyway 4 and before first
    #[arg(long)]
    pub upgrade_history: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub flyway: FlywayFlags,
}

#[derive(Debug, Args)]
pub struct Undo {
    /// Show what would run, and run nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub flyway: FlywayFlags,
}

#[derive(Debug, Args)]
pub struct New {
    /// What the script does, in a few words
    pub description: String,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Users {
    /// Make accounts and grants as the files say
    #[command(after_help = "Example: seedbed users apply --dry-run")]
    Apply {
        /// Print the statements that would run, passwords masked, and run nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show where effective privileges differ from the files, in production too: it is only read
    #[command(after_help = "Example: seedbed users check --env prod --json")]
    Check,
}

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Dump the environment's database and publish it
    #[command(after_help = "Example: seedbed snapshot create --env prod --json")]
    Create {
        /// Connections that copy (default: by cores)
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
        /// Restore it on a scratch server and compare, before it is published
        #[arg(long)]
        prove: bool,
        /// Fail when there is far less than in the last snapshot
        #[arg(long)]
        strict: bool,
        /// Publish a ready data directory of it as well, as `snapshot image` does
        #[arg(long)]
        image: bool,
        /// The environment that the image is for (default: the project's)
        #[arg(long, value_name = "NAME", requires = "image")]
        image_env: Option<String>,
    },
    /// Publish a ready data directory of a snapshot, migrated to this checkout
    ///
    /// Built as `reset` would on a scratch server, without passwords, logs and settings. `up` and
    /// `reset` take it where it fits their server and is faster than loading rows.
    #[command(after_help = "Example: seedbed snapshot image latest --env dev")]
    Image {
        /// `latest` (default) or a snapshot's id
        id: Option<String>,
    },
    /// List the snapshots, newest first
    #[command(after_help = "Example: seedbed snapshot list --max-age 8d")]
    List {
        /// Exit 13 when none is newer than this: 8d, 12h
        ///
        /// Only snapshots that can be read count. In a protected environment they have to be of its
        /// database; elsewhere, where the local database may have another name than the source, of
        /// that name if the store has any such, else of any.
        #[arg(long, value_name = "AGE")]
        max_age: Option<String>,
    },
    /// Show one snapshot
    Show { id: String },
    /// Every candidate, and why it was taken or not for this checkout
    Why,
    /// Read every byte again
    Verify {
        /// Default: all of them
        id: Option<String>,
    },
    /// Remove what the retention no longer keeps; only shows it without --yes
    #[command(after_help = "Example: seedbed snapshot prune --yes")]
    Prune,
    /// Remove one snapshot
    #[command(after_help = "Example: seedbed snapshot delete 6905a1f8")]
    Delete { id: String },
    /// Write plain files that pg_restore and psql load without seedbed
    #[command(after_help = "Example: seedbed snapshot export latest /tmp/copy")]
    Export {
        /// `latest` or a snapshot's id
        id: String,
        /// A folder, new or empty
        folder: Utf8PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Ci {
    /// What to build on: latest (default), files, none or a snapshot's id
    #[arg(long, value_name = "WHAT", conflicts_with = "empty")]
    pub seed: Option<String>,
    /// Build on an empty database: `--seed none`
    #[arg(long)]
    pub empty: bool,
    /// Write a JUnit report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<Utf8PathBuf>,
    /// Write a Markdown report
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<Utf8PathBuf>,
    /// Leave the database up
    #[arg(long)]
    pub keep: bool,
    /// Take the next fitting snapshot when the newest is damaged
    #[arg(long)]
    pub skip_damaged: bool,
    /// Give the command N databases, DATABASE_URL_1 to DATABASE_URL_N: one for each worker
    #[arg(long, value_name = "N", requires = "command", value_parser = clap::value_parser!(u32).range(1..=MOST_DATABASES))]
    pub databases: Option<u32>,
    /// Tests to run against it, with DATABASE_URL and PG* set
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}
