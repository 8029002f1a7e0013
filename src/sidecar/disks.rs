//! Keeps the picture's knowledge of the disks: free room, WAL that waits for the archive, the last base backup.
//!
//! A disk may hang, as a network mount does whose server is gone. So every look is made on another thread, behind a limit;
//! what was last known stays in the picture and is marked as old.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Context;
use crate::backup::catalog::Catalog;
use crate::backup::pitr::archive::Archive;
use crate::backup::pitr::away::{self, ledger};
use crate::backup::pitr::backlog::{Condition, Watch};
use crate::backup::pitr::bases::{self, Listing};
use crate::backup::swap;
use crate::config::{Room, Settings};
use crate::event_loop::{Hangs, within};
use crate::exit::in_words;
use crate::health::forecast::Forecast;
use crate::health::picture::{self, Details, Picture};
use crate::postgres::collation;
use crate::postgres::home::Home;
use crate::postgres::service::DatabaseStage;
use crate::room::FileSystem;

/// How often free room is looked at.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// How often the archiving of WAL is looked at: a few entries of one directory.
const ARCHIVING_LOOK: Duration = Duration::from_secs(2);
/// How often base backups are looked for.
const BASES_LOOK: Duration = Duration::from_secs(10);
/// How often the databases that restores replaced are looked at.
const KEPT_LOOK: Duration = Duration::from_secs(15);
/// How often it is asked by which rules texts were sorted, while there is something to say of it.
const SORTING_LOOK: Duration = Duration::from_secs(5);
/// A cluster that nobody has added a database to has so many directories of databases: two templates, `postgres` and the
/// application's.
const DATABASES_LEAST: usize = 4;
/// How long one look may take. A healthy disk answers within milliseconds, a spinning one that wakes up within seconds.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(5);

type Pictures = watch::Sender<Arc<Picture>>;

/// Put the free room of the data's and the backups' file systems into the picture; for ever.
pub async fn follow_room(pictures: Pictures, context: Rc<Context>) {
    let data = context.home.data.join("pg_wal");
    let of_data = |context: &Context| (data.clone(), context.settings().disk.warn_free);
    let of_backups = |context: &Context| {
        let settings = context.settings();
        (Catalog::of(&settings, &context.home).dir().to_owned(), settings.disk.warn_free)
    };
    // Side by side: one that hangs does not hold up the other.
    tokio::join!(
        follow_one(&pictures, &context, of_data, |picture| &mut picture.disk, |details| &mut details.disk_full_in),
        follow_one(
            &pictures,
            &context,
            of_backups,
            |picture| &mut picture.backup_disk,
            |details| &mut details.backup_disk_full_in
        ),
    );
}

/// Look at one file system, for ever. `place` says where it is and what should be free of it.
async fn follow_one(
    pictures: &Pictures,
    context: &Context,
    place: impl Fn(&Context) -> (PathBuf, Room),
    entry: fn(&mut Picture) -> &mut picture::Disk,
    full_in: fn(&mut Details) -> &mut Option<Duration>,
) {
    let (mut last, mut forecast) = (picture::Disk::default(), Forecast::default());
    loop {
        let (path, warn_free) = place(context);
        let what = format!("look at the file system of {}", path.display());
        last = match within(LOOK_LIMIT, what, move || disk(&path, warn_free)).await {
            Ok(seen) => seen,
            Err(Hangs { since, .. }) => picture::Disk { unanswered: Some(since), ..last },
        };
        if let (Some(free), None) = (last.free_bytes, last.unanswered) {
            forecast.note(Instant::now(), free);
        }
        let ahead = forecast.full_in();
        pictures.send_if_modified(|picture| {
            let picture = Arc::make_mut(picture);
            let before = std::mem::replace(entry(picture), last);
            std::mem::replace(full_in(&mut picture.details), ahead) != ahead || before != last
        });
        tokio::time::sleep(ROOM_LOOK).await;
    }
}

/// The file system that `path` really is on: a link is followed.
fn disk(path: &Path, warn_free: Room) -> picture::Disk {
    // Blocks: called by `within`.
    let Some(there) = FileSystem::of(path) else { return picture::Disk::default() };
    picture::Disk {
        free_bytes: Some(there.free),
        total_bytes: Some(there.total),
        wanted_bytes: Some(warn_free.bytes(there.total)),
        unanswered: None,
    }
}

/// Put how the archiving of WAL is into the picture; for ever.
pub async fn follow_archiving(pictures: Pictures, watch: Watch, context: Rc<Context>) {
    let began = SystemTime::now();
    let watch = Arc::new(std::sync::Mutex::new(watch));
    loop {
        let watch = watch.clone();
        let (settings, home) = ((*context.settings()).clone(), context.home.clone());
        let look = move || {
            let now = SystemTime::now();
            let condition = watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner).look(now);
            (condition, destinations(&settings, &home, began, now))
        };
        if let Ok((condition, destinations)) =
            within(LOOK_LIMIT, "look at the WAL that waits for the archive", look).await
        {
            let Condition { sample, failing, trouble, .. } = condition;
            let pitr = picture::Pitr {
                ready_segments: sample.ready,
                backlog: sample.waiting(),
                last_archived: sample.last_archived,
                failing,
                given_up: sample.given_up.is_some(),
                trouble,
                destinations,
            };
            pictures.send_modify(|picture| Arc::make_mut(picture).backups.pitr = Some(pitr));
        }
        tokio::time::sleep(ARCHIVING_LOOK).await;
    }
}

