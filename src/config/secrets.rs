//! The secrets among the settings, for the wall that takes them out of what others read.

use std::collections::BTreeSet;

use super::backup::Alarm;
use super::settings::Settings;
use crate::plan::Secret;
use crate::scrub;

/// A part of a web address as long as this is a token, and no word of its path.
const TOKEN_LENGTH_MIN: usize = 12;

impl Settings {
    /// Have the secrets among these settings taken out of every text from now on. It holds for the whole process: for the
    /// program, not for a library.
    pub fn hide_secrets(&self) {
        self.secrets().iter().for_each(|secret| scrub::learn(secret));
    }

    fn secrets(&self) -> BTreeSet<String> {
        let postgres = &self.postgres;
        let passwords = postgres.password.iter().chain(postgres.url.iter().filter_map(|url| url.password.as_ref()));
        // Whoever chose the role's name for its password hides nothing by it, and the name is in many texts.
        let names = [&postgres.user, &postgres.database, &self.name];
        let passwords = passwords.map(Secret::expose).filter(|password| !names.iter().any(|name| name == password));
        let mut secrets: BTreeSet<String> =
            passwords.chain(self.cloud_variables.secrets()).map(str::to_owned).collect();
        if let Some(Alarm::Webhook(address)) = &self.backup.on_failure {
            secrets.insert(address.expose().to_owned());
            secrets.extend(tokens(address.expose()));
        }
        secrets
    }
}

/// The parts of a web address that may let one in.
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
