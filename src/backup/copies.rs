//! Copies of backups off the machine: sent when one is taken, listed, fetched when one is restored, removed by retention.
//!
//! The manifest goes last, and comes last: a copy without it is not whole.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::catalog::{BackupEntry, Catalog, JSON_MAX, Origin, is_older, read_json};
use super::files::Partial;
use super::ledger;
use super::manifest::{globals_name, understood};
use super::name::{Format, Name};
use super::restore::NOT_SIGNED;
use super::store::{Destination, Patience, Recipients, Store};
use crate::config::{Room, Settings};
use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};
use crate::room::Guard;
use crate::telemetry::{self, Progress};

/// What a sealed copy's name ends in.
const SEALED: &str = ".age";
const MANIFEST: &str = ".manifest.json";
/// In a directory that copies were sent to: without it, what is there may be the mount point of a disk that is not mounted.
const MARKER: &str = ".tandem-copies";
/// The longest header of a sealed copy, with many recipients, in bytes.
const SEAL_MAX: u64 = 64 << 10;

/// A place for copies.
pub struct Copies {
    pub destination: Destination,
    store: Store,
    /// What stays free of the disk that is written to.
    stop_free: Room,
}

/// A backup that a place holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCopy {
    pub name: Name,
    pub size_bytes: u64,
    /// Whether its manifest is there, which is sent last.
    pub whole: bool,
}

impl Copies {
    /// All places that `settings` name, each with its address: opened, or why it cannot be. One that cannot keeps nobody from the
    /// others. Inside `tandem test` there are none.
    pub fn configured(settings: &Settings) -> Vec<(String, anyhow::Result<Self>)> {
        let open = |text: &String| match Self::open(settings, text) {
            Ok(copies) => (copies.destination.to_string(), Ok(copies)),
            Err(error) => (text.clone(), Err(error.context(format!("send copies to {text}")))),
        };
        let destinations = settings.backup.destinations.iter().filter(|_| !settings.in_test());
        destinations.map(open).collect()
    }

    /// The place `text`, such as `s3://bucket/prefix`.
    ///
    /// # Errors
    /// It is none, or lacks what lets us in.
    pub fn open(settings: &Settings, text: &str) -> anyhow::Result<Self> {
        let destination = Destination::parse(text, &settings.cloud_variables.0).map_err(Failure::from)?;
        if let Some(why) = settings.credentials_refused.as_ref().filter(|_| destination.directory().is_none()) {
            return Err(Failure::new(Code::Config, why.clone()).into());
        }
        let patience = Patience { retry_max: settings.backup.retry_limit, ..Patience::default() };
        let mut store = Store::open(&destination, patience).map_err(Failure::from)?;
        if !settings.backup.encrypt_to.is_empty() {
            store = store.sealed_for(Recipients::parse(&settings.backup.encrypt_to).map_err(Failure::from)?);
        }
        if let Some(identity) = &settings.backup.identity_file {
            store = store.opened_with(identity);
        }
        Ok(Self { destination, store, stop_free: settings.disk.stop_free })
    }

