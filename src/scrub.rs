//! Removes the secrets that this process knows from texts that others read: the log, `/health`, `tandem status`, errors. Tandem
//! puts no secret into them itself, but they quote pg_dump, clouds and the application.
//!
//! A secret stays known until the process ends: an old password may still appear in a later text.

use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// The text that replaces a secret.
pub const HIDDEN: &str = "********";

/// Shorter values are ordinary words: hiding them would make texts unreadable.
const LENGTH_MIN: usize = 8;
/// Passwords that are also ordinary words of Tandem's texts.
const WORDS: [&str; 3] = ["password", "postgres", "postgresql"];

/// The prefix of age's secret keys.
const AGE_KEY: &str = "AGE-SECRET-KEY-1";

/// The longest first, so that a secret inside another one leaves no rest.
static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Hide `secret` in every text from now on, also in the forms that JSON and URLs give it.
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
