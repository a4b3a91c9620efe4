//! `new`: the next script's file, named as the folder already names its files.

use camino::{Utf8Path, Utf8PathBuf};

use super::Error;
use super::discover::script_name;
use super::file_name::{Kind, Naming};
use super::resolve::{Scripts, first_folder, resolve};
use super::version::Version;
use crate::config::MigrateConfig;
use crate::context::Context;
use crate::git;
use crate::pg::names::DatabaseName;

/// A version of at least this many digits is a point in time: `20261123233729`, `202611232337`.
const TIMESTAMP_DIGITS: usize = 12;

/// Digits of the first script's number in an empty folder.
const FIRST_VERSION: &str = "001";

/// Makes an empty script for `description` and returns its path. The version is the next number, with
/// as many digits as the last one, or the time in UTC, whichever the project uses; it is above every
/// version that any branch of the git repository has ever had here.
///
/// # Errors
/// A description without letters or digits, no location, a folder that cannot be written.
pub fn new_script(ctx: &Context, description: &str) -> Result<Utf8PathBuf, Error> {
    let config = &ctx.config.migrate;
    let name = DatabaseName::live(&ctx.config.database.name);
    let folder = first_folder(config).ok_or_else(|| Error::Setting {
        key: "flyway.locations".to_owned(),
        reason: "no folder to put a script in".to_owned(),
    })?;
    fs_err::create_dir_all(&folder)
        .map_err(|error| Error::Write { path: folder.clone(), error })?;
    // Two at once would take one version. Where a folder cannot be locked they meet in `create`.
    let lock = std::fs::File::open(&folder).ok();
    let _ = lock.as_ref().map(std::fs::File::lock);
    let scripts = resolve(ctx, &name, &ctx.config.database.user)?;
    let now = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S%3f").to_string();
    let elsewhere = versions_of_branches(config, &folder);
    let file = file_name(config, &scripts, &elsewhere, description, &now)?;
    // Beside the newest script whose folder takes another one, else where the first location begins.
    let beside = scripts.versioned.iter().rev().filter_map(|script| script.path.parent());
    let path = beside
        .chain([folder.as_path()])
        .map(|folder| folder.join(&file))
        .find(|path| script_name(&config.locations, path).is_some());
    match (path, config.locations.first()) {
        (Some(path), _) => create(&path, description),
        (None, location) => Err(Error::Setting {
            key: "flyway.locations".to_owned(),
            reason: format!(
                "`{}` takes no script in `{folder}`, and no script shows where else",
                location.unwrap_or(&folder)
            ),
        }),
    }
}

/// Versions, as written, that scripts of any branch have had. Without git there are none.
fn versions_of_branches(config: &MigrateConfig, folder: &Utf8Path) -> Vec<String> {
    let run = |arguments: &[&str]| {
        let output = git::command(folder, arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let Some(top) = run(&["rev-parse", "--show-toplevel"]) else { return Vec::new() };
    let top = Utf8PathBuf::from(top.trim_end());
    let names = run(&["log", "--all", "--format=", "--name-only", "-z", "--diff-filter=AR"]);
    let naming = Naming::from_config(config);
    names
        .unwrap_or_default()
        .split(['\0', '\n'])
        .filter(|path| !path.is_empty())
        .map(|path| top.join(path))
        .filter(|path| script_name(&config.locations, path).is_some())
        .filter_map(|path| naming.parse(path.file_name()?).ok())
        .filter(|name| name.kind == Kind::Versioned)
        .map(|name| name.raw_version)
        .collect()
}

fn create(path: &Utf8Path, description: &str) -> Result<Utf8PathBuf, Error> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        // Two people in one folder: the second must not overwrite the first one's file.
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(path)?;
        std::io::Write::write_all(&mut file, format!("-- {}\n", description.trim()).as_bytes())
    };
    write().map_err(|error| Error::Write { path: path.to_owned(), error })?;
    Ok(path.to_owned())
}

fn file_name(
    config: &MigrateConfig,
    scripts: &Scripts,
    elsewhere: &[String],
    description: &str,
    now: &str,
) -> Result<String, Error> {
    let kept: String = description
        .trim()
        .chars()
        .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' })
        .collect();
    let words: Vec<&str> = kept.split('_').filter(|word| !word.is_empty()).collect();
    if !words.iter().any(|word| word.contains(char::is_alphanumeric)) {
        return Err(Error::NoDescription { description: description.to_owned() });
    }
    let own = scripts.versioned.iter().chain(&scripts.baseline).map(|script| &script.raw_version);
    let last = own
        .chain(elsewhere)
        .filter_map(|raw| Some((Version::parse(raw).ok()?, raw.as_str())))
        .filter(|(version, _)| !version.is_keyword())
        .max_by(|one, other| one.0.cmp(&other.0));
    let version = next_version(last.map(|(_, raw)| raw), now);
    let suffix = config.sql_migration_suffixes.first().map_or(".sql", String::as_str);
    Ok(format!(
        "{}{version}{}{}{suffix}",
        config.sql_migration_prefix,
        config.sql_migration_separator,
        words.join("_")
    ))
}

/// The version after `last`: its last number plus one, or `now` when it is a point in time.
fn next_version(last: Option<&str>, now: &str) -> String {
    let Some(last) = last else { return FIRST_VERSION.to_owned() };
    let start = last.rfind(['.', '_']).map_or(0, |at| at + 1);
    let (head, number) = last.split_at(start);
    if number.len() >= TIMESTAMP_DIGITS && head.is_empty() {
        let mut now = now.get(..number.len()).unwrap_or(now).to_owned();
        // More digits than a millisecond has are a team's own; zeros keep the order.
        now.extend(std::iter::repeat_n('0', number.len() - now.len()));
        // A script of the future must stay the one before this.
        return if *now > *number { now } else { plus_one(number) };
    }
    format!("{head}{}", plus_one(number))
}

/// A decimal number of any size plus one, with as many digits as before where that is possible.
fn plus_one(number: &str) -> String {
    let mut digits: Vec<char> = number.chars().collect();
    for digit in digits.iter_mut().rev() {
        match digit.to_digit(10) {
            Some(9) => *digit = '0',
            Some(value) => {
                *digit = char::from_digit(value + 1, 10).unwrap_or('0');
                return digits.into_iter().collect();
            }
            // A sign or a digit of another script: number on behind it.
            None => break,
        }
    }
    digits.insert(0, '1');
    digits.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::next_version;

    #[test]
    fn numbers_count_on_and_times_are_the_present() {
        let now = "20261123233729123";
        let cases = [
            (None, "001"),
            (Some("003"), "004"),
            (Some("9"), "10"),
            (Some("099"), "100"),
            (Some("1.9"), "1.10"),
            (Some("2_0_3"), "2_0_4"),
            (Some("20240101120000"), "20261123233729"),
            (Some("20240101120000000"), now),
            (Some("202401011200000000"), "202611232337291230"),
            (Some("202401011200"), "202611232337"),
            (Some("20990101120000"), "20990101120001"),
        ];
        for (last, expected) in cases {
            assert_eq!(next_version(last, now), expected, "{last:?}");
        }
    }
}
