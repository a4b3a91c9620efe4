//! Bytes of a script as text, strictly: what does not decode is refused with its place.
//!
//! Names of encodings are Java's and IANA's. ISO-8859-1 and the bytes that windows-1252 leaves
//! undefined follow Java, not the web's reading of them.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// Why bytes are no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("`{0}` is not an encoding known here")]
    UnknownEncoding(String),
    #[error("not {encoding} (byte {offset})")]
    Malformed { encoding: String, offset: usize },
}

/// Bytes that windows-1252 gives no character to; the web's tables map them to control characters.
const UNDEFINED_1252: [u8; 5] = [0x81, 0x8D, 0x8F, 0x90, 0x9D];

/// `bytes` in the encoding called `name`; a byte order mark of UTF-8 is kept (checksums skip it).
///
/// # Errors
/// [`DecodeError`].
pub fn decode(bytes: Vec<u8>, name: &str) -> Result<String, DecodeError> {
    let upper = name.to_ascii_uppercase();
    let found: &'static Encoding = match upper.as_str() {
        "UTF-8" | "UTF8" => return utf8(bytes),
        "ISO-8859-1" | "ISO8859_1" | "LATIN1" | "ISO_8859_1" | "8859_1" => {
            return Ok(bytes.into_iter().map(char::from).collect());
        }
        "US-ASCII" | "ASCII" => {
            return match bytes.iter().position(|byte| !byte.is_ascii()) {
                Some(offset) => Err(malformed(name, offset)),
                None => utf8(bytes),
            };
        }
        // Without a mark Java takes UTF-16 as big-endian.
        "UTF-16" | "UTF16" => match bytes.get(..2) {
            Some([0xFF, 0xFE]) => UTF_16LE,
            _ => UTF_16BE,
        },
        "CP1252" => WINDOWS_1252,
        _ => Encoding::for_label_no_replacement(name.as_bytes())
            .ok_or_else(|| DecodeError::UnknownEncoding(name.to_owned()))?,
    };
    if found == WINDOWS_1252
        && let Some(offset) = bytes.iter().position(|byte| UNDEFINED_1252.contains(byte))
    {
        return Err(malformed(name, offset));
    }
    if let Some(text) = found.decode_without_bom_handling_and_without_replacement(&bytes) {
        return Ok(text.into_owned());
    }
    // The decoder does not say where; the longest prefix that decodes ends there. The search costs
    // nothing that matters: it runs once, before an error.
    let offset = (0..bytes.len())
        .rev()
        .find(|&end| {
            found.decode_without_bom_handling_and_without_replacement(&bytes[..end]).is_some()
        })
        .unwrap_or(0);
    Err(malformed(name, offset))
}

/// `bytes` in the encoding that their mark names, else UTF-8, else ISO-8859-1, which takes anything.
///
/// # Errors
/// [`DecodeError::Malformed`] for UTF-16 with half a character.
pub fn detect(bytes: Vec<u8>) -> Result<String, DecodeError> {
    match bytes.get(..2) {
        Some([0xFE, 0xFF] | [0xFF, 0xFE]) => decode(bytes, "UTF-16"),
        _ if std::str::from_utf8(&bytes).is_ok() => utf8(bytes),
        _ => decode(bytes, "ISO-8859-1"),
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, DecodeError> {
    String::from_utf8(bytes)
        .map_err(|error| malformed(UTF_8.name(), error.utf8_error().valid_up_to()))
}

fn malformed(encoding: &str, offset: usize) -> DecodeError {
    DecodeError::Malformed { encoding: encoding.to_owned(), offset }
}

#[cfg(test)]
mod tests {
    use super::{DecodeError, decode, detect};

    #[test]
    fn what_does_not_decode_is_refused_where_it_begins() {
        let place = |bytes: &[u8], name: &str| match decode(bytes.to_vec(), name) {
            Err(DecodeError::Malformed { offset, .. }) => offset,
            other => panic!("{other:?}"),
        };
        assert_eq!(place(b"ab\xE9c", "UTF-8"), 2);
        assert_eq!(place(b"ab\x81", "windows-1252"), 2);
        assert_eq!(place(b"a\0b", "UTF-16LE"), 2);
        assert_eq!(place(b"\xE9", "US-ASCII"), 0);
        assert!(matches!(decode(vec![], "klingon"), Err(DecodeError::UnknownEncoding(_))));
    }

    #[test]
    fn a_mark_decides_before_the_guess() {
        assert_eq!(detect(b"\xFE\xFF\0a".to_vec()).as_deref(), Ok("\u{feff}a"));
        assert_eq!(detect(b"\xC3\xA9".to_vec()).as_deref(), Ok("é"));
        assert_eq!(detect(b"\xE9".to_vec()).as_deref(), Ok("é"));
    }
}
