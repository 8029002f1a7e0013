//! Collects the secrets of the settings for `scrub`, which removes them from logs, reports and errors.

use std::collections::BTreeSet;

use super::backup::Alarm;
use super::settings::Settings;
use crate::plan::Secret;
use crate::scrub;

/// A path segment or query value of at least this length counts as a token.
const TOKEN_LENGTH_MIN: usize = 12;

impl Settings {
    /// Register the secrets of these settings with `scrub`. This affects the whole process: the program calls it, the library
    /// does not.
    pub fn hide_secrets(&self) {
        self.secrets().iter().for_each(|secret| scrub::learn(secret));
    }

    fn secrets(&self) -> BTreeSet<String> {
        let postgres = &self.postgres;
        let passwords = postgres.password.iter().chain(postgres.url.iter().filter_map(|url| url.password.as_ref()));
        // A password that equals the role's name would hide that name in every text.
        let names = [&postgres.user, &postgres.database, &self.name];
        let passwords = passwords.map(Secret::expose).filter(|password| !names.iter().any(|name| name == password));
        let mut secrets: BTreeSet<String> =
            passwords.chain(self.cloud_variables.secrets()).map(str::to_owned).collect();
        secrets.extend(self.health.page_password.iter().map(|password| password.expose().to_owned()));
        if let Some(Alarm::Webhook(address)) = &self.backup.on_failure {
            secrets.insert(address.expose().to_owned());
            secrets.extend(tokens(address.expose()));
        }
        secrets
    }
}

/// The parts of a web address that may be credentials.
fn tokens(address: &str) -> Vec<String> {
    let Ok(url) = url::Url::parse(address) else { return Vec::new() };
    let path = url.path_segments().into_iter().flatten().map(str::to_owned);
    let query = url.query_pairs().map(|(_, value)| value.into_owned());
    let parts = path.chain(query).filter(|part| part.len() >= TOKEN_LENGTH_MIN);
    parts.chain(url.password().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_of_a_web_address_are_found() {
        assert_eq!(
            tokens("https://ann:passw0rd@hooks.example.org/services/T0123456789AB/short?key=abcdefabcdef&v=1"),
            ["T0123456789AB", "abcdefabcdef", "passw0rd"]
        );
        assert!(tokens("no address").is_empty());
    }
}
