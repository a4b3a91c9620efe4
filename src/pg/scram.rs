//! SCRAM-SHA-256 verifiers, so that no password reaches a server in clear.
//!
//! A verifier is what the server itself would store: it goes into `create role … password '…'` as it
//! is, and into no log as a secret (RFC 5802, RFC 7677; the manual on `pg_authid.rolpassword`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::{Digest, Sha256};

/// What the server uses where `scram_iterations` is not set.
const ITERATIONS: u32 = 4096;
/// A verifier with more is not ours to check: comparing must not become a way to stall the program.
const MAX_ITERATIONS: u32 = 1_000_000;
const SALT_BYTES: usize = 16;

/// The verifier of `password`, with a salt of its own.
///
/// The password goes through SASLprep as the server and its clients do it: one that the profile
/// prohibits is taken byte by byte.
pub fn verifier(password: &str) -> String {
    let mut salt = [0_u8; SALT_BYTES];
    rand::rng().fill(&mut salt);
    with_salt(password, &salt, ITERATIONS)
}

/// Whether `text` is a stored password already (SCRAM or md5) and not a password in clear.
pub fn is_stored_form(text: &str) -> bool {
    let md5 = text
        .strip_prefix("md5")
        .is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    md5 || parse(text).is_some()
}

/// Whether `stored` (a `rolpassword`) is a verifier of `password`. Never true for md5.
pub fn matches(password: &str, stored: &str) -> bool {
    let Some((iterations, salt)) = parse(stored) else { return false };
    iterations <= MAX_ITERATIONS && with_salt(password, &salt, iterations) == stored
}

/// Iterations and salt of a well-formed verifier.
fn parse(text: &str) -> Option<(u32, Vec<u8>)> {
    let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
    let (iterations, salt) = parameters.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let is_key = |key: &str| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 32);
    if !is_key(stored_key) || !is_key(server_key) {
        return None;
    }
    Some((iterations.parse().ok().filter(|count| *count > 0)?, STANDARD.decode(salt).ok()?))
}

fn with_salt(password: &str, salt: &[u8], iterations: u32) -> String {
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    let mut salted = [0_u8; 32];
    pbkdf2::pbkdf2_hmac::<Sha256>(prepared.as_bytes(), salt, iterations, &mut salted);
    let stored_key = Sha256::digest(keyed(&salted, b"Client Key"));
    let server_key = keyed(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    )
}

fn keyed(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::{is_stored_form, matches, verifier, with_salt};

    #[test]
    fn a_verifier_has_the_form_that_the_server_stores() {
        let text = verifier("pencil");
        assert!(text.starts_with("SCRAM-SHA-256$4096:"), "{text}");
        assert!(is_stored_form(&text));
        assert!(matches("pencil", &text));
        assert!(!matches("Pencil", &text));
        assert_ne!(text, verifier("pencil"), "each has a salt of its own");
    }

    /// The verifier of `pencil` that PostgreSQL's own password tests log in with.
    #[test]
    fn a_known_salt_gives_the_known_keys() {
        let salt = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            "W22ZaJ0SNY7soEsUEjb6gQ==",
        )
        .expect("constant base64");
        let text = with_salt("pencil", &salt, 4096);
        assert_eq!(
            text,
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn a_password_is_prepared_or_taken_as_it_is() {
        // U+00AA maps to `a`, a non-breaking space to a space; U+0007 is prohibited.
        assert!(matches("a b", &verifier("\u{aa}\u{a0}b")));
        assert!(matches("bell\u{7}", &verifier("bell\u{7}")));
    }

    #[test]
    fn what_is_no_stored_form_is_a_password() {
        for text in ["", "fake_pass", "md5abc", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:x$y:z"] {
            assert!(!is_stored_form(text), "{text}");
        }
        assert!(is_stored_form("md5acbd18db4cc2f85cedef654fccc4a4d8"));
    }
}
