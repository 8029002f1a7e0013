//! Something of an earlier moment, while the live cluster serves: its past is recovered in a directory of its own, dumped, and thrown
//! away.
//!
//! The live data directory is neither read nor written. What is recovered is what the archive holds: the segment that is being
//! written is ended first, so that all of it that is committed by now is there.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use chrono::Utc;
use sea_orm::sqlx::{Connection, query_scalar};

use super::recovery::{self, Recovered, Recovery};
use super::staging::{self, Staging};
use super::to_moment::{ROOM, lay_out};
use super::wal::WalFile;
use super::way::{Way, Wish, find};
use super::{command, tablespaces};
use crate::backup::catalog::{BackupEntry, Catalog};
use crate::backup::census::Snapshot;
use crate::backup::dump::{self, Wanted};
use crate::backup::name::Format;
use crate::backup::part::wish::{self, Part};
use crate::backup::reach::Reach;
use crate::config::{Backup, Compression, Settings};
use crate::exit::{Code, Failure};
use crate::postgres::home::{Home, make_dir};
use crate::postgres::stale;
use crate::room::Guard;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// How long the segment that is ended may take to be archived.
const ARCHIVE_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// The dump's directory, in the recovered one.
const DUMP: &str = "tandem_dump";

/// A dump of an earlier moment. Dropped, it is removed.
pub struct Dumped {
    pub catalog: Catalog,
    pub entry: BackupEntry,
    pub recovered: Recovered,
    pub way: Way,
    _staging: Staging,
}

/// Dump `database` as it was at the moment of `wish`: all of it, or the rows of `part` alone. `reach` leads to the live server.
///
/// # Errors
/// The archive does not lead there, the database did not have what is asked for, or the recovery or dump fails. Nothing of it is
/// left then.
pub async fn dump(reach: &Reach, wish: &Wish<'_>, database: &str, part: Option<&Part>) -> anyhow::Result<Dumped> {
    end_segment(reach, wish).await?;
    for left in staging::leftovers(&wish.home.data) {
        tracing::info!("removing {}, which an interrupted restore left behind", left.display());
        stale::end_orphaned_backends(&left).await?;
        let _ = std::fs::remove_dir_all(&left);
    }
    let home = wish.home;
    let staging = Staging::begin(&home.data, |place| make_dir(place, 0o700, home.server.as_ref()))?;
    // As if the cluster were gone: it is live, and what it writes is none of this.
    let absent = Home { data: staging.path().join("absent"), ..home.clone() };
    let wish = Wish { home: &absent, ..*wish };
    let way = find(&wish)?;
    let room = Guard::new("restore", wish.settings.disk.stop_free, Some(&home.data))
        .claim(home.data.parent().unwrap_or(&home.state), way.base.size.saturating_mul(2).saturating_add(ROOM));
    let recovered = Home { data: staging.path().to_owned(), ..home.clone() };
    let work = recover(reach, &wish, &way, &recovered, (database, part));
    let (recovered, catalog, entry) = room.hold(work).await?;
    Ok(Dumped { catalog, entry, recovered, way, _staging: staging })
}

/// Have all that is committed by now archived.
async fn end_segment(reach: &Reach, wish: &Wish<'_>) -> anyhow::Result<()> {
    let mut session = reach.aside("").await?;
    let ended = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())";
    let ended = query_scalar::<_, String>(ended).fetch_one(&mut session);
    let segment: WalFile = answered(MAKE_LIMIT, "begin a new segment of WAL", ended).await?.parse()?;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    let archived = async {
        while !wish.archive.has(segment) {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(ARCHIVE_LIMIT, archived).await.is_err() {
        tracing::warn!("{segment} is not archived yet: what was committed last may not be reached");
    }
    Ok(())
}

/// Recover, and dump what came up.
async fn recover(
    reach: &Reach,
    wish: &Wish<'_>,
    way: &Way,
    home: &Home,
    (database, part): (&str, Option<&Part>),
) -> anyhow::Result<(Recovered, Catalog, BackupEntry)> {
    lay_out(wish, way, &home.data).await?;
    let program = command::program(&home.run, home.server.as_ref())?;
    // Its socket is beside the live one, under another number.
    let mut settings = wish.settings.clone();
    settings.postgres.port.number = other_port(settings.postgres.port.number);
    let dir = home.data.join(DUMP);
    let recovery = Recovery {
        home,
        settings: &settings,
        installation: reach.installation(),
        restore_command: command::restore_command(&program, wish.archive)?,
        target: wish.target,
        timeline: way.timeline,
    };
    let work = async |port| {
        let there = Reach::superuser(home, port, reach.installation().clone());
        dump_there(&there, wish.settings, home, (database, part), &dir).await
    };
    let (recovered, (catalog, entry)) = recovery::recover_and(&recovery, work).await?;
    tablespaces::allow(&home.data)?;
    Ok((recovered, catalog, entry))
}

fn other_port(port: u16) -> u16 {
    if port < u16::MAX { port.max(1024) + 1 } else { port - 1 }
}

async fn dump_there(
    there: &Reach,
    settings: &Settings,
    home: &Home,
    (database, part): (&str, Option<&Part>),
    dir: &Path,
) -> anyhow::Result<(Catalog, BackupEntry)> {
    let only = match part {
        Some(part) => {
            let mut snapshot = Snapshot::export(there.session(database).await?).await?;
            let outline = snapshot.outline().await?;
            snapshot.close().await;
            let wish = wish::Wish::of(part, &outline)
                .map_err(|error| Failure::new(Code::Usage, format!("at that moment: {error}. Nothing was changed")))?;
            Some(wish.only(&outline))
        }
        None => None,
    };
    let own = Settings {
        backup: Backup { dir: Some(dir.to_owned()), compression: Compression::None, ..settings.backup.clone() },
        ..settings.clone()
    };
    let catalog = Catalog::of(&own, home);
    let wanted = Wanted { only: only.as_ref(), format: Format::Plain, rate: None, ..Wanted::of(&own, database) };
    let manifest = dump::take(there, &catalog, wanted, Utc::now()).await.context("dump what was recovered")?;
    let entry = catalog.find(&manifest.file)?;
    Ok((catalog, entry))
}
