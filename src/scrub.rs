//! Removes the secrets that this process knows from texts that others read: the log, `/health`, `tandem status`, errors. Tandem
//! puts no secret into them itself, but they quote pg_dump, clouds and the application.
//!
//! A secret stays known until the process ends: an old password may still appear in a later text.

use std::borrow::Cow;
use std::sync::{LazyLock, PoisonError, RwLock};

use regex::Regex;

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

/// What stands before a password in SQL, in a connection string and in a URL, and the password. A quote that is escaped in
/// one kind of text and ends another is taken for escaped: rather too much is hidden than too little.
static PASSWORDS: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    let text = r"'(?:''|\\.|[^'\\])*'?|\$\w*\$.*?(?:\$\w*\$|\z)";
    let space = r"(?:\s|/\*.*?\*/|--[^\n]*\n)*";
    [
        // Inside a text of SQL quotes are doubled.
        r"(?is)\b((?:password|passwd)\s*=\s*)(?:''.*?''|[^\s'\x22]+)".to_owned(),
        format!(r"(?is)\b((?:password|passwd){space}=?{space}(?:E|U&)?)(?:{text})"),
        r"(?i)(\w://[^\s:/@']*:)[^\s@/']+(@)".to_owned(),
    ]
    .map(|pattern| Regex::new(&pattern).expect("a constant pattern, compiled by a test"))
});

/// `text`, which may quote statements and connection strings, without the passwords in them.
pub fn without_passwords(text: &str) -> Cow<'_, str> {
    let [connection, statement, url] = &*PASSWORDS;
    let text = connection.replace_all(text, format!("${{1}}{HIDDEN}"));
    let text = statement.replace_all(&text, format!("${{1}}'{HIDDEN}'")).into_owned();
    url.replace_all(&text, format!("${{1}}{HIDDEN}${{2}}")).into_owned().into()
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
    fn passwords_of_statements_are_hidden_in_every_way_of_writing_them() {
        let table = [
            ("ALTER ROLE a PASSWORD 'x y';", "ALTER ROLE a PASSWORD '********';"),
            (
                "alter role a with encrypted password E'it\\'s' valid until 'z'",
                "alter role a with encrypted password E'********' valid until 'z'",
            ),
            ("ALTER ROLE a PASSWORD /* so */ -- and\n 'it''s'", "ALTER ROLE a PASSWORD /* so */ -- and\n '********'"),
            ("ALTER ROLE a PASSWORD $$x'y$$;", "ALTER ROLE a PASSWORD '********';"),
            ("ALTER ROLE a PASSWORD $p$x$p$ LOGIN", "ALTER ROLE a PASSWORD '********' LOGIN"),
            ("ALTER ROLE a PASSWORD 'cut off", "ALTER ROLE a PASSWORD '********'"),
            ("OPTIONS (user 'u', password 'x')", "OPTIONS (user 'u', password '********')"),
            ("CONNECTION 'host=h password=x dbname=d'", "CONNECTION 'host=h password=******** dbname=d'"),
            ("CONNECTION 'password=''x y'' host=h'", "CONNECTION 'password=******** host=h'"),
            ("dblink('postgresql://u:x@h/d')", "dblink('postgresql://u:********@h/d')"),
            ("ALTER ROLE a PASSWORD NULL", "ALTER ROLE a PASSWORD NULL"),
            ("WHERE name = 'a' AND password = 'x'", "WHERE name = 'a' AND password = '********'"),
            ("SELECT password FROM users WHERE name = 'x'", "SELECT password FROM users WHERE name = 'x'"),
            ("at 12:30:05 postgres://h/d?x=1@2", "at 12:30:05 postgres://h/d?x=1@2"),
        ];
        for (text, expected) in table {
            assert_eq!(without_passwords(text), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_inside_another_leaves_no_rest_of_it() {
        let known = ["https://hooks/abcdefgh-token".to_owned(), "abcdefgh".to_owned()];
        assert_eq!(without("POST https://hooks/abcdefgh-token", &known), "POST ********");
    }
}
