//! Replaces a file's content: the new content is written beside the old file and renamed over it. A reader finds the old
//! content or the new one, never a part, also after a power cut.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

use tempfile::NamedTempFile;

use super::names::sync_parent;
use super::reserve;

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions<'a> {
    /// Its permission bits, whatever the umask.
    pub mode: u32,
    /// The user id and group id of its owner; `None`: the user that writes it.
    pub owner: Option<(u32, u32)>,
    /// Whether it must survive a power cut. Flushing takes longer than a warm start of the server, which is too much for a
    /// note that may be lost.
    pub flushed: bool,
    /// The prefix of the temporary name. Code that removes the leftovers of a killed process looks for it.
    pub prefix: &'a str,
}

impl Default for WriteOptions<'_> {
    /// Readable for the owner only, and flushed.
    fn default() -> Self {
        Self { mode: 0o600, owner: None, flushed: true, prefix: ".new-" }
    }
}

impl WriteOptions<'_> {
    /// The same with these permission bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// The same without flushing.
    pub fn unflushed(self) -> Self {
        Self { flushed: false, ..self }
    }
}

/// Write `content` to the file `path`. A symbolic link of that name is replaced, not followed. On a full disk the reserve of
/// this process gives way to it, if it has one there.
///
/// # Errors
/// The file system's error; the old content is then still there, and no temporary file.
pub fn replace(path: &Path, content: &[u8], options: &WriteOptions<'_>) -> io::Result<()> {
    match write(path, content, options) {
        Err(error) if reserve::is_full(&error) && reserve::give_up(directory(path)) => write(path, content, options),
        outcome => outcome,
    }
}

/// Write `content` to the file `path`, unless something has that name, be it a broken link.
///
/// # Errors
/// `AlreadyExists`, with what is there as it was; otherwise the file system's error.
pub fn create(path: &Path, content: &[u8], options: &WriteOptions<'_>) -> io::Result<()> {
    let mut file = temporary(path, content, options)?;
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_parent(path)
}

fn write(path: &Path, content: &[u8], options: &WriteOptions<'_>) -> io::Result<()> {
    let file = temporary(path, content, options)?;
    if options.flushed { put(file, path) } else { file.persist(path).map(drop).map_err(|error| error.error) }
}

/// A file beside `path` with `content`, which is gone when it is dropped.
fn temporary(path: &Path, content: &[u8], options: &WriteOptions<'_>) -> io::Result<NamedTempFile> {
    // A temporary file has a new name (O_EXCL), so an existing link is not followed.
    let mut file = tempfile::Builder::new().prefix(options.prefix).tempfile_in(directory(path))?;
    // The owner first, because chown(2) clears permission bits.
    if let Some((uid, gid)) = options.owner {
        fchown(file.as_file(), Some(uid), Some(gid))?;
    }
    file.as_file().set_permissions(Permissions::from_mode(options.mode))?;
    file.write_all(content)?;
    Ok(file)
}

/// As [`replace`], but only if the content differs. Otherwise the file, its mode and its owner stay as they are.
///
/// # Errors
/// As [`replace`].
pub fn replace_if_changed(path: &Path, content: &[u8], options: &WriteOptions<'_>) -> io::Result<()> {
    match fs::read(path) {
        Ok(present) if present == content => Ok(()),
        _ => replace(path, content, options),
    }
}

/// Flush `file`, a temporary file in the directory of `path`, rename it to `path`, and flush the directory.
///
/// # Errors
/// The error of fsync(2) or rename(2); `file` is then removed, and `path` is as it was.
pub fn put(mut file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_parent(path)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_leaves_nothing_beside_it() {
        let temp = tempfile::tempdir().unwrap();
        let (path, victim) = (temp.path().join("f"), temp.path().join("victim"));
        fs::write(&victim, "v").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        for options in [WriteOptions::default().mode(0o640), WriteOptions::default().mode(0o644).unflushed()] {
            replace(&path, b"new", &options).unwrap();
            let meta = path.symlink_metadata().unwrap();
            assert!(meta.is_file());
            assert_eq!((meta.permissions().mode() & 0o7777, fs::read(&path).unwrap()), (options.mode, b"new".to_vec()));
        }
        assert_eq!(fs::read(&victim).unwrap(), b"v");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_did_not_change_is_left_alone() {
        use std::os::unix::fs::MetadataExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let options = WriteOptions::default();
        let write = |content: &[u8]| {
            replace_if_changed(&path, content, &options).unwrap();
            path.metadata().unwrap().ino()
        };
        let first = write(b"a");
        assert_eq!(write(b"a"), first);
        assert_ne!(write(b"b"), first);
    }

    #[test]
    fn a_file_is_created_only_where_nothing_has_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let create = |content: &[u8]| create(&path, content, &WriteOptions::default().mode(0o644));
        create(b"a").unwrap();
        assert_eq!(create(b"b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"a");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(create(b"b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_content_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "").unwrap();
        replace(&path, b"new", &WriteOptions::default()).unwrap_err();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        assert!(path.join("inside").exists());
    }
}
