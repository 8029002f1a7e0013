//! Bring the cluster back to an earlier moment: a base backup and the WAL behind it, recovered in a directory of its own,
//! which takes the old one's place when a server has come up on it and answered.
//!
//! Whatever fails before that, the old data directory is as it was. Afterwards it is still there, under another name.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

use super::super::room::Guard;
use super::archive::Archive;
use super::catalog::{self, Base};
use super::notes::Notes;
use super::recovery::{self, Recovered, Recovery};
use super::swap::{self, Staging};
use super::target::{Target, choose};
use super::timeline::{Lineage, Reach, reach};
use super::wal::{Name, Segment};
use super::{command, layout};
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::postgres::binaries::Installation;
use crate::postgres::data::{DataDirectory, inspect};
use crate::postgres::home::{Home, make_dir};
use crate::postgres::stale;

/// Room beside the data itself, for the WAL that is replayed at one time, in bytes.
const ROOM: u64 = 256 << 20;

/// What is wanted of which cluster. Whoever has this holds the state directory's lock, and no server runs.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub home: &'a Home,
    pub settings: &'a Settings,
    pub archive: &'a Archive,
    pub target: Target,
    /// The timeline to follow; `None`: the newest.
    pub timeline: Option<u32>,
}

/// How a wish can be fulfilled.
#[derive(Clone, Debug)]
pub struct Way {
    /// What recovery begins from.
    pub base: Base,
    /// The timeline that it follows.
    pub timeline: u32,
    lineage: Lineage,
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    pub recovered: Recovered,
    /// Where the old data directory is, if there was one.
    pub kept: Option<PathBuf>,
}

/// Find the way to what is wished. Archives what the old cluster had no time to; changes nothing else.
///
/// # Errors
/// No base backup leads there, or the WAL on the way is known to have a gap.
pub fn find(wish: &Wish<'_>) -> anyhow::Result<Way> {
    let pg_wal = wish.home.data.join("pg_wal");
    if inspect(wish.home)? == DataDirectory::Cluster {
        let (ours, theirs) = (super::start::system_identifier(&wish.home.data)?, wish.archive.system_identifier()?);
        if theirs.is_some_and(|theirs| theirs != ours) {
            bail!("{} is the archive of another cluster than the one here", wish.archive.dir().display());
        }
        archive_rest(wish.archive, &pg_wal);
    }
    let lineage = lineage(wish, &pg_wal)?;
    let bases = catalog::bases(wish.archive)?;
    let refuse = |text: String| anyhow::Error::from(Failure::new(Code::Failed, text));
    let base = choose(&bases, &lineage, wish.target).map_err(|error| refuse(error.to_string()))?;
    check_reach(wish, base, &lineage, &pg_wal)?;
    Ok(Way { base: base.clone(), timeline: lineage.newest(), lineage })
}

/// Archive what the server had asked for when it ended. What fails here is carried over by itself.
fn archive_rest(archive: &Archive, pg_wal: &Path) {
    let notes = Notes::new(pg_wal);
    if notes.given_up().is_some() {
        return;
    }
    for name in notes.ready() {
        if let Err(error) = archive.push(&pg_wal.join(&name)) {
            tracing::warn!("archive {name}, which the server left: {error:#}");
            return;
        }
    }
}

/// The lineage of the timeline that is to be followed.
fn lineage(wish: &Wish<'_>, pg_wal: &Path) -> anyhow::Result<Lineage> {
    let names = wish.archive.names().into_iter().chain(layout::unarchived(wish.archive, pg_wal, None));
    let newest = names.filter_map(|name| if let Name::History(timeline) = name { Some(timeline) } else { None }).max();
    let timeline = wish.timeline.or(newest).unwrap_or(1);
    let name = Name::History(timeline);
    let history = match wish.archive.read(name)? {
        Some(history) => Some(history),
        None => fs::read(pg_wal.join(name.to_string())).ok(),
    };
    match history {
        Some(history) => Ok(Lineage::read(timeline, &String::from_utf8_lossy(&history))?),
        None if timeline == 1 => Ok(Lineage::read(1, "")?),
        None => Err(Failure::new(Code::Failed, format!("the archive knows no timeline {timeline}")).into()),
    }
}

