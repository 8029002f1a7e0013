//! What is written down of copies: which destinations have a backup, and which copies of removed backups still lie there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::catalog::{BackupEntry, Catalog, read_json};
use super::files;
use super::name::{Format, Name};
use super::retention::{Fate, State};

/// What lies beside a backup: the digest that was sent, by destination.
pub const ENDING: &str = "copies.json";
/// Why a backup stays that a destination lacks.
const NOT_COPIED: Fate = Fate::Keep("it is not in every destination yet");

/// Copies that could not be removed with their backup, by destination.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Left(BTreeMap<String, BTreeSet<String>>);

/// Whether `destination` was sent this very content of `entry`.
pub fn is_copied(catalog: &Catalog, entry: &BackupEntry, destination: &str) -> bool {
    let sent: BTreeMap<String, String> = read_json(&catalog.beside(&entry.name, ENDING)).unwrap_or_default();
    entry.manifest.as_ref().is_ok_and(|manifest| sent.get(destination) == Some(&manifest.sha256))
}

/// Write down that `destination` has `entry`.
///
/// # Errors
/// It cannot be written.
pub fn record(catalog: &Catalog, entry: &BackupEntry, destination: &str) -> anyhow::Result<()> {
    let Ok(manifest) = &entry.manifest else { return Ok(()) };
    let path = catalog.beside(&entry.name, ENDING);
    let mut sent: BTreeMap<String, String> = read_json(&path).unwrap_or_default();
    sent.insert(destination.to_owned(), manifest.sha256.clone());
    files::write_json(&path, &sent)
}

/// Whether copies are made of `entry`: of sound backups that are one file.
pub fn is_to_be_copied(entry: &BackupEntry) -> bool {
    matches!(entry.standing(), State::Proven | State::Unverified) && entry.name.format != Format::Directory
}

/// Keep each backup that a destination lacks, even if retention would remove it: it may be the only copy.
pub fn keep_uncopied(catalog: &Catalog, fates: &mut [(BackupEntry, Fate)], destinations: &[String]) {
    for (entry, fate) in fates {
        let lacks = |destination: &String| !is_copied(catalog, entry, destination);
        if matches!(fate, Fate::Remove(_)) && is_to_be_copied(entry) && destinations.iter().any(lacks) {
            *fate = NOT_COPIED;
        }
    }
}

/// The names of removed backups whose copies still lie in `destination`.
pub fn left(catalog: &Catalog, destination: &str) -> Vec<Name> {
    let left: Left = read_json(&path(catalog)).unwrap_or_default();
    left.0.get(destination).into_iter().flatten().filter_map(|name| Name::parse(name)).collect()
}

/// Write down whether a copy of the removed backup `name` still lies in `destination`.
///
/// # Errors
/// It cannot be written.
pub fn set_left(catalog: &Catalog, destination: &str, name: &Name, lies_there: bool) -> anyhow::Result<()> {
    let mut left: Left = read_json(&path(catalog)).unwrap_or_default();
    let names = left.0.entry(destination.to_owned()).or_default();
    let changed = if lies_there { names.insert(name.to_string()) } else { names.remove(&name.to_string()) };
    if changed { files::write_json(&path(catalog), &left) } else { Ok(()) }
}

fn path(catalog: &Catalog) -> PathBuf {
    catalog.dir().join(".copies-left.json")
}