    /// What talks to it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What must be free of the disk that it is on, for so many `bytes`, if it is a disk of this machine.
    ///
    /// # Errors
    /// [`Failure`] with the sum.
    pub fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        let Some(dir) = self.destination.directory() else { return Ok(()) };
        let guard = Guard::new("copy", self.stop_free, None).claim(dir, bytes);
        guard.advice(format!("Make room in {}", self.destination)).check()
    }

    /// Whether the directory is known; a bucket always is.
    pub fn is_marked(&self) -> bool {
        self.destination.directory().is_none_or(|dir| dir.join(MARKER).exists())
    }

    /// Send the backup `entry` of `catalog`.
    ///
    /// # Errors
    /// It did not arrive whole. What is there under a final name is.
    pub async fn send(&self, catalog: &Catalog, entry: &BackupEntry) -> anyhow::Result<()> {
        let name = &entry.name;
        if name.format == Format::Directory {
            let message =
                format!("{name} is a directory, and copies are files: use backup.format = \"custom\" or \"plain\"");
            return Err(Failure::new(Code::Config, message).into());
        }
        let globals = catalog.beside(name, "globals.sql");
        let files =
            [Some(entry.path.clone()), globals.exists().then_some(globals), Some(catalog.beside(name, &MANIFEST[1..]))];
        let sizes = files.iter().flatten().map(|file| file.metadata().map_or(0, |meta| meta.len()));
        let room = Guard::new("copy", self.stop_free, catalog.server_data());
        let room = match self.destination.directory() {
            Some(dir) => room.claim(dir, sizes.sum()).advice(format!("Make room in {}", self.destination)),
            None => room,
        };
        self.check_mounted(catalog).await?;
        room.hold(self.send_all(catalog, name, files.into_iter().flatten())).await?;
        self.mark().await
    }

    /// Refuse a directory that has nothing of what was sent there: its disk is not mounted, and the copies would fill the one
    /// that they shall survive.
    async fn check_mounted(&self, catalog: &Catalog) -> anyhow::Result<()> {
        let Some(dir) = self.destination.directory() else { return Ok(()) };
        let (marker, place, catalog) = (dir.join(MARKER), self.destination.to_string(), catalog.clone());
        let sent = spawn_blocking(move || {
            if marker.exists() {
                return anyhow::Ok(Vec::new());
            }
            let entries = catalog.entries(None)?.into_iter();
            Ok(entries.filter(|entry| ledger::is_copied(&catalog, entry, &place)).map(|entry| entry.name).collect())
        });
        let sent: Vec<Name> = sent.await.context("look for what was sent")??;
        if sent.is_empty() || self.list().await?.iter().any(|held| sent.contains(&held.name)) {
            return Ok(());
        }
        let dir = dir.display();
        let message = format!(
            "{dir} is there, and nothing of the {} backups that were copied to it: mount the disk that belongs there. If it is a \
             new one, make the empty file {dir}/{MARKER}",
            sent.len()
        );
        Err(Failure::new(Code::Config, message).into())
    }

    /// Let the directory be known again.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn mark(&self) -> anyhow::Result<()> {
        let Some(marker) = self.destination.directory().map(|dir| dir.join(MARKER)) else { return Ok(()) };
        let marked = spawn_blocking(move || {
            let made = if marker.exists() { Ok(()) } else { durable::replace(&marker, b"", &WriteOptions::default()) };
            made.with_context(|| format!("make {}", marker.display()))
        });
        marked.await.context("mark the directory for copies")?
    }

    async fn send_all(
        &self,
        catalog: &Catalog,
        name: &Name,
        files: impl Iterator<Item = PathBuf>,
    ) -> anyhow::Result<()> {
        let progress = telemetry::progress(format!("sending {name} to {}", self.destination));
        for file in files {
            let there = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let show = shower(&progress, format!("sending {there} to {}", self.destination));
            let sent = self.store.put(&file, &there, &show).await.map_err(Failure::from);
            sent.with_context(|| {
                format!("the copy in {} is missing: {name} is in {} only", self.destination, catalog.dir().display())
            })?;
        }
        Ok(())
    }

    /// What the place holds, the oldest first.
    ///
    /// # Errors
    /// It cannot be listed.
    pub async fn list(&self) -> anyhow::Result<Vec<HeldCopy>> {
        let listed = self.store.list_top().await.map_err(Failure::from)?;
        let plain = |name: &str| name.strip_suffix(SEALED).unwrap_or(name).to_owned();
        let manifests: BTreeSet<String> =
            listed.iter().filter_map(|entry| Some(plain(&entry.name).strip_suffix(MANIFEST)?.to_owned())).collect();
        let mut held: Vec<HeldCopy> = listed
            .iter()
            .filter_map(|entry| {
                let name = Name::parse(&plain(&entry.name))?;
                Some(HeldCopy { size_bytes: entry.size, whole: manifests.contains(&name.stem()), name })
            })
            .collect();
        held.sort_by_key(|held| (held.name.taken, held.name.to_string()));
        Ok(held)
    }

    /// The backup that `wanted` names, or with `latest` the newest one of `database`, which must be whole; with `older` the newest
    /// of those that are. `None` when there is none.
    ///
    /// # Errors
    /// The place cannot be listed, or a newer one would be passed over without `older`.
    pub async fn find(&self, (wanted, older): (&str, bool), database: &str) -> anyhow::Result<Option<Name>> {
        let held = self.list().await?;
        let found = match wanted {
            "latest" => {
                let of_it: Vec<&HeldCopy> = held.iter().rev().filter(|held| held.name.database == database).collect();
                let whole = of_it.iter().position(|held| held.whole);
                let cut: Vec<_> =
                    of_it.iter().take(whole.unwrap_or(0)).map(|held| (held.name.clone(), "incomplete")).collect();
                if let Some(sound) = whole.filter(|_| !older && !cut.is_empty()) {
                    return Err(is_older(&cut, &of_it[sound].name).into());
                }
                whole.map(|at| of_it[at])
            }
            wanted => held.iter().find(|held| held.name.to_string() == wanted || held.name.stem() == wanted),
        };
        Ok(found.map(|held| held.name.clone()))
    }

    /// Fetch the backup `name` into `catalog`, unless it is there.
    ///
    /// # Errors
    /// It does not arrive whole, or is not signed and nobody has said `trust`; nothing has a final name then but what is whole.
    pub async fn fetch(&self, name: &Name, catalog: &Catalog, trust: bool) -> anyhow::Result<BackupEntry> {
        let there = catalog.entry(name.clone());
        if there.manifest.is_ok() && there.path.exists() {
            return Ok(there);
        }
        let _lock = catalog.lock()?;
        let size = self.size_of(name).await?;
        let room = Guard::new("download", self.stop_free, catalog.server_data()).claim(catalog.dir(), size);
        room.hold(self.fetch_all(name, catalog, trust)).await
    }

    /// What the files of a copy take there.
    async fn size_of(&self, name: &Name) -> anyhow::Result<u64> {
        let stem = format!("{}.", name.stem());
        let listed = self.store.list_top().await.map_err(Failure::from)?;
        Ok(listed.iter().filter(|entry| entry.name.starts_with(&stem)).map(|entry| entry.size).sum())
    }

    async fn fetch_all(&self, name: &Name, catalog: &Catalog, trust: bool) -> anyhow::Result<BackupEntry> {
        let progress = telemetry::progress(format!("fetching {name} from {}", self.destination));
        // The manifest says what else there is.
        let manifest_name = format!("{}{MANIFEST}", name.stem());
        let manifest = self.bring(&manifest_name, JSON_MAX, catalog, &progress).await?;
        let refuse = |why: String| {
            Failure::new(Code::Failed, format!("{name} in {}: {why}. Nothing was changed.", self.destination))
        };
        // The destination is not trusted: what is not signed is not fetched, and what the files are called
        // follows from the backup's own name.
        let value: Value = read_json(manifest.path()).map_err(refuse)?;
        let known = understood(name, &value).map_err(refuse)?;
        let origin = catalog.origin_of_fetched(&value).map_err(refuse)?;
        if origin == Origin::Unknown && !trust {
            return Err(refuse(NOT_SIGNED.to_owned()).into());
        }
        let dump = self.bring(&name.to_string(), known.size_bytes, catalog, &progress).await?;
        if let Some(globals) = &known.globals {
            let file = globals_name(name);
            let brought = self.bring(&file, globals.size_bytes, catalog, &progress).await?;
            publish(brought, catalog.dir().join(&file))?;
        }
        // The backup itself comes last: without it the others are none.
        publish(manifest, catalog.dir().join(manifest_name))?;
        publish(dump, catalog.dir().join(name.to_string()))?;
        Ok(catalog.entry(name.clone()))
    }

    /// Fetch `file`, which holds at most `size_max` bytes.
    async fn bring(
        &self,
        file: &str,
        size_max: u64,
        catalog: &Catalog,
        progress: &Progress,
    ) -> anyhow::Result<Partial> {
        let partial = Partial::beside(catalog.dir(), file);
        let show = shower(progress, format!("fetching {file}"));
        let there = self.there(file).await?;
        let size = self.store.head(&there).await.map_err(Failure::from)?.map_or(0, |entry| entry.size);
        // A seal adds a header, and 16 bytes to each 64 KiB.
        let sealed_max = size_max.saturating_add(size_max / 1024 + SEAL_MAX);
        if size > if there.ends_with(SEALED) { sealed_max } else { size_max } {
            let message =
                format!("{there} in {} has {size} bytes, and should have at most {size_max}", self.destination);
            return Err(Failure::new(Code::Failed, message).into());
        }
        self.store.get(&there, partial.path(), &show).await.map_err(Failure::from)?;
        Ok(partial)
    }

    /// What `file` is called there: sealed or not.
    async fn there(&self, file: &str) -> anyhow::Result<String> {
        let sealed = format!("{file}{SEALED}");
        let is_sealed = self.store.head(&sealed).await.map_err(Failure::from)?.is_some();
        Ok(if is_sealed { sealed } else { file.to_owned() })
    }

    /// Remove the copy of `name`, its manifest first.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove(&self, name: &Name) -> anyhow::Result<()> {
        for file in [format!("{}{MANIFEST}", name.stem()), globals_name(name), name.to_string()] {
            for there in [format!("{file}{SEALED}"), file] {
                self.store.delete(&there).await.map_err(Failure::from)?;
            }
        }
        Ok(())
    }
}

/// Give what was fetched its name; what has it already is what was asked for.
fn publish(partial: Partial, to: PathBuf) -> anyhow::Result<()> {
    if to.exists() {
        std::fs::remove_file(&to).with_context(|| format!("replace {}", to.display()))?;
    }
    partial.publish(&to).with_context(|| format!("name {}", to.display()))
}

/// What shows on a terminal how far a copy has come.
fn shower(progress: &Progress, what: String) -> impl Fn(u64, u64) + Send + Sync + '_ {
    move |done, total| {
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        progress.say(format!("{what}: {percent} %"));
    }
}
