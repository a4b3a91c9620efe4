//! What libpq would take where the configuration says nothing: a service file, `PG*` variables, the
//! password file, the certificates of `~/.postgresql`.
//!
//! Only for a server that somebody else runs: what a developer's shell says about some server must not
//! turn a local one into another.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use secrecy::SecretString;

use super::url::{DatabaseUrl, read_parameter};
use crate::env::Env;

/// The variables that libpq reads and that mean something here, and the parameter of each.
const VARIABLES: [(&str, &str); 12] = [
    ("PGSERVICE", "service"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
];

/// Where a service is looked for after the user's own file: the folder of PostgreSQL's build, and
/// Debian's.
const SYSTEM_SERVICE_FILES: [&str; 2] =
    ["/etc/postgresql-common/pg_service.conf", "/etc/pg_service.conf"];

/// The variable that gave a part.
pub(super) fn variable_of(parameter: &str) -> &'static str {
    VARIABLES
        .iter()
        .find(|(_, known)| *known == parameter)
        .map_or("the environment", |(variable, _)| variable)
}

/// What the variables say; the error is the variable and what is wrong with it.
pub(super) fn variables(env: &Env) -> Result<DatabaseUrl, (&'static str, String)> {
    let mut read = DatabaseUrl::default();
    for (variable, parameter) in VARIABLES {
        let Some(value) = env.get(variable) else { continue };
        read_parameter(parameter, value.to_owned(), &mut read)
            .map_err(|reason| (variable, reason))?;
    }
    Ok(read)
}

/// A service of a service file, and the file.
pub(super) struct Service {
    pub parts: DatabaseUrl,
    pub file: Utf8PathBuf,
}

/// The service `name`; the error says which file is wrong, or that there is none.
pub(super) fn service(env: &Env, name: &str) -> Result<Service, String> {
    let own = match env.get("PGSERVICEFILE") {
        Some(path) => Some(Utf8PathBuf::from(path)),
        None => env.home().map(|home| home.join(".pg_service.conf")),
    };
    let system = match env.get("PGSYSCONFDIR") {
        Some(folder) => vec![Utf8Path::new(folder).join("pg_service.conf")],
        None => SYSTEM_SERVICE_FILES.map(Utf8PathBuf::from).to_vec(),
    };
    let mut looked = Vec::new();
    for file in own.into_iter().chain(system) {
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let parts = read_service(&text, name)
                    .map_err(|(line, reason)| format!("{file}:{line}: {reason}"))?;
                if let Some(parts) = parts {
                    return Ok(Service { parts, file });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("read `{file}`: {error}")),
        }
        looked.push(format!("`{file}`"));
    }
    Err(format!("there is no service `{name}` in {}", looked.join(", ")))
}

/// The section `name` of a service file; the error is a line and what is wrong with it.
fn read_service(text: &str, name: &str) -> Result<Option<DatabaseUrl>, (usize, String)> {
    let mut found: Option<DatabaseUrl> = None;
    let mut inside = false;
    for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            // The first section of a name is the one, as in libpq.
            if found.is_some() {
                return Ok(found);
            }
            inside = section.strip_suffix(']') == Some(name);
            if inside {
                found = Some(DatabaseUrl::default());
            }
            continue;
        }
        let Some(parts) = found.as_mut().filter(|_| inside) else { continue };
        if line.starts_with("ldap") {
            return Err((at, "services kept in LDAP are not supported".to_owned()));
        }
        let Some((parameter, value)) = line.split_once('=') else {
            return Err((at, "it has no `=`".to_owned()));
        };
        if parameter.trim() == "service" {
            return Err((at, "a service cannot name another one".to_owned()));
        }
        read_parameter(parameter.trim(), value.trim().to_owned(), parts)
            .map_err(|reason| (at, reason))?;
    }
    Ok(found)
}

/// Whose password is looked for.
pub(super) struct Account<'a> {
    pub host: &'a str,
    pub port: u16,
    pub database: &'a str,
    pub user: &'a str,
}

/// What the password file gave.
pub(super) enum Password {
    Found(SecretString, Utf8PathBuf),
    NotThere,
    /// Left out, as libpq does, with the reason.
    Refused(String),
}

