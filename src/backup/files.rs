//! Files that have their final name only once they are whole and durable.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::durable::{self, WriteOptions};
use crate::install::hexadecimal;

/// What begins the names of files that are not whole yet.
pub const PARTIAL: &str = ".partial-";

/// How much is written between two flushes, in bytes.
const FLUSH_SIZE: usize = 16 << 20;

/// A large file that is flushed all the while it is written: its last flush is short, and none is so long that the
/// server's own flushes wait behind it.
#[derive(Debug)]
pub struct Flushing {
    file: Arc<File>,
    unflushed: usize,
    ask: SyncSender<()>,
    flusher: JoinHandle<io::Result<()>>,
}

impl Flushing {
    pub fn new(file: File) -> Self {
        let file = Arc::new(file);
        let (ask, asked) = sync_channel(1);
        let flushed = file.clone();
        let flusher = thread::spawn(move || asked.iter().try_for_each(|()| flushed.sync_data()));
        Self { file, unflushed: 0, ask, flusher }
    }

    /// Flush the rest, and say how long the file is.
    ///
    /// # Errors
    /// What any fsync(2) answered: the kernel tells of what it could not write once.
    pub fn finish(self) -> io::Result<u64> {
        drop(self.ask);
        self.flusher.join().unwrap_or_else(|_| Err(io::Error::other("the flushing thread panicked")))?;
        self.file.sync_all()?;
        Ok(self.file.metadata()?.len())
    }
}

impl Write for Flushing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = (&*self.file).write(buffer)?;
        self.unflushed += length;
        if self.unflushed >= FLUSH_SIZE {
            self.unflushed = 0;
            // One is under way, or has failed: `finish` tells.
            let _ = self.ask.try_send(());
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file or directory under a name that says that it is not whole. Dropped, it goes.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    published: bool,
}

impl Partial {
    /// The place beside what is to be `name` in `dir`; nothing is made yet.
    pub fn beside(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!("{PARTIAL}{}-{name}", std::process::id())), published: false }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Make it as a file that only its owner reads.
    ///
    /// # Errors
    /// What open(2) answered.
    pub fn create(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)
    }

    /// Make it durable, give it its final name, and make that durable too. A name that is taken stays as it is.
    ///
    /// # Errors
    /// What fsync(2) or the rename answered.
    pub fn publish(mut self, to: &Path) -> io::Result<()> {
        durable::sync_tree(&self.path)?;
        durable::rename_new(&self.path, to)?;
        self.published = true;
        durable::sync_parent(to)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            let _ = durable::remove(&self.path);
        }
    }
}

/// Write `value` as JSON to `path`, durably, in the place of what is there.
///
/// # Errors
/// It cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("put into JSON")?;
    text.push(b'\n');
    // What a killed run leaves of it is swept with all that is not whole.
    let options = WriteOptions { prefix: PARTIAL, ..WriteOptions::default() };
    durable::replace(path, &text, &options).with_context(|| format!("write {}", path.display()))
}

/// The SHA-256 of a file in hexadecimal and its size, or those of a directory: of the list of its files with their own.
///
/// # Errors
/// It cannot be read.
pub fn digest(path: &Path) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0;
    if path.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (inner, length) = digest(&entry.path())?;
            hash.update(format!("{inner}  {}\n", entry.file_name().to_string_lossy()));
            size += length;
        }
        return Ok((hexadecimal(&hash.finalize()), size));
    }
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hexadecimal(&hash.finalize()), size)),
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_name_is_never_taken_from_what_has_it() {
        let temp = tempfile::tempdir().unwrap();
        let end = temp.path().join("a");
        let first = Partial::beside(temp.path(), "a");
        first.create().unwrap().write_all(b"1").unwrap();
        first.publish(&end).unwrap();
        let second = Partial::beside(temp.path(), "a");
        second.create().unwrap().write_all(b"2").unwrap();
        assert_eq!(second.publish(&end).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&end).unwrap(), b"1");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "nothing half-made stays");
    }

    #[test]
    fn a_directorys_digest_follows_names_and_contents() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a"), "1").unwrap();
        fs::write(temp.path().join("b"), "").unwrap();
        let (before, size) = digest(temp.path()).unwrap();
        assert_eq!(size, 1);
        durable::rename(&temp.path().join("b"), &temp.path().join("c")).unwrap();
        assert_ne!(digest(temp.path()).unwrap().0, before);
        // FIPS 180-4's own example.
        fs::write(temp.path().join("a"), "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&temp.path().join("a")).unwrap(), (expected.to_owned(), 3));
    }
}
