//! Whether the password that was given is one that others would guess.

use super::Checker;
use crate::config::{PostgresMode, Purpose, Settings};

/// What documentation and examples write, and what is tried first.
const USUAL: [&str; 40] = [
    "admin",
    "app",
    "change",
    "changeit",
    "changeme",
    "database",
    "db",
    "default",
    "demo",
    "dev",
    "development",
    "docker",
    "example",
    "foobar",
    "guest",
    "hunter",
    "insecure",
    "letmein",
    "master",
    "mysecretpassword",
    "mypassword",
    "pass",
    "passwd",
    "password",
    "pg",
    "placeholder",
    "postgres",
    "postgresql",
    "production",
    "pw",
    "qwerty",
    "replaceme",
    "root",
    "secret",
    "superuser",
    "test",
    "todo",
    "user",
    "welcome",
    "yourpassword",
];
/// Fewer characters can be tried one after another by whoever has the stored verifier.
const LENGTH_MIN: usize = 12;
/// A password of fewer different characters is a pattern.
const DIFFERENT_MIN: usize = 5;

/// What is wrong with a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// It is tried first.
    Guessable,
    /// It has fewer characters than are safe.
    Short,
}

impl Checker<'_> {
    /// A password that others guess is told, and refused where others can try it.
    pub(super) fn password(&mut self, purpose: Purpose) {
        let postgres = &self.settings.postgres;
        let Some(password) = postgres.password.as_ref().filter(|_| postgres.mode == PostgresMode::Managed) else {
            return;
        };
        let Some(weakness) = weakness(password.expose(), self.settings).filter(|_| purpose == Purpose::Serve) else {
            return;
        };
        let origin = self.values.origin("postgres.password").clone();
        let what = match weakness {
            Weakness::Guessable => "the password is one that is tried first".to_owned(),
            Weakness::Short => format!("the password has fewer than {LENGTH_MIN} characters"),
        };
        let help = "leave it out, and Tandem makes one; or give a long random one: openssl rand -base64 32";
        if weakness == Weakness::Guessable && !postgres.listen.is_loopback() {
            let message = format!(
                "{}: {what}, and PostgreSQL listens on {}",
                origin.name_of("postgres.password"),
                postgres.listen
            );
            self.problems.add_to("postgres.password", &origin, message, Some(help.to_owned()));
        } else {
            let (name, place) = (origin.name_of("postgres.password"), origin.place());
            self.remarks.push(format!("{name} ({place}): {what}: {help}"));
        }
    }
}

/// What is wrong with `password`, if anything is.
pub fn weakness(password: &str, settings: &Settings) -> Option<Weakness> {
    let mut letters: Vec<char> = password.chars().collect();
    let length = letters.len();
    // Without the year, the number or the exclamation mark at its end, and what stands between words.
    let low = password.to_lowercase();
    let bare: String =
        low.trim_end_matches(|c: char| !c.is_alphabetic()).chars().filter(|c| c.is_alphanumeric()).collect();
    let names = [&settings.postgres.user, &settings.postgres.database, &settings.name].map(|name| name.to_lowercase());
    let is_name = names.iter().any(|name| *name == low || bare == *name.replace(['-', '_', '.'], ""));
    let runs = letters.windows(2).filter(|pair| (pair[1] as i64 - pair[0] as i64).abs() <= 1).count();
    letters.sort_unstable();
    letters.dedup();
    let is_pattern = letters.len() < DIFFERENT_MIN || runs * 10 >= length.saturating_sub(1) * 9;
    if is_name || is_pattern || bare.is_empty() && length < LENGTH_MIN || USUAL.contains(&bare.as_str()) {
        Some(Weakness::Guessable)
    } else {
        (length < LENGTH_MIN).then_some(Weakness::Short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Source};

    #[test]
    fn what_is_tried_first_is_guessable_and_what_is_random_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let environment = [("POSTGRES_USER".to_owned(), "ffe_user".to_owned())].into();
        let source = Source { cwd: temp.path().into(), purpose: Purpose::Test, environment, ..Source::default() };
        let loaded = config::load(&source).unwrap();
        let of = |password: &str| weakness(password, &loaded.settings);
        for password in [
            "changeme",
            "ChangeMe!",
            "change_me",
            "change-me-123",
            "password2026",
            "postgres",
            "mysecretpassword",
            "ffe_user",
            "FFE_USER1",
            "ffeuser",
            "123456",
            "12345678901234",
            "aaaaaaaaaaaaaaaa",
            "abababababab",
            "abcdefghijklmnop",
            "",
        ] {
            assert_eq!(of(password), Some(Weakness::Guessable), "{password}");
        }
        for password in ["k3Qz!pT", "tulip-9-oak"] {
            assert_eq!(of(password), Some(Weakness::Short), "{password}");
        }
        for password in
            ["correct horse battery staple", "W22ZaJ0SNY7soEsUEjb6gQ==", "81f0c2aa9d7e4b31", "пароль-долгий-один"]
        {
            assert_eq!(of(password), None, "{password}");
        }
    }
}
