//! Waits for a lock, so that one process at a time installs.

use std::path::Path;
use std::time::Duration;

use crate::durable::{Lock, LockError};
use crate::exit::{Code, Failure};
use crate::process::identity;
use crate::telemetry;

/// How often a waiting installation looks again. Polled, because a thread blocked in flock(2) could not be cancelled
/// and would hold up a stop during the boot.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Take the lock file `path` for `purpose` ("install PostgreSQL 16"), waiting at most `limit` for another holder.
///
/// # Errors
/// [`Code::CannotCreate`] when the file cannot be made, [`Code::Temporary`] when another process held it all along.
pub async fn lock(path: &Path, purpose: &str, limit: Duration) -> anyhow::Result<Lock> {
    let begin = tokio::time::Instant::now();
    let mut waiting = None;
    loop {
        let holder = match Lock::take(path, purpose) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held(holder)) => holder,
            Err(LockError::Open(error)) => {
                let what = format!("open the lock file {}{}", path.display(), identity::refused(path, &error));
                return Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, what)));
            }
            Err(LockError::Refused(error)) => {
                let what = format!("lock the file {}", path.display());
                return Err(anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, what)));
            }
        };
        if begin.elapsed() >= limit {
            let holder = holder.named("another tandem");
            let message =
                format!("{holder} holds {} since before {limit:?}; end it or try again later", path.display());
            return Err(Failure::new(Code::Temporary, message).into());
        }
        waiting.get_or_insert_with(|| {
            telemetry::progress(format!("Waiting for {} before I {purpose}", holder.named("another tandem")))
        });
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_taker_is_told_who_holds_it_and_gets_it_afterwards() {
        let _alone = crate::forks::none();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path, "install A", Duration::from_secs(1)).await.unwrap();
        let refused = lock(&path, "install B", Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(crate::exit::code_of(&refused), Code::Temporary);
        let holder = format!("another tandem (pid {} on host", std::process::id());
        assert!(refused.to_string().contains(&holder) && refused.to_string().contains("install A"), "{refused}");
        drop(first);
        lock(&path, "install B", Duration::ZERO).await.unwrap();
    }
}
