//! Reader of Flyway's properties files: `conf/*.conf`, and the `.conf` beside a script.
//!
//! Pure. The format is `java.util.Properties` as Flyway feeds it (its `ConfigUtils`): lines are
//! trimmed, comments begin with `#` or `!`, a key ends at the first `=`, `:` or white space, and a
//! backslash is itself, so that `C:\temp` and a password with one need no care. Only at the end of
//! a line it may join the next one: when that is neither empty nor another `flyway.` property.

/// One key and its value, with the line (from 1) on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Property {
    pub key: String,
    pub value: String,
    pub line: usize,
}

/// All properties of `text`, in order; what is repeated is repeated.
pub(crate) fn read(text: &str) -> Vec<Property> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut properties = Vec::new();
    let mut lines = natural_lines(text).into_iter().enumerate().peekable();
    while let Some((at, first)) = lines.next() {
        let mut whole = first.trim().to_owned();
        if whole.is_empty() || whole.starts_with(['#', '!']) {
            continue;
        }
        while let Some(joined) = whole.strip_suffix('\\')
            && let Some((_, next)) = lines.next_if(|(_, next)| continues(next))
        {
            whole = format!("{joined}{}", next.trim());
        }
        let (key, value) = split(&whole);
        properties.push(Property { key: key.to_owned(), value: value.to_owned(), line: at + 1 });
    }
    properties
}

/// Lines by `\n`, `\r` or `\r\n`.
fn natural_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r']) {
        lines.push(&rest[..end]);
        let skip = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + skip..];
    }
    lines.push(rest);
    lines
}

fn continues(next: &str) -> bool {
    let is_property = next.trim().starts_with("flyway.") && next.contains('=');
    !next.is_empty() && !is_property
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{c}')
}

fn split(line: &str) -> (&str, &str) {
    let Some(end) = line.find(|c| matches!(c, '=' | ':') || is_blank(c)) else { return (line, "") };
    let rest = line[end..].trim_start_matches(is_blank);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (&line[..end], rest.trim_start_matches(is_blank))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::read;

    /// `key=value@line`, joined by blanks.
    fn shown(text: &str) -> String {
        let shown: Vec<String> =
            read(text).into_iter().map(|p| format!("{}={}@{}", p.key, p.value, p.line)).collect();
        shown.join(" ")
    }

    #[test]
    fn files_are_read_as_flyway_reads_them() {
        let table = [
            ("flyway.user=postgres\n", "flyway.user=postgres@1"),
            ("# c\n! d\n\n  a = b \n", "a=b@4"),
            ("a:b\r\nc d\re", "a=b@1 c=d@2 e=@3"),
            ("list=a,\\\n   b,\\\n   c\nx=1", "list=a,b,c@1 x=1@4"),
            ("flyway.a=C:\\\nflyway.b=1", "flyway.a=C:\\@1 flyway.b=1@2"),
            ("a=C:\\\n\nb=1", "a=C:\\@1 b=1@3"),
            ("a=C:\\temp\\\\x", "a=C:\\temp\\\\x@1"),
            ("a=\\u00e4", "a=\\u00e4@1"),
            ("url=jdbc:postgresql://h:1/d?a=b", "url=jdbc:postgresql://h:1/d?a=b@1"),
            ("a==b", "a==b@1"),
            ("\u{feff}a=1", "a=1@1"),
            ("a=x\\", "a=x\\@1"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_plainly_is_read_back(
            pairs in proptest::collection::vec(("[a-zA-Z][^\\s=:]{0,20}", "[^\\s=:\\\\]([^\\r\\n]{0,20}[^\\s\\\\])?"), 0..6)
        ) {
            let text: String = pairs.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
            let read: Vec<(String, String)> = read(&text).into_iter().map(|p| (p.key, p.value)).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn a_list_may_be_broken_after_any_comma(items in proptest::collection::vec("[a-z/]{1,8}", 1..6)) {
            let whole = format!("flyway.locations={}\n", items.join(","));
            let broken = format!("flyway.locations={}\n", items.join(",\\\n    "));
            prop_assert_eq!(read(&whole), read(&broken));
        }

        #[test]
        fn no_text_makes_it_panic_and_lines_grow(text in any::<String>()) {
            let lines: Vec<usize> = read(&text).iter().map(|p| p.line).collect();
            prop_assert!(lines.is_sorted());
        }
    }
}
