//! The files of a database, by size and by the kernel's time of their last change: a database of which PostgreSQL wrote no
//! file is as it was cloned, whatever its statistics say.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A cache of the catalogs that any connection may write anew (PostgreSQL's source, `RELCACHE_INIT_FILENAME`).
const CACHE: &str = "pg_internal.init";

/// The files of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(BTreeMap<OsString, Trace>);

/// What a write to a file changes: ctime cannot be set back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trace {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Footprint {
    /// Of the database in `dir`, such as `base/16384`. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(CACHE) {
                continue;
            }
            let meta = entry.metadata()?;
            let trace = Trace { inode: meta.ino(), size: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) };
            files.insert(name, trace);
        }
        Ok(Self(files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_shows_and_reading_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let now = || Footprint::of(temp.path()).unwrap();
        fs::write(temp.path().join("1249"), "page").unwrap();
        let first = now();
        assert_eq!(fs::read(temp.path().join("1249")).unwrap(), b"page");
        fs::write(temp.path().join(CACHE), "cache").unwrap();
        fs::write(temp.path().join("pg_internal.init.4711"), "cache").unwrap();
        assert_eq!(first, now());

        fs::write(temp.path().join("2608"), "new").unwrap();
        let second = now();
        assert_ne!(first, second);
        // The same length, and the time of the change set back.
        let file = fs::File::options().write(true).open(temp.path().join("1249")).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while now() == second {
            assert!(std::time::Instant::now() < deadline, "the clock of the file system stands still");
            std::io::Write::write_all(&mut &file, b"PAGE").unwrap();
            file.set_modified(before).unwrap();
        }
    }
}
