//! What changed between two readings of the configuration, and what each change asks of a Tandem that runs. Pure.

use std::fmt;

use super::Loaded;
pub use super::keys::Effect;
use super::keys::{self, Key, Kind};
use super::processes::SECTION;
use super::settings::Settings;
use super::value::Typed;
use super::values::Values;

/// One key whose value changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Such as `workers.count`, `workers.env.LANG` or `process.frontend`.
    pub key: String,
    pub effect: Effect,
}

/// What differs between `old` and `new`, in the order of the sections. Secrets are compared, and never shown.
///
/// Where a value comes from does not count, only what it comes to: a default that is now written out is no change.
pub fn changes(old: &Loaded, new: &Loaded) -> Vec<Change> {
    let (old, new) = (&old.meanings, &new.meanings);
    let differing = new.0.iter().filter(|(key, meaning)| old.get(key) != Some(meaning));
    let gone = old.0.iter().filter(|(key, _)| new.get(key).is_none());
    let mut changes: Vec<_> = differing.chain(gone).map(|(key, _)| change(key)).collect();
    changes.sort_by_key(|change| place(&change.key));
    changes
}

/// The key that `name` is, or lies in.
fn key_of(name: &str) -> Option<&'static Key> {
    keys::find(name).or_else(|| keys::find_table(name).map(|(key, _)| key))
}

fn change(name: &str) -> Change {
    // Processes are made at the start, all of them.
    let effect = key_of(name).map_or(Effect::Restart, |key| key.effect);
    Change { key: name.to_owned(), effect }
}

fn place(name: &str) -> usize {
    key_of(name).and_then(|key| keys::all().position(|it| it.name == key.name)).unwrap_or(usize::MAX)
}

/// What every key comes to, secrets included, which is why nothing here can be read from outside.
#[derive(Clone, Default)]
pub(super) struct Meanings(Vec<(String, String)>);

impl fmt::Debug for Meanings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Meanings of {} keys", self.0.len())
    }
}

impl Meanings {
    pub(super) fn of(values: &Values, settings: &Settings) -> Self {
        let mut meanings = Vec::new();
        for key in keys::all() {
            if key.kind == Kind::Options {
                let entries = values.entries(key.name);
                meanings.extend(entries.map(|(name, entry)| (format!("{}.{name}", key.name), entry.raw.to_string())));
            } else if key.kind.is_table() {
                let entries = values.table(key.name).into_iter();
                meanings.extend(entries.map(|(name, value)| (format!("{}.{name}", key.name), value)));
            } else {
                meanings.push((key.name.to_owned(), meaning(key, values, settings)));
            }
        }
        for process in &settings.processes {
            // The environment is what `Debug` leaves out.
            meanings.push((format!("{SECTION}.{}", process.name), format!("{process:?} {:?}", process.env)));
        }
        Self(meanings)
    }

    fn get(&self, name: &str) -> Option<&String> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, meaning)| meaning)
    }
}

/// What `key` comes to, as text that is the same only where the meaning is.
fn meaning(key: &Key, values: &Values, settings: &Settings) -> String {
    let path = || values.path(key.name).map(|path| path.display().to_string()).unwrap_or_default();
    match key.name {
        "name" => settings.name.clone(),
        // The default lies beside the configuration.
        "state_dir" => settings.state_dir.as_ref().unwrap_or(&settings.directory).display().to_string(),
        "cache_dir" => settings.cache_dir.display().to_string(),
        "postgres.mode" => format!("{:?}", settings.postgres.mode),
        "workers.app_dir" => settings.workers.app_dir.display().to_string(),
        _ => match key.kind {
            Kind::Path => path(),
            Kind::ChoiceOrPath(_) | Kind::Program if values.text(key.name).is_some_and(|text| text.contains('/')) => {
                path()
            }
            // `Debug` shows no value.
            _ => match values.typed(key.name) {
                Typed::Nothing => "nothing".to_owned(),
                typed => format!("= {typed}"),
            },
        },
    }
}
