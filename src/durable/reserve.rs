//! A file that takes room for what this program must be able to write on a full disk: a few small files, without which it does
//! not start. When one of them finds the disk full, the reserve is removed, and the write tried again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The room it takes, in bytes: several times what is written at a start.
const SIZE: usize = 512 << 10;

/// It is made only where so much is free, in bytes.
const FREE_MIN: u64 = 64 << 20;

/// The reserve of this process.
static RESERVE: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Have a reserve at `path`. Where there is little room there is none, so that it takes nobody's last; the next start tries
/// again.
#[allow(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
pub fn keep(path: &Path) {
    let is_whole = || path.metadata().is_ok_and(|meta| meta.len() == SIZE as u64);
    if !is_whole() {
        let _ = fs::remove_file(path);
        let free = path.parent().and_then(|dir| nix::sys::statvfs::statvfs(dir).ok());
        let free = free.map_or(0, |there| u64::from(there.blocks_available()) * u64::from(there.fragment_size()));
        if free < FREE_MIN || fs::write(path, filling()).is_err() {
            let _ = fs::remove_file(path);
            return;
        }
    }
    *RESERVE.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.to_owned());
}

/// Give the reserve up for a file in `dir`; whether there was one on the same file system.
pub(super) fn give_up(dir: &Path) -> bool {
    let mut reserve = RESERVE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    match reserve.as_deref() {
        Some(path) if device(path).is_some() && device(path) == device(dir) => {
            let given = fs::remove_file(path).is_ok();
            *reserve = None;
            given
        }
        _ => false,
    }
}

/// Whether `error` is a full disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes that no file system makes smaller (Marsaglia's xorshift).
fn filling() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..SIZE / 8).flat_map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_given_up_for_files_of_its_own_disk() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("reserve");
        fs::write(&path, "cut short").unwrap();
        keep(&path);
        let made = path.metadata().unwrap();
        assert_eq!(made.len(), SIZE as u64);
        keep(&path);
        assert_eq!(path.metadata().unwrap().ino(), made.ino());
        assert!(!give_up(Path::new("/proc")) && path.exists());
        assert!(give_up(temp.path()) && !path.exists());
        assert!(!give_up(temp.path()), "it is gone");
    }
}
