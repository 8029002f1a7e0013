//! Hides passwords in the texts of statements: `pg_stat_activity` and `pg_stat_statements` keep `ALTER ROLE … PASSWORD '…'` as it was
//! typed. Pure.

use std::borrow::Cow;

use crate::scrub::{HIDDEN, scrubbed};

const WORD: &str = "password";

/// `query` without the literals that follow the word PASSWORD, and without the secrets that this process knows.
pub fn masked(query: &str) -> Cow<'_, str> {
    let lower = query.to_ascii_lowercase();
    let mut kept = String::new();
    // ASCII letters alone change their case, so places are the same in both.
    let (mut from, mut looked) = (0, 0);
    while let Some(found) = lower[looked..].find(WORD) {
        looked += found + WORD.len();
        if let Some((begin, end)) = literal(query, looked) {
            kept.push_str(&query[from..begin]);
            kept.push_str(&format!("'{HIDDEN}'"));
            (from, looked) = (end, end);
        }
    }
    if from == 0 {
        return scrubbed(query);
    }
    kept.push_str(&query[from..]);
    Cow::Owned(scrubbed(&kept).into_owned())
}

/// Where the value begins and ends that follows at `at` in `query`: a literal after blanks, an equals sign or a colon; or, as in a
/// connection string, a bare word right after the equals sign. One that is cut off ends with the text.
fn literal(query: &str, at: usize) -> Option<(usize, usize)> {
    let rest = &query[at..];
    let ends = |letter: char| letter.is_whitespace() || "'\"(),;".contains(letter);
    if let Some(bare) = rest.strip_prefix('=')
        && !bare.starts_with(|letter: char| ends(letter) || letter == '$')
    {
        let length = bare.find(ends).unwrap_or(bare.len());
        return Some((at + 1, at + 1 + length));
    }
    let begin = rest.find(|letter: char| !letter.is_whitespace() && !"=:eE'".contains(letter) || letter == '\'')?;
    let opened = rest[begin..].strip_prefix('\'')?;
    let mut letters = opened.char_indices().peekable();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            '\'' if letters.peek().is_some_and(|(_, next)| *next == '\'') => drop(letters.next()),
            '\'' => return Some((at + begin, at + begin + 1 + place + 1)),
            _ => {}
        }
    }
    Some((at + begin, query.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hidden_however_it_is_written() {
        for (query, shown) in [
            ("SELECT 1", "SELECT 1"),
            ("ALTER ROLE app PASSWORD 'it''s' VALID UNTIL 'x'", "ALTER ROLE app PASSWORD '********' VALID UNTIL 'x'"),
            ("alter role app encrypted password E'a\\'b'", "alter role app encrypted password E'********'"),
            ("CREATE ROLE ä PASSWORD   'cut of", "CREATE ROLE ä PASSWORD   '********'"),
            (
                "CREATE USER MAPPING … OPTIONS (user 'u', password 'p')",
                "CREATE USER MAPPING … OPTIONS (user 'u', password '********')",
            ),
            ("SELECT password FROM users WHERE name = 'x'", "SELECT password FROM users WHERE name = 'x'"),
            ("UPDATE users SET password = 'p', b = 'q'", "UPDATE users SET password = '********', b = 'q'"),
            (
                "ALTER ROLE a PASSWORD 'p'; ALTER ROLE b PASSWORD 'q'",
                "ALTER ROLE a PASSWORD '********'; ALTER ROLE b PASSWORD '********'",
            ),
            ("SELECT dblink('host=h password=p user=u')", "SELECT dblink('host=h password='********' user=u')"),
            ("UPDATE users SET password=$1, b=$2", "UPDATE users SET password=$1, b=$2"),
            ("password", "password"),
        ] {
            assert_eq!(masked(query), shown, "{query}");
        }
    }
}
