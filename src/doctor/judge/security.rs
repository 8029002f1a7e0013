//! Who gets in: passwords, addresses, rules, certificates. Pure.

use std::net::IpAddr;

use super::{Judged, few, seen};
use crate::config::{PostgresMode, Settings};
use crate::doctor::facts::{Facts, Unseen};
use crate::doctor::verdict::Finding;
use crate::plan::{DatabaseUrl, Place};

/// Passwords that are tried first. `changeme` is the one of many a guide and `.env.example`.
const COMMON: [&str; 20] = [
    "changeme",
    "change_me",
    "change-me",
    "changeit",
    "password",
    "passw0rd",
    "postgres",
    "postgresql",
    "secret",
    "admin",
    "root",
    "test",
    "example",
    "letmein",
    "qwerty",
    "123456",
    "12345678",
    "123456789",
    "default",
    "app",
];
/// A password that is shorter is tried through by a program.
const LENGTH_MIN: usize = 12;
/// Days before the end of a certificate.
const DAYS_WARNED: i64 = 14;
const DAYS_TOLD: i64 = 30;
/// sslmodes under which nobody on the way reads along.
const ENCRYPTED: [&str; 3] = ["require", "verify-ca", "verify-full"];

pub fn passwords(facts: &Facts) -> Judged {
    let settings = seen(&facts.settings)?;
    let postgres = &settings.postgres;
    let given = postgres.password.as_ref().or_else(|| postgres.url.as_ref()?.password.as_ref());
    let Some(given) = given else {
        return Ok(vec![Finding::ok("Tandem made the password of the application's role itself")]);
    };
    let open = is_open(settings);
    let Some(why) = weakness(given.expose(), &[&postgres.user, &postgres.database, &settings.name]) else {
        return Ok(Vec::new());
    };
    let text = format!("the password of the database {why}");
    let next = match postgres.mode {
        PostgresMode::Managed => "take it out of .env and tandem.toml: Tandem then makes one of 256 random bits itself",
        PostgresMode::Attach => "give the role a long random one on its server (`openssl rand -base64 32`)",
    };
    Ok(vec![match open {
        true => {
            Finding::error(format!("{text}, and the server listens on other than this machine's own addresses"), next)
        }
        false => Finding::warning(text, next),
    }])
}

/// Whether others can reach the server.
fn is_open(settings: &Settings) -> bool {
    match (&settings.postgres.mode, &settings.postgres.url) {
        (PostgresMode::Attach, Some(url)) => !is_near(url),
        _ => !settings.postgres.listen.is_loopback(),
    }
}

/// Why a password is weak, as the end of a sentence.
fn weakness(password: &str, names: &[&str]) -> Option<String> {
    let plain = password.to_lowercase();
    if password.is_empty() {
        return Some("is empty".to_owned());
    }
    if COMMON.contains(&plain.as_str()) {
        return Some("is one of those that everybody tries first".to_owned());
    }
    if names.iter().any(|name| name.eq_ignore_ascii_case(password)) {
        return Some("is a name that everybody sees".to_owned());
    }
    let length = password.chars().count();
    let one_kind = password.chars().all(|letter| letter.is_ascii_digit());
    match length {
        _ if one_kind => Some("is a number".to_owned()),
        length if length < LENGTH_MIN => Some(format!("has {length} letters only")),
        _ => None,
    }
}

