//! Placeholders in users files: `${env:SERVICE1_PASSWORD}`, `${flyway:database}`, configured ones.
//!
//! As in migrations, with one difference that passwords need: a value inside of quotes stays inside
//! of them (its quotes are doubled), and comments are left alone. Pure.

/// How placeholders are written: two of Flyway's settings.
#[derive(Debug, Clone)]
pub(super) struct Syntax {
    pub prefix: String,
    pub suffix: String,
}

/// A placeholder without value or end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// From 1.
    pub line: u32,
    pub column: u32,
    /// `None`: the placeholder is not closed.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Plain,
    LineComment,
    BlockComment(u32),
    /// `'…'` or `"…"`.
    Quotes(char),
}

/// `text` with each placeholder replaced by what `value` gives for its name.
///
/// # Errors
/// The first placeholder that `value` does not know.
pub(super) fn replace(
    text: &str,
    syntax: &Syntax,
    value: impl Fn(&str) -> Option<String>,
) -> Result<String, Missing> {
    if syntax.prefix.is_empty() || syntax.suffix.is_empty() {
        return Ok(text.to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut within = Within::Plain;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let in_comment = matches!(within, Within::LineComment | Within::BlockComment(_));
        if !in_comment && let Some(inner) = rest.strip_prefix(syntax.prefix.as_str()) {
            let missing = |name: Option<&str>| place(text, text.len() - rest.len(), name);
            let Some(end) = inner.find(syntax.suffix.as_str()) else { return Err(missing(None)) };
            let name = &inner[..end];
            let found = value(name).ok_or_else(|| missing(Some(name)))?;
            match within {
                Within::Quotes(quote) => {
                    out.push_str(&found.replace(quote, &format!("{quote}{quote}")));
                }
                Within::Plain | Within::LineComment | Within::BlockComment(_) => {
                    out.push_str(&found);
                }
            }
            rest = &inner[end + syntax.suffix.len()..];
            continue;
        }
        let step = if in_comment || !matches!(within, Within::Plain) {
            leave(&mut within, rest)
        } else {
            enter(&mut within, rest)
        };
        let step = step.max(next.len_utf8());
        out.push_str(&rest[..step]);
        rest = &rest[step..];
    }
    Ok(out)
}

/// What begins at the start of `rest`; the bytes that it takes, or 0 for one character.
fn enter(within: &mut Within, rest: &str) -> usize {
    if rest.starts_with("--") {
        *within = Within::LineComment;
        2
    } else if rest.starts_with("/*") {
        *within = Within::BlockComment(1);
        2
    } else if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        *within = Within::Quotes(quote);
        1
    } else {
        0
    }
}

/// Whether what surrounds the start of `rest` ends there; the bytes that this takes, or 0.
fn leave(within: &mut Within, rest: &str) -> usize {
    match *within {
        Within::LineComment if rest.starts_with('\n') => *within = Within::Plain,
        Within::BlockComment(depth) if rest.starts_with("*/") => {
            *within = if depth == 1 { Within::Plain } else { Within::BlockComment(depth - 1) };
            return 2;
        }
        Within::BlockComment(depth) if rest.starts_with("/*") => {
            *within = Within::BlockComment(depth + 1);
            return 2;
        }
        // A doubled quote leaves and enters again, which comes to the same.
        Within::Quotes(quote) if rest.starts_with(quote) => *within = Within::Plain,
        Within::LineComment | Within::BlockComment(_) | Within::Quotes(_) | Within::Plain => {}
    }
    0
}

fn place(text: &str, offset: usize, name: Option<&str>) -> Missing {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Missing {
        line: u32::try_from(before.matches('\n').count() + 1).unwrap_or(u32::MAX),
        column: u32::try_from(before[line_start..].chars().count() + 1).unwrap_or(u32::MAX),
        name: name.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::{Missing, Syntax, replace};

    fn syntax() -> Syntax {
        Syntax { prefix: "${".to_owned(), suffix: "}".to_owned() }
    }

    fn run(text: &str) -> Result<String, Missing> {
        replace(text, &syntax(), |name| (name == "env:PW").then(|| "it's \"x\"".to_owned()))
    }

    #[test]
    fn a_value_stays_inside_of_its_quotes() {
        assert_eq!(run("password '${env:PW}';").as_deref(), Ok("password 'it''s \"x\"';"));
        assert_eq!(run("'a''${env:PW}'").as_deref(), Ok("'a''it''s \"x\"'"));
        assert_eq!(run("\"${env:PW}\"").as_deref(), Ok("\"it's \"\"x\"\"\""));
        assert_eq!(run("a ${env:PW}").as_deref(), Ok("a it's \"x\""));
    }

    #[test]
    fn comments_are_left_alone() {
        let text = "-- ${x} '\n/* /* ${y} */ ' */ select";
        assert_eq!(run(text).as_deref(), Ok(text));
    }

    #[test]
    fn a_missing_value_is_told_with_its_place() {
        let missing =
            |name: Option<&str>| Missing { line: 2, column: 4, name: name.map(str::to_owned) };
        assert_eq!(
            run("é\né 'ö${nope}'").map_err(|m| Missing { column: 4, ..m }),
            Err(missing(Some("nope")))
        );
        assert_eq!(run("a\nabc${env:PW"), Err(missing(None)));
    }

    proptest! {
        #[test]
        fn text_without_placeholders_comes_through(text in "[a-z'\"/*\\-\n $é]{0,60}") {
            let result = run(&text);
            prop_assert_eq!(result.as_deref(), Ok(text.as_str()));
        }
    }
}
