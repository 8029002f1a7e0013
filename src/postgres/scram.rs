//! SCRAM-SHA-256 verifiers, computed here (RFC 5802, RFC 7677), so that a password never crosses to the server: not into
//! its log, `pg_stat_activity` or `pg_stat_statements`. Pure, except for the salt.
//!
//! The crate `postgres-protocol` makes them with 4,096 rounds only, and cannot tell whether one belongs to a password.

use std::borrow::Cow;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

/// For passwords of 256 random bits: no dictionary holds them, so rounds only cost time, 2.4 ms for each connection.
pub const ITERATIONS_GENERATED: NonZeroU32 = NonZeroU32::MIN;
/// PostgreSQL's own default, for passwords that people choose.
pub const ITERATIONS_GIVEN: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

const SALT_LENGTH: usize = 16;

/// What `pg_authid.rolpassword` holds for `password`, under a fresh salt.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn verifier(password: &str, iterations: NonZeroU32) -> anyhow::Result<String> {
    let mut salt = [0; SALT_LENGTH];
    SysRng.try_fill_bytes(&mut salt)?;
    Ok(with_salt(password, iterations, &salt))
}

/// Whether `verifier` was made from `password`. Anything that is no SCRAM-SHA-256 verifier does not match.
pub fn matches(verifier: &str, password: &str) -> bool {
    let parts = || {
        let (iterations, rest) = verifier.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, _keys) = rest.split_once('$')?;
        Some((iterations.parse().ok()?, STANDARD.decode(salt).ok()?))
    };
    parts().is_some_and(|(iterations, salt)| with_salt(password, iterations, &salt) == verifier)
}

fn with_salt(password: &str, iterations: NonZeroU32, salt: &[u8]) -> String {
    // What cannot be prepared is used as it is: so do the server and libpq (RFC 5802's SASLprep is for text).
    let prepared = stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password));
    // `Hi()` of RFC 5802 is the first block of PBKDF2.
    let salted: [u8; 32] = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(prepared.as_bytes(), salt, iterations.get());
    let stored_key = Sha256::digest(keyed(&salted, b"Client Key"));
    let server_key = keyed(&salted, b"Server Key");
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    format!("SCRAM-SHA-256${iterations}:{}${}:{}", encode(salt), encode(&stored_key), encode(&server_key))
}

fn keyed(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length (RFC 2104)");
    mac.chain_update(message).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_matches_its_password_and_no_other() {
        for password in ["pencil", "p@ss:w/o?r#d%[]'\"\\", "naïve Ⅸ\u{a0}x", "\u{7}bell", ""] {
            let made = verifier(password, ITERATIONS_GIVEN).unwrap();
            assert!(made.starts_with("SCRAM-SHA-256$4096:"));
            assert!(matches(&made, password), "{password:?}");
            assert!(!matches(&made, "other"));
        }
        assert!(matches(&verifier("x", ITERATIONS_GENERATED).unwrap(), "x"));
        assert!(!matches("md5abc", "x") && !matches("SCRAM-SHA-256$0:$:", "x"));
    }

    /// RFC 7677, section 3: user `user`, password `pencil`, and the server's signature that its keys give.
    #[test]
    fn the_keys_are_those_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let made = with_salt("pencil", ITERATIONS_GIVEN, &salt);
        let server_key = STANDARD.decode(made.rsplit(':').next().unwrap()).unwrap();
        let message = b"n=user,r=rOprNGfwEbeRWgbNEkqO,\
            r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
            c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = STANDARD.encode(keyed(&server_key, message));
        assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }
}
