//! What the schedule does in one go: take a backup, prove one when that is due, let the old ones go. And the record of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::catalog::{BackupEntry, Catalog};
use super::copies::Copies;
use super::dump::{self, Wanted};
use super::files;
use super::ledger;
use super::manifest::Verdict;
use super::name::Format;
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
    /// Whether nothing failed but copies: what is tried again then is to send them, and no other backup is taken.
    #[serde(default)]
    pub only_copies: bool,
    /// Each destination of copies, and whether it has every backup that it should have.
    #[serde(default)]
    pub destinations: BTreeMap<String, bool>,
}

/// Take a backup of `database`, and what belongs to it; recorded in the catalog however it ends.
///
/// # Errors
/// The first thing that failed.
pub async fn run(means: &Means<'_>, reach: &Reach, database: &str) -> anyhow::Result<Run> {
    let catalog = Catalog::of(means.settings, means.home);
    let mut run = Run { started: Utc::now(), ..Run::default() };
    let outcome = whole(means, reach, database, &catalog, &mut run).await;
    finish(&catalog, run, outcome)
}

/// Send the copies of `database` that the last run could not, and let go what may go then. What that run took and proved is
/// this run's too; recorded as every run.
///
/// # Errors
/// The first thing that failed.
pub async fn copy_again(means: &Means<'_>, database: &str) -> anyhow::Result<Run> {
    let catalog = Catalog::of(means.settings, means.home);
    let mut run = Run { started: Utc::now(), error: None, ..last(&catalog).unwrap_or_default() };
    let outcome = copy_and_prune(means.settings, database, &catalog, &mut run, Ok(())).await;
    finish(&catalog, run, outcome)
}

fn finish(catalog: &Catalog, mut run: Run, outcome: anyhow::Result<()>) -> anyhow::Result<Run> {
    run.finished = Utc::now();
    run.error = outcome.as_ref().err().map(in_words);
    record(catalog, &run);
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
    // The proof comes first: a copy of what does not restore would be the newest one in its place.
    let proven = prove(means, catalog, database, &manifest.file, run).await.and_then(|proof| match proof {
        Proof::Bad(problems) => Err(Failure::new(Code::Failed, format!("{} is bad: {problems}", manifest.file)).into()),
        Proof::Good | Proof::NotDue => Ok(()),
    });
    copy_and_prune(settings, database, catalog, run, proven).await
}

/// What follows when a backup was taken, and `proven` or not.
async fn copy_and_prune(
    settings: &Settings,
    database: &str,
    catalog: &Catalog,
    run: &mut Run,
    proven: anyhow::Result<()>,
) -> anyhow::Result<()> {
    let sent = send_missing(settings, catalog, database, &mut run.destinations).await;
    // Retention runs even if the copies or the proof failed: old backups must not fill the disk.
    let pruned = prune(settings, catalog, database, run.started).await;
    if let Ok(fates) = &pruned {
        let removed = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Remove(_)));
        run.removed = removed.map(|(entry, _)| entry.name.to_string()).collect();
    }
    run.only_copies = sent.is_err() && proven.is_ok() && pruned.is_ok();
    first_of([proven, sent, pruned.map(drop)])
}

/// What came of the proof of a new backup.
enum Proof {
    NotDue,
    Good,
    /// What is wrong with it.
    Bad(String),
}

/// Verify the new backup where a proof is due.
///
/// # Errors
/// It could not be tried.
async fn prove(
    means: &Means<'_>,
    catalog: &Catalog,
    database: &str,
    file: &str,
    run: &mut Run,
) -> anyhow::Result<Proof> {
    let entries = catalog.entries(Some(database))?;
    let proofs = entries.iter().filter_map(|entry| entry.verdict.as_ref().filter(|verdict| verdict.good()));
    if !due(means.settings.backup.verify, proofs.map(|verdict| verdict.verified).max(), run.started) {
        return Ok(Proof::NotDue);
    }
    let verdict: Verdict = verify(means, catalog, &catalog.find(file)?).await?;
    run.verified = verdict.good();
    Ok(if verdict.good() { Proof::Good } else { Proof::Bad(verdict.problems.join("\n  ")) })
}

/// The first error of several; the others are logged.
fn first_of(outcomes: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut errors = outcomes.into_iter().filter_map(Result::err);
    let first = errors.next();
    for other in errors {
        tracing::error!("{}", in_words(&other));
    }
    first.map_or(Ok(()), Err)
}

