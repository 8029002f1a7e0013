//! All keys with their values: the winning entries, converted to their kinds, and defaults for the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{self, Default, Key, Kind};
use super::layers::{Entry, Merged};
use super::problem::{Origin, Problems};
use super::value::{self, Raw, Room, Typed};
use crate::plan::{Place, Secret};

/// Every key's value, and where it comes from.
pub struct Values {
    typed: BTreeMap<&'static str, Typed>,
    merged: Merged,
    directory: PathBuf,
}

impl Values {
    /// Convert the winning entries. A value that cannot be converted is a problem, and its key gets its default.
    pub fn read(merged: Merged, directory: &Path, problems: &mut Problems) -> Self {
        let mut typed = BTreeMap::new();
        for key in keys::all() {
            if let Some(entry) = merged.get(key.name).filter(|_| key.kind.is_table()) {
                let help = format!("set {}.NAME", key.name);
                problems.add_to(key.name, &entry.origin, format!("{} is a table", key.name), Some(help));
                continue;
            }
            let written = merged.get(key.name).and_then(|entry| read(key, entry, problems));
            typed.insert(key.name, written.unwrap_or_else(|| default(key)));
        }
        for (name, entry) in &merged.0 {
            if let Some((table, _)) = keys::find_table(name) {
                read(table, entry, problems);
            } else if keys::find(name).is_none() {
                let help = keys::closest(name).map(|key| format!("did you mean `{key}`?"));
                problems.add_to(name, &entry.origin, format!("unknown key `{name}`"), help);
            }
        }
        Self { typed, merged, directory: directory.to_path_buf() }
    }

    /// Where the value of `key` comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.merged.get(key).map_or(&Origin::Default, |entry| &entry.origin)
    }

    /// Whether `key` is set in any layer.
    pub fn chosen(&self, key: &str) -> bool {
        *self.origin(key) != Origin::Default
    }

    pub fn typed(&self, key: &str) -> &Typed {
        self.typed.get(key).unwrap_or(&Typed::Nothing)
    }

    pub fn text(&self, key: &str) -> Option<String> {
        match self.typed(key) {
            Typed::Text(text) => Some(text.clone()),
            Typed::Nothing | Typed::List(_) | Typed::Boolean(_) => None,
            other => unreachable!("{key} is not text: {other:?}"),
        }
    }

    /// Text whose key has a default.
    pub fn word(&self, key: &str) -> String {
        self.text(key).unwrap_or_default()
    }

    pub fn secret(&self, key: &str) -> Option<Secret> {
        self.text(key).map(Secret::new)
    }

    pub fn number(&self, key: &str) -> u32 {
        match self.typed(key) {
            Typed::Number(number) => *number,
            other => unreachable!("{key} is not a number: {other:?}"),
        }
    }

    /// The number, or `other` where a word was written in its place.
    pub fn number_or(&self, key: &str, other: u32) -> u32 {
        match self.typed(key) {
            Typed::Number(number) => *number,
            _ => other,
        }
    }

    pub fn boolean(&self, key: &str) -> bool {
        *self.typed(key) == Typed::Boolean(true)
    }

    pub fn duration_or_never(&self, key: &str) -> Option<Duration> {
        match self.typed(key) {
            Typed::Duration(limit) => *limit,
            other => unreachable!("{key} is not a duration: {other:?}"),
        }
    }

    pub fn duration(&self, key: &str) -> Duration {
        self.duration_or_never(key).unwrap_or_default()
    }

    pub fn bytes(&self, key: &str) -> Option<u64> {
        match self.typed(key) {
            Typed::Bytes(bytes) => Some(*bytes),
            _ => None,
        }
    }

    pub fn room(&self, key: &str) -> Room {
        match self.typed(key) {
            Typed::Room(room) => *room,
            _ => Room::Bytes(0),
        }
    }

    pub fn ip(&self, key: &str) -> IpAddr {
        match self.typed(key) {
            Typed::Ip(ip) => *ip,
            other => unreachable!("{key} is not an IP address: {other:?}"),
        }
    }

    /// The places; the path of a unix socket is absolute.
    pub fn places(&self, key: &str) -> Vec<Place> {
        let base = self.base(key);
        let absolute = |place: &Place| match place {
            Place::Unix(path) => Place::Unix(base.join(path).components().collect()),
            place => place.clone(),
        };
        match self.typed(key) {
            Typed::Places(places) => places.iter().map(absolute).collect(),
            other => unreachable!("{key} is no address: {other:?}"),
        }
    }

    /// The only place.
    pub fn place(&self, key: &str) -> Place {
        self.places(key).pop().unwrap_or(Place::Every(0))
    }

    pub fn mode(&self, key: &str) -> u32 {
        match self.typed(key) {
            Typed::Mode(mode) => *mode,
            other => unreachable!("{key} is not a mode: {other:?}"),
        }
    }

    pub fn list(&self, key: &str) -> Option<Vec<String>> {
        match self.typed(key) {
            Typed::List(list) => Some(list.clone()),
            _ => None,
        }
    }

    /// Where relative paths in the value of `key` start.
    fn base(&self, key: &str) -> &Path {
        self.merged.get(key).map_or(&self.directory, |entry| &entry.base)
    }

    /// A path, absolute: a relative one starts where it was written.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        let base = self.base(key);
        // Collecting the components drops every `.` but keeps `..`, which may follow a symbolic link.
        self.text(key).map(|text| base.join(text).components().collect())
    }

    /// The paths of a list.
    pub fn paths(&self, key: &str) -> Vec<PathBuf> {
        let base = self.merged.get(key).map_or(&self.directory, |entry| &entry.base);
        let list = self.list(key).unwrap_or_default();
        list.iter().map(|text| base.join(text).components().collect()).collect()
    }

    /// The entries of a table whose keys are free.
    pub fn table(&self, key: &str) -> BTreeMap<String, String> {
        let entries = self.entries(key);
        entries.filter_map(|(name, entry)| Some((name.to_owned(), entry.raw.to_plain()?))).collect()
    }

    /// The same, with where each comes from.
    pub fn entries<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (&'a str, &'a Entry)> + 'a {
        let free =
            move |name: &'a str| keys::find_table(name).filter(|(table, _)| table.name == key).map(|(_, free)| free);
        self.merged.0.iter().filter_map(move |(name, entry)| Some((free(name)?, entry)))
    }
}

/// Convert one entry to its key's kind, or report the problem.
pub fn read(key: &Key, entry: &Entry, problems: &mut Problems) -> Option<Typed> {
    let error = match value::read(key.kind, &entry.raw) {
        Ok(typed) => return Some(typed),
        Err(error) => error,
    };
    let name = entry.origin.name_of(&entry.key);
    let hidden = matches!(key.kind, Kind::Secret | Kind::Url | Kind::SecretTable);
    let shown = if hidden { String::new() } else { format!(" = {}", entry.raw) };
    let help = error.suggestion.map(|suggestion| format!("did you mean \"{suggestion}\"?"));
    problems.add_to(&entry.key, &entry.origin, format!("{name}{shown}: expected {}", error.expected), help);
    None
}

/// The default of `key`.
pub fn default(key: &Key) -> Typed {
    let Default::Value(text) = key.default else { return Typed::Nothing };
    value::read(key.kind, &default_raw(text)).unwrap_or_else(|error| unreachable!("default of {}: {error:?}", key.name))
}

fn default_raw(text: &str) -> Raw {
    // Defaults are TOML; a word's quotes are all that tells it from what the environment holds.
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(text) => Raw::Text(text.to_owned()),
        None => Raw::Word(text.to_owned()),
    }
}
