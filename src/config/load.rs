//! Finds the project and its environment and lays the layers over each other.
//!
//! Later wins: defaults, `conf/seedbed.toml`, Flyway's shared files, the environment's files,
//! `FLYWAY_*` and `SEEDBED_*` variables, flags.

use camino::{Utf8Path, Utf8PathBuf};

use super::Config;
use super::build::build;
use super::database::{Found, Surroundings, database};
use super::error::Error;
use super::layer::{self, Entry, Raw};
use super::settings::{Settings, Strictness};
use crate::env::Env;

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--project`.
    pub project: Option<Utf8PathBuf>,
    /// `--env`.
    pub env: Option<String>,
    pub overrides: Vec<Override>,
}

/// A key that the command line sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub key: String,
    pub value: String,
    /// As it was typed, without the value: `--target`, `--set engine.kind`.
    pub flag: String,
}

/// Names in `conf/` that are shared by all environments.
const SHARED: &[&str] = &["seedbed", "flyway", "flyway.user"];

/// Names Flyway's further files, as it does for Flyway itself.
const CONFIG_FILES: &str = "FLYWAY_CONFIG_FILES";

/// What Flyway's desktop program and its relatives keep in `flyway.toml`.
const OF_OTHER_TOOLS: &[&str] =
    &["flywayDesktop.", "redgateCompare.", "databaseType", "environments", "id", "name"];

/// Variables of the prefix `SEEDBED_` that are no keys; one that ends in `_` is a family.
const OWN_VARIABLES: &[&str] =
    &["ENV", "BRANCH", "PROJECT", "CACHE_DIR", "COLOR", "LOG", "DATASETS", "TEST_", "BENCH_"];

/// The effective configuration of one environment.
///
/// # Errors
/// No project, an unknown environment, an unreadable file, an unknown key, a value that its key
/// does not take, a variable that is not set.
pub fn load(env: &Env, flags: &Flags) -> Result<Config, Error> {
    let (settings, project, environment) = lay(env, flags)?;
    build(&settings, project, environment)
}

/// The environment's name, if it is protected; also when the rest of it cannot be used here, as
/// where a variable with its password is not set.
pub fn protected_environment(env: &Env, flags: &Flags) -> Option<String> {
    let (settings, _, environment) = lay(env, flags).ok()?;
    settings.flag("protected").ok()?.then_some(environment)
}

fn lay<'a>(env: &'a Env, flags: &Flags) -> Result<(Settings<'a>, Utf8PathBuf, String), Error> {
    let project = find_project(env, flags.project.as_deref())?;
    let files = Files::read(&project, env)?;
    let environment = files.environment(env, flags.env.as_deref())?;

    let mut settings = Settings::new(env, &project);
    for (entries, strictness) in files.shared(&environment) {
        settings.lay(entries, strictness)?;
    }
    for (entries, strictness) in files.of_environment(&environment, &project, env)? {
        settings.lay(entries, strictness)?;
    }
    for (entries, strictness) in files.of_named(&environment) {
        settings.lay(entries, strictness)?;
    }
    settings.notes.extend(files.notes);
    settings.lay_variables(env.with_prefix("FLYWAY_"), "FLYWAY_", "flyway.", &["CONFIG_FILES"])?;
    settings.lay_variables(env.with_prefix("SEEDBED_"), "SEEDBED_", "", OWN_VARIABLES)?;
    settings.lay(flags.overrides.iter().map(flag_entry).collect(), Strictness::All)?;
    Ok((settings, project, environment))
}

/// The server of a protected environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    pub environment: String,
    pub host: String,
    pub port: u16,
    pub database: String,
}

/// The servers of the project's other protected environments, as their files name them. One whose name
/// stands in a variable that is not set here cannot be reached from here either, and is left out.
///
/// # Errors
/// A file that cannot be read or understood: it may be the one that protects.
pub fn protected_elsewhere(env: &Env, config: &Config) -> Result<Vec<Protected>, Error> {
    let project = &config.project;
    let files = Files::read(project, env)?;
    let mut found = Vec::new();
    for environment in files.environments.iter().filter(|name| **name != config.environment) {
        let mut settings = Settings::new(env, project);
        for (entries, strictness) in files.shared(environment) {
            settings.lay(entries, strictness)?;
        }
        for (entries, strictness) in files.of_environment(environment, project, env)? {
            settings.lay(entries, strictness)?;
        }
        if !settings.flag("protected")? {
            continue;
        }
        // Its password is nobody's business here.
        let none = Entry {
            key: "database.password".to_owned(),
            value: Raw::Text(String::new()),
            place: "the search for protected servers".to_owned(),
        };
        settings.lay(vec![none], Strictness::All)?;
        match database(&settings, project, Surroundings::Ignored, &mut Found::default()) {
            Ok(database) if database.named => {
                let target = database.target();
                found.push(Protected {
                    environment: environment.clone(),
                    host: target.host,
                    port: target.port,
                    database: target.database,
                });
            }
            Ok(_) | Err(Error::UnsetVariable { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn flag_entry(Override { key, value, flag }: &Override) -> Entry {
    Entry { key: key.clone(), value: Raw::Text(value.clone()), place: flag.clone() }
}

fn is_project(folder: &Utf8Path) -> bool {
    folder.join("conf").is_dir()
        || folder.join("flyway.conf").is_file()
        || folder.join("flyway.toml").is_file()
}

/// `--project`, `SEEDBED_PROJECT`, the nearest parent that is one.
fn find_project(env: &Env, named: Option<&Utf8Path>) -> Result<Utf8PathBuf, Error> {
    if let Some(named) = named.or_else(|| env.get("SEEDBED_PROJECT").map(Utf8Path::new)) {
        let path = env.current_dir.join(named);
        let path = path.canonicalize_utf8().unwrap_or(path);
        return if is_project(&path) { Ok(path) } else { Err(Error::NotAProject { path }) };
    }
    env.current_dir
        .ancestors()
        .find(|folder| is_project(folder))
        .map(Utf8Path::to_owned)
        .ok_or_else(|| Error::NoProject { start: env.current_dir.clone() })
}

/// The shared files, read, and the names of the environments.
struct Files {
    seedbed: Vec<Entry>,
    flyway_conf: Vec<Entry>,
    flyway_toml: Vec<Entry>,
    /// What [`CONFIG_FILES`] names, in its order.
    named: Vec<Vec<Entry>>,
    environments: Vec<String>,
    /// For the user.
    notes: Vec<String>,
}

impl Files {
    fn read(project: &Utf8Path, env: &Env) -> Result<Self, Error> {
        let read_toml = |file: &str| match layer::read_file(&project.join(file))? {
            Some(text) => layer::toml(&text, file),
            None => Ok(Vec::new()),
        };
        let (named, form) = named_files(project, env)?;
        let there = |files: &[&'static str]| -> Vec<&'static str> {
            files.iter().copied().filter(|file| project.join(file).is_file()).collect()
        };
        let mut conf_files = there(&["flyway.conf", "conf/flyway.conf"]);
        let mut toml_files = there(&[
            "flyway.toml",
            "flyway.user.toml",
            "conf/flyway.toml",
            "conf/flyway.user.toml",
        ]);
        // Flyway never mixes its two forms: named files decide which counts, else TOML does.
        let (left_out, winner) = match form {
            Some(Form::Conf) => (std::mem::take(&mut toml_files), Some(CONFIG_FILES)),
            Some(Form::Toml) => (std::mem::take(&mut conf_files), Some(CONFIG_FILES)),
            None => match toml_files.first().copied() {
                Some(first) => (std::mem::take(&mut conf_files), Some(first)),
                None => (Vec::new(), None),
            },
        };
        let notes = left_out.iter().zip(std::iter::repeat(winner.unwrap_or_default()));
        let notes = notes.map(|(file, winner)| {
            format!(
                "`{file}` is left out, as in Flyway: `{winner}` counts and the two are never mixed"
            )
        });
        let mut flyway_conf = Vec::new();
        for file in conf_files {
            if let Some(text) = layer::read_file(&project.join(file))? {
                flyway_conf.extend(layer::conf(&text, file, env));
            }
        }
        let mut flyway_toml = Vec::new();
        for file in toml_files {
            flyway_toml.extend(read_toml(file)?);
        }
        for entry in &mut flyway_toml {
            flyway_variables(&mut entry.value);
        }
        let in_toml = named.iter().flatten().chain(&flyway_toml);
        let environments = environments(project, in_toml)?;
        Ok(Self {
            seedbed: read_toml("conf/seedbed.toml")?,
            flyway_conf,
            flyway_toml,
            named,
            environments,
            notes: notes.collect(),
        })
    }

    /// `--env`, `SEEDBED_ENV`, `default_env`, `dev`, the only one.
    fn environment(&self, env: &Env, named: Option<&str>) -> Result<String, Error> {
        let exists = |name: &str| self.environments.iter().any(|other| other == name);
        let configured = self
            .flyway_toml
            .iter()
            .filter(|entry| entry.key == "flyway.environment")
            .chain(self.seedbed.iter().filter(|entry| entry.key == "default_env"))
            .filter_map(|entry| match &entry.value {
                Raw::Text(text) => Some(text.as_str()),
                Raw::List(_) => None,
            })
            .next_back();
        let named = named
            .or_else(|| env.get("SEEDBED_ENV"))
            .or_else(|| env.get("SEEDBED_DEFAULT_ENV"))
            .or_else(|| env.get("FLYWAY_ENVIRONMENT"))
            .or(configured);
        match (named, self.environments.as_slice()) {
            // A project without environments has one that is all defaults.
            (Some("dev") | None, []) => Ok("dev".to_owned()),
            (Some(name), _) if exists(name) => Ok(name.to_owned()),
            (Some(name), _) => Err(Error::UnknownEnvironment {
                name: name.to_owned(),
                environments: self.environments.clone(),
            }),
            (None, _) if exists("dev") => Ok("dev".to_owned()),
            (None, [only]) => Ok(only.clone()),
            // Flyway's own default.
            (None, _) if exists("default") => Ok("default".to_owned()),
            (None, _) => Err(Error::NoEnvironment { environments: self.environments.clone() }),
        }
    }

    fn shared(&self, environment: &str) -> Vec<(Vec<Entry>, Strictness)> {
        let mut toml = shared_entries(&self.flyway_toml);
        // Flyway's environment `default` stands for one that `flyway.toml` does not have.
        if !self.in_flyway_toml(environment) {
            toml.extend(flyway_environment(&self.flyway_toml, "default"));
        }
        vec![
            (self.seedbed.clone(), Strictness::All),
            (self.flyway_conf.clone(), Strictness::FlywayOnly),
            (toml, Strictness::FlywayOnly),
        ]
    }

    fn of_environment(
        &self,
        environment: &str,
        project: &Utf8Path,
        env: &Env,
    ) -> Result<Vec<(Vec<Entry>, Strictness)>, Error> {
        let mut layers =
            vec![(flyway_environment(&self.flyway_toml, environment), Strictness::All)];
        let file = format!("conf/{environment}.toml");
        if let Some(text) = layer::read_file(&project.join(&file))? {
            layers.push((layer::toml(&text, &file)?, Strictness::All));
        }
        let file = format!("conf/{environment}.conf");
        if let Some(text) = layer::read_file(&project.join(&file))? {
            layers.push((layer::conf(&text, &file, env), Strictness::FlywayOnly));
        }
        Ok(layers)
    }

    /// What [`CONFIG_FILES`] names says to the environment that is asked for, and to no other.
    fn of_named(&self, environment: &str) -> Vec<(Vec<Entry>, Strictness)> {
        let layers = self.named.iter().flat_map(|entries| {
            [
                (shared_entries(entries), Strictness::FlywayOnly),
                (flyway_environment(entries, environment), Strictness::All),
            ]
        });
        layers.collect()
    }

    fn in_flyway_toml(&self, environment: &str) -> bool {
        self.flyway_toml.iter().any(|entry| {
            section_of_environment(&entry.key).is_some_and(|(name, _)| name == environment)
        })
    }
}

/// What a `flyway.toml` says to every environment.
fn shared_entries(entries: &[Entry]) -> Vec<Entry> {
    entries
        .iter()
        .filter(|entry| section_of_environment(&entry.key).is_none())
        .filter(|entry| !OF_OTHER_TOOLS.iter().any(|start| entry.key.starts_with(start)))
        .cloned()
        .collect()
}

/// `[environments.x]` and `[environments.x.flyway]`, both as keys of `flyway.`.
fn flyway_environment(entries: &[Entry], environment: &str) -> Vec<Entry> {
    entries
        .iter()
        .filter_map(|entry| {
            let (name, key) = section_of_environment(&entry.key)?;
            let key = key.strip_prefix("flyway.").unwrap_or(key);
            (name == environment).then(|| Entry { key: format!("flyway.{key}"), ..entry.clone() })
        })
        .collect()
}

/// The two forms of Flyway's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Conf,
    Toml,
}

/// The files that [`CONFIG_FILES`] names, relative to the project, and their one form.
fn named_files(project: &Utf8Path, env: &Env) -> Result<(Vec<Vec<Entry>>, Option<Form>), Error> {
    let refuse = |file: &str, reason: &str| Error::Value {
        place: CONFIG_FILES.to_owned(),
        key: file.to_owned(),
        reason: reason.to_owned(),
        hint: None,
    };
    let list = env.get(CONFIG_FILES).unwrap_or_default();
    let mut form = None;
    let mut read = Vec::new();
    for file in list.split(',').map(str::trim).filter(|file| !file.is_empty()) {
        let own = match Utf8Path::new(file).extension() {
            Some("toml") => Form::Toml,
            Some("conf") => Form::Conf,
            Some(_) | None => return Err(refuse(file, "it is neither a `.conf` nor a `.toml`")),
        };
        if form.is_some_and(|form| form != own) {
            return Err(refuse(file, "`.conf` and `.toml` cannot be mixed"));
        }
        form = Some(own);
        let Some(text) = layer::read_file(&project.join(file))? else {
            return Err(refuse(file, "there is no such file"));
        };
        let mut entries = match own {
            Form::Conf => layer::conf(&text, file, env),
            Form::Toml => layer::toml(&text, file)?,
        };
        if own == Form::Toml {
            entries.iter_mut().for_each(|entry| flyway_variables(&mut entry.value));
        }
        read.push(entries);
    }
    Ok((read, form))
}

/// The name and the key of `environments.<name>.<key>`.
fn section_of_environment(key: &str) -> Option<(&str, &str)> {
    key.strip_prefix("environments.")?.split_once('.')
}

/// `${env.NAME}`, Flyway's way in TOML, becomes ours.
fn flyway_variables(value: &mut Raw) {
    let ours = |text: &mut String| *text = text.replace("${env.", "${env:");
    match value {
        Raw::Text(text) => ours(text),
        Raw::List(items) => items.iter_mut().for_each(ours),
    }
}

fn environments<'e>(
    project: &Utf8Path,
    flyway_toml: impl Iterator<Item = &'e Entry>,
) -> Result<Vec<String>, Error> {
    let folder = project.join("conf");
    let mut names: Vec<String> = flyway_toml
        .filter_map(|entry| section_of_environment(&entry.key))
        .map(|(name, _)| name.to_owned())
        .collect();
    let fail = |source| Error::Read { path: folder.clone(), source };
    if folder.is_dir() {
        for file in folder.read_dir_utf8().map_err(fail)? {
            let file = file.map_err(fail)?;
            let path = file.path();
            let is_ours = matches!(path.extension(), Some("toml" | "conf")) && path.is_file();
            if let Some(stem) = path.file_stem().filter(|_| is_ours)
                && !SHARED.contains(&stem)
                && !stem.starts_with('.')
            {
                names.push(stem.to_owned());
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}
