//! How a failure is told: what was tried, then the causes, then what to do.

use serde::Serialize;

use super::out::Paint;
use crate::error::Error;

/// A failure in words; also the `error` of a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// A word for machines, one for each exit code.
    pub kind: &'static str,
    pub message: String,
    /// From the nearest to the first.
    pub causes: Vec<String>,
    pub hints: Vec<String>,
    /// Of Flyway's verbs: what its own JSON says about an error.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub flyway: Option<FlywayFacts>,
}

/// Flyway's field names, for tools that read its JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlywayFacts {
    pub error_code: &'static str,
    pub sql_state: Option<String>,
    /// PostgreSQL's driver in Java has none: 0 beside every state.
    pub sql_error_code: Option<i32>,
    pub line_number: Option<u32>,
    pub path: Option<String>,
}

impl FlywayFacts {
    fn of(error: &Error) -> Option<Self> {
        if let Error::Hinted { error, .. } | Error::Instead { error, .. } = error {
            return Self::of(error);
        }
        let Error::Migrate(error) = error else { return None };
        let failure = error.failure();
        let sql_state = failure.and_then(|one| one.error.sqlstate()).map(str::to_owned);
        Some(Self {
            error_code: error.flyway_code(),
            sql_error_code: sql_state.as_ref().map(|_| 0),
            sql_state,
            line_number: error.place().map(|place| place.line),
            path: error.place().map(|place| place.path.to_string()),
        })
    }
}

impl Failure {
    pub fn of(error: &Error) -> Self {
        let message = error.to_string();
        let causes = causes(error, &message);
        let flyway = FlywayFacts::of(error);
        Self { kind: error.kind(), message, causes, hints: error.hints(), flyway }
    }

    /// For a terminal or a log, with a line break at the end.
    pub fn text(&self, color: bool) -> String {
        let mut text = format!("{} {}\n", Paint::Red.text("error:", color), self.message);
        for cause in &self.causes {
            // What a server or a child said may have several lines.
            let cause = cause.replace('\n', "\n    ");
            text.push_str(&format!("  {} {cause}\n", Paint::Bold.text("cause:", color)));
        }
        for hint in &self.hints {
            text.push_str(&format!("  {} {hint}\n", Paint::Bold.text("hint:", color)));
        }
        text
    }
}

/// The sources of `error` that its own text, or that of a cause before, does not already say.
fn causes(error: &dyn std::error::Error, message: &str) -> Vec<String> {
    let mut said = message.to_owned();
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !said.contains(&text) {
            said.push_str(&text);
            causes.push(text);
        }
        source = cause.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::Failure;
    use crate::config;
    use crate::error::Error;

    #[test]
    fn a_failure_says_what_then_why_then_what_to_do() {
        let source = std::io::Error::other("disk on fire\nbadly");
        let error = Error::Config(config::Error::SecretFile {
            place: "conf/dev.toml:2".to_owned(),
            key: "database.password".to_owned(),
            path: "/secret".into(),
            source,
        });
        assert_eq!(
            Failure::of(&error).text(false),
            "error: read the file that `database.password` in conf/dev.toml:2 names, `/secret`\n  \
             cause: disk on fire\n    badly\n"
        );
        let error = Error::Refused {
            message: "`prod` is protected".to_owned(),
            hint: Some("take another: `--env dev`".to_owned()),
        };
        assert_eq!(
            Failure::of(&error).text(true),
            "\u{1b}[1;31merror:\u{1b}[0m `prod` is protected\n  \u{1b}[1mhint:\u{1b}[0m take another: `--env dev`\n"
        );
    }

    #[test]
    fn what_the_message_says_is_not_said_again() {
        let inner = std::io::Error::other("no space");
        let error = Error::File { action: "write", path: "x".into(), error: inner };
        let failure = Failure::of(&error);
        assert_eq!(failure.message, "write `x`: no space");
        assert_eq!(failure.causes, Vec::<String>::new());
    }
}