/// Copy a backup to every place that `settings` name. A failed copy does not keep the others from being tried.
///
/// # Errors
/// What the first that failed said.
pub async fn send(settings: &Settings, catalog: &Catalog, entry: &BackupEntry) -> anyhow::Result<()> {
    let mut outcomes = Vec::new();
    for (destination, copies) in Copies::configured(settings) {
        let sent = match copies {
            Ok(copies) => copies.send(catalog, entry).await,
            Err(closed) => Err(closed),
        };
        outcomes.push(sent.and_then(|()| ledger::record(catalog, entry, &destination)));
    }
    first_of(outcomes)
}

/// Copy every sound backup of `database` to the places that lack it, the newest first.
///
/// # Errors
/// What the first place that failed said; the others are served all the same.
async fn send_missing(
    settings: &Settings,
    catalog: &Catalog,
    database: &str,
    destinations: &mut BTreeMap<String, bool>,
) -> anyhow::Result<()> {
    destinations.clear();
    let mut entries = catalog.entries(Some(database))?;
    if let Some(refused) = entries.last().filter(|newest| newest.name.format == Format::Directory) {
        return send(settings, catalog, refused).await;
    }
    entries.retain(ledger::is_to_be_copied);
    let mut outcomes = Vec::new();
    for (destination, copies) in Copies::configured(settings) {
        let outcome = match copies {
            Ok(copies) => send_missing_to(&copies, catalog, &entries).await,
            Err(closed) => Err(closed),
        };
        destinations.insert(destination, outcome.is_ok());
        outcomes.push(outcome);
    }
    first_of(outcomes)
}

async fn send_missing_to(copies: &Copies, catalog: &Catalog, entries: &[BackupEntry]) -> anyhow::Result<()> {
    let destination = copies.destination.to_string();
    let (sent, missing): (Vec<&BackupEntry>, Vec<&BackupEntry>) =
        entries.iter().rev().partition(|entry| ledger::is_copied(catalog, entry, &destination));
    if missing.is_empty() {
        return Ok(());
    }
    // Nothing is written down of what was sent before there was a ledger.
    let held = copies.list().await.with_context(|| match missing.as_slice() {
        [one] => format!("the copy in {destination} is missing: {} is in {} only", one.name, catalog.dir().display()),
        more => format!("{destination} lacks {} backups, which are in {} only", more.len(), catalog.dir().display()),
    })?;
    let is_held = |entry: &BackupEntry| held.iter().any(|held| held.whole && held.name == entry.name);
    // A place that has nothing of what it was sent is another one: a new disk, a new bucket.
    let lost = if sent.iter().any(|entry| is_held(entry)) { Vec::new() } else { sent };
    for entry in missing.into_iter().chain(lost) {
        if !is_held(entry) {
            copies.send(catalog, entry).await?;
        }
        ledger::record(catalog, entry, &destination)?;
    }
    Ok(())
}

/// What retention says of each backup of `database`; it lets none go that a destination lacks.
///
/// # Errors
/// The directory cannot be read.
pub fn fates(
    settings: &Settings,
    catalog: &Catalog,
    database: &str,
    now: DateTime<Utc>,
) -> anyhow::Result<Vec<(BackupEntry, Fate)>> {
    let mut fates = catalog.fates(database, &Rules::of(&settings.backup), now)?;
    let destinations: Vec<String> =
        Copies::configured(settings).into_iter().map(|(destination, _)| destination).collect();
    ledger::keep_uncopied(catalog, &mut fates, &destinations);
    Ok(fates)
}

/// Remove what retention lets go, here and the copies of it. A copy in a place that is out of reach is removed later.
///
/// # Errors
/// One cannot be removed here.
pub async fn prune(
    settings: &Settings,
    catalog: &Catalog,
    database: &str,
    now: DateTime<Utc>,
) -> anyhow::Result<Vec<(BackupEntry, Fate)>> {
    let _lock = catalog.lock()?;
    let (fates, places) = (fates(settings, catalog, database, now)?, Copies::configured(settings));
    for (entry, _) in fates.iter().filter(|(_, fate)| matches!(fate, Fate::Remove(_))) {
        // Written down before the backup goes: afterwards nothing else would remember its copies.
        for (destination, _) in &places {
            ledger::set_left(catalog, destination, &entry.name, true)?;
        }
        catalog.remove(&entry.name)?;
    }
    for (destination, copies) in &places {
        // The others were told of when copies were sent.
        let Ok(copies) = copies else { continue };
        for name in ledger::left(catalog, destination) {
            if let Err(error) = copies.remove(&name).await {
                tracing::warn!("the copy of {name} in {destination} stays for now: {}", in_words(&error));
                break;
            }
            ledger::set_left(catalog, destination, &name, false)?;
        }
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
        Verify::Always | Verify::Content => true,
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