/// Refuse what is known not to be reached. How far the WAL goes in time only recovery itself finds out.
fn check_reach(wish: &Wish<'_>, base: &Base, lineage: &Lineage, pg_wal: &Path) -> anyhow::Result<()> {
    let there = wish.archive.names().into_iter().chain(layout::unarchived(wish.archive, pg_wal, Some(lineage)));
    let there: Vec<Segment> = there
        .filter_map(|name| match name {
            Name::Segment(segment) | Name::Partial(segment) => Some(segment),
            Name::Backup(..) | Name::History(_) => None,
        })
        .collect();
    let size = base.segment_size;
    let Reach { missing, gap } = reach(base.start_segment(), lineage, &there, size);
    let end = missing.start(size);
    let given_up = wish.archive.gaps().into_iter().find(|(place, _)| place.place() <= missing.next(size).place());
    let why = given_up.map(|(_, why)| format!(" (given up: {why})")).unwrap_or_default();
    let refused = match wish.target {
        Target::Lsn(lsn) if lsn > end => format!("the WAL after {} ends at {end}, before {lsn}{why}", base.name),
        Target::End if gap => format!(
            "the WAL after {} has a gap at {end}{why}: `--to-lsn {end}` restores what is before it, and all that is behind \
             it needs a newer base backup",
            base.name
        ),
        Target::Lsn(_) | Target::End | Target::Time(_) => return Ok(()),
    };
    Err(Failure::new(Code::Failed, refused).into())
}

/// Go the way: lay the base backup out, recover, and put the result in the old data directory's place.
///
/// # Errors
/// Any part of it failed; the old data directory is in its place.
pub async fn restore_cluster(wish: &Wish<'_>, way: &Way, installation: &Installation) -> anyhow::Result<Restored> {
    // Beside the old data.
    let room = Guard::new("restore", wish.settings.disk.stop_free, Some(&wish.home.data))
        .claim(wish.home.data.parent().unwrap_or(&wish.home.state), way.base.size.saturating_add(ROOM));
    room.hold(restore_beside(wish, way, installation)).await
}

async fn restore_beside(wish: &Wish<'_>, way: &Way, installation: &Installation) -> anyhow::Result<Restored> {
    let home = wish.home;
    for left in swap::leftovers(&home.data) {
        tracing::info!("removing {}, which an interrupted restore left behind", left.display());
        stale::end_orphaned_backends(&left).await?;
        let _ = fs::remove_dir_all(&left);
    }
    let staging = Staging::begin(&home.data, |place| make_dir(place, 0o700, home.server.as_ref()))?;
    let data = staging.path().to_owned();
    let (archive, base, server) = (wish.archive.clone(), way.base.clone(), home.server.clone());
    let (pg_wal, lineage) = (home.data.join("pg_wal"), way.lineage.clone());
    let place = data.clone();
    let laid_out = tokio::task::spawn_blocking(move || {
        layout::lay_out(&archive, &base, &place, server.as_ref())?;
        let rest = layout::unarchived(&archive, &pg_wal, Some(&lineage));
        layout::carry_over(&rest, &pg_wal, &place.join("pg_wal"), server.as_ref())?;
        layout::create(&place.join("recovery.signal"), server.as_ref()).context("ask for the recovery")
    });
    laid_out.await.context("lay the base backup out")??;
    let program = command::program(&home.run, home.server.as_ref())?;
    let recovered = recovery::recover(&Recovery {
        home: &Home { data, ..home.clone() },
        settings: wish.settings,
        installation,
        restore_command: command::restore_command(&program, wish.archive)?,
        target: wish.target,
        timeline: way.timeline,
    })
    .await?;
    let kept = staging.put_in_place(&home.data, SystemTime::now())?;
    Ok(Restored { recovered, kept })
}
