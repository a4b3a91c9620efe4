//! What quoted text means once quotes and escapes are resolved.

use std::borrow::Cow;

/// Whether backslashes in a string are escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escapes {
    None,
    Backslash,
}

/// The body of `"…"`.
pub(super) fn identifier(body: &str) -> Cow<'_, str> {
    undouble(body, '"')
}

/// The body of one `'…'`.
pub(super) fn string(body: &str, escapes: Escapes) -> Cow<'_, str> {
    match escapes {
        Escapes::Backslash if body.contains('\\') => Cow::Owned(backslashes(body)),
        Escapes::None | Escapes::Backslash => undouble(body, '\''),
    }
}

fn undouble(body: &str, quote: char) -> Cow<'_, str> {
    if !body.contains(quote) {
        return Cow::Borrowed(body);
    }
    let mut doubled = [0; 2];
    doubled.fill(quote as u8);
    let doubled = std::str::from_utf8(&doubled).unwrap_or_default();
    Cow::Owned(body.replace(doubled, &quote.to_string()))
}

fn backslashes(body: &str) -> String {
    // Octal and hexadecimal escapes give bytes, which together must be UTF-8.
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\'' {
            rest.next_if_eq(&'\'');
            bytes.push(b'\'');
            continue;
        }
        let escaped = if c == '\\' { rest.next() } else { None };
        let Some(escaped) = escaped else {
            push(&mut bytes, c);
            continue;
        };
        match escaped {
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0C),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            '0'..='7' => {
                let first = escaped.to_digit(8).unwrap_or(0);
                let code = digits(&mut rest, 8, 2)
                    .map_or(first, |(code, count)| first * 8_u32.pow(count) + code);
                bytes.push((code & 0xFF) as u8);
            }
            'x' => match digits(&mut rest, 16, 2) {
                Some((code, _)) => bytes.push((code & 0xFF) as u8),
                None => bytes.push(b'x'),
            },
            'u' | 'U' => {
                let length = if escaped == 'u' { 4 } else { 8 };
                let code = digits(&mut rest, 16, length).map(|(code, _)| code);
                push(&mut bytes, code.map_or(escaped, with_surrogate(&mut rest, length)));
            }
            other => push(&mut bytes, other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Up to `most` digits: their value and how many they were.
fn digits(rest: &mut Rest<'_>, radix: u32, most: u32) -> Option<(u32, u32)> {
    let (mut code, mut count) = (0_u32, 0);
    while count < most
        && let Some(digit) = rest.peek().and_then(|c| c.to_digit(radix))
    {
        code = code.wrapping_mul(radix).wrapping_add(digit);
        count += 1;
        rest.next();
    }
    (count > 0).then_some((code, count))
}

/// A code point; the first half of a surrogate pair is joined with the `\uXXXX` after it.
fn with_surrogate<'r>(rest: &'r mut Rest<'_>, length: u32) -> impl FnOnce(u32) -> char + 'r {
    move |code| {
        let mut ahead = rest.clone();
        if (0xD800..0xDC00).contains(&code)
            && ahead.next() == Some('\\')
            && matches!(ahead.next(), Some('u' | 'U'))
            && let Some((low @ 0xDC00..0xE000, _)) = digits(&mut ahead, 16, length)
        {
            *rest = ahead;
            return char::from_u32(pair(code, low)).unwrap_or(char::REPLACEMENT_CHARACTER);
        }
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

fn pair(high: u32, low: u32) -> u32 {
    0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)
}

/// Resolves `\XXXX` and `\+XXXXXX` of a `U&` form, with `escape` for the backslash.
pub(super) fn unicode(body: Cow<'_, str>, escape: char) -> Cow<'_, str> {
    if !body.contains(escape) {
        return body;
    }
    let mut text = String::with_capacity(body.len());
    let mut high = None;
    let mut rest = body.chars().peekable();
    while let Some(c) = rest.next() {
        if c != escape || rest.next_if_eq(&escape).is_some() {
            text.push(c);
            continue;
        }
        let length = if rest.next_if_eq(&'+').is_some() { 6 } else { 4 };
        let Some((code, _)) = digits(&mut rest, 16, length) else {
            text.push(c);
            continue;
        };
        match (high.take(), code) {
            (None, 0xD800..0xDC00) => high = Some(code),
            (Some(first), 0xDC00..0xE000) => {
                text.push(char::from_u32(pair(first, code)).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            (_, code) => text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }
    Cow::Owned(text)
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
