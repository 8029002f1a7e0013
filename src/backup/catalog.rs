//! The directory of backups: what is in it, who may write to it, what an interrupted run left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::de::DeserializeOwned;

use super::files::{self, PARTIAL};
use super::ledger;
use super::manifest::{LAYOUT, Manifest, Verdict};
use super::name::Name;
use super::retention::{self, Fate, Known, Rules, State};
use crate::config::Settings;
use crate::durable::{self, Lock, LockError};
use crate::exit::{Code, Failure};
use crate::postgres::home::{Home, make_dir};

/// A directory of backups.
#[derive(Clone, Debug)]
pub struct Catalog {
    dir: PathBuf,
}

/// One backup in it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Name,
    pub path: PathBuf,
    /// What is written down beside it, or why that cannot be read.
    pub manifest: Result<Manifest, String>,
    /// Of this very content.
    pub verdict: Option<Verdict>,
}

impl Catalog {
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where `settings` keep backups.
    pub fn of(settings: &Settings, home: &Home) -> Self {
        Self { dir: settings.backup.dir.clone().unwrap_or_else(|| home.state.join("backups")) }
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

    /// Whoever left it is gone: its lock is ours.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                tracing::info!("removing {}, which an interrupted run left", entry.path().display());
                let _ = durable::remove(&entry.path());
            }
        }
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
    pub fn entries(&self, database: Option<&str>) -> anyhow::Result<Vec<Entry>> {
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
    pub fn entry(&self, name: Name) -> Entry {
        let path = self.dir.join(name.to_string());
        let manifest =
            read_json::<Manifest>(&self.beside(&name, "manifest.json")).and_then(|manifest| match manifest {
                manifest if manifest.layout > LAYOUT => Err("its manifest is of a newer Tandem".to_owned()),
                manifest if manifest.file != name.to_string() => Err(format!("its manifest is of {}", manifest.file)),
                manifest => Ok(manifest),
            });
        let verdict = read_json::<Verdict>(&self.beside(&name, "verdict.json")).ok();
        // A verdict on other content says nothing of this one.
        let verdict =
            verdict.filter(|verdict| manifest.as_ref().is_ok_and(|manifest| manifest.sha256 == verdict.sha256));
        Entry { name, path, manifest, verdict }
    }

    /// The backup that a person calls `name`: its file, its path, or either without the ending.
    ///
    /// # Errors
    /// [`Failure`]: there is none, with what there is.
    pub fn find(&self, name: &str) -> anyhow::Result<Entry> {
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
    pub fn latest(&self, database: &str) -> anyhow::Result<Entry> {
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
    pub fn latest_sound(&self, database: &str, older: bool) -> anyhow::Result<Entry> {
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

    /// Remove a backup and all beside it: its manifest first, so that what is left of an interruption is no backup.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &Name) -> anyhow::Result<()> {
        let beside =
            ["manifest.json", "verdict.json", "globals.sql", ledger::ENDING].map(|ending| self.beside(name, ending));
        for path in beside.iter().chain([&self.dir.join(name.to_string())]) {
            durable::remove(path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// What `rules` say of each backup of `database`, the oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn fates(&self, database: &str, rules: &Rules, now: DateTime<Utc>) -> anyhow::Result<Vec<(Entry, Fate)>> {
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

impl Entry {
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

/// The newest backups, the newest first, cannot be restored, and nobody has said that an older one will do.
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
    let text = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "it has no manifest".to_owned(),
        _ => format!("{} cannot be read: {error}", path.display()),
    })?;
    serde_json::from_slice(&text).map_err(|error| format!("{} is damaged: {error}", path.display()))
}
