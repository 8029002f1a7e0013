//! A lock on a file (flock(2)). The kernel releases it when the last process that has the file open ends, so a lock is never
//! stale.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use super::holder::Holder;

/// Only the owner may open a lock file: every user who can open it, even for reading, can hold the lock.
const MODE: u32 = 0o600;

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file cannot be made or opened.
    #[error("open the lock file: {0}")]
    Open(io::Error),
    /// Another process holds it.
    #[error("{} holds the lock", .0.named("a process"))]
    Held(Holder),
    /// The file system does not support locks, as some network file systems do not.
    #[error("lock the file: {0}")]
    Refused(io::Error),
}

impl LockError {
    /// Whether another process holds the lock, so that waiting may help.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// The kernel's error; `WouldBlock` if another process holds the lock.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Open(error) | Self::Refused(error) => error,
            Self::Held(_) => io::ErrorKind::WouldBlock.into(),
        }
    }
}

impl Lock {
    /// Lock the file `path`, which is made if it is missing, for `purpose`, such as "`tandem up`". Does not wait.
    ///
    /// The file stays when the lock is released. If it were removed, two processes could hold locks on two files of that name.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be opened or locked.
    pub fn take(path: &Path, purpose: &str) -> Result<Self, LockError> {
        let file = open(path).map_err(LockError::Open)?;
        let mut lock = Self::on(file)?;
        // On a full disk nothing can be written; the file is locked all the same.
        let _ = lock.sign(purpose);
        Ok(lock)
    }

    /// Lock `file`, which may be a directory. Does not wait, and writes nothing.
    ///
    /// # Errors
    /// Another process holds it, or the file system has no locks.
    pub fn on(file: File) -> Result<Self, LockError> {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(Holder::of(file))),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(LockError::Refused(error)),
            }
        }
    }

    /// The locked file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn sign(&mut self, purpose: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        // In containers every Tandem has the same process id; the host names differ.
        let (pid, host) = (std::process::id(), super::holder::host());
        write!(self.file, "pid {pid} on host {host}, {purpose}, since {now}")
    }
}

/// Open the lock file `path`. If an earlier version made it readable for other users, take that right away.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)?;
    let meta = file.metadata()?;
    if meta.mode() & 0o777 != MODE && meta.uid() == nix::unistd::Uid::effective().as_raw() {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_second_taker_is_told_who_the_first_is_until_it_lets_go() {
        let _alone = crate::forks::none();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let first = Lock::take(&path, "`tandem up`").unwrap();
        assert_eq!(mode(&path), 0o600);
        let LockError::Held(holder) = Lock::take(&path, "`tandem check`").unwrap_err() else { panic!("it is free") };
        let name = holder.named("another tandem");
        let said = format!("another tandem (pid {} on host ", std::process::id());
        assert!(name.starts_with(&said) && name.contains(", `tandem up`, since 20"), "{name}");
        drop(first);
        Lock::take(&path, "`tandem check`").unwrap();
    }

    #[test]
    fn a_lock_file_that_others_can_open_is_closed_to_them() {
        let _alone = crate::forks::none();
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        std::fs::write(&path, "").unwrap();
        for open in [0o644, 0o666, 0o640] {
            std::fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
            drop(Lock::take(&path, "test").unwrap());
            assert_eq!(mode(&path), 0o600);
        }
    }

    #[test]
    fn a_link_is_no_lock_file() {
        let temp = tempfile::tempdir().unwrap();
        let (path, victim) = (temp.path().join("lock"), temp.path().join("victim"));
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(matches!(Lock::take(&path, "test").unwrap_err(), LockError::Open(_)));
        assert!(!victim.exists());
    }

    #[test]
    fn what_the_file_says_of_a_former_holder_is_not_believed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        // A holder that wrote its name, died, and was followed by one that wrote nothing.
        let host = super::super::holder::host();
        std::fs::write(&path, format!("pid 2147483000 on host {host}, `tandem up`, since 2020")).unwrap();
        let _silent = Lock::on(open(&path).unwrap()).unwrap();
        let LockError::Held(holder) = Lock::take(&path, "test").unwrap_err() else { panic!("it is free") };
        let name = holder.named("another tandem");
        assert!(!name.contains("2147483000"), "{name}");
        assert!(name.starts_with(&format!("process {} (", std::process::id())), "{name}");
    }
}
