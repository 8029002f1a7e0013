//! One Tandem per state directory, and one per data directory: advisory locks that the kernel releases with the process that
//! holds them.
//!
//! The second lock protects a data directory that two state directories share, for example a volume mounted into both: a lock
//! belongs to the directory itself, through bind mounts and namespaces of one machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use super::home::Home;
use crate::durable::{Lock, LockError};
use crate::exit::{Code, Failure};
use crate::process::identity;

/// Holds the state directory until dropped.
#[derive(Debug)]
pub struct StateLock {
    _lock: Lock,
}

impl StateLock {
    /// Take the lock of `home` for `command`, such as `tandem up`.
    ///
    /// # Errors
    /// [`Failure`] with [`Code::CannotCreate`] that says who holds it.
    pub fn take(home: &Home, command: &str) -> anyhow::Result<Self> {
        let lock = take(home, command)?;
        hold_data(&home.data)?;
        Ok(Self { _lock: lock })
    }

    /// Whether another process could take the lock of `home` now: this one keeps nothing.
    ///
    /// # Errors
    /// As [`StateLock::take`].
    pub fn try_for(home: &Home, command: &str) -> anyhow::Result<()> {
        take(home, command).map(drop)
    }
}

fn take(home: &Home, command: &str) -> anyhow::Result<Lock> {
    let path = home.state.join("lock");
    match Lock::take(&path, &format!("`{command}`")) {
        Ok(lock) => Ok(lock),
        Err(LockError::Held(holder)) => {
            let holder = holder.named("another tandem");
            let next =
                if holder.contains("`tandem up") { ": `tandem status` shows it, `tandem stop` ends it" } else { "" };
            let message = format!("{holder} holds {}{next}", home.state.display());
            Err(Failure::new(Code::CannotCreate, message).into())
        }
        Err(LockError::Open(error)) => {
            let refused = identity::refused_below(&home.state, &path, &error);
            let why = format!("cannot open the lock {}{refused}", path.display());
            Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, why)))
        }
        Err(LockError::Refused(error)) => Err(anyhow::Error::new(error).context(Failure::new(
            Code::CannotCreate,
            format!("cannot lock {}; does its file system support flock?", path.display()),
        ))),
    }
}

/// The data directories that this process holds, by device and inode, for as long as it lives.
static HELD: Mutex<Vec<(u64, u64, Lock)>> = Mutex::new(Vec::new());

/// Hold the data directory `data`, if there is one, until this process ends: before anything in it is changed or ended.
///
/// # Errors
/// [`Failure`] with [`Code::CannotCreate`] when another Tandem holds it.
pub fn hold_data(data: &Path) -> anyhow::Result<()> {
    let directory = match File::open(data) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // What it is instead, or whose, is told where it is looked into.
        Err(error) => {
            tracing::debug!(%error, "open {}", data.display());
            return Ok(());
        }
    };
    let meta = directory.metadata().with_context(|| format!("look at {}", data.display()))?;
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if held.iter().any(|&(device, inode, _)| (device, inode) == (meta.dev(), meta.ino())) {
        return Ok(());
    }
    match Lock::on(directory) {
        Ok(directory) => {
            held.push((meta.dev(), meta.ino(), directory));
            Ok(())
        }
        Err(error) if error.is_held() => {
            let what = "another tandem runs a server in this directory, with another state directory or in a container";
            let text = format!("{}: {what}; stop it first, two servers would destroy the data", data.display());
            Err(Failure::new(Code::CannotCreate, text).into())
        }
        // Network file systems lock no directories. What else there is against a second server holds there too.
        Err(error) => {
            tracing::debug!(%error, "lock {}", data.display());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[test]
    fn a_second_holder_is_told_who_the_first_is_until_it_lets_go() {
        let _alone = crate::forks::none();
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        let first = StateLock::take(&home, "tandem up").unwrap();
        let error = StateLock::take(&home, "tandem migrate").unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        let message = error.to_string();
        let host = nix::unistd::gethostname().unwrap();
        let holder = format!("pid {} on host {}, `tandem up`, since 20", std::process::id(), host.display());
        assert!(message.contains(&holder), "{message}");
        drop(first);
        StateLock::take(&home, "tandem migrate").unwrap();
    }

    #[test]
    fn a_data_directory_has_one_holder_by_whatever_path() {
        let _alone = crate::forks::none();
        let temp = tempfile::tempdir().unwrap();
        let (data, link) = (temp.path().join("data"), temp.path().join("link"));
        hold_data(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        // As another process: an opening of its own.
        let other = Lock::on(File::open(&link).unwrap()).unwrap();
        assert_eq!(code_of(&hold_data(&data).unwrap_err()), Code::CannotCreate);
        drop(other);
        hold_data(&data).unwrap();
        hold_data(&link).unwrap();
        assert!(Lock::on(File::open(&link).unwrap()).unwrap_err().is_held());
    }
}
