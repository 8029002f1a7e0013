//! What takes room on the disks and need not: leftovers of killed runs, what restores replaced, files that are no backups.
//!
//! Looking changes nothing. Removing takes the locks of those whose leftovers these may be, and leaves what it cannot lock.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::catalog::Catalog;
use super::load;
use super::pitr::away::bring;
use super::pitr::{self, bases, staging, tablespaces};
use super::reach::Reach;
use super::replication;
use super::restore::Restoring;
use super::retention::State;
use super::swap::Belonging;
use crate::config::Settings;
use crate::durable::{self, Lock};
use crate::exit::in_words;
use crate::harness::Throwaway;
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::{server, stale};
use crate::room::FileSystem;

/// A file system that Tandem writes to.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    pub name: &'static str,
    pub path: PathBuf,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Whether less is free than `disk.warn_free` asks for.
    pub low: bool,
}

/// What kind of thing takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A killed run left it, and no later run needs it.
    Leftover,
    /// A restore replaced it, and it is the way back.
    Kept,
    /// It looks like a backup, and is none: a person has to decide.
    Incomplete,
}

/// Something that takes room.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// Its path, or `database` and its name.
    pub what: String,
    pub bytes: u64,
    /// Why it is there, and what becomes of it.
    pub why: String,
    #[serde(skip)]
    pub place: Place,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the directory of backups.
    Backups(PathBuf),
    /// A directory beside the data directory, or in the state directory.
    Cluster(PathBuf),
    /// A base backup that was not finished.
    Base(PathBuf),
    /// The directory of a throwaway server.
    Throwaway(PathBuf),
    Database(String),
}

/// The file systems of data, backups and archived WAL.
pub fn disks(settings: &Settings, home: &Home) -> Vec<Disk> {
    let archive = pitr::archive(settings, home).dir().to_owned();
    let places = [
        ("data", Some(home.data.clone())),
        ("WAL", Some(home.data.join("pg_wal"))),
        ("backups", Some(Catalog::of(settings, home).dir().to_owned())),
        ("archive", settings.backup.pitr.enabled.then_some(archive)),
    ];
    let mut devices = Vec::new();
    let mut disk = |(name, path): (&'static str, Option<PathBuf>)| {
        let path = path?;
        let there = FileSystem::of(&path)?;
        let is_new = !devices.contains(&there.device);
        devices.push(there.device);
        let low = there.is_below(settings.disk.warn_free);
        is_new.then_some(Disk { name, path, free_bytes: there.free, total_bytes: there.total, low })
    };
    places.into_iter().filter_map(&mut disk).collect()
}

/// What lies on the disks.
pub fn on_disks(settings: &Settings, home: &Home) -> Vec<Finding> {
    let catalog = Catalog::of(settings, home);
    let mut found = in_catalog(&catalog);
    for path in staging::leftovers(&home.data).into_iter().filter(|path| !stale::is_worked_in(path)) {
        found.push(finding(Kind::Leftover, Place::Cluster(path), "a killed restore to a moment left it"));
    }
    for path in staging::kept(&home.data) {
        found.push(finding(Kind::Kept, Place::Cluster(path), "the data before a restore to a moment"));
    }
    // A restore to a moment holds the state directory, and no server runs then.
    if let Some(path) = bring::left(home)
        && (!is_held(&home.state.join("lock")) || server::own_running_port(home).is_some())
    {
        let why = "a killed restore from a destination fetched it; the same restore would go on with it";
        found.push(finding(Kind::Leftover, Place::Cluster(path), why));
    }
    let archive = pitr::archive(settings, home);
    if !is_held(&archive.dir().join(pitr::base::LOCK)) {
        for path in bases::unfinished(&archive) {
            found.push(finding(Kind::Leftover, Place::Base(path), "a base backup that was not finished"));
        }
    }
    for path in Throwaway::left_below(&home.state) {
        found.push(finding(Kind::Leftover, Place::Throwaway(path), "the throwaway server of a killed verification"));
    }
    found
}

fn in_catalog(catalog: &Catalog) -> Vec<Finding> {
    let leftover = |why: &'static str| move |path| finding(Kind::Leftover, Place::Backups(path), why);
    let mut found = Vec::new();
    // What a run that goes on has begun is not left over.
    if !is_held(&catalog.dir().join(".lock")) {
        found.extend(catalog.unfinished().into_iter().map(leftover("an interrupted run left it")));
        found.extend(catalog.orphans().into_iter().map(leftover("the backup that it belongs to is not there")));
    }
    for entry in catalog.entries(None).unwrap_or_default() {
        if entry.standing() == State::Incomplete {
            let problem = entry.manifest.as_ref().err().cloned().unwrap_or_default();
            let why = format!(
                "{problem}: `tandem backup import {}` makes a backup of it if it is whole; else remove it",
                entry.path.display()
            );
            found.push(finding(Kind::Incomplete, Place::Backups(entry.path), why));
        }
    }
    found
}

/// What keeps the cluster from being recovered to a moment, though its WAL is archived.
pub fn of_recovery(settings: &Settings, home: &Home) -> Vec<String> {
    if !settings.backup.pitr.enabled {
        return Vec::new();
    }
    let places = tablespaces::of(&home.data);
    let refusal =
        places.map_or_else(|error| Some(in_words(&error)), |places| Some(tablespaces::refusal(&places)?.to_string()));
    let listing = bases::listing(&pitr::archive(settings, home));
    let unreadable = listing.map_or_else(|error| vec![in_words(&error)], |listing| listing.unreadable);
    refusal.into_iter().chain(unreadable).collect()
}

