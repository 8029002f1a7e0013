//! The last wall before a text that others read (the log, `/health`, `tandem status`, an error): the secrets that this
//! process knows are taken out of it. No text should hold one; but some are not Tandem's own words, such as what pg_dump,
//! a cloud or an application said.
//!
//! What is learnt once is known for as long as the process lives: a password that was changed may still stand in what
//! somebody says later.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// What stands in the place of a secret.
pub const HIDDEN: &str = "********";

/// Values as short as this are words, and hiding them would garble what is said.
const LENGTH_MIN: usize = 8;
/// Passwords that are also words of Tandem's own.
const WORDS: [&str; 3] = ["password", "postgres", "postgresql"];

/// What age's secret keys begin with.
const AGE_KEY: &str = "AGE-SECRET-KEY-1";

/// The longest first, so that none leaves the rest of another.
static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Take `secret` out of every text from now on, as it is and as JSON and URLs write it.
pub fn learn(secret: &str) {
    if secret.len() < LENGTH_MIN || WORDS.contains(&secret) {
        return;
    }
    let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
    let json = serde_json::Value::from(secret).to_string();
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    for form in [secret, &encoded, json.trim_matches('"')] {
        if !known.iter().any(|one| one == form) {
            known.push(form.to_owned());
        }
    }
    known.sort_by_key(|form| std::cmp::Reverse(form.len()));
}

/// `text` without secrets.
pub fn scrubbed(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    without(text, &known)
}

fn without<'a>(text: &'a str, known: &[String]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for secret in known {
        if text.contains(secret.as_str()) {
            text = Cow::Owned(text.replace(secret.as_str(), HIDDEN));
        }
    }
    while let Some(start) = text.find(AGE_KEY) {
        let length =
            AGE_KEY.len() + text[start + AGE_KEY.len()..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        text = Cow::Owned(format!("{}{HIDDEN}{}", &text[..start], &text[start + length..]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_secret_goes_and_no_ordinary_word() {
        // Long and odd: what is learnt here holds for all tests of this process.
        let secret = "7f3c\"41/b2 e9d8-of-the-scrub-test";
        learn(secret);
        learn("short");
        learn("postgres");
        let json = serde_json::json!({ "said": secret }).to_string();
        for (text, expected) in [
            (format!("password is {secret}, says pg_dump"), "password is ********, says pg_dump"),
            ("http://x/?t=7f3c%2241%2Fb2%20e9d8%2Dof%2Dthe%2Dscrub%2Dtest".to_owned(), "http://x/?t=********"),
            (json, "{\"said\":\"********\"}"),
            ("a short word of postgres".to_owned(), "a short word of postgres"),
            (
                "key AGE-SECRET-KEY-1QQPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L, AGE-SECRET-KEY-1X".to_owned(),
                "key ********, ********",
            ),
        ] {
            assert_eq!(scrubbed(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_inside_another_leaves_no_rest_of_it() {
        let known = ["https://hooks/abcdefgh-token".to_owned(), "abcdefgh".to_owned()];
        assert_eq!(without("POST https://hooks/abcdefgh-token", &known), "POST ********");
    }
}
