//! A log file that is kept below a size, with older ones beside it: what `log.file` names.
//!
//! Others may rotate it too (logrotate). A file that was moved away or removed is made anew by the next line; one that was
//! cut off in its place (`copytruncate`) goes on, because every line is written to its end, and its size is asked for and not
//! counted.
//!
//! Blocks: the thread that writes the file, and no other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::print::write_all;
use crate::durable;

/// Which file, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileBounds {
    pub path: PathBuf,
    /// The size in bytes from which on a new file is begun.
    pub size_max: u64,
    /// How many files there are at most, the newest included.
    pub count: u32,
}

impl FileBounds {
    /// All files that there may be, the newest first.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (0..self.count).map(|number| numbered(&self.path, number))
    }
}

/// The file `path`, or the older one with this number.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

/// The file that is being written.
pub(super) struct RotatingFile {
    bounds: FileBounds,
    file: Option<File>,
    /// Whether the directory was made, which happens once: later it may be a mount that is gone.
    is_made: bool,
    /// The size at which rotating is tried again after it failed.
    again_at: u64,
    /// Why rotating failed.
    unrotated: Option<io::Error>,
}

impl RotatingFile {
    pub(super) fn new(bounds: FileBounds) -> Self {
        Self { bounds, file: None, is_made: false, again_at: 0, unrotated: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.bounds.path
    }

    /// Write `text`, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be opened or written.
    pub(super) fn write(&mut self, text: &[u8]) -> io::Result<()> {
        self.open()?;
        let mut length = self.length()?;
        if self.is_full(length, text.len()) {
            match self.rotate() {
                Ok(()) => {
                    self.again_at = 0;
                    self.open()?;
                    length = 0;
                }
                // The same file goes on, until it is as large again.
                Err(error) => {
                    self.again_at = length + self.bounds.size_max;
                    self.unrotated = Some(error);
                }
            }
        }
        let Some(file) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let written = write_all(file, text);
        // Half a line of JSON is none.
        if written.is_err() && file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > length) {
            let _ = file.set_len(length);
        }
        written
    }

    /// Why the last rotation failed, told once.
    pub(super) fn take_unrotated(&mut self) -> Option<io::Error> {
        self.unrotated.take()
    }

    fn length(&self) -> io::Result<u64> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(file.metadata()?.len())
    }

    /// Whether the next line needs a new file. What is no regular file, as `/dev/stdout`, has no size.
    fn is_full(&self, length: u64, more: usize) -> bool {
        length > 0 && length + more as u64 > self.bounds.size_max.max(self.again_at)
    }

    /// Have the file open that has the name now.
    fn open(&mut self) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|file| is_at(file, &self.bounds.path)) {
            return Ok(());
        }
        if !self.is_made
            && let Some(dir) = self.bounds.path.parent()
        {
            fs::create_dir_all(dir)?;
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.bounds.path);
        match (opened, &self.file) {
            (Ok(file), _) => {
                self.file = Some(file);
                self.is_made = true;
                Ok(())
            }
            // It was moved, and no new one can be made: what has another name now is still read by people.
            (Err(_), Some(file)) if file.metadata().is_ok_and(|meta| meta.nlink() > 0) => Ok(()),
            (Err(error), _) => Err(error),
        }
    }

    /// Give every file the next older name, the oldest away.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.bounds.path;
        if self.bounds.count <= 1 {
            durable::remove(path)?;
        }
        for number in (1..self.bounds.count).rev() {
            match durable::rename(&numbered(path, number - 1), &numbered(path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = None;
        Ok(())
    }
}

/// Whether `file` is the one at `path`. Where that cannot be seen, nothing has changed.
fn is_at(file: &File, path: &Path) -> bool {
    match (path.metadata(), file.metadata()) {
        (Ok(there), Ok(open)) => (there.dev(), there.ino()) == (open.dev(), open.ino()),
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        (_, Err(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_in(dir: &Path, size_max: u64, count: u32) -> RotatingFile {
        RotatingFile::new(FileBounds { path: dir.join("log/app.log"), size_max, count })
    }

    fn texts(file: &RotatingFile) -> Vec<Option<String>> {
        (0..file.bounds.count + 1).map(|number| fs::read_to_string(numbered(file.path(), number)).ok()).collect()
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn no_file_is_larger_than_its_bound_and_there_are_no_more_than_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file_in(dir.path(), 10, 3);
        for number in 0..9 {
            file.write(format!("line{number}").as_bytes()).unwrap();
        }
        assert_eq!(texts(&file)[..3], some(&["line8", "line6line7", "line4line5"]));
        assert_eq!(texts(&file)[3], None);
        // A line that is longer than a file gets one of its own.
        file.write(b"a line of more than ten").unwrap();
        assert_eq!(texts(&file)[..2], some(&["a line of more than ten", "line8"]));

        let mut alone = file_in(&dir.path().join("alone"), 10, 1);
        for number in 0..3 {
            alone.write(format!("line{number}").as_bytes()).unwrap();
        }
        assert_eq!(texts(&alone), [Some("line2".to_owned()), None]);
    }

    #[test]
    fn what_others_do_with_the_file_is_noticed_by_the_next_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file_in(dir.path(), 1000, 2);
        let path = file.path().to_owned();
        file.write(b"one\n").unwrap();
        // logrotate moves it.
        durable::rename(&path, &dir.path().join("moved")).unwrap();
        file.write(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("moved")).unwrap(), "one\n");
        // It copies it and cuts it off.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        file.write(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // Its directory goes, and comes back.
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(file.write(b"four\n").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!path.parent().unwrap().exists(), "it may be a mount that is gone");
        fs::create_dir(path.parent().unwrap()).unwrap();
        file.write(b"five\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "five\n");
    }

    #[test]
    fn where_it_cannot_be_rotated_the_same_file_goes_on_and_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file_in(dir.path(), 5, 2);
        file.write(b"line0").unwrap();
        // Not even root renames a file to a directory's name.
        fs::create_dir_all(numbered(file.path(), 1).join("full")).unwrap();
        file.write(b"line1").unwrap();
        assert!(file.take_unrotated().is_some() && file.take_unrotated().is_none());
        file.write(b"line2").unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "line0line1line2");
        assert!(file.take_unrotated().is_some(), "tried again when it was as large again");
    }

    #[test]
    fn a_full_disk_is_an_error_and_what_is_no_file_is_not_rotated() {
        let mut full = RotatingFile::new(FileBounds { path: "/dev/full".into(), size_max: 1, count: 2 });
        assert_eq!(full.write(b"line").unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut null = RotatingFile::new(FileBounds { path: "/dev/null".into(), size_max: 1, count: 2 });
        null.write(b"line").unwrap();
        null.write(b"line").unwrap();
        assert!(null.take_unrotated().is_none());
    }
}
