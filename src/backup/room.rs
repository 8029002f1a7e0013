//! Free room on the file systems of data and backups, and whether a backup would leave enough of it.

use std::path::Path;

use crate::config::Room;
use crate::exit::{Code, Failure};

/// A backup is taken to be at most so many percent larger than the one before.
const GROWTH: u64 = 125;
/// A database is taken to be at least so many times as large as its first backup.
const SHRINKING: u64 = 3;

/// A file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What an ordinary user may still write.
    pub free: u64,
    pub total: u64,
}

impl FileSystem {
    /// The one that `path` is on, or will be once it is made (statvfs(3)).
    #[allow(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
    pub fn of(path: &Path) -> Option<Self> {
        let there = path.ancestors().find(|path| path.exists())?;
        let found = nix::sys::statvfs::statvfs(there).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(u64::from(found.fragment_size()));
        Some(Self { free: bytes(u64::from(found.blocks_available())), total: bytes(u64::from(found.blocks())) })
    }

    /// Whether less is free than `wanted`.
    pub fn is_below(&self, wanted: Room) -> bool {
        self.free < wanted.bytes(self.total)
    }
}

/// How large the next backup may be: from the last one, else from the database.
pub fn expected(last: Option<u64>, database: u64) -> u64 {
    last.map_or(database / SHRINKING, |last| last / 100 * GROWTH)
}

/// Whether a backup of `expected` bytes into `dir` leaves `stop_free`. Pure.
///
/// # Errors
/// [`Failure`] with the arithmetic.
pub fn check(dir: &Path, there: FileSystem, expected: u64, stop_free: Room) -> Result<(), Failure> {
    let FileSystem { free, total } = there;
    let kept = stop_free.bytes(total);
    if free >= expected.saturating_add(kept) {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    let message = format!(
        "no backup is begun: {} has {} MB free of {} MB; the backup may take {} MB, and disk.stop_free ({stop_free}) keeps \
         {} MB: {} MB are missing. Make room (`tandem backup prune`), move backup.dir, or lower disk.stop_free",
        dir.display(),
        megabytes(free),
        megabytes(total),
        megabytes(expected),
        megabytes(kept),
        megabytes(expected.saturating_add(kept).saturating_sub(free)),
    );
    Err(Failure::new(Code::CannotCreate, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_has_the_arithmetic() {
        let there = FileSystem { free: 300 << 20, total: 10_000 << 20 };
        let dir = Path::new("/backups");
        assert!(check(dir, there, 100 << 20, Room::Percent(2.0)).is_ok(), "exactly enough");
        let refused = check(dir, there, 101 << 20, Room::Percent(2.0)).unwrap_err().to_string();
        assert_eq!(
            refused,
            "no backup is begun: /backups has 300 MB free of 10000 MB; the backup may take 101 MB, and disk.stop_free (2%) \
             keeps 200 MB: 1 MB are missing. Make room (`tandem backup prune`), move backup.dir, or lower disk.stop_free"
        );
        assert!(check(dir, there, 0, Room::Bytes(301 << 20)).is_err());
        assert!(there.is_below(Room::Percent(3.1)) && !there.is_below(Room::Percent(3.0)));
        assert_eq!((expected(Some(1000), 9), expected(None, 900)), (1250, 300));
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_on_its_parents_file_system() {
        let temp = tempfile::tempdir().unwrap();
        let found = FileSystem::of(&temp.path().join("a/b")).unwrap();
        assert_eq!(Some(found.total), FileSystem::of(temp.path()).map(|it| it.total));
        assert!(found.free <= found.total);
    }
}