/// How the destinations of base backups and WAL are.
fn destinations(settings: &Settings, home: &Home, began: SystemTime, now: SystemTime) -> Vec<picture::Destination> {
    let behind_max = settings.backup.pitr.behind_max;
    let known = |condition: ledger::Condition| {
        let verified = ledger::Verified::read(&home.state, &condition.destination);
        (condition, verified)
    };
    let shown = |(condition, verified): (ledger::Condition, Option<ledger::Verified>)| picture::Destination {
        trouble: condition
            .trouble(behind_max, began, now)
            .or_else(|| verified.as_ref()?.trouble(&condition.destination)),
        verified: verified.map(|verified| verified.at.into()),
        lag: condition.lag(),
        address: condition.destination,
        behind_segments: condition.behind_segments,
        behind_bytes: condition.behind_bytes,
        behind_bases: condition.behind_bases,
        behind_since: condition.oldest.map(Into::into),
        last_sent: condition.last_sent.map(Into::into),
        error: condition.error,
    };
    away::conditions(settings, home).into_iter().map(known).map(shown).collect()
}

/// Put the databases that restores replaced into the picture; for ever.
pub async fn follow_kept_databases(pictures: Pictures, context: Rc<Context>) {
    loop {
        let base = context.home.data.join("base");
        // Blocks: called by `within`.
        let count = move || std::fs::read_dir(base).map_or(0, |entries| entries.flatten().count());
        let is_known = match within(LOOK_LIMIT, "count the databases", count).await {
            Ok(count) if count <= DATABASES_LEAST => Some(picture::KeptDatabases::default()),
            Ok(_) if context.database.get() != DatabaseStage::Unknown => kept_databases(&context).await,
            _ => None,
        };
        if let Some(kept) = is_known {
            pictures.send_if_modified(|picture| {
                let shown = &mut Arc::make_mut(picture).backups.kept_databases;
                std::mem::replace(shown, kept) != kept
            });
        }
        tokio::time::sleep(KEPT_LOOK).await;
    }
}

/// `None` when the server does not answer.
async fn kept_databases(context: &Context) -> Option<picture::KeptDatabases> {
    let url = context.url();
    let asking = swap::kept_databases(&context.home, url.port, &url.database);
    let kept = tokio::time::timeout(LOOK_LIMIT, asking).await.ok()?;
    let kept =
        kept.inspect_err(|error| tracing::debug!("look for what restores replaced: {}", in_words(error))).ok()?;
    Some(picture::KeptDatabases { count: kept.len(), bytes: kept.iter().map(|(_, bytes)| bytes).sum() })
}

/// Put what there is to say of databases that are sorted otherwise here into the picture, until there is nothing to say: a person
/// makes their indexes anew meanwhile.
pub async fn follow_sorting(pictures: Pictures, context: Rc<Context>) {
    loop {
        let looked = if context.database.get() == DatabaseStage::Unknown {
            None
        } else {
            let asking = collation::sorted_otherwise(&context.home, context.url().port);
            tokio::time::timeout(LOOK_LIMIT, asking).await.ok().and_then(Result::ok)
        };
        if let Some(sentences) = looked {
            let is_well = sentences.is_empty();
            pictures.send_if_modified(|picture| {
                let shown = &mut Arc::make_mut(picture).sorted_otherwise;
                std::mem::replace(shown, sentences.clone()) != sentences
            });
            if is_well {
                return;
            }
        }
        tokio::time::sleep(SORTING_LOOK).await;
    }
}

/// Put the last base backup into the picture; for ever.
pub async fn follow_bases(pictures: Pictures, archive: Archive) {
    let (mut warned, mut told) = (false, Vec::new());
    loop {
        let archive = archive.clone();
        // Blocks: called by `within`.
        let look = move || (bases::listing(&archive).unwrap_or_default(), archive.gaps());
        if let Ok((Listing { bases, unreadable }, gaps)) = within(LOOK_LIMIT, "look for base backups", look).await {
            for base in unreadable.iter().filter(|base| !told.contains(*base)) {
                tracing::warn!("{base}; it counts for nothing and stays");
            }
            told.clone_from(&unreadable);
            let last = bases.last().map(|base| base.ended);
            if last.is_none() && !warned {
                tracing::warn!("there is no base backup yet, and WAL alone restores nothing: `tandem backup base`");
                warned = true;
            }
            pictures.send_modify(|picture| {
                let picture = Arc::make_mut(picture);
                (picture.backups.last_base, picture.backups.unreadable_bases) = (last, unreadable);
                picture.details.bases = bases.iter().map(|base| base.ended).collect();
                picture.details.gaps = gaps.iter().map(|(segment, why)| format!("{segment}: {why}")).collect();
            });
        }
        tokio::time::sleep(BASES_LOOK).await;
    }
}
