//! One unpacked installation in the cache. It is complete or absent, also after a crash.
//!
//! It is made in a staging directory under the lock of the cache, gets its digest file last, and is renamed into
//! place. A process that dies half-way leaves a staging directory, which the next holder of the lock sweeps away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::manifest::MAJOR;
use super::{Installation, find, libraries, unpack};
use crate::durable::{self, Lock};
use crate::exit::{Code, Failure, code_of};
use crate::install::{is_of_a_lower_layer, keep_out_of_git, lock, make_shared_dir, sha256, write_whole};
use crate::process::identity;
use crate::telemetry::progress;

/// How long to wait for another process that installs; it may have to download.
const LOCK_LIMIT: Duration = Duration::from_secs(15 * 60);

const LOCK_FILE: &str = "install.lock";
const STAGING_PREFIX: &str = ".staging-";
/// In the installed directory: the digest of the archive it was made from. Written before the rename.
const DIGEST_FILE: &str = ".tandem-digest";
/// In the installed directory: the server's version. Written when all libraries were found.
const CHECKED_FILE: &str = ".tandem-checked";

/// A place for one installation.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The directory that holds all installations, the lock and the staging directories.
    pub root: PathBuf,
    /// The name of the installation's directory.
    pub name: String,
    /// The SHA-256 of the archive it must be made from; `None`: whatever the source verified by itself.
    pub digest: Option<String>,
    /// Where it comes from, for people.
    pub origin: String,
}

impl Slot {
    fn dir(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The installation, if it is complete and was checked on this machine: three small reads, no digest, no process.
    pub(super) fn ready(&self) -> Option<Installation> {
        let version = std::fs::read_to_string(self.dir().join(CHECKED_FILE)).ok()?;
        self.is_unpacked().then(|| self.installation(version.trim(), false))
    }

    /// Whether the directory was made whole from the right archive.
    fn is_unpacked(&self) -> bool {
        let dir = self.dir();
        std::fs::read_to_string(dir.join(DIGEST_FILE))
            .is_ok_and(|digest| self.digest.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(digest.trim())))
            && dir.join("bin/postgres").is_file()
    }

    fn installation(&self, version: &str, fetched: bool) -> Installation {
        Installation::at(self.dir().join("bin"), version.to_owned(), self.origin.clone(), fetched)
    }

    /// The installation, made from the archive that `bring` puts together if it is not there yet. `bring` gets the
    /// staging directory for its own files, and has verified what it returns.
    ///
    /// # Errors
    /// What went wrong; an earlier installation is then still in place, and nothing of the attempt is left.
    pub(super) async fn fill(
        &self,
        bring: impl AsyncFnOnce(&Path) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Installation> {
        if let Some(installation) = self.ready() {
            return Ok(installation);
        }
        let lock = Arc::new(self.lock().await?);
        let fetched = !self.is_unpacked();
        if fetched {
            self.sweep();
            let staging = tempfile::Builder::new()
                .prefix(STAGING_PREFIX)
                .tempdir_in(&self.root)
                .map_err(|error| cannot_create(error, &self.root))?;
            let archive = bring(staging.path()).await?;
            let slot = self.clone();
            let _shown = progress(format!("Unpacking PostgreSQL into {}", self.dir().display()));
            // The thread goes on when a stop cancels this future, so the lock stays with it until it is done.
            let held = Arc::clone(&lock);
            let unpacked = tokio::task::spawn_blocking(move || {
                let _held = held;
                slot.unpack_and_rename(&archive, staging.path())
            });
            unpacked.await??;
        }
        // Missing libraries do not undo the installation: with them installed, the next start goes on from here.
        let version = libraries::check(&self.installation("", fetched)).await?;
        if find::major(&version) != Some(MAJOR) {
            let message = format!("{} is PostgreSQL {version}; Tandem runs version {MAJOR}", self.origin);
            return Err(Failure::new(Code::Config, message).into());
        }
        let checked = self.dir().join(CHECKED_FILE);
        write_whole(&checked, version.as_bytes()).with_context(|| format!("write {}", checked.display()))?;
        Ok(self.installation(&version, fetched))
    }

    async fn lock(&self) -> anyhow::Result<Lock> {
        make_shared_dir(&self.root).map_err(|error| cannot_create(error, &self.root))?;
        keep_out_of_git(&self.root);
        let held = lock(&self.root.join(LOCK_FILE), "install PostgreSQL", LOCK_LIMIT).await;
        held.map_err(|error| match code_of(&error) {
            Code::CannotCreate => error.context(elsewhere(&self.root, "")),
            _ => error,
        })
    }

    /// Remove what attempts that died have left. Only under the lock: a living attempt holds it.
    fn sweep(&self) {
        let Ok(entries) = self.root.read_dir() else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX)) {
            tracing::info!(path = %entry.path().display(), "remove what an interrupted installation left");
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "remove a staging directory");
            }
        }
    }

    fn unpack_and_rename(&self, archive: &[u8], staging: &Path) -> anyhow::Result<()> {
        let files = staging.join("files");
        std::fs::create_dir(&files).map_err(|error| cannot_create(error, &files))?;
        let made = unpack::unpack(archive, &files).with_context(|| format!("unpack {}", self.origin))?;
        let digest = made.join(DIGEST_FILE);
        write_whole(&digest, sha256(archive).as_bytes()).with_context(|| format!("write {}", digest.display()))?;
        // A power cut after the rename must not leave the names without the content.
        durable::sync_file_system(&made).with_context(|| format!("flush {}", made.display()))?;
        let dir = self.dir();
        if dir.symlink_metadata().is_ok() {
            put_away(&dir, &staging.join("old")).with_context(|| format!("move {} aside", dir.display()))?;
        }
        durable::rename(&made, &dir).with_context(|| format!("rename {} into place", dir.display()))
    }
}

/// Move the installation that is replaced to `old`. One in a lower layer of an overlay cannot be moved and is removed, its
/// marker files first.
fn put_away(dir: &Path, old: &Path) -> std::io::Result<()> {
    match durable::rename(dir, old) {
        Err(error) if is_of_a_lower_layer(&error) => {
            for counts in [CHECKED_FILE, DIGEST_FILE] {
                durable::remove(&dir.join(counts))?;
            }
            durable::remove(dir)
        }
        renamed => renamed,
    }
}

fn cannot_create(error: std::io::Error, path: &Path) -> anyhow::Error {
    let refused = identity::refused(path, &error);
    anyhow::Error::new(error).context(elsewhere(path, &refused))
}

fn elsewhere(path: &Path, refused: &str) -> Failure {
    let message = format!("cannot write in {}{refused}", path.display());
    Failure::new(
        Code::CannotCreate,
        format!("{message}: name another place for downloads with `cache_dir`, or free it"),
    )
}
