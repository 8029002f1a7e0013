//! What is known of the archiving, in small files beside the WAL.
//!
//! PostgreSQL passes over names in `pg_wal` that are not its own, and no base backup copies the directory. Notes are
//! hints that may be lost, and are not flushed, but for the one that the chain was given up.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::durable::{self, WriteOptions, sync_dir};

/// Why the last push failed; removed by the next that succeeds.
const FAILED: &str = "tandem.failed";
/// The name of the last file that was archived.
const ARCHIVED: &str = "tandem.archived";
/// The length of the longest name in it, a backup's label: one is written over another.
const NAME_WIDTH: usize = 40;
/// Segments that were archived before PostgreSQL asked for it.
const AHEAD: &str = "tandem.ahead";
/// Says that the chain is given up: segments that PostgreSQL pushes are dropped.
const GIVEN_UP: &str = "tandem.given_up";

/// The notes in one `pg_wal`.
#[derive(Clone, Debug)]
pub struct Notes {
    dir: PathBuf,
}

/// A segment as it was when it was archived ahead. Any change of the file changes one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    pub name: String,
    stamp: String,
    /// What it takes in the archive, in bytes.
    pub archived_size: u64,
}

impl Ahead {
    /// Note the segment `name`, with what stat(2) says of it, and the size of its archived file.
    pub fn new(name: String, source: &Metadata, archived_size: u64) -> Self {
        Self { name, stamp: stamp(source), archived_size }
    }

    /// Whether `source` is still the file that was archived.
    pub fn is_of(&self, source: &Metadata) -> bool {
        self.stamp == stamp(source)
    }

    /// The end tells a whole line from one that a crash cut.
    fn line(&self) -> String {
        format!("{} {} {} end\n", self.name, self.stamp, self.archived_size)
    }

    fn read(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, stamp, size, "end"] = words[..] else { return None };
        Some(Self { name: name.to_owned(), stamp: stamp.to_owned(), archived_size: size.parse().ok()? })
    }
}

fn is_history(name: &str) -> bool {
    name.ends_with(".history")
}

fn stamp(meta: &Metadata) -> String {
    let changed = format!("{}.{:09}", meta.ctime(), meta.ctime_nsec());
    format!("{}:{}:{}:{}.{:09}:{changed}", meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
}

impl Notes {
    /// The notes in `pg_wal`.
    pub fn new(pg_wal: impl Into<PathBuf>) -> Self {
        Self { dir: pg_wal.into() }
    }

    /// Those beside a segment.
    pub fn beside(segment: &Path) -> Self {
        Self::new(segment.parent().unwrap_or(Path::new(".")))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        // Whoever may pass the directory may read it: root writes notes that the server's user reads.
        let options = WriteOptions::default().mode(0o644).unflushed();
        durable::replace(&self.dir.join(name), text.as_bytes(), &options)
    }

    /// Write over what is there, in one call. Where that is cut short, it is no name.
    fn write_over(&self, name: &str, text: &str) -> io::Result<()> {
        // Put in another's place, ext4 would write the new file out at once.
        let file = fs::OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.write_all_at(text.as_bytes(), 0)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(name)).ok()
    }

    /// That `name` was archived.
    pub fn succeeded(&self, name: &str) {
        let text = format!("{name:NAME_WIDTH$}\n");
        let _ = self.write_over(ARCHIVED, &text).or_else(|_| self.write(ARCHIVED, &text));
        let _ = fs::remove_file(self.dir.join(FAILED));
    }

    /// That a push failed, and why.
    pub fn failed(&self, why: &str) {
        let _ = self.write(FAILED, why);
    }

    /// Why the last push failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.read(FAILED)
    }

    /// The file that was archived last, and when.
    pub fn last_archived(&self) -> Option<(String, SystemTime)> {
        let time = fs::metadata(self.dir.join(ARCHIVED)).and_then(|meta| meta.modified()).ok()?;
        Some((self.read(ARCHIVED)?.trim_end().to_owned(), time))
    }

    /// What was archived ahead.
    pub fn ahead(&self) -> Vec<Ahead> {
        self.read(AHEAD).unwrap_or_default().lines().filter_map(Ahead::read).collect()
    }

    /// Remember what was archived ahead. Only what is durable in the archive may be in it.
    pub fn set_ahead(&self, ahead: &[Ahead]) {
        let text: String = ahead.iter().map(Ahead::line).collect();
        if self.write(AHEAD, &text).is_err() {
            // An old note may be of files that have changed since; without any, all is looked at.
            let _ = fs::remove_file(self.dir.join(AHEAD));
        }
    }

    /// Why the chain was given up, if it was.
    pub fn given_up(&self) -> Option<String> {
        self.read(GIVEN_UP)
    }

    /// Give the chain up: from now on pushes drop what they are given.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn give_up(&self, why: &str) -> io::Result<()> {
        // Kept when the disk is full: one small file in a directory that has room for more names.
        self.write(GIVEN_UP, why)?;
        fs::File::open(self.dir.join(GIVEN_UP))?.sync_all()?;
        sync_dir(&self.dir)
    }

    /// Since when it is given up.
    pub fn given_up_since(&self) -> Option<SystemTime> {
        fs::metadata(self.dir.join(GIVEN_UP)).ok()?.modified().ok()
    }

    /// Let PostgreSQL take the segments that wait for archived, in its own way; how many were dropped. A timeline's history
    /// goes on waiting: it takes a few bytes, and without it no recovery finds the way to what comes after.
    ///
    /// # Errors
    /// A name cannot be changed.
    pub fn drop_ready(&self) -> io::Result<usize> {
        let (mut ready, status) = (self.ready(), self.dir.join("archive_status"));
        ready.retain(|name| !is_history(name));
        for name in &ready {
            let (from, to) = (status.join(format!("{name}.ready")), status.join(format!("{name}.done")));
            match durable::rename(&from, &to) {
                // The archiver was quicker.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(ready.len())
    }

    /// Begin again.
    ///
    /// # Errors
    /// The note cannot be removed.
    pub fn resume(&self) -> io::Result<()> {
        match fs::remove_file(self.dir.join(GIVEN_UP)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        sync_dir(&self.dir)
    }

    /// Names that PostgreSQL wants archived, in the order of its own asking: histories, then segments by age.
    pub fn ready(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.join("archive_status")) else { return Vec::new() };
        let names =
            entries.flatten().filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort_by_key(|name| (!is_history(name), name.clone()));
        names
    }

    /// Whether a timeline's history waits. PostgreSQL asks for no segment before it is archived.
    pub fn history_waits(&self) -> bool {
        self.ready().first().is_some_and(|name| is_history(name))
    }

    /// Since when `name` is to be archived.
    pub fn ready_since(&self, name: &str) -> Option<SystemTime> {
        fs::metadata(self.dir.join("archive_status").join(format!("{name}.ready"))).ok()?.modified().ok()
    }
}
