//! Renaming and flushing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;

/// Rename `from` to `to`, replacing a file or an empty directory of that name. Nothing is flushed: use it for files that may
/// be lost in a power cut, and for directories that [`sync_file_system`] has flushed.
///
/// # Errors
/// What rename(2) answered.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Rename `from` to `to`, unless `to` is taken. Nothing is flushed.
///
/// Some file systems over a network or in user space cannot do this in one step. There a file gets a second name (link(2)) and
/// then loses the first. For a directory, and where there are no hard links, `to` is checked before the rename.
///
/// # Errors
/// `AlreadyExists` when `to` is taken; what renameat2(2) or link(2) answered.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            outcome => return Ok(outcome?),
        }
    }
    rename_new_in_steps(from, to)
}

fn rename_new_in_steps(from: &Path, to: &Path) -> io::Result<()> {
    if !from.symlink_metadata()?.is_dir() {
        match fs::hard_link(from, to) {
            Ok(()) => return fs::remove_file(from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // link(2): a file system without hard links answers EPERM, some EOPNOTSUPP or ENOSYS.
            Err(_) => {}
        }
    }
    match to.symlink_metadata() {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

/// Exchange the names of two files or directories in one step: at no moment is either name missing. Linux has no fallback,
/// because a fallback would have such a moment.
///
/// # Errors
/// What renameat2(2) answered; then both are as they were.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let aside = one.with_extension("old");
        fs::rename(other, &aside)?;
        fs::rename(one, other).inspect_err(|_| {
            let _ = fs::rename(&aside, other);
        })?;
        fs::rename(aside, one)
    }
}

/// Remove a file or a whole directory. A missing one is not an error.
///
/// # Errors
/// What unlink(2) or rmdir(2) answered.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Open `path` to change its mode or owner, without following a symbolic link at that name. `kind` adds open flags, such as
/// `O_DIRECTORY`.
///
/// # Errors
/// It is a link, is not of that kind, or cannot be opened.
pub fn open_itself(path: &Path, kind: OFlag) -> io::Result<File> {
    // Opening a pipe without a writer would wait for one.
    let flags = kind | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Flush the names in the directory `dir`.
///
/// # Errors
/// What fsync(2) answered.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Flush the directory that `path` is in.
///
/// # Errors
/// What fsync(2) answered.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Flush the file `path`, or the directory and everything in it, one by one.
///
/// # Errors
/// What fsync(2) answered.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            sync_tree(&entry?.path())?;
        }
    }
    File::open(path)?.sync_all()
}

/// Flush the file system that `path` is on: one call, where flushing a cluster's 968 files one by one takes seconds on a
/// busy disk.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_stays_with_what_has_it_on_every_file_system() {
        for renaming in [rename_new, rename_new_in_steps] {
            let temp = tempfile::tempdir().unwrap();
            let [file, dir, new_file, new_dir] = ["f", "d", "nf", "nd"].map(|name| temp.path().join(name));
            fs::write(&file, "1").unwrap();
            fs::create_dir(&dir).unwrap();
            for (from, to) in [(&file, &dir), (&dir, &file), (&file, &file)] {
                assert_eq!(renaming(from, to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            }
            renaming(&file, &new_file).unwrap();
            renaming(&dir, &new_dir).unwrap();
            assert_eq!(fs::read(&new_file).unwrap(), b"1");
            assert!(new_dir.is_dir() && !file.exists() && !dir.exists());
            // A link that leads nowhere is a name that is taken.
            std::os::unix::fs::symlink("/nowhere", &file).unwrap();
            assert_eq!(renaming(&new_file, &file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
    }

    #[test]
    fn two_names_are_exchanged() {
        let temp = tempfile::tempdir().unwrap();
        let (one, other) = (temp.path().join("one"), temp.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::write(&other, "").unwrap();
        exchange(&one, &other).unwrap();
        assert!(one.is_file() && other.is_dir());
    }

    #[test]
    fn what_is_gone_is_removed_already() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("b"), "").unwrap();
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
