//! The directory of backups: what is in it, who may write to it, what an interrupted run left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::files::{self, PARTIAL, Partial};
use super::ledger;
use super::manifest::{Manifest, Verdict, understood};
use super::name::Name;
use super::retention::{self, Fate, Known, Rules, State};
use super::signature::{self, Signed, SigningKeys};
use super::store;
use crate::config::Settings;
use crate::durable::{self, Lock, LockError};
use crate::exit::{Code, Failure, in_words};
use crate::postgres::home::{Home, make_dir};

/// The longest manifest, in bytes: of a database with some 100,000 tables.
pub const JSON_MAX: u64 = 64 << 20;
/// What lies beside a backup, by the ending of its name.
const BESIDE: [&str; 4] = ["manifest.json", "verdict.json", "globals.sql", ledger::ENDING];
/// What begins the name of a note that a backup's files are being named or removed; its stem follows.
const NAMING: &str = ".partial-naming-";

/// A directory of backups.
#[derive(Clone, Debug)]
pub struct Catalog {
    dir: PathBuf,
    /// The file of the keys that sign its manifests.
    keys: PathBuf,
    /// Whether it is this deployment's own.
    is_own: bool,
    /// The data directory of the server on this machine, if it is known.
    server_data: Option<PathBuf>,
}

/// Who made a backup, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This deployment, of its own database.
    Own,
    /// This deployment, of a file that something else wrote.
    Imported,
    /// No signature of this deployment's says who made it.
    Unknown,
}

/// One backup in it.
#[derive(Clone, Debug)]
pub struct BackupEntry {
    pub name: Name,
    pub path: PathBuf,
    /// What is written down beside it, or why that cannot be read.
    pub manifest: Result<Manifest, String>,
    pub origin: Origin,
    /// Of this very content.
    pub verdict: Option<Verdict>,
}

