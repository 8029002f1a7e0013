//! Directories that came with a container's image. Overlayfs gives a directory of a lower layer no other name: rename(2)
//! answers EXDEV, and mv(1) copies (Linux kernel documentation, "Overlay Filesystem", "Directories").

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown, symlink};
use std::path::Path;

/// Whether rename(2) refused because the directory is of a lower layer.
pub fn is_of_a_lower_layer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::CrossesDevices
}

/// Copy the directory `from` and all in it to `to`, which is not there yet. Links stay links; owners, modes and times are kept:
/// by the times Python knows whether its byte code is still that of the source.
///
/// # Errors
/// What the file system answered; part of the copy may then be there.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_dir(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
            keep_owner(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
            keep_owner(&from, &to)?;
            let meta = from.metadata()?;
            let times = FileTimes::new().set_accessed(meta.accessed()?).set_modified(meta.modified()?);
            File::open(&to)?.set_times(times)?;
        }
    }
    keep_owner(from, to)?;
    fs::set_permissions(to, from.metadata()?.permissions())
}

/// Only root can, and for others there is nothing to do: what they copy is theirs.
fn keep_owner(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to_meta) = (from.symlink_metadata()?, to.symlink_metadata()?);
    if (from.uid(), from.gid()) == (to_meta.uid(), to_meta.gid()) {
        return Ok(());
    }
    lchown(to, Some(from.uid()), Some(from.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_copy_has_links_modes_and_times() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/run"), "x").unwrap();
        fs::set_permissions(from.join("a/b/run"), Permissions::from_mode(0o751)).unwrap();
        fs::set_permissions(from.join("a"), Permissions::from_mode(0o711)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(from.join("a/b/run")).unwrap().set_modified(long_ago).unwrap();
        copy_dir(&from, &to).unwrap();
        let run = to.join("a/b/run").metadata().unwrap();
        assert_eq!((run.permissions().mode() & 0o777, run.modified().unwrap()), (0o751, long_ago));
        assert_eq!(to.join("a").metadata().unwrap().permissions().mode() & 0o777, 0o711);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
        assert!(from.join("a/b/run").is_file());
    }
}
