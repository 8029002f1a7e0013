//! The log of a Tandem in the background: standard error is a file, which is kept below a size.
//!
//! At the bound the file gets the name of the older one, in its place, and a new one becomes standard error. So whatever
//! writes there, a panic of the standard library too, goes on writing into the newest. A rotation from outside
//! (logrotate) is not needed; with its `copytruncate` it does no harm.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::durable;

/// The size of one file, in bytes; there are two at most.
pub const LOG_FILE_SIZE: u64 = 16 << 20;

static FILE: Mutex<Option<LogFile>> = Mutex::new(None);

struct LogFile {
    path: PathBuf,
    size: u64,
}

/// Standard error and standard output are the file `path` from the start: keep it below its bound from now on.
pub fn log_to(path: &Path) {
    // Blocks: before the loop turns, on Tandem's own state directory, which was just written.
    let size = path.metadata().map_or(0, |meta| meta.len());
    *FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(LogFile { path: path.to_owned(), size });
}

/// The older file beside the log `path`.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Whether standard error is a file that is kept here.
pub(super) fn is_set() -> bool {
    FILE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// So many bytes more were written. Only for the thread that writes them: it may wait for the disk.
pub(super) fn wrote(length: usize) {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(file) = &mut *file else { return };
    file.size += length as u64;
    if file.size >= LOG_FILE_SIZE {
        // Where that fails, the same file goes on; it is tried again after as much again.
        let _ = rotate(&file.path);
        file.size = 0;
    }
}

fn rotate(path: &Path) -> io::Result<()> {
    durable::rename(path, &older(path))?;
    // Blocks: the thread of the queue, and no other.
    let new: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    nix::unistd::dup2_stderr(&new)?;
    nix::unistd::dup2_stdout(&new)?;
    Ok(())
}