impl Catalog {
    #[cfg(test)]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), keys: dir.join(".backup.key"), is_own: true, server_data: None }
    }

    /// Another directory, whose backups are looked at with the same keys.
    pub fn elsewhere(&self, dir: &Path) -> Self {
        Self { dir: dir.to_owned(), is_own: self.is_own && dir == self.dir, ..self.clone() }
    }

    /// Where `settings` keep backups. Inside `tandem test` that is a place of the run's own: a backup of the tests' database would
    /// be the newest of the project's.
    pub fn of(settings: &Settings, home: &Home) -> Self {
        let dir = match settings.directory_of_tests() {
            Some(of_tests) => of_tests.join("backups"),
            None => settings.backup.dir.clone().unwrap_or_else(|| home.state.join("backups")),
        };
        Self { dir, keys: signature::path(home), is_own: true, server_data: Some(home.data.clone()) }
    }

    /// The data directory of the server on this machine, whose disk this directory may be on.
    pub fn server_data(&self) -> Option<&Path> {
        self.server_data.as_deref()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Make the directory if need be, take its lock, and remove what an interrupted run left.
    ///
    /// # Errors
    /// [`Failure`]: the directory cannot be made or written to, or another backup runs.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        // The directories on the way are everybody's to pass: the server's user may live behind one of them.
        make_dir(&self.dir, 0o700, None)?;
        let path = self.dir.join(".lock");
        match Lock::take(&path, "`tandem backup`") {
            Ok(lock) => {
                self.sweep();
                Ok(lock)
            }
            Err(LockError::Held(holder)) => {
                let (holder, dir) = (holder.named("another backup"), self.dir.display());
                let message = format!("{holder} runs in {dir}: wait for its end");
                Err(Failure::new(Code::Temporary, message).into())
            }
            Err(LockError::Open(error)) => {
                let message = format!("cannot write to {}", self.dir.display());
                Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, message)))
            }
            Err(LockError::Refused(error)) => Err(anyhow::Error::new(error).context(Failure::new(
                Code::CannotCreate,
                format!("cannot lock {}; does its file system support flock?", path.display()),
            ))),
        }
    }

    /// The run that left it has ended: we hold the lock.
    fn sweep(&self) {
        for path in self.unfinished() {
            tracing::info!("removing {}, which an interrupted run left", path.display());
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(stem) = name.strip_prefix(NAMING) {
                match self.dumps() {
                    Ok(dumps) if dumps.iter().any(|dump| dump.stem() == stem) => {}
                    Ok(_) => self.remove_beside(stem),
                    Err(error) => {
                        tracing::warn!("read {}: {error}", self.dir.display());
                        continue;
                    }
                }
            }
            let _ = durable::remove(&path);
        }
    }

    /// What runs have begun and not ended: of no use unless one of them runs now and holds the lock.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let is_unfinished = |name: &str| name.starts_with(PARTIAL) || store::is_unfinished(name);
        entries.filter(|it| is_unfinished(&it.file_name().to_string_lossy())).map(|it| it.path()).collect()
    }

    /// Manifests, roles and verdicts whose backup is not there. None where the directory cannot be read to its end: what is
    /// not seen is not missing.
    pub fn orphans(&self) -> Vec<PathBuf> {
        let Ok(dumps) = self.dumps() else { return Vec::new() };
        let dumps: BTreeSet<String> = dumps.iter().map(Name::stem).collect();
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let is_orphan = |name: &str| {
            let stem = BESIDE.iter().find_map(|ending| name.strip_suffix(ending)?.strip_suffix('.'));
            // Its stem with the ending of a dump is a backup's name, or it is none of ours.
            stem.is_some_and(|stem| Name::parse(&format!("{stem}.sql")).is_some() && !dumps.contains(stem))
        };
        entries.filter(|it| it.file_name().to_str().is_some_and(is_orphan)).map(|it| it.path()).collect()
    }

    /// The names of all backups' files, whether they are whole or not.
    fn dumps(&self) -> io::Result<Vec<Name>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| name.to_str().and_then(Name::parse)).collect())
    }

    /// Give a new backup its names. Its own comes last: a process that dies before that leaves nothing but what lies beside
    /// the backup, and a note by which the next one removes it.
    ///
    /// # Errors
    /// A name is taken, or cannot be written.
    pub fn publish(
        &self,
        name: &Name,
        dump: Partial,
        roles: Option<Partial>,
        manifest: &Manifest,
    ) -> anyhow::Result<()> {
        let naming = self.note_naming(name)?;
        let named = self.name_all(name, dump, roles, manifest);
        if named.is_err() {
            self.remove_beside(&name.stem());
        }
        let _ = durable::remove(&naming);
        named
    }

    fn name_all(&self, name: &Name, dump: Partial, roles: Option<Partial>, manifest: &Manifest) -> anyhow::Result<()> {
        if let Some(roles) = roles {
            let path = self.beside(name, "globals.sql");
            roles.publish(&path).with_context(|| format!("name {}", path.display()))?;
        }
        let signed = SigningKeys::ensure(&self.keys)?.sign(manifest)?;
        files::write_json(&self.beside(name, "manifest.json"), &signed)?;
        dump.publish(&self.dir.join(name.to_string())).with_context(|| format!("name {name}"))
    }

    /// Remove what lies beside a backup that is not there.
    fn remove_beside(&self, stem: &str) {
        for ending in BESIDE {
            let _ = durable::remove(&self.dir.join(format!("{stem}.{ending}")));
        }
    }

    /// Note that the files of the backup `name` are being named or removed; where its own file is missing then, the others
    /// are nobody's.
    fn note_naming(&self, name: &Name) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(format!("{NAMING}{}", name.stem()));
        let noted = fs::File::create(&path).and_then(|file| file.sync_all()).and_then(|()| durable::sync_parent(&path));
        noted.map(|()| path.clone()).with_context(|| format!("write {}", path.display()))
    }

    /// A name for a backup begun at `now` that nothing here has.
    pub fn free_name(&self, wanted: Name) -> Name {
        let mut name = wanted;
        while self.beside(&name, "manifest.json").exists() || self.dir.join(name.to_string()).exists() {
            name.taken += TimeDelta::seconds(1);
        }
        name
    }

    /// What lies beside the backup `name` under `ending`.
    pub fn beside(&self, name: &Name, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", name.stem()))
    }

    /// All backups of `database`, or of all of them, the oldest first; a directory that is not there holds none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn entries(&self, database: Option<&str>) -> anyhow::Result<Vec<BackupEntry>> {
        let listing = match fs::read_dir(&self.dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {}", self.dir.display())),
        };
        let mut entries = Vec::new();
        for entry in listing {
            let entry = entry.with_context(|| format!("read {}", self.dir.display()))?;
            let name = entry.file_name().to_str().and_then(Name::parse);
            if let Some(name) = name.filter(|name| database.is_none_or(|wanted| wanted == name.database)) {
                entries.push(self.entry(name));
            }
        }
        entries.sort_by_key(|entry| (entry.name.taken, entry.name.to_string()));
        Ok(entries)
    }

    /// The backup called `name`, whether it is there or not.
    pub fn entry(&self, name: Name) -> BackupEntry {
        let path = self.dir.join(name.to_string());
        let read = read_json::<Value>(&self.beside(&name, "manifest.json"));
        let (manifest, origin) = match read.and_then(|value| Ok((understood(&name, &value)?, self.origin(&value)?))) {
            Ok((manifest, origin)) => (Ok(manifest), origin),
            Err(problem) => (Err(problem), Origin::Unknown),
        };
        let verdict = read_json::<Verdict>(&self.beside(&name, "verdict.json")).ok();
        // A verdict on other content says nothing of this one.
        let verdict =
            verdict.filter(|verdict| manifest.as_ref().is_ok_and(|manifest| manifest.sha256 == verdict.sha256));
        BackupEntry { name, path, manifest, origin, verdict }
    }

    /// Who made the backup here with this manifest. An older Tandem has signed nothing, and deployments that share a directory
    /// have a key each: what lies in a directory of this deployment's into which nobody else can write is its own.
    fn origin(&self, manifest: &Value) -> Result<Origin, String> {
        let is_safe = self.is_own && signature::is_private(&self.dir);
        Ok(match (self.origin_of_fetched(manifest)?, manifest["imported"].as_bool()) {
            (Origin::Unknown, Some(true)) if is_safe => Origin::Imported,
            (Origin::Unknown, _) if is_safe => Origin::Own,
            (origin, _) => origin,
        })
    }

    /// Who made the backup elsewhere with this manifest.
    ///
    /// # Errors
    /// The keys cannot be read.
    pub fn origin_of_fetched(&self, manifest: &Value) -> Result<Origin, String> {
        let signed = SigningKeys::read(&self.keys).map_err(|error| in_words(&error))?.check(manifest);
        Ok(match (signed, manifest["imported"].as_bool()) {
            (Signed::Here, Some(true)) => Origin::Imported,
            (Signed::Here, _) => Origin::Own,
            (Signed::Not | Signed::Elsewhere, _) => Origin::Unknown,
        })
    }

    /// The backup that a person calls `name`: its file, its path, or either without the ending.
    ///
    /// # Errors
    /// [`Failure`]: there is none, with what there is.
    pub fn find(&self, name: &str) -> anyhow::Result<BackupEntry> {
        let wanted = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
        let entries = self.entries(None)?;
        let found = entries.iter().find(|entry| entry.name.to_string() == wanted || entry.name.stem() == wanted);
        found.cloned().ok_or_else(|| {
            let newest = entries.last().map_or_else(|| "none".to_owned(), |entry| entry.name.to_string());
            let message = format!("there is no backup {name} in {}; the newest is {newest}", self.dir.display());
            Failure::new(Code::Usage, message).into()
        })
    }

    /// The newest backup of `database`.
    ///
    /// # Errors
    /// [`Failure`]: there is none.
    pub fn latest(&self, database: &str) -> anyhow::Result<BackupEntry> {
        self.entries(Some(database))?.pop().ok_or_else(|| {
            let message = format!(
                "there is no backup of database {database} in {}: `tandem backup` takes one",
                self.dir.display()
            );
            Failure::new(Code::Failed, message).into()
        })
    }

    /// The newest backup of `database`, which must be whole and not found bad; with `older` the newest of those that are.
    ///
    /// # Errors
    /// [`Failure`]: there is none, or a newer one would be passed over without `older`.
    pub fn latest_sound(&self, database: &str, older: bool) -> anyhow::Result<BackupEntry> {
        let mut entries = self.entries(Some(database))?;
        let mut passed_over = Vec::new();
        while let Some(entry) = entries.pop() {
            match entry.standing() {
                State::Proven | State::Unverified if older || passed_over.is_empty() => return Ok(entry),
                State::Proven | State::Unverified => return Err(is_older(&passed_over, &entry.name).into()),
                State::Bad | State::Incomplete => {
                    tracing::warn!("{} is {}: passed over", entry.name, entry.state());
                    passed_over.push((entry.name.clone(), entry.state()));
                }
            }
        }
        self.latest(database).and_then(|_| {
            let message = format!("no backup of database {database} in {} is whole and good", self.dir.display());
            Err(Failure::new(Code::Failed, message).into())
        })
    }

    /// Write the verdict on `name` beside it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn record(&self, name: &Name, verdict: &Verdict) -> anyhow::Result<()> {
        files::write_json(&self.beside(name, "verdict.json"), verdict)
    }

    /// Remove a backup and all beside it. Its own name goes first, in one step: of what an interruption leaves, nothing is a
    /// backup, and the next run removes it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &Name) -> anyhow::Result<()> {
        let (path, naming) = (self.dir.join(name.to_string()), self.note_naming(name)?);
        let gone = self.dir.join(format!("{PARTIAL}{}-{name}", std::process::id()));
        match durable::rename(&path, &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => durable::sync_dir(&self.dir).with_context(|| format!("remove {}", path.display()))?,
        }
        let beside = BESIDE.map(|ending| self.beside(name, ending));
        for path in beside.iter().chain([&gone, &naming]) {
            durable::remove(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// What `rules` say of each backup of `database`, the oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn fates(&self, database: &str, rules: &Rules, now: DateTime<Utc>) -> anyhow::Result<Vec<(BackupEntry, Fate)>> {
        let entries = self.entries(Some(database))?;
        let known: Vec<_> =
            entries.iter().map(|entry| Known { taken: entry.name.taken, state: entry.standing() }).collect();
        let fates = retention::decide(&known, rules, now);
        Ok(entries.into_iter().zip(fates).collect())
    }

    /// When the newest backup of `database` was taken, as names tell it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn newest(&self, database: &str) -> anyhow::Result<Option<DateTime<Utc>>> {
        Ok(self.entries(Some(database))?.last().map(|entry| entry.name.taken))
    }
}

