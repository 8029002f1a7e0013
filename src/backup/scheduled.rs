//! What the schedule does in one go: take a backup, prove one when that is due, let the old ones go. And the record of it.

use std::path::PathBuf;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::catalog::{Catalog, Entry};
use super::copies::Copies;
use super::dump::{self, Wanted};
use super::files;
use super::manifest::Verdict;
use super::reach::Reach;
use super::retention::{Fate, Rules};
use super::verify::{Means, verify};
use crate::config::{Settings, Verify};
use crate::exit::{Code, Failure, in_words};

/// How old the newest proof may be where one a week is wanted. An hour less, so that a weekly run is not late by seconds.
const PROOF_AGE_MAX: TimeDelta = TimeDelta::hours(7 * 24 - 1);

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub started: DateTime<Utc>,
    pub finished: DateTime<Utc>,
    /// The backup that was taken.
    pub name: Option<String>,
    pub size_bytes: Option<u64>,
    /// Whether that backup was proven by this run.
    pub verified: bool,
    /// The backups that retention let go.
    pub removed: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Take a backup of `database`, and what belongs to it; recorded in the catalog however it ends.
///
/// # Errors
/// The first thing that failed.
pub async fn run(means: &Means<'_>, reach: &Reach, database: &str) -> anyhow::Result<Run> {
    let catalog = Catalog::of(means.settings, means.home);
    let mut run = Run { started: Utc::now(), ..Run::default() };
    let outcome = whole(means, reach, database, &catalog, &mut run).await;
    run.finished = Utc::now();
    run.error = outcome.as_ref().err().map(in_words);
    record(&catalog, &run);
    outcome.map(|()| run)
}

async fn whole(
    means: &Means<'_>,
    reach: &Reach,
    database: &str,
    catalog: &Catalog,
    run: &mut Run,
) -> anyhow::Result<()> {
    let settings = means.settings;
    let manifest = dump::take(reach, catalog, Wanted::of(settings, database), run.started).await?;
    (run.name, run.size_bytes) = (Some(manifest.file.clone()), Some(manifest.size_bytes));
    send(settings, catalog, &catalog.find(&manifest.file)?).await?;
    let entries = catalog.entries(Some(database))?;
    let proofs = entries.iter().filter_map(|entry| entry.verdict.as_ref().filter(|verdict| verdict.good()));
    if due(settings.backup.verify, proofs.map(|verdict| verdict.verified).max(), run.started) {
        let verdict: Verdict = verify(means, catalog, &catalog.find(&manifest.file)?).await?;
        if !verdict.good() {
            let problems = verdict.problems.join("\n  ");
            return Err(Failure::new(Code::Failed, format!("{} is bad: {problems}", manifest.file)).into());
        }
        run.verified = true;
    }
    let fates = prune(settings, catalog, database, run.started).await?;
    let removed = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Remove(_)));
    run.removed = removed.map(|(entry, _)| entry.name.to_string()).collect();
    Ok(())
}

/// Copy a backup to every place that `settings` name. All are tried, whatever becomes of one.
///
/// # Errors
/// What the first that failed said.
pub async fn send(settings: &Settings, catalog: &Catalog, entry: &Entry) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    for copies in Copies::configured(settings)? {
        if let Err(error) = copies.send(catalog, entry).await {
            match outcome {
                Ok(()) => outcome = Err(error),
                Err(_) => tracing::error!("{}", in_words(&error)),
            }
        }
    }
    outcome
}

/// Remove what retention lets go, here and the copies of it.
///
/// # Errors
/// One cannot be removed.
pub async fn prune(
    settings: &Settings,
    catalog: &Catalog,
    database: &str,
    now: DateTime<Utc>,
) -> anyhow::Result<Vec<(Entry, Fate)>> {
    let _lock = catalog.lock()?;
    let (fates, places) = (catalog.fates(database, &Rules::of(&settings.backup), now)?, Copies::configured(settings)?);
    for (entry, _) in fates.iter().filter(|(_, fate)| matches!(fate, Fate::Remove(_))) {
        // The copies first: what is gone here is asked for nowhere any more.
        for copies in &places {
            let removed = copies.remove(&entry.name).await;
            removed.with_context(|| format!("remove the copy of {} in {}", entry.name, copies.destination))?;
        }
        catalog.remove(&entry.name)?;
    }
    Ok(fates)
}

/// Whether a base backup is due at `now`: there is none, or the newest is as old as a week. Pure.
pub fn base_due(newest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    due(Verify::Weekly, newest, now)
}

/// Whether a proof is due at `now`, when the newest is of `last`. Pure.
fn due(wanted: Verify, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    match wanted {
        Verify::Always => true,
        Verify::Never => false,
        // A proof from the future is of a clock that was wrong.
        Verify::Weekly => last.is_none_or(|last| now - last > PROOF_AGE_MAX || last > now),
    }
}

fn path(catalog: &Catalog) -> PathBuf {
    catalog.dir().join(".last-run.json")
}

/// Write down what came of a run. Where that cannot be, the log has it.
pub fn record(catalog: &Catalog, run: &Run) {
    if catalog.dir().is_dir()
        && let Err(error) = files::write_json(&path(catalog), run)
    {
        tracing::debug!("{}", in_words(&error));
    }
}

/// What came of the last run, if one is recorded.
pub fn last(catalog: &Catalog) -> Option<Run> {
    serde_json::from_slice(&std::fs::read(path(catalog)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weekly_proof_is_due_once_a_week() {
        let now: DateTime<Utc> = "2026-11-26T02:00:00Z".parse().unwrap();
        let ago = |hours| Some(now - TimeDelta::hours(hours));
        assert!(due(Verify::Weekly, None, now));
        assert!(!due(Verify::Weekly, ago(6 * 24), now));
        assert!(due(Verify::Weekly, ago(7 * 24), now));
        assert!(due(Verify::Weekly, ago(-1), now), "the clock was set back");
        assert!(due(Verify::Always, ago(0), now) && !due(Verify::Never, None, now));
    }
}
