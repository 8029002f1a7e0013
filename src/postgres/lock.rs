//! One Tandem per state directory, and one per data directory: advisory locks that the kernel releases with the process that
//! holds them.
//!
//! The second is for two state directories with one data directory, as when a volume is mounted into both: a lock follows the
//! directory itself, through bind mounts and namespaces of this machine.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::home::Home;
use crate::exit::{Code, Failure};

/// Holds the state directory until dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Take the lock of `home` for `command`, such as `tandem up`.
    ///
    /// # Errors
    /// [`Failure`] with [`Code::CannotCreate`] that says who holds it.
    pub fn take(home: &Home, command: &str) -> anyhow::Result<Self> {
        let path = home.state.join("lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(|| {
                Failure::new(Code::CannotCreate, format!("cannot open the lock {}", path.display()))
            })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).context("write the lock")?;
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                write!(file, "pid {}, `{command}`, since {now}", std::process::id()).context("write the lock")?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.rewind();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "just started".to_owned() } else { holder };
                let message = format!("another tandem ({holder}) holds {}", home.state.display());
                Err(Failure::new(Code::CannotCreate, message).into())
            }
            Err((_, error)) => Err(anyhow::Error::new(error).context(Failure::new(
                Code::CannotCreate,
                format!("cannot lock {}; does its file system support flock?", path.display()),
            ))),
        }
    }
}

/// Holds a data directory until dropped.
#[derive(Debug)]
pub struct DataLock {
    _directory: Option<Flock<File>>,
}

impl DataLock {
    /// Take the lock of the data directory `data`.
    ///
    /// # Errors
    /// [`Failure`] with [`Code::CannotCreate`] when another Tandem holds it.
    pub fn take(data: &Path) -> anyhow::Result<Self> {
        let directory = File::open(data).with_context(|| format!("open {}", data.display()))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Self { _directory: Some(directory) }),
            Err((_, Errno::EWOULDBLOCK)) => {
                let what =
                    "another tandem runs a server in this directory, with another state directory or in a container";
                let text = format!("{}: {what}; stop it first, two servers would destroy the data", data.display());
                Err(Failure::new(Code::CannotCreate, text).into())
            }
            // Network file systems lock no directories. What else there is against a second server holds there too.
            Err((_, error)) => {
                tracing::debug!(%error, "lock {}", data.display());
                Ok(Self { _directory: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[test]
    fn a_second_holder_is_told_who_the_first_is_until_it_lets_go() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        let first = StateLock::take(&home, "tandem up").unwrap();
        let error = StateLock::take(&home, "tandem migrate").unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        let message = error.to_string();
        assert!(message.contains(&format!("pid {}, `tandem up`, since 20", std::process::id())), "{message}");
        drop(first);
        StateLock::take(&home, "tandem migrate").unwrap();
    }
    #[test]
    fn a_data_directory_has_one_holder_by_whatever_path() {
        let temp = tempfile::tempdir().unwrap();
        let (data, link) = (temp.path().join("data"), temp.path().join("link"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let first = DataLock::take(&data).unwrap();
        assert_eq!(code_of(&DataLock::take(&link).unwrap_err()), Code::CannotCreate);
        drop(first);
        DataLock::take(&link).unwrap();
    }
}