fn is_near(url: &DatabaseUrl) -> bool {
    url.host.starts_with('/') || url.host == "localhost" || url.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

pub fn access(facts: &Facts) -> Judged {
    let of_server = facts.server.as_ref().ok().and_then(|server| server.hba.as_ref().ok());
    let rules = match of_server {
        Some(rules) => rules,
        None => seen(&facts.hba)?,
    };
    let words = |rule: &String| rule.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let trusting: Vec<&String> =
        rules.iter().filter(|rule| words(rule).iter().skip(3).any(|word| word == "trust")).collect();
    let weak: Vec<String> = rules
        .iter()
        .filter(|rule| words(rule).iter().skip(4).any(|word| word == "password" || word == "md5"))
        .cloned()
        .collect();
    let next =
        "Tandem writes pg_hba.conf at every start: `tandem stop` and `tandem up` take it away, and find who writes it";
    let mut all: Vec<Finding> = trusting
        .into_iter()
        .map(|rule| match rule.starts_with("local") {
            true => Finding::warning(
                format!("pg_hba.conf lets every user of this machine in without a password: {rule}"),
                next,
            ),
            false => Finding::error(format!("pg_hba.conf lets clients in without a password: {rule}"), next),
        })
        .collect();
    if !weak.is_empty() {
        all.push(Finding::warning(
            format!("pg_hba.conf takes passwords that can be read on the way: {}", few(&weak)),
            next,
        ));
    }
    Ok(all)
}

pub fn listening(facts: &Facts) -> Judged {
    let settings = seen(&facts.settings)?;
    let mut all = Vec::new();
    let postgres = &settings.postgres;
    match (&postgres.mode, &postgres.url) {
        (PostgresMode::Attach, Some(url)) => {
            let is_encrypted = url.parameter("sslmode").is_some_and(|mode| ENCRYPTED.contains(&mode));
            if !is_near(url) && !is_encrypted {
                let text = format!("the connection to {} need not be encrypted, nor its server proven", url.host);
                all.push(Finding::warning(text, "add ?sslmode=verify-full to the URL, with sslrootcert if need be"));
            }
        }
        _ if !postgres.listen.is_loopback() => {
            let has_tls = facts.server.as_ref().ok().and_then(|server| server.settings.as_ref().ok());
            let has_tls = has_tls.is_some_and(|settings| settings.get("ssl").is_some_and(|ssl| ssl == "on"));
            let given = postgres.settings.iter().any(|(name, value)| name.eq_ignore_ascii_case("ssl") && is_on(value));
            if !has_tls && !given {
                let text =
                    format!("PostgreSQL listens on {} without TLS: who is on the way reads along", postgres.listen);
                all.push(Finding::warning(text, "set postgres.listen = \"127.0.0.1\", or give it TLS"));
            }
        }
        _ => {}
    }
    let is_plain = settings.workers.serving.tls.is_none();
    for place in settings.workers.listen.iter().filter(|place| is_plain && is_far(place)) {
        let text = format!("the application is served at {place} without TLS");
        all.push(Finding::notice(text).then("right behind a proxy that has it; else set workers.tls_cert and tls_key"));
    }
    if is_far(&settings.health.listen) {
        let text = format!("the health port is open to other machines ({})", settings.health.listen);
        all.push(Finding::notice(text).then("right for a probe that comes from elsewhere; else set health.listen"));
    }
    Ok(all)
}

fn is_on(value: &str) -> bool {
    matches!(value.to_lowercase().as_str(), "on" | "true" | "yes" | "1")
}

fn is_far(place: &Place) -> bool {
    match place {
        Place::Every(_) => true,
        Place::At(address) => !address.ip().is_loopback(),
        Place::Unix(_) => false,
    }
}

pub fn certificates(facts: &Facts) -> Judged {
    let certificate = seen(&facts.certificate)?;
    let mut all: Vec<Finding> =
        certificate.wrong.iter().map(|(what, help)| Finding::error(what.clone(), help.clone())).collect();
    if let Some(end) = certificate.not_after {
        let end = chrono::DateTime::<chrono::Utc>::from(end);
        let days = (end - facts.now).num_days();
        let text = format!("the certificate of the application ends in {days} days, on {}", end.format("%F"));
        let next = "renew it, and `tandem reload`";
        all.push(match days {
            // It is told above, with what is wrong.
            days if days < 0 => Finding::error("the certificate of the application has ended", next),
            days if days < DAYS_WARNED => Finding::warning(text, next),
            days if days < DAYS_TOLD => Finding::notice(text).then(next),
            _ => Finding::ok(text),
        });
    }
    Ok(all)
}

pub fn superuser(facts: &Facts) -> Judged {
    let server = match &facts.server {
        Ok(server) => server,
        Err(unseen) => return Err(unseen.clone()),
    };
    match seen(&server.replies_superuser)? {
        false => Ok(Vec::new()),
        true => {
            let text = "the application's role is a superuser: an attacker who controls the application has the server";
            let next = "as another superuser: ALTER ROLE … NOSUPERUSER";
            if server.is_own { Ok(vec![Finding::warning(text, next)]) } else { Err(Unseen::nothing(text)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_that_are_tried_first_are_weak() {
        for (password, why) in [
            ("changeme", Some("tries first")),
            ("CHANGEME", Some("tries first")),
            ("", Some("is empty")),
            ("shop", Some("is a name")),
            ("384629847112", Some("is a number")),
            ("k8#fQ2", Some("has 6 letters")),
            ("k8#fQ2-rr81!zP", None),
        ] {
            let found = weakness(password, &["shop"]);
            assert_eq!(found.is_some(), why.is_some(), "{password}: {found:?}");
            assert!(found.unwrap_or_default().contains(why.unwrap_or_default()), "{password}");
        }
    }

    #[test]
    fn what_is_near_and_what_is_far() {
        let url = |text| DatabaseUrl::parse(text).unwrap();
        assert!(is_near(&url("postgresql://a@localhost/b")) && is_near(&url("postgresql://a@[::1]/b")));
        assert!(is_near(&url("postgresql://a@/b?host=/run/postgresql")) && !is_near(&url("postgresql://a@db/b")));
        assert!(is_far(&Place::Every(1)) && is_far(&Place::At("0.0.0.0:1".parse().unwrap())));
        assert!(!is_far(&Place::At("127.0.0.1:1".parse().unwrap())));
    }
}
