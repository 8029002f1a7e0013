//! One Tandem per state directory, and one per data directory: advisory locks that the kernel releases with the process that
//! holds them.
//!
//! The second lock protects a data directory that two state directories share, for example a volume mounted into both: a lock
//! belongs to the directory itself, through bind mounts and namespaces of one machine.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::home::Home;
use crate::exit::{Code, Failure};
use crate::process::identity;

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
        let file = open(&path).map_err(|error| {
            let why = format!("cannot open the lock {}{}", path.display(), identity::refused(&path, &error));
            anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, why))
        })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).context("write the lock")?;
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                // In containers every holder has the same pid; what differs is the host's name.
                let host = nix::unistd::gethostname().unwrap_or_default();
                let (pid, host) = (std::process::id(), host.display());
                write!(file, "pid {pid} on host {host}, `{command}`, since {now}").context("write the lock")?;
                hold_data(&home.data)?;
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

/// Open the lock, which is its owner's alone: whoever can open it can hold it (flock(2)), and write another's name into it.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let meta = file.metadata()?;
    if meta.mode() & 0o077 != 0 && meta.uid() == nix::unistd::Uid::effective().as_raw() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// The data directories that this process holds, by device and inode, for as long as it lives.
static HELD: Mutex<Vec<(u64, u64, Flock<File>)>> = Mutex::new(Vec::new());

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
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(directory) => {
            held.push((meta.dev(), meta.ino(), directory));
            Ok(())
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let what = "another tandem runs a server in this directory, with another state directory or in a container";
            let text = format!("{}: {what}; stop it first, two servers would destroy the data", data.display());
            Err(Failure::new(Code::CannotCreate, text).into())
        }
        // Network file systems lock no directories. What else there is against a second server holds there too.
        Err((_, error)) => {
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
        let temp = tempfile::tempdir().unwrap();
        let home = Home::at(temp.path(), None);
        let first = StateLock::take(&home, "tandem up").unwrap();
        let error = StateLock::take(&home, "tandem migrate").unwrap_err();
        assert_eq!(code_of(&error), Code::CannotCreate);
        let message = error.to_string();
        let host = nix::unistd::gethostname().unwrap();
        let holder = format!("pid {} on host {}, `tandem up`, since 20", std::process::id(), host.display());
        assert!(message.contains(&holder), "{message}");
        let mode = || temp.path().join("lock").metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(temp.path().join("lock"), Permissions::from_mode(0o666)).unwrap();
        drop(first);
        StateLock::take(&home, "tandem migrate").unwrap();
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn a_data_directory_has_one_holder_by_whatever_path() {
        let temp = tempfile::tempdir().unwrap();
        let (data, link) = (temp.path().join("data"), temp.path().join("link"));
        hold_data(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        // As another process: an opening of its own.
        let other = Flock::lock(File::open(&link).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(code_of(&hold_data(&data).unwrap_err()), Code::CannotCreate);
        drop(other);
        hold_data(&data).unwrap();
        hold_data(&link).unwrap();
        assert!(Flock::lock(File::open(&link).unwrap(), FlockArg::LockExclusiveNonblock).is_err());
    }
}
