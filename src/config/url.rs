//! Database URLs: JDBC's (`jdbc:postgresql://…`) and libpq's (`postgresql://…`). Pure.
//!
//! Parameters that other clients know and that mean nothing here are left out with a note; those that
//! change who is trusted or where the connection goes are read or refused.

use camino::Utf8PathBuf;
use secrecy::SecretString;

use crate::pg::SslMode;

/// What a URL says; `None` where it says nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct DatabaseUrl {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub name: Option<String>,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    pub ssl_mode: Option<SslMode>,
    /// `system` is the system's trust store.
    pub ssl_root_cert: Option<Utf8PathBuf>,
    pub ssl_cert: Option<Utf8PathBuf>,
    pub ssl_key: Option<Utf8PathBuf>,
    /// A section of a service file, which says the rest.
    pub service: Option<String>,
    pub pass_file: Option<Utf8PathBuf>,
    pub settings: Vec<(String, String)>,
    /// Parameters that mean nothing here.
    pub ignored: Vec<String>,
}

impl DatabaseUrl {
    /// Takes from `properties` what this URL does not say: as with pgjdbc, the URL counts.
    pub(super) fn complete(&mut self, properties: Self) {
        let Self {
            host,
            port,
            name,
            user,
            password,
            ssl_mode,
            ssl_root_cert,
            ssl_cert,
            ssl_key,
            service,
            pass_file,
            mut settings,
            // The caller names them by their keys.
            ignored: _,
        } = properties;
        self.host = self.host.take().or(host);
        self.port = self.port.or(port);
        self.name = self.name.take().or(name);
        self.user = self.user.take().or(user);
        self.password = self.password.take().or(password);
        self.ssl_mode = self.ssl_mode.or(ssl_mode);
        self.ssl_root_cert = self.ssl_root_cert.take().or(ssl_root_cert);
        self.ssl_cert = self.ssl_cert.take().or(ssl_cert);
        self.ssl_key = self.ssl_key.take().or(ssl_key);
        self.service = self.service.take().or(service);
        self.pass_file = self.pass_file.take().or(pass_file);
        // The later of two settings counts.
        settings.append(&mut self.settings);
        self.settings = settings;
    }
}

/// Reads `text`; the error is a fragment that says what is wrong with it and shows no secret.
pub(crate) fn parse(text: &str) -> Result<DatabaseUrl, String> {
    let jdbc = text.strip_prefix("jdbc:");
    let (scheme, rest) =
        jdbc.unwrap_or(text).split_once(':').ok_or("it has no `postgresql:` at its start")?;
    if !matches!(scheme, "postgresql" | "postgres") {
        return Err(format!("`{scheme}` is not a PostgreSQL URL"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut url = DatabaseUrl::default();
    if let Some(rest) = rest.strip_prefix("//") {
        let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
        url.name = decoded(name)?;
        read_authority(authority, &mut url)?;
    } else {
        // `jdbc:postgresql:database` means the driver's default host.
        url.name = decoded(rest.trim_start_matches('/'))?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value =
            decode(if jdbc.is_some() { value.replace('+', " ") } else { value.to_owned() })?;
        read_parameter(&decode(name.to_owned())?, value, &mut url)?;
    }
    if url.service.is_none() {
        url.host.get_or_insert_with(|| "localhost".to_owned());
    }
    Ok(url)
}

/// `text` as it may be shown: without a password.
pub(crate) fn masked(text: &str) -> String {
    let after_scheme = text.find("//").map_or(0, |at| at + 2);
    let authority = text[after_scheme..].split('/').next().unwrap_or("");
    let mut shown = text.to_owned();
    if let Some((account, host)) = authority.rsplit_once('@')
        && let Some((user, _)) = account.split_once(':')
    {
        let rest = &text[after_scheme + authority.len()..];
        shown = format!("{}{user}:***@{host}{rest}", &text[..after_scheme]);
    }
    if let Some((place, query)) = shown.split_once('?') {
        let pairs: Vec<String> = query
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some((name, _)) if name.to_ascii_lowercase().contains("password") => {
                    format!("{name}=***")
                }
                _ => pair.to_owned(),
            })
            .collect();
        shown = format!("{place}?{}", pairs.join("&"));
    }
    shown
}

fn read_authority(authority: &str, url: &mut DatabaseUrl) -> Result<(), String> {
    let host = match authority.rsplit_once('@') {
        Some((account, host)) => {
            let (user, password) = match account.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (account, None),
            };
            url.user = decoded(user)?;
            url.password = password.map(decoded).transpose()?.flatten().map(SecretString::from);
            host
        }
        None => authority,
    };
    if host.contains(',') {
        return Err("it names several hosts; name the one to use".to_owned());
    }
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or("`[` has no `]`")?;
            (address, rest.strip_prefix(':').unwrap_or(""))
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    url.host = decoded(host)?;
    if !port.is_empty() {
        url.port = Some(read_port(port)?);
    }
    Ok(())
}

