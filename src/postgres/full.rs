//! RoomWait for room on a full disk, without starting a server that would fail again.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::file_system;

/// How much more must be free before a start is tried: a WAL segment and what comes with it.
const MORE: u64 = 16 * 1024 * 1024;
/// A start is tried this often even if the free bytes did not grow: they show neither quotas nor inodes.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Limit for asking the file system. One that hangs counts as full.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// The disk has no more room than when the last server failed for lack of it.
#[derive(Debug, thiserror::Error)]
#[error("the disk is still full")]
pub struct StillFull;

/// A file system as last seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreeSpace {
    pub free: Option<u64>,
    total: Option<u64>,
}

/// Whether, and since when, the server waits for room.
#[derive(Debug, Default)]
pub struct RoomWait(Cell<Option<(Instant, FreeSpace)>>);

impl RoomWait {
    pub fn is_on(&self) -> bool {
        self.0.get().is_some()
    }

    /// Begin to wait: the server of the cluster in `data` ended because the disk is full.
    pub async fn begin(&self, data: &Path) -> FreeSpace {
        let path = data.join("pg_wal");
        let there = look(path.clone()).await;
        let path = path.canonicalize().unwrap_or(path);
        let megabytes = |bytes: Option<u64>| {
            bytes.map_or("?".to_owned(), |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)))
        };
        let (free, total) = (megabytes(there.free), megabytes(there.total));
        let what = format!(
            "the disk is full: the file system of {} has {free} MB free of {total} MB, and PostgreSQL cannot write",
            path.display()
        );
        tracing::error!(
            "{what}; it is started again when there is room. `tandem doctor` shows what of Tandem's can go, and \
             `tandem doctor --fix` removes it; remove nothing in the data directory by hand"
        );
        self.0.set(Some((Instant::now(), there)));
        there
    }

    /// The state of the file system, if a start would fail again because the room did not grow.
    pub async fn still(&self, data: &Path) -> Option<FreeSpace> {
        let (began, before) = self.0.get()?;
        let now = look(data.join("pg_wal")).await;
        let grown = matches!((before.free, now.free), (Some(before), Some(now)) if now >= before.saturating_add(MORE));
        if grown {
            tracing::info!("there is room on the disk again: PostgreSQL is started");
        }
        (!grown && began.elapsed() < TRY_AGAIN).then_some(now)
    }

    /// Stop waiting: the server failed for another reason, or there is room again.
    pub fn end(&self) {
        self.0.set(None);
    }
}

/// Ask on another thread, because a file system can hang.
async fn look(path: PathBuf) -> FreeSpace {
    let look = tokio::task::spawn_blocking(move || file_system(&path));
    match tokio::time::timeout(LOOK_LIMIT, look).await {
        Ok(Ok(Some((free, total)))) => FreeSpace { free: Some(free), total: Some(total) },
        _ => FreeSpace::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_started_before_there_is_more_room() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("pg_wal")).unwrap();
        let wait = RoomWait::default();
        assert!(wait.still(temp.path()).await.is_none() && !wait.is_on());
        let there = wait.begin(temp.path()).await;
        assert!(there.free.is_some() && wait.is_on());
        assert!(wait.still(temp.path()).await.is_some());
        let less = FreeSpace { free: Some(0), ..there };
        wait.0.set(Some((Instant::now(), less)));
        assert!(wait.still(temp.path()).await.is_none(), "there is more now");
        wait.0.set(Some((Instant::now() - TRY_AGAIN, there)));
        assert!(wait.still(temp.path()).await.is_none(), "it may have been a quota");
    }
}