impl BackupEntry {
    /// What is known of it.
    pub fn standing(&self) -> State {
        match (&self.manifest, &self.verdict) {
            (Err(_), _) => State::Incomplete,
            (Ok(_), None) => State::Unverified,
            (Ok(_), Some(verdict)) if verdict.good() => State::Proven,
            (Ok(_), Some(_)) => State::Bad,
        }
    }

    /// The same in a word.
    pub fn state(&self) -> &'static str {
        match self.standing() {
            State::Incomplete => "incomplete",
            State::Unverified => "unverified",
            State::Proven => "verified",
            State::Bad => "bad",
        }
    }
}

/// The error when the newest backups, `passed_over`, cannot be restored and `--older` was not given.
pub fn is_older(passed_over: &[(Name, &str)], sound: &Name) -> Failure {
    let named: Vec<String> = passed_over.iter().map(|(name, state)| format!("{name} is {state}")).collect();
    let lost = passed_over.first().map_or(TimeDelta::zero(), |(newest, _)| newest.taken - sound.taken);
    let lost = humantime::format_duration(std::time::Duration::from_secs(lost.num_seconds().unsigned_abs()));
    let message = format!(
        "the latest backup cannot be restored: {}. The newest one that can be is {sound}, taken {lost} earlier: what was written \
         since then is not in it. Nothing was changed; to restore that one, name it, or say --older",
        named.join(", ")
    );
    Failure::new(Code::Failed, message)
}

/// What is written in a file, or why it cannot be read.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let read = || {
        let mut text = Vec::new();
        fs::File::open(path)?.take(JSON_MAX).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "it has no manifest".to_owned(),
        _ => format!("{} cannot be read: {error}", path.display()),
    })?;
    serde_json::from_slice(&text).map_err(|error| format!("{} is damaged: {error}", path.display()))
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
