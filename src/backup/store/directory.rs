//! Copies in a directory: another disk, or what is mounted there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;

use super::arriving::{Arriving, Expected};
use super::name::is_unfinished;
use super::parts::{End, Local, Outgoing, next};
use super::seal::{Identities, Recipients};
use super::trouble::{Kind, StoreError};
use super::{Progress, Scope, Sent, StoredFile};
use crate::durable::sync_dir;

/// An unfinished copy that was not written to for so long is abandoned: its process was killed. Others may send copies to the
/// same directory.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A directory for copies. It is never made: a missing one may be a disk that is not mounted, and the copies would fill
/// the disk that they shall survive.
pub(super) struct Directory {
    pub(super) root: PathBuf,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) async fn put(
        &self,
        outgoing: Outgoing<'_>,
        name: &str,
        seal: Option<Recipients>,
        progress: Progress<'_>,
    ) -> Result<Sent, StoreError> {
        let target = self.root.join(name);
        let root = self.root.clone();
        let dirs = target.parent().unwrap_or(&self.root).to_path_buf();
        let made = move || {
            make_dirs(&root, &dirs)?;
            sweep(&dirs, SystemTime::now());
            Ok(())
        };
        blocking(made).await?;
        let local = Local::open(outgoing).await?;
        let end = copy(local, seal, Arriving::begin(target.clone(), None), progress).await?;
        let kept = self.head(name).await?.map(|entry| entry.size);
        if kept != Some(end.size) {
            let message = format!("{} does not have the {} bytes that were written", target.display(), end.size);
            return Err(StoreError::new(Kind::Altered, message));
        }
        Ok(Sent { name: name.to_owned(), size: end.size, sha256: end.sha256 })
    }

    pub(super) async fn get(
        &self,
        name: &str,
        local: &Path,
        keys: Option<Identities>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        if self.head(name).await?.is_none() {
            return Err(self.missing(name));
        }
        let kept = Local::open(Outgoing { path: &self.root.join(name), head: Vec::new() }).await?;
        copy(kept, None, Arriving::begin(local.to_path_buf(), keys), progress).await.map(drop)
    }

    pub(super) async fn list(&self, scope: Scope<'_>) -> Result<Vec<StoredFile>, StoreError> {
        let (root, deep) = (self.root.clone(), !matches!(scope, Scope::Top));
        let below = if let Scope::Under(dir) = scope { Some(dir.to_owned()) } else { None };
        blocking(move || {
            look(&root)?;
            let mut entries = Vec::new();
            let dir = below.as_ref().map_or_else(|| root.clone(), |below| root.join(below));
            let prefix = below.map(|below| format!("{below}/")).unwrap_or_default();
            match collect(&dir, &prefix, deep, &mut entries) {
                Err(error) if dir != root && is_missing(&error) => Ok(entries),
                Err(error) => Err(StoreError::local(format!("list {}", dir.display()), error)),
                Ok(()) => Ok(entries),
            }
        })
        .await
    }

    pub(super) async fn head(&self, name: &str) -> Result<Option<StoredFile>, StoreError> {
        let (root, name) = (self.root.clone(), name.to_owned());
        blocking(move || {
            look(&root)?;
            let path = root.join(&name);
            let found = fs::metadata(&path).and_then(|meta| Ok((meta.is_file(), meta.len(), meta.modified()?)));
            match found {
                Ok((true, size, modified)) => Ok(Some(StoredFile { name, size, modified })),
                Ok((false, ..)) => Ok(None),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(StoreError::local(format!("look at {}", path.display()), error)),
            }
        })
        .await
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (root, path) = (self.root.clone(), self.root.join(name));
        blocking(move || {
            look(&root)?;
            let deleted = match fs::remove_file(&path) {
                Ok(()) => sync_dir(path.parent().unwrap_or(&root)),
                Err(error) if is_missing(&error) => Ok(()),
                Err(error) => Err(error),
            };
            deleted.map_err(|error| StoreError::local(format!("delete {}", path.display()), error))
        })
        .await
    }

    fn missing(&self, name: &str) -> StoreError {
        let message = format!("there is no copy `{name}` in {}; list shows what is there", self.root.display());
        StoreError::new(Kind::Missing, message)
    }
}

