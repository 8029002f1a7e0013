//! What the status page and `tandem top` show, as data: made from a [`Picture`]. Pure: the time is an argument.
//!
//! [`Overview`] travels as JSON in the events of `GET /events` (see `events`). Names and texts that come from others are fit to
//! be shown: control characters and those that turn the direction of writing stand as escapes. Whoever shows them escapes
//! them for what they are shown in.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::backups::destination_words;
use super::calendar::DayState;
use super::picture::{Disk, Picture, Service, in_words};
use super::report::{self, Now};
use super::statistics::StatisticsTable;
use crate::telemetry::{self, rfc3339};

/// So many characters of a text of others are shown at most.
const TEXT_MAX: usize = 2_000;

/// Everything at one moment. Times are RFC 3339, UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Overview {
    pub version: String,
    /// As the operator calls it.
    pub name: String,
    /// The same, made unique on this machine.
    pub deployment: String,
    /// Differs between two runs of Tandem: sequence numbers of the log begin anew.
    pub instance: String,
    pub pid: u32,
    pub time: String,
    /// `healthy`, `degraded` or `unhealthy`.
    pub status: String,
    /// Why it is not healthy.
    pub reasons: Vec<String>,
    pub phase: String,
    pub uptime_seconds: f64,
    /// Where the application is served.
    pub application: String,
    pub boot: Vec<BootStepOverview>,
    /// What a Tandem that boots waits for.
    pub under_way: Vec<String>,
    pub workers_ready: u32,
    pub workers_wanted: u32,
    pub services: Vec<ServiceOverview>,
    pub database: DatabaseOverview,
    /// What the database says of itself; `None`: as in the event before. It is asked while somebody looks.
    pub statistics: Option<StatisticsOverview>,
    /// How far the roll is that is under way.
    pub roll: Option<String>,
    /// The step of the deployment that is under way.
    pub deployment_step: Option<String>,
    /// What happened last, oldest first.
    pub history: Vec<EventOverview>,
    pub backups: BackupsOverview,
    /// `None`: point-in-time recovery is not enabled.
    pub recovery: Option<RecoveryOverview>,
    pub disks: Vec<DiskOverview>,
    pub supervisor: SupervisorOverview,
    /// Lines of the log since the event before; in the first event the last lines.
    pub log: Vec<LogLine>,
    /// Whether lines were left out before these.
    pub log_skipped: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootStepOverview {
    pub name: String,
    /// `done`, `running` or `pending`.
    pub state: String,
    /// Since the start of Tandem.
    pub began_seconds: Option<f64>,
    pub took_seconds: Option<f64>,
}

