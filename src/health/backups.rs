//! The parts of `/health` about backups and free room. Pure.

use serde::Serialize;

use super::picture::{Backups, Destination, Disk, KeptDatabases, Picture};
use crate::telemetry::rfc3339;

/// `backups`.
#[derive(Debug, Serialize)]
pub struct BackupsReport<'a> {
    pub schedule: Option<&'a str>,
    pub next: Option<String>,
    pub running: bool,
    pub last: Option<RunReport<'a>>,
    pub count: usize,
    pub newest: Option<String>,
    pub newest_verified: Option<String>,
    /// How many databases restores have replaced, which are kept, and what they take.
    pub kept_databases: usize,
    pub kept_databases_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitr: Option<PitrReport<'a>>,
}

/// The last scheduled run.
#[derive(Debug, Serialize)]
pub struct RunReport<'a> {
    pub ok: bool,
    pub started: String,
    pub finished: String,
    pub name: Option<&'a str>,
    pub size_bytes: Option<u64>,
    pub verified: bool,
    pub error: Option<&'a str>,
}

/// `backups.pitr`
#[derive(Debug, Serialize)]
pub struct PitrReport<'a> {
    pub enabled: bool,
    pub ready_segments: u64,
    pub backlog_bytes: u64,
    pub last_archived: Option<String>,
    pub failing: bool,
    pub given_up: bool,
    pub last_base: Option<String>,
    pub destinations: Vec<DestinationReport<'a>>,
}

/// One of `backups.pitr.destinations`
#[derive(Debug, Serialize)]
pub struct DestinationReport<'a> {
    pub address: &'a str,
    pub behind_segments: u64,
    pub behind_bytes: u64,
    pub behind_bases: u64,
    pub last_sent: Option<String>,
    pub verified: Option<String>,
    pub error: Option<&'a str>,
}

/// The `backups` object.
pub fn report(backups: &Backups) -> BackupsReport<'_> {
    BackupsReport {
        schedule: backups.schedule.as_deref(),
        next: backups.next.map(rfc3339),
        running: backups.running,
        last: backups.last.as_ref().map(|run| RunReport {
            ok: run.error.is_none(),
            started: rfc3339(run.started),
            finished: rfc3339(run.finished),
            name: run.name.as_deref(),
            size_bytes: run.size_bytes,
            verified: run.verified,
            error: run.error.as_deref(),
        }),
        count: backups.count,
        newest: backups.newest.map(rfc3339),
        newest_verified: backups.newest_verified.map(rfc3339),
        kept_databases: backups.kept_databases.count,
        kept_databases_bytes: backups.kept_databases.bytes,
        pitr: backups.pitr.as_ref().map(|pitr| PitrReport {
            enabled: true,
            ready_segments: pitr.ready_segments,
            backlog_bytes: pitr.backlog,
            last_archived: pitr.last_archived.map(rfc3339),
            failing: pitr.failing,
            given_up: pitr.given_up,
            last_base: backups.last_base.map(rfc3339),
            destinations: pitr.destinations.iter().map(destination).collect(),
        }),
    }
}

fn destination(destination: &Destination) -> DestinationReport<'_> {
    let Destination { address, behind_segments, behind_bytes, behind_bases, last_sent, verified, error, .. } =
        destination;
    DestinationReport {
        address,
        behind_segments: *behind_segments,
        behind_bytes: *behind_bytes,
        behind_bases: *behind_bases,
        last_sent: last_sent.map(rfc3339),
        verified: verified.map(rfc3339),
        error: error.as_deref(),
    }
}

/// The same in one line, for `tandem status`.
pub fn words(backups: &Backups) -> Option<String> {
    let minute = |time| {
        let text = rfc3339(time);
        format!("{} {} UTC", &text[..10], &text[11..16])
    };
    let last = backups.last.as_ref().map(|run| match &run.error {
        Some(error) => format!("last {} FAILED: {}", minute(run.started), error.lines().next().unwrap_or_default()),
        None => format!("last {} ok{}", minute(run.started), if run.verified { ", verified" } else { "" }),
    });
    let newest = backups.newest.filter(|_| last.is_none()).map(|newest| format!("newest of {}", minute(newest)));
    let next = backups.next.map(|next| format!("next {}", minute(next)));
    let now = backups.running.then(|| "one runs now".to_owned());
    let away = backups.pitr.iter().flat_map(|pitr| &pitr.destinations).map(destination_words);
    let words = [now, last, newest, next, kept(backups.kept_databases)].into_iter().flatten();
    let words: Vec<String> = words.chain(away).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// A destination of base backups and WAL, in words.
pub(super) fn destination_words(destination: &Destination) -> String {
    let Destination { address, lag, error, .. } = destination;
    match error.as_deref().and_then(|error| error.lines().next()) {
        Some(error) => format!("{address} lacks {lag} ({error})"),
        None if destination.behind_segments + destination.behind_bases == 0 => {
            format!("all base backups and WAL are in {address}")
        }
        None => format!("{address} lacks {lag}"),
    }
}

/// What restores have replaced, and how it goes.
fn kept(kept: KeptDatabases) -> Option<String> {
    let KeptDatabases { count, bytes } = kept;
    let what = if count == 1 {
        "1 database that a restore replaced is".to_owned()
    } else {
        format!("{count} databases that restores replaced are")
    };
    (count > 0).then(|| format!("{what} kept, {} MB (`tandem restore --drop-kept`)", bytes.div_ceil(1 << 20)))
}

/// The reasons of a degraded status that concern backups and disks.
pub fn reasons(picture: &Picture) -> Vec<String> {
    let failed = picture.backups.last.as_ref().and_then(|run| run.error.as_ref());
    let failed = failed.map(|error| format!("the last backup failed: {}", error.lines().next().unwrap_or_default()));
    let same = picture.disk == picture.backup_disk;
    let disks = [("data", picture.disk), ("backups", picture.backup_disk)];
    let of_data = disks.into_iter().take(1).filter_map(|(whose, disk)| low(whose, disk));
    // They are on the data's disk.
    let of_data: Vec<String> = of_data
        .map(|why| {
            [Some(why), kept(picture.backups.kept_databases)].into_iter().flatten().collect::<Vec<_>>().join("; ")
        })
        .collect();
    let of_backups = disks.into_iter().skip(1).filter(|_| !same).filter_map(|(whose, disk)| low(whose, disk));
    let low = of_data.into_iter().chain(of_backups);
    let unanswered = picture.backups.unanswered.map(|_| "the directory of backups does not answer".to_owned());
    let archiving = picture.backups.pitr.as_ref().and_then(|pitr| pitr.trouble.clone());
    let unreadable = picture.backups.unreadable.iter().chain(&picture.backups.unreadable_bases).cloned();
    let away = picture.backups.pitr.iter().flat_map(|pitr| &pitr.destinations);
    let away = away.filter_map(|destination| destination.trouble.clone());
    failed.into_iter().chain(unanswered).chain(unreadable).chain(archiving).chain(away).chain(low).collect()
}

fn low(whose: &str, disk: Disk) -> Option<String> {
    if disk.unanswered.is_some() {
        return Some(format!("disk of the {whose}: it does not answer, its numbers are old"));
    }
    let (free, wanted) = (disk.free_bytes?, disk.wanted_bytes?);
    (free < wanted).then(|| {
        let [free, wanted] = [free, wanted].map(|bytes| bytes >> 20);
        format!("disk of the {whose}: {free} MB are free, disk.warn_free asks for {wanted} MB")
    })
}
