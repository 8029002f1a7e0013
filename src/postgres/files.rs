//! Write small files atomically: after a power cut, and for every reader, the content is the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::Context;
use nix::fcntl::OFlag;

use crate::plan::Identity;

/// Write `text` to `path` with `mode` and `owner`; nothing is written when the file already says so.
///
/// # Errors
/// It cannot be written.
pub fn write_whole(path: &Path, text: &str, mode: u32, owner: Option<&Identity>) -> anyhow::Result<()> {
    // Three fsyncs cost more than a warm start of the server: files that did not change are left alone.
    if fs::read_to_string(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    replace(path, text, mode, owner).with_context(|| format!("write {}", path.display()))
}

fn replace(path: &Path, text: &str, mode: u32, owner: Option<&Identity>) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // `create_new` follows no link that the directory's owner may have put there.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// `path` itself, to change its mode or owner: no link at that name is followed, not even one that was put there since
/// somebody looked. `kind` may ask for more of it, such as `O_DIRECTORY`.
///
/// # Errors
/// It is a link, is not of that kind, or cannot be opened.
pub fn open_itself(path: &Path, kind: OFlag) -> io::Result<File> {
    // A pipe without a writer would be waited for.
    let flags = kind | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Make the names in `dir` durable.
///
/// # Errors
/// What fsync(2) answered.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Make everything durable on the file system that `path` is on: one pass, where syncing 968 files one by one takes
/// seconds on a busy disk.
///
/// # Errors
/// What syncfs(2) answered.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return Ok(nix::unistd::syncfs(File::open(path)?)?);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        nix::unistd::sync();
        Ok(())
    }
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
