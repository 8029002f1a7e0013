//! What was there at one moment, and how two moments differ. An event of the kernel's may be lost, be late or name a
//! directory only; what is on the disk is the truth.
//!
//! A file is called by its path below the root. Where a symbolic link is on the way, events name the place that it leads
//! to, and [`Snapshot::path_below_root`] translates.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::rules::Rules;

/// How many directories are looked into behind symbolic links: one may lead to a whole disk.
const LINKED_MAX: usize = 10_000;

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
    /// As they are called without symbolic links.
    pub dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Stamp>,
    /// The places that symbolic links lead to, and the links.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Whether there is more behind symbolic links than is looked into.
    pub is_cut: bool,
}

impl Snapshot {
    /// What is there now.
    pub fn take(rules: &Rules) -> Self {
        let mut snapshot = Self::default();
        let mut next = vec![(rules.root.clone(), rules.root.clone())];
        while let Some((dir, shown)) = next.pop() {
            // What is looked into already, through another link or without, is not looked into again: links may form rings.
            if dir != rules.root && !snapshot.dirs.contains(&dir) {
                snapshot.links.insert(dir.clone(), shown.clone());
            } else if dir != rules.root {
                continue;
            }
            snapshot.add(rules, &dir, &shown, &mut next);
        }
        if rules.name_hidden_files() {
            snapshot.add_hidden(rules);
        }
        snapshot
    }

    /// Add what is below `dir`, which is called `shown`. The directories that symbolic links there lead to are `next`.
    fn add(&mut self, rules: &Rules, dir: &Path, shown: &Path, next: &mut Vec<(PathBuf, PathBuf)>) {
        // What cannot be read does not count.
        for entry in rules.walk(dir).filter_map(Result::ok) {
            let path = entry.path();
            let Some(called) = path.strip_prefix(dir).ok().map(|below| shown.join(below)) else { continue };
            if dir != rules.root && self.dirs.len() >= LINKED_MAX {
                self.is_cut = true;
                return;
            }
            if entry.path_is_symlink() {
                self.add_link(rules, path, called, next);
            } else if entry.file_type().is_some_and(|kind| kind.is_dir()) {
                if rules.looks_into(entry.depth()) {
                    self.dirs.insert(entry.into_path());
                }
            } else if rules.includes(&called) {
                self.files.extend(stamp(path).map(|stamp| (called, stamp)));
            }
        }
    }

    fn add_link(&mut self, rules: &Rules, path: &Path, called: PathBuf, next: &mut Vec<(PathBuf, PathBuf)>) {
        let Ok(target) = path.canonicalize() else { return };
        if target.is_dir() {
            if rules.follows(&target) {
                next.push((target, called));
            }
        } else if rules.includes(&called)
            && let Some(stamp) = stamp(path)
        {
            self.dirs.extend(target.parent().map(Path::to_owned));
            self.links.insert(target, called.clone());
            self.files.insert(called, stamp);
        }
    }

    /// Add the hidden files that are named, whatever ignores them.
    fn add_hidden(&mut self, rules: &Rules) {
        let dirs: Vec<PathBuf> = self.dirs.iter().cloned().collect();
        for dir in dirs {
            for entry in dir.read_dir().into_iter().flatten().flatten() {
                let called = self.path_below_root(&entry.path());
                if rules.names(&called) && rules.includes(&called) {
                    self.files.extend(stamp(&entry.path()).map(|stamp| (called, stamp)));
                }
            }
        }
    }

    /// What the file or directory `path` of an event is called below the root.
    pub fn path_below_root(&self, path: &Path) -> PathBuf {
        let through = path.ancestors().find_map(|dir| Some((dir, self.links.get(dir)?)));
        match through.and_then(|(dir, link)| Some((path.strip_prefix(dir).ok()?, link))) {
            Some((below, link)) if below.as_os_str().is_empty() => link.clone(),
            Some((below, link)) => link.join(below),
            None => path.to_owned(),
        }
    }

    /// Whether `path` is a symbolic link that is followed.
    pub fn is_link(&self, path: &Path) -> bool {
        self.links.values().any(|link| link == path)
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