/// One parameter of libpq's or of JDBC's.
pub(super) fn read_parameter(
    name: &str,
    value: String,
    url: &mut DatabaseUrl,
) -> Result<(), String> {
    match name {
        "user" => url.user = Some(value),
        "password" => url.password = Some(SecretString::from(value)),
        "host" => url.host = Some(value),
        "port" => url.port = Some(read_port(&value)?),
        "dbname" => url.name = Some(value),
        // pgjdbc: `ssl` and `ssl=true` mean verify-full.
        "ssl" if value.is_empty() || value.eq_ignore_ascii_case("true") => {
            url.ssl_mode.get_or_insert(SslMode::VerifyFull);
        }
        "sslmode" => {
            let mode = SslMode::parse(&value).ok_or(format!("`{value}` is no sslmode"))?;
            url.ssl_mode = Some(mode);
        }
        "sslrootcert" => url.ssl_root_cert = Some(value.into()),
        "sslcert" => url.ssl_cert = Some(value.into()),
        "sslkey" => url.ssl_key = Some(value.into()),
        "sslpassword" | "sslcrl" | "sslcrldir" => {
            return Err(format!("`{name}` is not supported"));
        }
        "service" => url.service = Some(value),
        "passfile" => url.pass_file = Some(value.into()),
        "hostaddr" => return Err("`hostaddr` is not supported; write it as the host".to_owned()),
        "currentSchema" => url.settings.push(("search_path".to_owned(), value)),
        "options" => url.settings.extend(read_options(&value)?),
        "ApplicationName" | "application_name" => {
            url.settings.push(("application_name".to_owned(), value));
        }
        other => url.ignored.push(other.to_owned()),
    }
    Ok(())
}

/// `-c name=value`, `-cname=value` and `--name=value`; a backslash keeps a space.
fn read_options(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => words.last_mut().into_iter().for_each(|word| word.extend(characters.next())),
            ' ' => words.push(String::new()),
            c => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
    }
    let mut settings = Vec::new();
    for word in words.iter().filter(|word| !word.is_empty() && *word != "-c") {
        let setting = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
        let (name, value) = setting
            .split_once('=')
            .ok_or(format!("`{word}` in its options sets nothing; write `-c name=value`"))?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

/// The error does not show `text`: without an `@host` it is the password.
fn read_port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or("its port is no number from 1 to 65535".to_owned())
}

fn decoded(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() { Ok(None) } else { decode(text.to_owned()).map(Some) }
}

