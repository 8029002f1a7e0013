//! Files that other users must be able to read: if Tandem runs as root, PostgreSQL and the workers run as other users.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use crate::durable::{self, WriteOptions};

const SHARED_DIR_MODE: u32 = 0o755;

/// Make `path` and its missing parents with a mode that lets every user search them, whatever the umask. Directories that
/// exist are left as they are.
///
/// # Errors
/// What mkdir(2) or chmod(2) answered.
pub fn make_shared_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_shared_dir(parent)?;
    }
    match DirBuilder::new().mode(SHARED_DIR_MODE).create(path) {
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(SHARED_DIR_MODE)),
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Let every user read everything below `path`, and search or run what its owner can; only the owner may write.
///
/// # Errors
/// What readdir(3) or chmod(2) answered.
pub fn open_to_all(path: &Path) -> io::Result<()> {
    let meta = path.symlink_metadata()?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    let searchable = if mode & 0o100 == 0 { 0 } else { 0o111 };
    let opened = (mode | 0o444 | searchable) & !0o022;
    if opened != mode {
        std::fs::set_permissions(path, Permissions::from_mode(opened))?;
    }
    if meta.is_dir() {
        for entry in path.read_dir()? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// Keep everything in `dir` out of Git: `git add -A` would stage a password and a database. An existing `.gitignore` is left
/// as it is.
pub fn keep_out_of_git(dir: &Path) {
    let path = dir.join(".gitignore");
    if path.symlink_metadata().is_ok() {
        return;
    }
    if let Err(error) = write_whole(&path, b"*\n") {
        tracing::debug!(path = %path.display(), %error, "keep a directory out of Git");
    }
}

/// Write a small file that every user may read.
///
/// # Errors
/// What the file system answered; the old content is then still there.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    durable::replace(path, content, &WriteOptions::default().mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_tree_is_opened_for_reading_only() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("a/b");
        make_shared_dir(&tree).unwrap();
        let (script, text) = (tree.join("script"), tree.join("text"));
        for (path, mode) in [(&script, 0o700), (&text, 0o666)] {
            std::fs::write(path, "x").unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", tree.join("link")).unwrap();
        std::fs::set_permissions(&tree, Permissions::from_mode(0o700)).unwrap();
        open_to_all(&dir.path().join("a")).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&tree), mode(&script), mode(&text)), (0o755, 0o755, 0o644));
    }
}
