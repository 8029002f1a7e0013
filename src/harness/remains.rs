//! What a dead run may leave: its server's processes, the kernel's shared memory, its directory.
//!
//! The janitor does the same in the shell's words, for it must do it after this process has gone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::plan::CommandLine;
use crate::postgres::stale;
use crate::process::{self, Streams};

/// How long the removal goes on while killed processes still end.
const TRIES: usize = 50;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The data directory of the run in `dir`, as [`crate::postgres::home::Home::at`] lays it out.
pub fn data(dir: &Path) -> PathBuf {
    dir.join("postgres/16")
}

/// Whether a server works in the run's directory `dir`.
pub fn is_served(dir: &Path) -> bool {
    stale::is_worked_in(&data(dir))
}

/// End what works in the run's directory `dir`, and remove it.
pub async fn remove(dir: &Path) {
    let data = data(dir);
    let inode = fs::metadata(&data).map(|data| data.ino());
    for _ in 0..TRIES {
        let working = stale::orphaned_backends(&data);
        working.iter().for_each(|server| server.signal(Signal::SIGKILL));
        // Not before the last process has gone, which could still write.
        if !stale::is_worked_in(&data) && fs::remove_dir_all(dir).is_ok() || !dir.exists() {
            break;
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    for segment in inode.map(segments).unwrap_or_default() {
        let command = CommandLine::new("ipcrm").args(["--shmem-id", &segment]);
        let _ = process::spawn_with(&command, Some(Signal::SIGKILL), Streams::none());
    }
}

/// The shared memory of a server that did not end in an orderly way, which the kernel keeps for ever: its key is the inode of
/// the data directory (PostgreSQL's src/backend/port/sysv_shmem.c), and nobody is attached to it. Line 7 of postmaster.pid tells it
/// too, but not while a killed server starts again: the new file has no such line yet, and the segment is the old server's.
fn segments(inode: u64) -> Vec<String> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    // proc_sysvipc_shm(5): key, shmid, perms, size, cpid, lpid, nattch, …
    let left = rows.filter_map(|row| match row.as_slice() {
        [key, segment, _, _, _, _, "0", ..] => is_key_of(key, inode).then(|| (*segment).to_owned()),
        _ => None,
    });
    left.collect()
}

/// Whether `key`, a number of 32 bits with its sign, is that of `inode`.
fn is_key_of(key: &str, inode: u64) -> bool {
    key.parse::<i32>().is_ok_and(|key| u64::from(key.cast_unsigned()) == inode & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_lower_half_of_an_inode() {
        for (key, inode) in
            [("10029448", 10_029_448), ("-1", 0xffff_ffff), ("5", 0x1_0000_0005), ("-2147483648", 1 << 31)]
        {
            assert!(is_key_of(key, inode), "{key} {inode}");
        }
        assert!(!is_key_of("5", 6) && !is_key_of("", 0));
    }
}
