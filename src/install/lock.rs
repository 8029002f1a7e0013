//! One installation at a time, across processes: flock(2) on a file that says who holds it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::exit::{Code, Failure};
use crate::process::identity;
use crate::telemetry;

/// How often a waiting installation looks again. Polled, because a thread blocked in flock(2) could not be cancelled
/// and would hold up a stop during the boot.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Held until dropped; the kernel lets go of it when the holder dies, so a lock is never stale.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Take the lock file `path` for `purpose` ("install PostgreSQL 16"), waiting at most `limit` for another holder.
///
/// The file stays behind: deleting a lock file lets two processes hold two files of one name.
///
/// # Errors
/// [`Code::CannotCreate`] when the file cannot be made, [`Code::Temporary`] when somebody else held it all along.
pub async fn lock(path: &Path, purpose: &str, limit: Duration) -> anyhow::Result<Lock> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(|error| {
            let what = format!("open the lock file {}{}", path.display(), identity::refused(path, &error));
            anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, what))
        })?;
    let begin = tokio::time::Instant::now();
    let mut waiting = None;
    loop {
        let (refused, errno) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                sign(&mut held, purpose).with_context(|| format!("write {}", path.display()))?;
                return Ok(Lock { _file: held });
            }
            Err(refused) => refused,
        };
        file = refused;
        if errno != Errno::EWOULDBLOCK && errno != Errno::EINTR {
            return Err(errno)
                .with_context(|| Failure::new(Code::CannotCreate, format!("lock the file {}", path.display())));
        }
        let holder = holder(&mut file);
        if begin.elapsed() >= limit {
            let message =
                format!("{holder} holds {} since before {limit:?}; end it or try again later", path.display());
            return Err(Failure::new(Code::Temporary, message).into());
        }
        waiting.get_or_insert_with(|| telemetry::progress(format!("Waiting for {holder} before I {purpose}")));
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn sign(file: &mut File, purpose: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {} ({purpose})", std::process::id())
}

/// Who holds the lock, by the file's own word; the holder may be about to write it.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), signed) if !signed.is_empty() => signed.to_owned(),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_taker_is_told_who_holds_it_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path, "install A", Duration::from_secs(1)).await.unwrap();
        let refused = lock(&path, "install B", Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(crate::exit::code_of(&refused), Code::Temporary);
        assert!(refused.to_string().contains(&format!("process {} (install A)", std::process::id())), "{refused}");
        drop(first);
        lock(&path, "install B", Duration::ZERO).await.unwrap();
    }
}