/// The first line of the password file that fits. Others may not be able to read the file.
pub(super) fn password(env: &Env, file: Option<&Utf8Path>, account: &Account<'_>) -> Password {
    let named = file.map(Utf8Path::to_owned).or_else(|| env.get("PGPASSFILE").map(Into::into));
    let Some(file) = named.or_else(|| env.home().map(|home| home.join(".pgpass"))) else {
        return Password::NotThere;
    };
    let Ok(metadata) = std::fs::metadata(&file) else { return Password::NotThere };
    if !metadata.is_file() {
        return Password::Refused(format!(
            "password file `{file}` is left out: it is no plain file"
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        return Password::Refused(format!(
            "password file `{file}` is left out: others may read it; its mode must be 0600"
        ));
    }
    match std::fs::read_to_string(&file) {
        Ok(text) => match find_password(&text, account) {
            Some(password) => Password::Found(SecretString::from(password), file),
            None => Password::NotThere,
        },
        Err(error) => Password::Refused(format!("password file `{file}` is left out: {error}")),
    }
}

fn find_password(text: &str, account: &Account<'_>) -> Option<String> {
    let port = account.port.to_string();
    let is_socket = account.host.starts_with('/');
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line)?;
        let [host, line_port, database, user, password] = &fields;
        let fits = |field: &String, value: &str| field == "*" || field == value;
        let host_fits = fits(host, account.host) || (is_socket && host == "localhost");
        (host_fits
            && fits(line_port, &port)
            && fits(database, account.database)
            && fits(user, account.user))
        .then(|| password.clone())
    })
}

/// `host:port:database:user:password`; a backslash keeps a colon or a backslash. What comes after the
/// password belongs to nobody.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => fields.last_mut()?.extend(letters.next()),
            ':' if fields.len() == 5 => break,
            ':' => fields.push(String::new()),
            _ => fields.last_mut()?.push(letter),
        }
    }
    fields.try_into().ok()
}

/// A file of `~/.postgresql`, if it is there.
pub(super) fn own_file(env: &Env, name: &str) -> Option<Utf8PathBuf> {
    Some(env.home()?.join(".postgresql").join(name)).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::{Account, find_password, read_service};

    #[test]
    fn the_first_line_that_fits_gives_the_password() {
        let file = "# host:port:database:user:password\n\
            db.example.com:5433:*:reader:other port\n\
            db.example.com:*:factory:reader:with\\:colon\\\\\n\
            *:*:*:*:anybody\nlocalhost:*:*:*:never\n";
        let of = |host: &str, database: &str, user: &str| {
            let account = Account { host, port: 5432, database, user };
            find_password(file, &account).unwrap_or_default()
        };
        assert_eq!(of("db.example.com", "factory", "reader"), "with:colon\\");
        assert_eq!(of("db.example.com", "factory", "writer"), "anybody");
        let account = Account { host: "/run/postgresql", port: 1, database: "d", user: "u" };
        assert_eq!(find_password("localhost:*:d:u:socket", &account).as_deref(), Some("socket"));
        assert_eq!(find_password("localhost:*:d", &account), None);
    }

    #[test]
    fn a_service_is_its_first_section() {
        let file = "[other]\nhost=x\n\n# production\n[prod]\nhost = db.example.com\nport=6432\n\
            user=reader\nsslmode=verify-full\n[prod]\nhost=second\n";
        let parts = read_service(file, "prod").expect("valid").expect("there");
        assert_eq!(parts.host.as_deref(), Some("db.example.com"));
        assert_eq!((parts.port, parts.user.as_deref()), (Some(6432), Some("reader")));
        assert!(read_service(file, "none").expect("valid").is_none());
        let wrong = |text| read_service(text, "p").expect_err("wrong");
        assert_eq!(wrong("[p]\nhost").0, 2);
        assert_eq!(wrong("[p]\nservice=q").1, "a service cannot name another one");
        assert_eq!(wrong("[p]\nport=x").1, "its port is no number from 1 to 65535");
    }
}