/// One process, or a service that has none at the moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceOverview {
    pub name: String,
    /// `postgres`, `template`, `worker` or `process`.
    pub kind: String,
    pub pid: Option<i32>,
    pub state: String,
    pub state_seconds: f64,
    /// `standing`, `replacement` or `retiring`.
    pub role: String,
    pub uptime_seconds: Option<f64>,
    pub restarts: u32,
    pub last_reason: Option<String>,
    /// Since it started.
    pub requests: Option<u64>,
    pub requests_per_second: Option<f64>,
    pub connections: Option<u64>,
    pub in_flight: Option<u64>,
    pub loop_lag_ms: Option<f64>,
    pub memory_bytes: Option<u64>,
    /// What it has still to finish, once it accepts no more, in words.
    pub draining: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseOverview {
    pub available: bool,
    /// Why it cannot be used.
    pub error: Option<String>,
    pub latency_ms: Option<f64>,
    pub schema_version: Option<String>,
    pub tables: Option<usize>,
    pub connections: Option<u32>,
    pub max_connections: Option<u32>,
    pub pool_size: u32,
    pub sample_age_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatisticsOverview {
    pub taken: Option<String>,
    pub error: Option<String>,
    pub tables: Vec<StatisticsTable>,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventOverview {
    pub time: String,
    pub is_bad: bool,
    pub words: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupsOverview {
    pub schedule: Option<String>,
    pub next: Option<String>,
    pub running: bool,
    pub last: Option<String>,
    pub last_error: Option<String>,
    pub count: usize,
    pub newest: Option<String>,
    pub newest_verified: Option<String>,
    /// The last five weeks, oldest first.
    pub days: Vec<DayOverview>,
    pub kept_databases: usize,
    pub kept_databases_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DayOverview {
    pub date: String,
    /// From 0, a Monday, to 6.
    pub weekday: u8,
    pub state: DayState,
    pub backups: usize,
    pub bytes: u64,
}

/// Point-in-time recovery.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecoveryOverview {
    /// The first and the last moment that can be reached.
    pub from: Option<String>,
    pub until: Option<String>,
    /// When each base backup ended, oldest first.
    pub bases: Vec<String>,
    /// Where the chain was given up, and why.
    pub gaps: Vec<String>,
    pub backlog_bytes: u64,
    pub ready_segments: u64,
    pub failing: bool,
    pub given_up: bool,
    /// What is wrong.
    pub trouble: Option<String>,
    /// Each place off the machine for base backups and WAL, in words.
    pub destinations: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskOverview {
    /// `data` or `backups`.
    pub name: String,
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub wanted_bytes: Option<u64>,
    pub unanswered_seconds: Option<f64>,
    /// If it goes on as in the last hours.
    pub full_in_seconds: Option<f64>,
}

/// Tandem's own measurements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SupervisorOverview {
    pub longest_stall_ms: f64,
    pub stalls: u64,
    pub log_lines_dropped: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Counts up by one with every line of this run of Tandem.
    pub sequence: u64,
    pub time: String,
    pub service: String,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
    pub level: String,
    pub text: String,
}

/// Everything but the log and the statistics, which only some events carry.
pub fn overview(picture: &Picture, now: Now<'_>) -> Overview {
    let report = report::report(picture, now);
    let started = now.wall.checked_sub(age(picture.started, now)).unwrap_or(SystemTime::UNIX_EPOCH);
    Overview {
        version: report.version.to_owned(),
        name: visible_name(Some(&picture.details.name).filter(|name| !name.is_empty()).unwrap_or(&picture.deployment)),
        deployment: visible_name(&picture.deployment),
        instance: format!("{}-{}", std::process::id(), rfc3339(started).get(..19).unwrap_or_default()),
        pid: std::process::id(),
        time: report.timestamp,
        status: serde_json::to_value(report.status)
            .ok()
            .and_then(|it| Some(it.as_str()?.to_owned()))
            .unwrap_or_default(),
        reasons: report.reasons.iter().map(|reason| visible(reason)).collect(),
        phase: report.phase.to_owned(),
        uptime_seconds: report.uptime_seconds,
        application: visible(&picture.details.application),
        boot: boot(picture, now),
        under_way: now.under_way.iter().map(|work| visible(work)).collect(),
        workers_ready: report.workers_ready,
        workers_wanted: report.workers_wanted,
        services: picture.services.iter().map(|one| service(one, picture, now)).collect(),
        database: DatabaseOverview {
            available: report.database.available,
            error: report.database.error,
            latency_ms: latency(picture),
            schema_version: report.database.schema_version.map(visible),
            tables: report.database.connections.map(|_| report.database.tables.len()),
            connections: report.database.connections,
            max_connections: report.database.max_connections,
            pool_size: report.database.pool_size,
            sample_age_seconds: report.database.sample_age_seconds,
        },
        statistics: None,
        roll: picture.roll.clone(),
        deployment_step: picture.details.deployment.as_deref().map(visible),
        history: history(picture),
        backups: backups(picture),
        recovery: recovery(picture),
        disks: vec![
            disk("data", picture.disk, picture.details.disk_full_in, now),
            disk("backups", picture.backup_disk, picture.details.backup_disk_full_in, now),
        ],
        supervisor: SupervisorOverview {
            longest_stall_ms: report.supervisor.longest_stall_ms,
            stalls: report.supervisor.stalls,
            log_lines_dropped: report.supervisor.log_lines_dropped,
        },
        log: Vec::new(),
        log_skipped: false,
    }
}

/// What the database says of itself.
pub fn statistics(picture: &Picture) -> StatisticsOverview {
    let known = &picture.details.statistics;
    StatisticsOverview {
        taken: known.taken.map(rfc3339),
        error: known.error.as_deref().map(visible),
        tables: known.tables.clone(),
    }
}

/// A line of the log.
pub fn log_line(line: telemetry::Line) -> LogLine {
    LogLine {
        sequence: line.sequence,
        time: rfc3339(line.time),
        service: visible(&line.service),
        level: line.level.as_str().to_owned(),
        text: visible(&line.text),
    }
}

fn latency(picture: &Picture) -> Option<f64> {
    let facts = picture.database.sample.as_ref()?.outcome.as_ref().ok()?;
    Some((facts.latency.as_secs_f64() * 100_000.0).round() / 100.0)
}

fn boot(picture: &Picture, now: Now<'_>) -> Vec<BootStepOverview> {
    let since_start = |at: Instant| seconds(at.saturating_duration_since(picture.started));
    let step = |step: &super::picture::BootStep| BootStepOverview {
        name: step.name.to_owned(),
        state: match (step.began, step.ended) {
            (_, Some(_)) => "done",
            (Some(_), None) => "running",
            (None, None) => "pending",
        }
        .to_owned(),
        began_seconds: step.began.map(since_start),
        took_seconds: step
            .began
            .map(|began| seconds(step.ended.unwrap_or(now.instant).saturating_duration_since(began))),
    };
    picture.details.boot.iter().map(step).collect()
}

fn service(service: &Service, picture: &Picture, now: Now<'_>) -> ServiceOverview {
    let rate = service.pid.and_then(|pid| picture.details.rates.get(&pid).copied());
    ServiceOverview {
        name: visible(&service.name),
        kind: service.kind.to_owned(),
        pid: service.pid,
        state: service.state.to_owned(),
        state_seconds: seconds(age(service.since, now)),
        role: service.role.to_owned(),
        uptime_seconds: service.pid.and(service.started).map(|started| seconds(age(started, now))),
        restarts: service.restarts,
        last_reason: service.last_reason.as_deref().map(visible),
        requests: service.counts.map(|counts| counts.requests),
        requests_per_second: rate.map(|rate| (rate * 10.0).round() / 10.0),
        connections: service.counts.map(|counts| counts.connections),
        in_flight: service.counts.map(|counts| counts.in_flight),
        loop_lag_ms: service.counts.and_then(|counts| counts.loop_lag_ms).map(|lag| lag as f64),
        memory_bytes: service.memory_bytes,
        draining: service.unfinished.as_ref().map(|unfinished| visible(&in_words(unfinished))),
    }
}

fn history(picture: &Picture) -> Vec<EventOverview> {
    let event = |event: &super::history::Event| EventOverview {
        time: rfc3339(event.time),
        is_bad: event.is_bad,
        words: visible(&event.words),
    };
    picture.details.history.events().map(event).collect()
}

fn backups(picture: &Picture) -> BackupsOverview {
    let backups = &picture.backups;
    let last = backups.last.as_ref();
    let day = |day: &super::calendar::Day| DayOverview {
        date: day.date.clone(),
        weekday: day.weekday,
        state: day.state,
        backups: day.backups,
        bytes: day.bytes,
    };
    BackupsOverview {
        schedule: backups.schedule.clone(),
        next: backups.next.map(rfc3339),
        running: backups.running,
        last: last.map(|run| rfc3339(run.finished)),
        last_error: last.and_then(|run| run.error.as_deref()).map(visible),
        count: backups.count,
        newest: backups.newest.map(rfc3339),
        newest_verified: backups.newest_verified.map(rfc3339),
        days: picture.details.backup_days.iter().map(day).collect(),
        kept_databases: backups.kept_databases.count,
        kept_databases_bytes: backups.kept_databases.bytes,
    }
}

fn recovery(picture: &Picture) -> Option<RecoveryOverview> {
    let pitr = picture.backups.pitr.as_ref()?;
    let bases = &picture.details.bases;
    let from = bases.first().copied();
    Some(RecoveryOverview {
        from: from.map(rfc3339),
        until: pitr.last_archived.filter(|until| from.is_some_and(|from| from <= *until)).or(from).map(rfc3339),
        bases: bases.iter().copied().map(rfc3339).collect(),
        gaps: picture.details.gaps.iter().map(|gap| visible(gap)).collect(),
        backlog_bytes: pitr.backlog,
        ready_segments: pitr.ready_segments,
        failing: pitr.failing,
        given_up: pitr.given_up,
        trouble: pitr.trouble.as_deref().map(visible),
        destinations: pitr.destinations.iter().map(|it| visible(&destination_words(it))).collect(),
    })
}

fn disk(name: &str, disk: Disk, full_in: Option<Duration>, now: Now<'_>) -> DiskOverview {
    DiskOverview {
        name: name.to_owned(),
        free_bytes: disk.free_bytes,
        total_bytes: disk.total_bytes,
        wanted_bytes: disk.wanted_bytes,
        unanswered_seconds: disk.unanswered.map(|since| seconds(age(since, now))),
        full_in_seconds: full_in.map(seconds),
    }
}

/// `text` as it may be shown anywhere: what controls a terminal or turns the direction of writing stands as an escape, and
/// what is longer than a person reads is cut. Line feeds and tabs stay.
pub fn visible(text: &str) -> String {
    let cut = text.char_indices().nth(TEXT_MAX).map(|(at, _)| at);
    let text = cut.map_or(Cow::Borrowed(text), |at| Cow::Owned(format!("{}…", &text[..at])));
    if !text.chars().any(is_hidden) {
        return text.into_owned();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_hidden(letter) {
            let _ = write!(shown, "{}", letter.escape_unicode());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// A name in one line: as [`visible`], with line feeds and tabs as escapes too.
pub fn visible_name(name: &str) -> String {
    visible(name).replace('\n', "\\n").replace('\t', "\\t")
}

/// Controls, marks and overrides of the direction of writing (Unicode's bidirectional algorithm, UAX #9), and line breaks that
/// look like none.
fn is_hidden(letter: char) -> bool {
    let turns =
        matches!(letter, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}');
    turns || breaks || (letter.is_control() && !matches!(letter, '\n' | '\t'))
}

fn age(then: Instant, now: Now<'_>) -> Duration {
    now.instant.saturating_duration_since(then)
}

/// Seconds to three decimals.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
#[path = "overview_tests.rs"]
pub(crate) mod tests;
