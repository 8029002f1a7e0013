//! Tells a full disk from a used-up quota: for the one room must be made, for the other free bytes mean nothing.

use std::fmt;
use std::io;

/// Why nothing more can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    Disk,
    /// The file system has room, but not for this user, project or subvolume.
    Quota,
}

impl NoRoom {
    /// By the kind of `error`.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::StorageFull => Some(Self::Disk),
            io::ErrorKind::QuotaExceeded => Some(Self::Quota),
            _ => None,
        }
    }

    /// By what a program printed.
    pub fn said(text: &str) -> Option<Self> {
        if text.contains("Disk quota exceeded") {
            return Some(Self::Quota);
        }
        text.contains("No space left on device").then_some(Self::Disk)
    }

    /// By what PostgreSQL answered: it has an SQLSTATE for a full disk, and none for a quota.
    pub fn answered(sqlstate: &str, message: &str) -> Option<Self> {
        // Shared memory is on no disk, unless it is files in the data directory (dynamic_shared_memory_type = mmap).
        if message.contains("shared memory") && !message.contains("pg_dynshmem/") {
            return None;
        }
        Self::said(message).or_else(|| (sqlstate == "53100").then_some(Self::Disk))
    }

    /// As an error of the operating system, which other errors may have as their cause.
    pub fn as_error(self) -> io::Error {
        io::Error::from(match self {
            Self::Disk => io::ErrorKind::StorageFull,
            Self::Quota => io::ErrorKind::QuotaExceeded,
        })
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "the disk is full",
            Self::Quota => "the disk quota is used up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_told_from_a_full_disk() {
        assert_eq!(NoRoom::of(&io::Error::from_raw_os_error(nix::libc::ENOSPC)), Some(NoRoom::Disk));
        assert_eq!(NoRoom::of(&io::Error::from_raw_os_error(nix::libc::EDQUOT)), Some(NoRoom::Quota));
        assert_eq!(NoRoom::of(&io::Error::from_raw_os_error(nix::libc::EIO)), None);
        for (text, why) in [
            ("PANIC:  could not write to file \"pg_wal/xlogtemp.9\": Disk quota exceeded", Some(NoRoom::Quota)),
            ("pg_dump: error: could not write to file: No space left on device", Some(NoRoom::Disk)),
            ("FATAL:  the database system is starting up", None),
        ] {
            assert_eq!(NoRoom::said(text), why, "{text}");
        }
        for (code, message, why) in [
            (
                "XX000",
                "could not write block 818 in file \"base/16385/16417\": Disk quota exceeded",
                Some(NoRoom::Quota),
            ),
            ("53100", "could not extend file \"base/5/1\": No space left on device", Some(NoRoom::Disk)),
            (
                "53100",
                "konnte Datei nicht erweitern: Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
                Some(NoRoom::Disk),
            ),
            ("53100", "could not resize shared memory segment \"/PostgreSQL.9\": No space left on device", None),
            ("XX000", "cache lookup failed for relation 7", None),
        ] {
            assert_eq!(NoRoom::answered(code, message), why, "{message}");
        }
        assert!([NoRoom::Disk, NoRoom::Quota].iter().all(|why| NoRoom::of(&why.as_error()) == Some(*why)));
    }
}
