//! What to tell of settings that ALTER SYSTEM or the operator has made, where they do not mean what they seem to. Pure.

use std::collections::BTreeMap;

use super::{LANGUAGE, LINE_PREFIX, LOG_PLACE, OF_TLS, OWNED, SLOW_QUERY};
use crate::config::Postgres;

/// What to tell of `altered`, the settings in postgresql.auto.conf, beside Tandem's own and those that are configured.
pub fn overrides(altered: &BTreeMap<String, String>, postgres: &Postgres) -> Vec<String> {
    let told = altered.iter().filter_map(|(name, value)| {
        let reset = format!("`tandem settings reset {name}` takes it back");
        if OWNED.contains(&name.as_str()) || (!postgres.tls.is_off() && OF_TLS.contains(&name.as_str())) {
            return Some(format!(
                "ALTER SYSTEM has set {name} = '{value}', which does not hold: Tandem sets it; {reset}"
            ));
        }
        if let Some(limit) = postgres.slow_query.filter(|_| name == SLOW_QUERY) {
            let limit = humantime::format_duration(limit);
            return Some(format!(
                "ALTER SYSTEM has set {name} = '{value}', which overrides postgres.slow_query = \"{limit}\"; {reset}"
            ));
        }
        let given = postgres.settings.iter().find(|(given, _)| given.eq_ignore_ascii_case(name))?.1;
        (given != value).then(|| {
            format!(
                "ALTER SYSTEM has set {name} = '{value}', which overrides {given:?} in [postgres.settings]; {reset}"
            )
        })
    });
    told.collect()
}

/// What Tandem does not see because of how the operator has the server write its log.
pub fn unseen(altered: &BTreeMap<String, String>, postgres: &Postgres) -> Vec<String> {
    let given = |name: &str| {
        let mut given = postgres.settings.iter();
        given.find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    let set = |name: &str| altered.get(name).map(String::as_str).or_else(|| given(name));
    let mut told = Vec::new();
    let collected = given(LOG_PLACE[1].0).is_some_and(|value| !matches!(value, "off" | "false" | "no" | "0"));
    let elsewhere = given(LOG_PLACE[0].0).is_some_and(|value| !value.split(',').any(|place| place.trim() == "stderr"));
    if collected || elsewhere {
        told.push(
            "[postgres.settings] sends the server's log elsewhere (logging_collector, log_destination): `tandem logs` does \
             not have it, and why a start fails is only in there"
                .to_owned(),
        );
    }
    if let Some(prefix) = set(LINE_PREFIX) {
        told.push(format!(
            "log_line_prefix = {prefix:?} holds: severities of the server's log are found by their words, and whether a \
             statement of the application's failed or the server itself may be mistaken"
        ));
    }
    if let Some(language) = set(LANGUAGE).filter(|value| !is_english(value)) {
        told.push(format!(
            "lc_messages = {language:?} holds: severities of the server's log are found by SQLSTATE, and why a start fails \
             is known in English only"
        ));
    }
    told
}

fn is_english(locale: &str) -> bool {
    locale.is_empty() || locale == "C" || locale.starts_with("C.") || locale == "POSIX" || locale.starts_with("en")
}
