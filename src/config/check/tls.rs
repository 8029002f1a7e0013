//! `postgres.tls`: whether its keys fit together, and whether data crosses a network in the clear.

use rustls::pki_types::ServerName;

use super::Checker;
use crate::config::PostgresMode;
use crate::config::tls::PostgresTls;

/// PostgreSQL's settings that `postgres.tls` is about.
const SETTINGS: [&str; 4] = ["ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file"];

impl Checker<'_> {
    pub(super) fn postgres_tls(&mut self) {
        let postgres = &self.settings.postgres;
        let word = self.values.word("postgres.tls");
        if postgres.mode == PostgresMode::Attach {
            if word != "off" {
                self.notices.push(
                    "postgres.tls has no effect: the server is not Tandem's own; sslmode in postgres.url asks for TLS"
                        .into(),
                );
            }
            return;
        }
        let has_cert = self.values.chosen("postgres.tls_cert");
        if word == "files" && !has_cert {
            let help = "name the certificate with its chain in postgres.tls_cert, and its key in postgres.tls_key";
            self.wrong("postgres.tls", "\"files\", but nothing says which", Some(help));
        }
        for key in ["postgres.tls_cert", "postgres.tls_key", "postgres.tls_ca"] {
            if word != "files" && self.values.chosen(key) {
                let help = "write postgres.tls = \"files\", or leave this out";
                self.wrong(key, &format!("has no effect with postgres.tls = \"{word}\""), Some(help));
            }
        }
        if word != "self-signed" && self.values.chosen("postgres.tls_names") {
            let help = "Tandem makes only the certificate of postgres.tls = \"self-signed\"";
            self.wrong("postgres.tls_names", &format!("has no effect with postgres.tls = \"{word}\""), Some(help));
        }
        if let PostgresTls::SelfSigned(names) = &postgres.tls
            && let Some(name) = names.iter().find(|name| ServerName::try_from(name.as_str()).is_err())
        {
            let message = format!("{name:?} is neither a name nor an address");
            self.wrong("postgres.tls_names", &message, Some("such as \"db.example.org\" or \"10.0.0.7\""));
        }
        if word != "off" {
            for (_, entry) in self.values.entries("postgres.settings").filter(|(name, _)| is_of_tls(name)) {
                let message = "PostgreSQL's ssl settings cannot be set here while postgres.tls is on";
                self.problems.add_to(&entry.key, &entry.origin, message, Some("use postgres.tls".into()));
            }
        }
        let by_hand = self.values.entries("postgres.settings").any(|(name, _)| name.eq_ignore_ascii_case("ssl"));
        if !postgres.listen.is_loopback() && word == "off" && !by_hand {
            self.notices.push(format!(
                "PostgreSQL listens on {} without TLS: what it sends can be read and changed on the way; write postgres.tls \
                 = \"self-signed\", or \"files\" with a certificate of yours",
                postgres.listen
            ));
        }
    }
}

fn is_of_tls(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.eq_ignore_ascii_case(name))
}
