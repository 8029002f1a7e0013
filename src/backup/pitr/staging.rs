//! Put a recovered data directory in the old one's place: at every moment there is a whole one under the name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::bases::stamp;
use crate::durable::{self, sync_dir};

/// In a directory that is not finished; whatever has it may be removed.
const MARKER: &str = "tandem.restoring";
/// How long a directory is tried to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);
const PREFIX: &str = ".restoring-";
/// What stands between the name of a data directory that was replaced, and when.
const KEPT: &str = "_before_restore_";

/// A data directory in the making beside the old one. Dropped before it is put in place, it is removed.
#[derive(Debug)]
pub struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.0.join(MARKER).exists() {
            return;
        }
        let begun = Instant::now();
        // A server that was told to end a moment ago may still make files in it.
        while fs::remove_dir_all(&self.0).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            if begun.elapsed() > REMOVE_LIMIT {
                let _ = fs::write(self.0.join(MARKER), "");
                return tracing::warn!("{} could not be removed; the next restore tries again", self.0.display());
            }
        }
    }
}

/// What killed restores have left beside `data`; whatever works in them is none of a cluster's.
pub fn leftovers(data: &Path) -> Vec<PathBuf> {
    let entries = data.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.map(|entry| entry.path()).filter(|path| path.join(MARKER).exists()).collect()
}

/// What recoveries have replaced, beside `data`, the oldest first.
pub fn kept(data: &Path) -> Vec<PathBuf> {
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let begins = format!("{name}{KEPT}");
    let is_stamp =
        |end: &str| end.len() == "20260102_150405".len() && end.bytes().all(|it| it.is_ascii_digit() || it == b'_');
    let entries = data.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    let ours = entries
        .filter(|entry| entry.file_name().to_str().and_then(|it| it.strip_prefix(&begins)).is_some_and(is_stamp));
    let mut kept: Vec<PathBuf> = ours.map(|entry| entry.path()).collect();
    kept.sort();
    kept
}

impl Staging {
    /// Take a new place beside `data`, which `make` makes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(data: &Path, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let parent = data.parent().context("the data directory has no parent")?;
        let place = parent.join(format!("{PREFIX}{}-{}", stamp(SystemTime::now()), std::process::id()));
        make(&place)?;
        fs::write(place.join(MARKER), "").with_context(|| format!("write into {}", place.display()))?;
        Ok(Self(place))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Put it in the place of `data`; the old one, if there was one, is kept under the name that comes back.
    ///
    /// # Errors
    /// The file system refuses; then `data` is as it was.
    pub fn put_in_place(self, data: &Path, now: SystemTime) -> anyhow::Result<Option<PathBuf>> {
        let parent = data.parent().context("the data directory has no parent")?;
        let fails = || format!("put the restored data directory at {}", data.display());
        // PostgreSQL flushes its data and none of `archive_status`, and without its `.ready` the history of the new timeline
        // is never archived: a later restore would not find the way to what is written from now on.
        durable::sync_file_system(&self.0).with_context(fails)?;
        if !data.exists() || fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_none()) {
            fs::remove_file(self.0.join(MARKER)).and_then(|()| sync_dir(&self.0)).with_context(fails)?;
            let placed = durable::rename(&self.0, data);
            return self.unless(placed).and_then(|()| sync_dir(parent)).with_context(fails).map(|()| None);
        }
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        let kept = parent.join(format!("{name}{KEPT}{}", stamp(now)));
        // What is in its place in a moment is the old one, and nothing that may be removed.
        fs::remove_file(self.0.join(MARKER)).and_then(|()| sync_dir(&self.0)).with_context(fails)?;
        let exchanged = durable::exchange(&self.0, data);
        self.unless(exchanged).with_context(fails)?;
        // A disk may keep the second of two names and lose the first.
        let renamed = sync_dir(parent).and_then(|()| durable::rename(&self.0, &kept)).and_then(|()| sync_dir(parent));
        renamed.with_context(|| {
            format!("the restored data is in place, and the old in {}; call it {}", self.0.display(), kept.display())
        })?;
        Ok(Some(kept))
    }

    /// After a failure it is removable again.
    fn unless(&self, outcome: io::Result<()>) -> io::Result<()> {
        outcome.inspect_err(|_| {
            let _ = fs::write(self.0.join(MARKER), "");
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path) -> anyhow::Result<()> {
        Ok(fs::create_dir(path)?)
    }

    #[test]
    fn the_old_one_is_kept_under_a_name_that_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("16");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("old"), "").unwrap();
        let staging = Staging::begin(&data, make).unwrap();
        fs::write(staging.path().join("new"), "").unwrap();
        let kept = staging.put_in_place(&data, SystemTime::UNIX_EPOCH).unwrap().unwrap();
        assert_eq!(kept, temp.path().join("16_before_restore_19700101_000000"));
        assert_eq!(super::kept(&data), std::slice::from_ref(&kept));
        assert!(kept.join("old").exists() && data.join("new").exists() && !data.join(MARKER).exists());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }

    #[test]
    fn where_there_was_none_it_takes_the_place() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("16");
        for empty in [false, true] {
            if empty {
                fs::remove_dir_all(&data).unwrap();
                fs::create_dir(&data).unwrap();
            }
            let staging = Staging::begin(&data, make).unwrap();
            fs::write(staging.path().join("new"), "").unwrap();
            assert_eq!(staging.put_in_place(&data, SystemTime::now()).unwrap(), None);
            assert!(data.join("new").exists());
        }
    }

    #[test]
    fn what_was_given_up_or_killed_is_removed_and_an_old_data_directory_never() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("16");
        let staging = Staging::begin(&data, make).unwrap();
        let path = staging.path().to_owned();
        drop(staging);
        assert!(!path.exists());
        // Killed in the middle of the work, and between the exchange and the last rename.
        let (unfinished, old) = (temp.path().join(".restoring-1"), temp.path().join(".restoring-2"));
        fs::create_dir(&unfinished).unwrap();
        fs::create_dir(&old).unwrap();
        fs::write(unfinished.join(MARKER), "").unwrap();
        fs::write(old.join("PG_VERSION"), "16").unwrap();
        assert_eq!(leftovers(&data), [unfinished]);
    }
}