/// Percent-decoding (RFC 3986); a `%` without two digits is an error, as in libpq.
fn decode(text: String) -> Result<String, String> {
    if !text.contains('%') {
        return Ok(text);
    }
    let wrong = || "a `%` in it is not followed by two hexadecimal digits; write `%25`".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte =
            digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(wrong)?;
        bytes.push(byte);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| "its percent-encoding is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
    use secrecy::ExposeSecret;

    use super::{masked, parse};

    /// host, port, name, user, password, sslmode, settings
    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(url) => format!(
                "{} {} {} {} {} {} {:?}",
                url.host.as_deref().unwrap_or("-"),
                url.port.map_or("-".to_owned(), |port| port.to_string()),
                url.name.as_deref().unwrap_or("-"),
                url.user.as_deref().unwrap_or("-"),
                url.password.as_ref().map_or("-", |password| password.expose_secret()),
                url.ssl_mode.map_or("-", |mode| mode.as_str()),
                url.settings,
            ),
            Err(reason) => format!("error: {reason}"),
        }
    }

    #[test]
    fn urls_are_read() {
        let table = [
            ("jdbc:postgresql://localhost:5432/dev_db", "localhost 5432 dev_db - - - []"),
            ("jdbc:postgresql://db.example.com/d", "db.example.com - d - - - []"),
            ("jdbc:postgresql:d", "localhost - d - - - []"),
            ("jdbc:postgresql://[::1]:5433/d", "::1 5433 d - - - []"),
            (
                "jdbc:postgresql://h/d?user=u&password=p%26+q&ssl=true&currentSchema=a,b",
                "h - d u p& q verify-full [(\"search_path\", \"a,b\")]",
            ),
            (
                "jdbc:postgresql://h/d?sslmode=require&ApplicationName=x&tcpKeepAlive=true",
                "h - d - - require [(\"application_name\", \"x\")]",
            ),
            ("postgresql://u:p%40+@h:1/my%20db?sslmode=disable", "h 1 my db u p@+ disable []"),
            ("postgres://u@h", "h - - u - - []"),
            ("postgresql:///d?host=/var/run/postgresql", "/var/run/postgresql - d - - - []"),
            (
                "postgresql://h/d?options=-c%20statement_timeout%3D5s%20--lock-timeout%3D1s",
                "h - d - - - [(\"statement_timeout\", \"5s\"), (\"lock_timeout\", \"1s\")]",
            ),
            ("mysql://h/d", "error: `mysql` is not a PostgreSQL URL"),
            ("localhost", "error: it has no `postgresql:` at its start"),
            ("jdbc:postgresql://a:1,b:2/d", "error: it names several hosts; name the one to use"),
            ("postgresql://h:x/d", "error: its port is no number from 1 to 65535"),
            ("postgresql://h/d?sslmode=on", "error: `on` is no sslmode"),
            (
                "postgresql://h/50%",
                "error: a `%` in it is not followed by two hexadecimal digits; write `%25`",
            ),
            ("postgresql://h/d?sslcrl=k", "error: `sslcrl` is not supported"),
            ("postgresql:///?service=prod", "- - - - - - []"),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        let table = [
            ("jdbc:postgresql://h:1/d", "jdbc:postgresql://h:1/d"),
            ("postgresql://u:se:c@ret@h/d", "postgresql://u:***@h/d"),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("postgresql://u:p?q@h/d", "postgresql://u:***@h/d"),
            (
                "jdbc:postgresql://h/d?user=u&password=x",
                "jdbc:postgresql://h/d?user=u&password=***",
            ),
            (
                "jdbc:postgresql://h/d?sslPassword=x&a=b",
                "jdbc:postgresql://h/d?sslPassword=***&a=b",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(masked(text), expected);
        }
    }

    fn encoded(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_password_is_read_from_either_place_and_never_shown(password in "\\PC{8,20}") {
            let secret = encoded(&password);
            let urls = [
                format!("postgresql://u:{secret}@h:5432/d?sslmode=require"),
                format!("jdbc:postgresql://h:5432/d?user=u&password={secret}&sslmode=require"),
            ];
            for text in urls {
                let url = parse(&text).map_err(proptest::test_runner::TestCaseError::fail)?;
                let read = url.password.as_ref().map(|password| password.expose_secret());
                prop_assert_eq!(read, Some(password.as_str()));
                prop_assert!(!masked(&text).contains(&secret));
                let shown = format!("{url:?}");
                prop_assert!(!shown.contains(&password), "{}", shown);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(jdbc:)?postgresql:(//)?\\PC{0,40}") {
            let _ = parse(&text);
            let _ = masked(&text);
        }
    }
}