/// Copy a whole file; used in both directions.
async fn copy(
    local: Local,
    seal: Option<Recipients>,
    mut file: Arriving,
    progress: Progress<'_>,
) -> Result<End, StoreError> {
    let came = pass(local, seal, &mut file, progress).await;
    file.conclude(came).await
}

async fn pass(
    local: Local,
    seal: Option<Recipients>,
    file: &mut Arriving,
    progress: Progress<'_>,
) -> Result<Expected, StoreError> {
    let (total, mut done) = (local.size, 0);
    let mut parts = local.read(seal);
    loop {
        let part = next(&mut parts).await?;
        done += part.bytes.len() as u64;
        // A part that waits for the disk still takes its room.
        let _room = part.room;
        file.write(part.bytes.into()).await?;
        progress(done.min(total), total);
        if let Some(end) = part.end {
            return Ok(Expected { size: end.size, sha256: Some(end.sha256) });
        }
    }
}

/// Refuse a root that is not there.
pub(super) fn look(root: &Path) -> Result<(), StoreError> {
    let why = match fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => "is no directory".to_owned(),
        Err(error) if is_missing(&error) => {
            "does not exist; create it, or mount the disk that belongs there".to_owned()
        }
        Err(error) => format!("cannot be looked at: {error}"),
    };
    Err(StoreError::new(Kind::NoBucket, format!("the directory for copies, {}, {why}", root.display())))
}

/// Make the directories between `root` and `dir`, that last.
pub(super) fn make_dirs(root: &Path, dir: &Path) -> Result<(), StoreError> {
    look(root)?;
    let missing: Vec<_> = dir.ancestors().take_while(|dir| *dir != root && !dir.is_dir()).collect();
    for dir in missing.into_iter().rev() {
        let made = match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            made => made,
        };
        let synced = made.and_then(|()| sync_dir(dir.parent().unwrap_or(root)));
        synced.map_err(|error| StoreError::local(format!("create {}", dir.display()), error))?;
    }
    Ok(())
}

/// The files under `dir`, whose name from the root is `prefix`. Names that are no UTF-8 are none of ours.
fn collect(dir: &Path, prefix: &str, deep: bool, entries: &mut Vec<StoredFile>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if deep {
                collect(&entry.path(), &format!("{name}/"), deep, entries)?;
            }
        } else if kind.is_file() && !is_unfinished(name.rsplit('/').next().unwrap_or_default()) {
            match entry.metadata() {
                Ok(meta) => entries.push(StoredFile { name, size: meta.len(), modified: meta.modified()? }),
                // Deleted meanwhile.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(call).await.map_err(|error| StoreError::thread(&error))?
}

/// Remove copies in `dir` that were cut short a day ago or earlier.
fn sweep(dir: &Path, now: SystemTime) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|meta| meta.modified());
        let is_old = changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|age| age > ABANDONED));
        if is_old && is_unfinished(&entry.file_name().to_string_lossy()) {
            tracing::info!("removing {}, which an interrupted copy left", entry.path().display());
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_short_is_removed_when_nobody_writes_to_it_any_more() {
        let temp = tempfile::tempdir().unwrap();
        for name in [".tandem-abc.part", "whole", ".other.part"] {
            fs::write(temp.path().join(name), "").unwrap();
        }
        let count = || fs::read_dir(temp.path()).unwrap().count();
        sweep(temp.path(), SystemTime::now());
        assert_eq!(count(), 3, "somebody may write to it");
        sweep(temp.path(), SystemTime::now() + ABANDONED + Duration::from_secs(60));
        assert_eq!(count(), 2);
        assert!(!temp.path().join(".tandem-abc.part").exists());
    }
}
