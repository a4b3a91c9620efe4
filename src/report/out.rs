//! Standard output and standard error: the only place that writes to them.

use std::io::Write;

use crate::env::Env;
use crate::error::Error;

/// Writes the result of a command to standard output. A reader that has gone away (`| head`) is no
/// error.
///
/// # Errors
/// [`Error::File`] when standard output cannot be written, as on a full disk.
pub fn stdout(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::File { action: "write", path: "standard output".into(), error })
        }
        _ => Ok(()),
    }
}

/// Writes one or more whole lines to standard error; when nobody can read them there is nobody to
/// tell.
pub fn stderr(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `--color`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColorWhen {
    #[default]
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    /// Whether standard error gets colour: by the flag, else on a terminal unless `NO_COLOR` is set
    /// (no-color.org) or the terminal is `dumb`.
    pub fn on_stderr(self, env: &Env) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => env.stderr_is_terminal && env.get("NO_COLOR").is_none() && !is_dumb(env),
        }
    }
}

pub(super) fn is_dumb(env: &Env) -> bool {
    env.get("TERM") == Some("dumb")
}

/// An ANSI colour, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Paint {
    /// `text` in this colour when `color` is on.
    pub fn text(self, text: &str, color: bool) -> String {
        let code = match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "1;31",
            Self::Green => "32",
            Self::Yellow => "33",
        };
        if color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::{ColorWhen, Paint};
    use crate::env::Env;

    #[test]
    fn colour_follows_flag_variable_and_terminal() {
        let env = |variables: &[(&str, &str)], stderr_is_terminal| {
            let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let mut env = Env::from_variables(variables, Utf8PathBuf::new());
            env.stderr_is_terminal = stderr_is_terminal;
            env
        };
        let table = [
            (ColorWhen::Auto, env(&[], true), true),
            (ColorWhen::Auto, env(&[], false), false),
            (ColorWhen::Auto, env(&[("NO_COLOR", "1")], true), false),
            (ColorWhen::Auto, env(&[("TERM", "dumb")], true), false),
            (ColorWhen::Always, env(&[("NO_COLOR", "1")], false), true),
            (ColorWhen::Never, env(&[], true), false),
        ];
        for (when, env, expected) in table {
            assert_eq!(when.on_stderr(&env), expected, "{when:?} {env:?}");
        }
        assert_eq!(Paint::Green.text("ok", true), "\u{1b}[32mok\u{1b}[0m");
        assert_eq!(Paint::Green.text("ok", false), "ok");
    }
}
