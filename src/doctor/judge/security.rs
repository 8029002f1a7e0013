//! Who gets in: passwords, addresses, rules, certificates. Pure.

use std::net::IpAddr;

use chrono::{DateTime, Utc};

use super::{Judged, few, seen};
use crate::config::{PostgresMode, Settings, Weakness, weakness};
use crate::doctor::facts::{Certificate, Facts, Unseen};
use crate::doctor::verdict::Finding;
use crate::plan::{DatabaseUrl, Place};

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
    let why = match weakness(given.expose(), settings) {
        None => return Ok(Vec::new()),
        Some(Weakness::Guessable) => "is one that is tried first",
        Some(Weakness::Short) => "is so short that all of its kind can be tried",
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
            if !has_tls && !given && postgres.tls.is_off() {
                let text =
                    format!("PostgreSQL listens on {} without TLS: who is on the way reads along", postgres.listen);
                all.push(Finding::warning(
                    text,
                    "set postgres.tls = \"self-signed\", or postgres.listen = \"127.0.0.1\"",
                ));
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
    Ok(seen(&facts.certificates)?.iter().flat_map(|certificate| of_certificate(certificate, facts.now)).collect())
}

fn of_certificate(certificate: &Certificate, now: DateTime<Utc>) -> Vec<Finding> {
    let mut all: Vec<Finding> =
        certificate.wrong.iter().map(|(what, help)| Finding::error(what.clone(), help.clone())).collect();
    if let Some(end) = certificate.not_after {
        let (whose, end) = (certificate.whose, DateTime::<Utc>::from(end));
        let days = (end - now).num_days();
        let text = format!("the certificate of {whose} ends in {days} days, on {}", end.format("%F"));
        let next = "renew it, and `tandem reload`; one that Tandem made itself, the next start or reload renews";
        all.push(match days {
            _ if end < now => Finding::error(format!("the certificate of {whose} has ended"), next),
            days if days < DAYS_WARNED => Finding::warning(text, next),
            days if days < DAYS_TOLD => Finding::notice(text).then(next),
            _ => Finding::ok(text),
        });
    }
    all
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
    fn what_is_near_and_what_is_far() {
        let url = |text| DatabaseUrl::parse(text).unwrap();
        assert!(is_near(&url("postgresql://a@localhost/b")) && is_near(&url("postgresql://a@[::1]/b")));
        assert!(is_near(&url("postgresql://a@/b?host=/run/postgresql")) && !is_near(&url("postgresql://a@db/b")));
        assert!(is_far(&Place::Every(1)) && is_far(&Place::At("0.0.0.0:1".parse().unwrap())));
        assert!(!is_far(&Place::At("127.0.0.1:1".parse().unwrap())));
    }
}
