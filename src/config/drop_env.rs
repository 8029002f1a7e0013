//! `workers.drop_env`: the variables that no child gets, as patterns such as `AWS_*`.

use globset::{Glob, GlobSet, GlobSetBuilder};

/// The patterns.
#[derive(Clone, Debug, Default)]
pub struct DropEnv(GlobSet);

impl DropEnv {
    /// Compile `patterns`. An invalid pattern matches nothing; [`unreadable`] reports it.
    pub(super) fn of(patterns: &[String]) -> Self {
        let mut set = GlobSetBuilder::new();
        for glob in patterns.iter().filter_map(|pattern| Glob::new(pattern).ok()) {
            set.add(glob);
        }
        Self(set.build().unwrap_or_default())
    }

    /// Whether the variable `name` is dropped.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

/// The first invalid pattern of `patterns`.
pub(super) fn unreadable(patterns: &[String]) -> Option<&String> {
    patterns.iter().find(|pattern| Glob::new(pattern).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_their_patterns_and_nothing_else() {
        let patterns = ["AWS_*", "SMTP_PASSWORD", "{AZURE,GOOGLE}_*", "["].map(str::to_owned);
        let dropped = DropEnv::of(&patterns);
        for (name, expected) in [
            ("AWS_SECRET_ACCESS_KEY", true),
            ("AWS_", true),
            ("MY_AWS_KEY", false),
            ("aws_secret_access_key", false),
            ("SMTP_PASSWORD", true),
            ("SMTP_PASSWORD_FILE", false),
            ("GOOGLE_APPLICATION_CREDENTIALS", true),
        ] {
            assert_eq!(dropped.matches(name), expected, "{name}");
        }
        assert_eq!(unreadable(&patterns), Some(&"[".to_owned()));
        assert!(!DropEnv::default().matches("A"));
    }
}
