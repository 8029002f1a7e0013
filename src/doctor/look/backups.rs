//! Backups on this machine, their copies elsewhere, and the archive of WAL.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{LOOK_LIMIT, apart, in_time};
use crate::backup::catalog::Catalog;
use crate::backup::copies::Copies;
use crate::backup::pitr::{self, backlog, bases, notes::Notes};
use crate::backup::scheduled;
use crate::config::{Settings, Verify};
use crate::doctor::facts::{BackupFact, Backups, Copies as CopiesFact, Look, Unseen, Wal};
use crate::doctor::subject::Subject;
use crate::exit::in_words;
use crate::plan::schedule::Schedule;
use crate::room::FileSystem;

/// The backups of the application's database.
pub async fn backups(subject: &Subject) -> Look<Backups> {
    let (settings, home) = (subject.settings.clone()?, subject.home.clone()?);
    let database = subject.database().unwrap_or_default();
    apart("look at the backups", move || {
        let catalog = Catalog::of(&settings, &home);
        let entries = catalog.entries(Some(&database)).map_err(|error| Unseen::unknown(in_words(&error)))?;
        let fact = |entry: &crate::backup::catalog::BackupEntry| BackupFact {
            name: entry.name.to_string(),
            taken: entry.name.taken,
            state: entry.standing(),
            database_bytes: entry.manifest.as_ref().ok().and_then(|manifest| manifest.database_bytes),
        };
        let mut all: Vec<BackupFact> = entries.iter().map(fact).collect();
        all.sort_by_key(|backup| backup.taken);
        let made = home.data.join("PG_VERSION").metadata().and_then(|meta| meta.modified());
        Ok(Backups {
            all,
            period: period(&settings, Utc::now()),
            proves: settings.backup.verify != Verify::Never,
            failed: scheduled::last(&catalog).and_then(|run| run.error),
            cluster_since: made.ok().map(DateTime::<Utc>::from),
            free: FileSystem::of(&home.data).map(|there| there.free),
        })
    })
    .await?
}

/// The longest time between two of the next scheduled backups.
fn period(settings: &Settings, now: DateTime<Utc>) -> Option<Duration> {
    /// So many of them: over a weekend too.
    const LOOKED_AT: usize = 8;
    let backup = &settings.backup;
    let expression = backup.schedule.as_ref()?;
    let schedule = Schedule::new(expression, &backup.time_zone, backup.jitter, "").ok()?;
    let mut runs = vec![schedule.next(now)?];
    while runs.len() < LOOKED_AT {
        runs.push(schedule.next(*runs.last()?)?);
    }
    runs.windows(2).filter_map(|pair| (pair[1] - pair[0]).to_std().ok()).max()
}

/// What each place for copies holds.
pub async fn copies(subject: &Subject) -> Look<Vec<CopiesFact>> {
    let settings = subject.settings.clone()?;
    if settings.backup.destinations.is_empty() {
        return Err(Unseen::nothing("no copies are sent anywhere (backup.destinations)"));
    }
    let database = subject.database().unwrap_or_default();
    let of_one = async |(destination, opened): (String, anyhow::Result<Copies>)| {
        let asked = in_time(&destination, LOOK_LIMIT, async {
            let copies = opened.map_err(|error| Unseen::unknown(in_words(&error)))?;
            let held = copies.list().await.map_err(|error| Unseen::unknown(in_words(&error)))?;
            let own = held.into_iter().filter(|held| held.whole && held.name.database == database);
            Ok(own.map(|held| held.name.taken).max())
        });
        let newest = asked.await.map_err(Unseen::words);
        CopiesFact { destination, newest }
    };
    let all = Copies::configured(&settings).into_iter().map(of_one);
    Ok(futures_util::future::join_all(all).await)
}

/// The archive of WAL.
pub async fn wal(subject: &Subject) -> Look<Wal> {
    let (settings, home) = (subject.settings.clone()?, subject.home.clone()?);
    let pitr = settings.backup.pitr.clone();
    if !pitr.enabled {
        return Err(Unseen::nothing("WAL is not archived (backup.pitr.enabled)"));
    }
    apart("look at the archive of WAL", move || {
        let sample = backlog::Sample::take(&Notes::new(home.data.join("pg_wal")));
        let bases = bases::bases(&pitr::archive(&settings, &home)).unwrap_or_default();
        let newest = bases.iter().map(|base| base.ended).max();
        Wal {
            waiting: sample.waiting(),
            waiting_max: pitr.max_backlog,
            failure: sample.failure,
            given_up: sample.given_up,
            newest_base: newest.map(DateTime::<Utc>::from),
        }
    })
    .await
}
