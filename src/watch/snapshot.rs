//! What was there at one moment, and how two moments differ. An event of the kernel's may be lost, be late or name a
//! directory only; what is on the disk is the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::rules::Rules;

/// What changes when a file is saved, whether in its place or under another name that is then given its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

/// The directories that are looked into, and the files in them that count.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Stamp>,
}

impl Snapshot {
    /// What is there now.
    pub fn take(rules: &Rules) -> Self {
        let mut snapshot = Self::default();
        // What cannot be read does not count.
        for entry in rules.walk().filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_type().is_some_and(|kind| kind.is_dir()) {
                snapshot.dirs.insert(entry.into_path());
            } else if rules.includes(path)
                && let Some(stamp) = stamp(path)
            {
                snapshot.files.insert(entry.into_path(), stamp);
            }
        }
        snapshot
    }

    /// How many files count.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// The files that are not now what they were `before`, sorted.
    ///
    /// One that came or went counts only where it, or a directory above it, was `touched`: else it is as it was, and
    /// another ignore file holds.
    pub fn changed(&self, before: &Self, touched: &Touched) -> Vec<PathBuf> {
        let differs = |path: &&PathBuf| match (before.files.get(*path), self.files.get(*path)) {
            (Some(old), Some(new)) => old != new,
            (None, _) | (_, None) => touched.contains(path),
        };
        let all: BTreeSet<&PathBuf> = before.files.keys().chain(self.files.keys()).collect();
        all.into_iter().filter(differs).cloned().collect()
    }
}

/// What events named.
#[derive(Debug, Default)]
pub struct Touched {
    pub paths: BTreeSet<PathBuf>,
    /// Events were lost: it may be anything.
    pub all: bool,
}

impl Touched {
    fn contains(&self, path: &Path) -> bool {
        self.all || path.ancestors().any(|path| self.paths.contains(path))
    }
}

/// `None` when there is no such file, or not any more.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(Stamp { modified: (found.mtime(), found.mtime_nsec()), size: found.len(), inode: found.ino() })
}
