//! Wait for room on a full disk or within a quota, without starting a server that would fail again.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files::file_system;
use crate::exit::NoRoom;
use crate::health::picture::Fault;

/// How much more must be free before a start is tried: a WAL segment and what comes with it.
const MORE: u64 = 16 * 1024 * 1024;
/// A start is tried this often even if the free bytes did not grow: they do not show inodes, for one.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Likewise where a quota is used up, of which free bytes show nothing.
const TRY_AGAIN_QUOTA: Duration = Duration::from_secs(10);
/// Limit for asking the file system. One that hangs counts as full.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// There is no more room than when the last server failed for lack of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}, still")]
pub struct StillFull(pub NoRoom);

/// A file system as last seen.
#[derive(Clone, Copy, Debug, Default)]
struct FreeSpace {
    free: Option<u64>,
    total: Option<u64>,
}

/// Why the server waits, and how its file system was then.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    why: NoRoom,
    there: FreeSpace,
}

/// Whether, since when and why the server waits for room.
#[derive(Debug, Default)]
pub struct RoomWait(Cell<Option<Waiting>>);

/// No start is to be tried, for `why`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub why: NoRoom,
    free: Option<u64>,
}

impl Shortage {
    /// As the health of the database.
    pub fn fault(self) -> Fault {
        match self.why {
            NoRoom::Disk => Fault::Full(self.free),
            NoRoom::Quota => Fault::QuotaUsed,
        }
    }
}

impl RoomWait {
    pub fn is_on(&self) -> bool {
        self.0.get().is_some()
    }

    /// Begin to wait: the server of the cluster in `data` ended because it could write no more.
    pub async fn begin(&self, data: &Path, why: NoRoom) -> Shortage {
        let path = data.join("pg_wal");
        let there = look(path.clone()).await;
        let path = path.canonicalize().unwrap_or(path);
        let megabytes = |bytes: Option<u64>| {
            bytes.map_or("?".to_owned(), |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)))
        };
        let (free, total) = (megabytes(there.free), megabytes(there.total));
        let path = path.display();
        let what = match why {
            NoRoom::Disk => format!(
                "{why}: the file system of {path} has {free} MB free of {total} MB, and PostgreSQL cannot write; it is \
                 started again when there is room"
            ),
            NoRoom::Quota => format!(
                "{why}: PostgreSQL cannot write in {path}, though its file system has {free} MB free of {total} MB. Raise the \
                 quota of the user that PostgreSQL runs as, or of that directory or volume, or make room within it; \
                 PostgreSQL is started again every {} s",
                TRY_AGAIN_QUOTA.as_secs()
            ),
        };
        tracing::error!(
            "{what}. `tandem doctor` shows what of Tandem's can go, and `tandem doctor --fix` removes it; remove nothing in \
             the data directory by hand"
        );
        self.0.set(Some(Waiting { since: Instant::now(), why, there }));
        Shortage { why, free: there.free }
    }

    /// What is short, if a start would fail again because the room did not grow.
    pub async fn still(&self, data: &Path) -> Option<Shortage> {
        let Waiting { since, why, there } = self.0.get()?;
        let now = look(data.join("pg_wal")).await;
        let grown = matches!((there.free, now.free), (Some(before), Some(now)) if now >= before.saturating_add(MORE));
        if grown && why == NoRoom::Disk {
            tracing::info!("there is room on the disk again: PostgreSQL is started");
        }
        let again = match why {
            NoRoom::Disk => TRY_AGAIN,
            NoRoom::Quota => TRY_AGAIN_QUOTA,
        };
        (!grown && since.elapsed() < again).then_some(Shortage { why, free: now.free })
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
        let begun = wait.begin(temp.path(), NoRoom::Disk).await;
        assert!(begun.free.is_some() && wait.is_on() && matches!(begun.fault(), Fault::Full(Some(_))));
        assert!(wait.still(temp.path()).await.is_some());
        let waiting = wait.0.get().unwrap();
        wait.0.set(Some(Waiting { there: FreeSpace { free: Some(0), ..waiting.there }, ..waiting }));
        assert!(wait.still(temp.path()).await.is_none(), "there is more now");
        wait.0.set(Some(Waiting { since: waiting.since - TRY_AGAIN, ..waiting }));
        assert!(wait.still(temp.path()).await.is_none(), "it may have been for another reason");

        let begun = wait.begin(temp.path(), NoRoom::Quota).await;
        assert_eq!(begun.fault(), Fault::QuotaUsed);
        assert_eq!(wait.still(temp.path()).await.map(Shortage::fault), Some(Fault::QuotaUsed));
        let waiting = wait.0.get().unwrap();
        wait.0.set(Some(Waiting { since: waiting.since - TRY_AGAIN_QUOTA, ..waiting }));
        assert!(wait.still(temp.path()).await.is_none(), "the quota may have been raised");
    }
}
