//! The server's small files, and the room on its file system.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;

use crate::durable::{self, WriteOptions};
use crate::plan::Identity;

/// Write `text` to `path` with `mode` and `owner`; nothing is written when the file already says so.
///
/// # Errors
/// It cannot be written.
pub fn write_whole(path: &Path, text: &str, mode: u32, owner: Option<&Identity>) -> anyhow::Result<()> {
    let owner = owner.map(|owner| (owner.uid, owner.gid));
    // Three flushes cost more than a warm start of the server: files that did not change are left alone.
    durable::replace_if_changed(path, text.as_bytes(), &WriteOptions { owner, ..WriteOptions::default().mode(mode) })
        .with_context(|| format!("write {}", path.display()))
}

/// The content of `path`, or `None` when there is no such file.
pub(super) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that an ordinary user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Option<u64> {
    file_system(path).map(|(free, _)| free)
}

/// Bytes that an ordinary user may still write on the file system of `path`, and all that it has.
#[allow(clippy::useless_conversion, reason = "the fields are narrower on macOS")]
pub(super) fn file_system(path: &Path) -> Option<(u64, u64)> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(u64::from(found.fragment_size()));
    Some((bytes(u64::from(found.blocks_available())), bytes(u64::from(found.blocks()))))
}
