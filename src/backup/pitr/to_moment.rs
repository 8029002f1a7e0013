//! Bring the cluster back to an earlier moment: a base backup and the WAL behind it, recovered in a directory of its own,
//! which takes the old one's place when a server has come up on it and answered.
//!
//! If anything fails before that, the old data directory is as it was. Afterwards it is still there, under another name.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;

use super::live::{self, Birth};
use super::recovery::{self, Recovered, Recovery};
use super::staging::{self, Staging};
use super::timeline::LOST;
use super::wal::WalFile;
pub use super::way::{Way, Wish, find};
use super::{command, layout, subscriptions, tablespaces};
use crate::plan::Identity;
use crate::postgres::binaries::Installation;
use crate::postgres::home::{Home, make_dir};
use crate::postgres::stale;
use crate::room::Guard;

/// Room beside the data itself, for the WAL that is replayed at one time, in bytes.
pub(super) const ROOM: u64 = 256 << 20;

/// What was done.
#[derive(Debug)]
pub struct RestoredCluster {
    pub recovered: Recovered,
    /// Where the old data directory is, if there was one.
    pub kept: Option<PathBuf>,
    /// The replication slots of the cluster that was there.
    pub slots: Vec<String>,
}

/// Go the way: lay the base backup out, recover, and put the result in the old data directory's place.
///
/// # Errors
/// Any part of it failed; the old data directory is in its place.
pub async fn restore_cluster(
    wish: &Wish<'_>,
    way: &Way,
    installation: &Installation,
) -> anyhow::Result<RestoredCluster> {
    // Beside the old data.
    let room = Guard::new("restore", wish.settings.disk.stop_free, Some(&wish.home.data))
        .claim(wish.home.data.parent().unwrap_or(&wish.home.state), way.base.size.saturating_add(ROOM));
    room.hold(restore_beside(wish, way, installation)).await
}

async fn restore_beside(wish: &Wish<'_>, way: &Way, installation: &Installation) -> anyhow::Result<RestoredCluster> {
    let home = wish.home;
    for left in staging::leftovers(&home.data) {
        tracing::info!("removing {}, which an interrupted restore left behind", left.display());
        stale::end_orphaned_backends(&left).await?;
        let _ = fs::remove_dir_all(&left);
    }
    let staging = Staging::begin(&home.data, |place| make_dir(place, 0o700, home.server.as_ref()))?;
    let data = staging.path().to_owned();
    lay_out(wish, way, &data).await?;
    let program = command::program(&home.run, home.server.as_ref())?;
    let recovered = recovery::recover(&Recovery {
        home: &Home { data: data.clone(), ..home.clone() },
        settings: wish.settings,
        installation,
        restore_command: command::restore_command(&program, wish.archive)?,
        target: wish.target,
        timeline: way.timeline,
    })
    .await?;
    tablespaces::allow(&data)?;
    // Before it is live: where that fails, no history says that there is such a timeline.
    let base = Some(way.base.name.clone());
    let birth = Birth { timeline: recovered.timeline, at: SystemTime::now(), base, replaced: way.current };
    live::record(wish.archive, &birth);
    let slots = subscriptions::slots(&home.data);
    let kept = staging.put_in_place(&home.data, SystemTime::now())?;
    Ok(RestoredCluster { recovered, kept, slots })
}

/// Lay out in `data` what the recovery begins from, with what `wish.home` has of WAL that was never archived.
pub(super) async fn lay_out(wish: &Wish<'_>, way: &Way, data: &Path) -> anyhow::Result<()> {
    let (archive, base, server) = (wish.archive.clone(), way.base.clone(), wish.home.server.clone());
    let (pg_wal, lineage, lost) = (wish.home.data.join("pg_wal"), way.lineage.clone(), way.lost.clone());
    let place = data.to_owned();
    let laid_out = tokio::task::spawn_blocking(move || {
        layout::lay_out(&archive, &base, &place, server.as_ref())?;
        let rest = layout::unarchived(&archive, &pg_wal, Some(&lineage))?;
        layout::carry_over(&rest, &pg_wal, &place.join("pg_wal"), server.as_ref())?;
        take_numbers(&place.join("pg_wal"), &lost, server.as_ref())?;
        tablespaces::prevent(&place)?;
        layout::create(&place.join("recovery.signal"), server.as_ref()).context("ask for the recovery")
    });
    laid_out.await.context("lay the base backup out")?.map(drop)
}

/// Put something in the place of histories that were lost: PostgreSQL calls the new timeline by the first number without a
/// history, and what is archived under those numbers is another's.
fn take_numbers(pg_wal: &Path, lost: &[u32], server: Option<&Identity>) -> anyhow::Result<()> {
    for timeline in lost {
        let path = pg_wal.join(WalFile::History(*timeline).to_string());
        let write = || layout::create(&path, server)?.write_all(LOST.as_bytes());
        write().with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
