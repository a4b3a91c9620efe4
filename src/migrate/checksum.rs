//! Flyway's checksum of a script's text.

/// CRC-32 over the UTF-8 bytes of every line, line ends (LF, CRLF, CR) not counted, as a signed
/// number. A byte order mark at the very start does not count either; an empty text gives 0.
pub fn checksum(text: &str) -> i32 {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut hasher = crc32fast::Hasher::new();
    for line in text.split(['\n', '\r']) {
        hasher.update(line.as_bytes());
    }
    hasher.finalize().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn line_ends_and_a_leading_mark_do_not_count_but_blanks_do() {
        let lines = checksum("select 1;\nselect 2;\n");
        for same in
            ["select 1;\r\nselect 2;", "\u{feff}select 1;select 2;", "select 1;\r\n\rselect 2;"]
        {
            assert_eq!(checksum(same), lines, "{same:?}");
        }
        assert_ne!(checksum("select 1; \nselect 2;"), lines);
        assert_eq!(checksum(""), 0);
        assert_eq!(checksum("select 1;\n"), -690_524_359);
    }
}