/// What lies in the server.
///
/// # Errors
/// It does not answer.
pub async fn in_server(reach: &Reach, database: &str) -> anyhow::Result<Vec<Finding>> {
    let mut session = reach.aside(database).await?;
    let mut found = Vec::new();
    let kinds = [
        (Belonging::New, Kind::Leftover, "a restore that was ended left it"),
        (Belonging::Kept, Kind::Kept, "what a restore replaced; `tandem restore --undo` puts the last one back"),
    ];
    for (belonging, kind, why) in kinds {
        // What is filled at this moment is not left over.
        if kind == Kind::Leftover && Restoring::runs(&mut session).await? {
            continue;
        }
        for (name, bytes) in belonging.sizes(&mut session, database).await? {
            let what = format!("database {name}");
            let held = replication::of(&mut session, &name).await?.before_drop();
            let why = held.map_or_else(|| why.to_owned(), |held| format!("{why}; it goes {held}"));
            found.push(Finding { kind, what, bytes, why, place: Place::Database(name) });
        }
    }
    Ok(found)
}

/// Remove leftovers on the disks; which of them went.
pub async fn sweep(settings: &Settings, home: &Home, leftovers: &[Finding]) -> Vec<String> {
    let catalog = Catalog::of(settings, home);
    let archive = pitr::archive(settings, home);
    if leftovers.iter().any(|one| matches!(one.place, Place::Backups(_))) {
        // Taking the lock removes what is unfinished.
        match catalog.lock() {
            Ok(_lock) => catalog.orphans().iter().for_each(|path| drop(durable::remove(path))),
            Err(error) => tracing::warn!("{}", in_words(&error)),
        }
    }
    if leftovers.iter().any(|one| matches!(one.place, Place::Base(_)))
        && !is_held(&archive.dir().join(pitr::base::LOCK))
    {
        bases::sweep(&archive);
    }
    if leftovers.iter().any(|one| matches!(one.place, Place::Throwaway(_)))
        && let Err(error) = Throwaway::sweep(&home.state).await
    {
        tracing::warn!("{}", in_words(&error));
    }
    for one in leftovers {
        if let Place::Cluster(path) = &one.place {
            remove_cluster(home, path).await;
        }
    }
    let is_gone = |one: &&Finding| match &one.place {
        Place::Backups(path) | Place::Cluster(path) | Place::Base(path) | Place::Throwaway(path) => !path.exists(),
        Place::Database(_) => false,
    };
    leftovers.iter().filter(is_gone).map(|one| one.what.clone()).collect()
}

/// Remove a directory that lies beside the data directory or in the state directory, and is no server's.
pub async fn remove_cluster(home: &Home, path: &Path) {
    // A restore to a moment holds the lock, and no server runs then; beside one that runs, there is no such restore.
    let lock = StateLock::take(home, "`tandem doctor`");
    if lock.is_err() && server::own_running_port(home).is_none() {
        return tracing::warn!("{} stays: a restore may be at work", path.display());
    }
    if let Err(error) = stale::end_orphaned_backends(path).await {
        return tracing::warn!("{} stays: {}", path.display(), in_words(&error));
    }
    if let Err(error) = durable::remove(path) {
        tracing::warn!("remove {}: {error}", path.display());
    }
}

/// Drop a database that a restore left or replaced. Whoever has `restoring` has the lock of restores.
///
/// # Errors
/// The server refuses.
pub async fn drop_database(_restoring: &Restoring, reach: &Reach, name: &str) -> anyhow::Result<()> {
    load::drop(reach, name).await
}

fn finding(kind: Kind, place: Place, why: impl Into<String>) -> Finding {
    let path = match &place {
        Place::Backups(path) | Place::Cluster(path) | Place::Base(path) | Place::Throwaway(path) => path.clone(),
        Place::Database(name) => PathBuf::from(name),
    };
    Finding { kind, what: path.display().to_string(), bytes: size(&path), why: why.into(), place }
}

/// Bytes of a file, or of all files below a directory.
pub fn size(path: &Path) -> u64 {
    let Ok(meta) = path.symlink_metadata() else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size(&entry.path())).sum()
}

/// Whether a process holds the lock file `path`; false if there is no such file.
fn is_held(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| Lock::on(file).is_err_and(|error| error.is_held()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_told_from_backups_and_from_what_is_being_made() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(temp.path().join(name), text).unwrap();
        for name in [
            "a_backup_20260102_150405.sql.gz",
            "b_backup_20260102_150405.manifest.json",
            ".partial-1-x",
            "notes.globals.sql",
        ] {
            write(name, "four");
        }
        let catalog = Catalog::at(temp.path());
        let found = in_catalog(&catalog);
        let mut shown: Vec<_> = found
            .iter()
            .map(|one| (one.kind, Path::new(&one.what).file_name().unwrap().to_str().unwrap(), one.bytes))
            .collect();
        shown.sort_by_key(|(_, name, _)| name.to_string());
        assert_eq!(
            shown,
            [
                (Kind::Leftover, ".partial-1-x", 4),
                (Kind::Incomplete, "a_backup_20260102_150405.sql.gz", 4),
                (Kind::Leftover, "b_backup_20260102_150405.manifest.json", 4),
            ]
        );
        let lock = catalog.lock().unwrap();
        write(".partial-2-x", "");
        assert!(in_catalog(&catalog).iter().all(|one| one.kind == Kind::Incomplete), "a run is at work");
        drop(lock);
        assert_eq!(size(temp.path()), 4 * 3 + fs::metadata(temp.path().join(".lock")).unwrap().len());
    }
}
