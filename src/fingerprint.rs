//! What decides about what a build gives, as one hash: server, rows, scripts and callbacks with their settings
//! and those of the sessions that run them, users files, seed files.

use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::engine::{self, Server};
use crate::error::Error;
use crate::migrate::Scripts;
use crate::site::Site;
use crate::source::{Source, Wish};
use crate::users;

/// Collects what a build depends on.
pub struct Fingerprint {
    hash: Sha256,
}

impl Fingerprint {
    /// Begins with the server: a template is only good on the version that made it.
    pub fn new(server: &Server) -> Self {
        let mut this = Self::anywhere();
        this.add("server", server.version_num.to_string());
        this
    }

    /// Of what a build gives on whatever server.
    pub fn anywhere() -> Self {
        let mut this = Self { hash: Sha256::new() };
        // 3: the template has the privileges on the database as well.
        this.add("format", "3");
        this
    }

    /// Adds one fact; length-prefixed, so that no two lists of facts collide.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        for part in [name.as_bytes(), value.as_ref()] {
            self.hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            self.hash.update(part);
        }
    }

    /// 24 hexadecimal digits.
    pub fn finish(self) -> String {
        self.hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Everything that decides what a build gives.
pub(crate) fn fingerprint(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<String, Error> {
    let to = wish.to.as_deref();
    of_build(ctx, &site.server, &site.scripts, &site.accounts, rows, to)
}

/// The same without the migration scripts: builds that have it in common differ only in how far they
/// were migrated. `None` where that is not so: seed files follow the last script, callbacks run with each run.
pub(crate) fn base(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<Option<String>, Error> {
    if !has_base(site, rows, wish) {
        return Ok(None);
    }
    let settings = site.scripts.base_facts(&ctx.config.migrate);
    let start = on_server(ctx, &site.server, &site.accounts);
    hashed(ctx, start, &settings, &site.accounts, rows, None).map(Some)
}

fn has_base(site: &Site, rows: Rows<'_>, wish: &Wish) -> bool {
    let is_told = wish.to.is_some() || matches!(rows, Rows::Files(_));
    !is_told && site.scripts.callbacks.is_empty()
}

/// What decides about a build before its first script: of a snapshot's rows, whatever the scripts are.
///
/// # Errors
/// What is wrong with the files.
pub(crate) fn ground(ctx: &Context, site: &Site, rows: Rows<'_>) -> Result<Option<String>, Error> {
    let Rows::Snapshot(_) = rows else { return Ok(None) };
    let start = on_server(ctx, &site.server, &site.accounts);
    // Where the history stands that came with the rows.
    let migrate = &ctx.config.migrate;
    let history = format!("{:?} {:?} {}", migrate.default_schema, migrate.schemas, migrate.table);
    let facts = [("ground".to_owned(), history)];
    hashed(ctx, start, &facts, &site.accounts, rows, None).map(Some)
}

/// Fingerprint and base for what is published: without the server, whose facts stand beside them.
pub(crate) struct PublishedKeys {
    pub build: String,
    pub base: Option<String>,
}

/// By what a published image is found.
///
/// # Errors
/// What is wrong with the files.
pub(crate) fn published(
    ctx: &Context,
    site: &Site,
    rows: Rows<'_>,
    wish: &Wish,
) -> Result<PublishedKeys, Error> {
    let to = wish.to.as_deref();
    let hashed = |facts: &[(String, String)]| {
        let mut start = Fingerprint::anywhere();
        start.add("roles", roles(&site.accounts));
        hashed(ctx, start, facts, &site.accounts, rows, to)
    };
    let base = match has_base(site, rows, wish) {
        true => Some(hashed(&site.scripts.base_facts(&ctx.config.migrate))?),
        false => None,
    };
    Ok(PublishedKeys { build: hashed(&site.scripts.facts(&ctx.config.migrate))?, base })
}

/// What of a source decides about the result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Its id.
    Snapshot(&'a str),
    Files(&'a [camino::Utf8PathBuf]),
    None,
}

impl<'a> Rows<'a> {
    pub(crate) fn of(source: &'a Source) -> Self {
        match source {
            Source::Snapshot { manifest, .. } => Self::Snapshot(&manifest.id),
            Source::Files(files) => Self::Files(files),
            Source::Nothing => Self::None,
        }
    }
}

/// The fingerprint of a build of this checkout, with these rows, migrated up to `to`.
///
/// # Errors
/// What is wrong with the files.
pub(crate) fn of_build(
    ctx: &Context,
    server: &Server,
    scripts: &Scripts,
    accounts: &users::Plan,
    rows: Rows<'_>,
    to: Option<&str>,
) -> Result<String, Error> {
    let start = on_server(ctx, server, accounts);
    hashed(ctx, start, &scripts.facts(&ctx.config.migrate), accounts, rows, to)
}

fn on_server(ctx: &Context, server: &Server, accounts: &users::Plan) -> Fingerprint {
    let mut fingerprint = Fingerprint::new(server);
    if server.kind == engine::ServerKind::Docker {
        // The same version of another image may sort text in another way.
        fingerprint.add("image", &ctx.config.engine.image);
    }
    // Nor need the same image be what it was: a name is given anew.
    fingerprint.add("libraries", &server.libraries);
    // They come back with an image, where a template leaves them to its server.
    if ctx.config.images.enabled && server.started_by_us {
        fingerprint.add("roles", roles(accounts));
    }
    fingerprint
}

/// What makes the roles that the files name, and what they are members of, without passwords.
fn roles(accounts: &users::Plan) -> String {
    let statements = users::dry_run(accounts).statements;
    let sql: Vec<String> = statements.into_iter().flat_map(|statement| statement.sql).collect();
    sql.join("\n")
}

fn hashed(
    ctx: &Context,
    mut fingerprint: Fingerprint,
    migrations: &[(String, String)],
    accounts: &users::Plan,
    rows: Rows<'_>,
    to: Option<&str>,
) -> Result<String, Error> {
    fingerprint.add("database", &ctx.config.database.name);
    fingerprint.add("owner", &ctx.config.database.user);
    fingerprint.add("to", to.unwrap_or(""));
    // The scripts run with them; what a session is called decides about nothing.
    let settings = ctx.config.database.settings.iter();
    for (name, value) in settings.filter(|(name, _)| name != "application_name") {
        fingerprint.add(&format!("session {name}"), value);
    }
    for (name, value) in migrations {
        fingerprint.add(name, value);
    }
    let restore = &ctx.config.restore;
    fingerprint.add("restore", format!("{:?} {:?}", restore.owners, restore.ignore_extensions));
    fingerprint.add("accounts", accounts.fingerprint_text());
    match rows {
        Rows::Snapshot(id) => fingerprint.add("snapshot", id),
        Rows::Files(files) => {
            for path in files {
                let action = "read";
                let content = fs_err::read(path).map_err(|error| Error::File {
                    action,
                    path: path.clone(),
                    error,
                })?;
                fingerprint.add(path.as_str(), content);
            }
        }
        Rows::None => fingerprint.add("empty", ""),
    }
    Ok(fingerprint.finish())
}
