//! Makes the answers of the health port from a [`Picture`]. Pure: the time is an argument.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::backups::{self, BackupsReport};
use super::picture::{Disk, Picture, Supervisor, Worker, WorkerState};
use crate::http::Counts;
use crate::phase::Phase;
use crate::telemetry::rfc3339;

/// The state of a service whose process outlives SIGKILL, as `supervise::state` calls it.
pub(super) const ABANDONED: &str = "abandoned";

/// The moment of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// For ages.
    pub instant: Instant,
    /// For the time stamp.
    pub wall: SystemTime,
    /// What the supervisor has measured of itself.
    pub supervisor: Supervisor,
    /// Long work that is under way.
    pub under_way: &'a [String],
}

/// The overall status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything is as configured.
    Healthy,
    /// Serving, with fewer workers than wanted, a hook that failed, without the backups that are wanted, with little room, or
    /// with indexes that may miss rows.
    Degraded,
    /// It should get no requests.
    Unhealthy,
}

impl Status {
    /// The HTTP status of `/health`: a degraded service still serves, and must not be restarted for it.
    pub fn http_code(self) -> u16 {
        match self {
            Self::Healthy | Self::Degraded => 200,
            Self::Unhealthy => 503,
        }
    }

    /// As the report and the metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// `/health`.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    pub status: Status,
    pub phase: &'static str,
    pub version: &'static str,
    /// Which deployment answers, for `tandem health`.
    pub deployment: &'a str,
    pub uptime_seconds: f64,
    pub timestamp: String,
    /// Why the status is what it is; empty when healthy.
    pub reasons: Vec<String>,
    pub database: DatabaseReport<'a>,
    pub workers_ready: u32,
    pub workers_wanted: u32,
    pub workers: Vec<WorkerReport>,
    pub migrations: MigrationsReport<'a>,
    pub backups: BackupsReport<'a>,
    pub disk: DiskReport,
    pub supervisor: SupervisorReport,
}

/// The guide's `database` object, key for key, followed by Tandem's own keys.
#[derive(Debug, Serialize)]
pub struct DatabaseReport<'a> {
    pub available: bool,
    /// Whole milliseconds, rounded up.
    pub latency_ms: Option<u64>,
    pub schema_version: Option<&'a str>,
    pub tables: &'a [String],
    pub connections: Option<u32>,
    pub pool_size: u32,
    pub error: Option<String>,
    pub max_connections: Option<u32>,
    pub sample_age_seconds: Option<f64>,
}

/// One entry of `workers`.
#[derive(Debug, Serialize)]
pub struct WorkerReport {
    pub slot: u32,
    pub pid: Option<i32>,
    pub state: WorkerState,
    pub state_seconds: f64,
    pub restarts: u32,
    pub last_exit: Option<String>,
    #[serde(flatten)]
    pub counts: Option<Counts>,
    /// Of its process and that one's descendants, as last measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// `migrations`; unknown values are left out.
#[derive(Debug, Serialize)]
pub struct MigrationsReport<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
}

/// `disk`; unknown values are left out. The first two are of the data's file system.
#[derive(Debug, Serialize)]
pub struct DiskReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_total_bytes: Option<u64>,
    /// How long the file system has not answered; its numbers are as old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_unanswered_seconds: Option<f64>,
}

/// `supervisor`: Tandem's own measurements.
#[derive(Debug, Serialize)]
pub struct SupervisorReport {
    /// The longest time for which the event loop stood still.
    pub longest_stall_ms: f64,
    /// How often it stood still for longer than 250 ms.
    pub stalls: u64,
    /// Lines of the log that were dropped because standard error was not read.
    pub log_lines_dropped: u64,
}

/// `/ready`: the three conditions, and in words those that are not met.
#[derive(Debug, Serialize)]
pub struct Readiness<'a> {
    pub ready: bool,
    pub phase: &'static str,
    pub deployment: &'a str,
    pub database: bool,
    pub workers_ready: u32,
    pub workers_min: u32,
    pub missing: Vec<String>,
}

impl Readiness<'_> {
    /// The HTTP status of `/ready`.
    pub fn http_code(&self) -> u16 {
        if self.ready { 200 } else { 503 }
    }
}

/// `/live`: any answer means that the event loop turns.
#[derive(Debug, Serialize)]
pub struct Liveness {
    pub live: bool,
    pub phase: &'static str,
    pub uptime_seconds: f64,
}

/// What `/health` answers.
pub fn report<'a>(picture: &'a Picture, now: Now<'_>) -> Report<'a> {
    let (status, reasons) = verdict(picture, now);
    Report {
        status,
        phase: picture.phase.name(),
        version: env!("CARGO_PKG_VERSION"),
        deployment: &picture.deployment,
        uptime_seconds: seconds(age(picture.started, now)),
        timestamp: rfc3339(now.wall),
        reasons,
        database: database(picture, now),
        workers_ready: workers_ready(picture),
        workers_wanted: picture.workers_wanted,
        workers: picture.workers.iter().map(|entry| worker(entry, now)).collect(),
        migrations: MigrationsReport {
            newest: picture.migrations.newest.as_deref(),
            applied: picture.migrations.applied,
            duration_ms: picture.migrations.took.map(|took| took.as_millis()),
            finished: picture.migrations.finished.map(rfc3339),
        },
        backups: backups::report(&picture.backups),
        disk: DiskReport {
            free_bytes: picture.disk.free_bytes,
            total_bytes: picture.disk.total_bytes,
            backup_free_bytes: picture.backup_disk.free_bytes,
            backup_total_bytes: picture.backup_disk.total_bytes,
            unanswered_seconds: unanswered(picture.disk, now),
            backup_unanswered_seconds: unanswered(picture.backup_disk, now),
        },
        supervisor: SupervisorReport {
            longest_stall_ms: seconds(now.supervisor.longest_stall * 1000),
            stalls: now.supervisor.stalls,
            log_lines_dropped: now.supervisor.log_lines_dropped,
        },
    }
}

/// What `/ready` answers.
pub fn readiness<'a>(picture: &'a Picture, now: Now<'_>) -> Readiness<'a> {
    let missing = missing(picture, now);
    Readiness {
        ready: missing.is_empty(),
        phase: picture.phase.name(),
        deployment: &picture.deployment,
        database: database_fault(picture, now.instant).is_none(),
        workers_ready: workers_ready(picture),
        workers_min: picture.workers_min,
        missing,
    }
}

/// What `/live` answers.
pub fn liveness(picture: &Picture, now: Now<'_>) -> Liveness {
    Liveness { live: true, phase: picture.phase.name(), uptime_seconds: seconds(age(picture.started, now)) }
}

/// The overall status alone.
pub fn status(picture: &Picture, now: Now<'_>) -> Status {
    verdict(picture, now).0
}

/// The status and the reasons for it.
fn verdict(picture: &Picture, now: Now<'_>) -> (Status, Vec<String>) {
    let missing = missing(picture, now);
    let abandoned = picture.services.iter().filter(|service| service.state == ABANDONED);
    let abandoned = abandoned.map(|service| {
        let pid = service.pid.unwrap_or_default();
        format!("{}: process {pid} does not end, though it gets SIGKILL", service.name)
    });
    if !missing.is_empty() {
        return (Status::Unhealthy, missing.into_iter().chain(abandoned).collect());
    }
    let mut reasons: Vec<String> = abandoned.collect();
    let ready = workers_ready(picture);
    if ready < picture.workers_wanted {
        reasons.push(format!("{ready} of {} workers are ready", picture.workers_wanted));
    }
    for worker in &picture.workers {
        match worker.state {
            WorkerState::Resting => reasons.push(format!("worker {} rests after a crash", worker.slot)),
            WorkerState::GaveUp => reasons.push(format!("worker {} gave up", worker.slot)),
            WorkerState::Starting | WorkerState::Ready | WorkerState::Retiring | WorkerState::Abandoned => {}
        }
    }
    reasons.extend(picture.hook.clone());
    reasons.extend(picture.sorted_otherwise.iter().cloned());
    reasons.extend(backups::reasons(picture));
    (if reasons.is_empty() { Status::Healthy } else { Status::Degraded }, reasons)
}

/// The conditions of readiness that are not met.
fn missing(picture: &Picture, now: Now<'_>) -> Vec<String> {
    let mut missing = Vec::new();
    if picture.phase != Phase::Serving {
        missing.push(format!("not serving: {}", picture.phase));
    }
    if picture.phase < Phase::Serving {
        missing.extend(now.under_way.iter().map(|work| format!("under way: {work}")));
    }
    if let Some(fault) = database_fault(picture, now.instant) {
        missing.push(format!("database: {fault}"));
    }
    let ready = workers_ready(picture);
    if ready < picture.workers_min {
        missing.push(format!("workers: {ready} ready, {} needed", picture.workers_min));
    }
    missing
}

/// What is wrong with the database. A sample that is too old counts as no answer.
fn database_fault(picture: &Picture, now: Instant) -> Option<String> {
    let Some(sample) = &picture.database.sample else {
        return Some("not sampled yet".to_owned());
    };
    if let Err(fault) = &sample.outcome {
        return Some(fault.to_string());
    }
    let age = now.saturating_duration_since(sample.taken);
    (age > picture.database.sample_age_max).then(|| format!("last answer is {:.1} s old", age.as_secs_f64()))
}

fn database<'a>(picture: &'a Picture, now: Now<'_>) -> DatabaseReport<'a> {
    let fault = database_fault(picture, now.instant);
    let sample = picture.database.sample.as_ref();
    // The last answer is shown beside the error, even if it is too old.
    let facts = sample.and_then(|sample| sample.outcome.as_ref().ok());
    DatabaseReport {
        available: fault.is_none(),
        latency_ms: facts.map(|facts| u64::try_from(facts.latency.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)),
        schema_version: facts.and_then(|facts| facts.schema_version.as_deref()),
        tables: facts.map_or(&[], |facts| &facts.tables),
        connections: facts.map(|facts| facts.connections),
        pool_size: picture.database.pool_size,
        error: fault,
        max_connections: facts.and_then(|facts| facts.max_connections),
        sample_age_seconds: sample.map(|sample| seconds(age(sample.taken, now))),
    }
}

fn worker(worker: &Worker, now: Now<'_>) -> WorkerReport {
    WorkerReport {
        slot: worker.slot,
        pid: worker.pid,
        state: worker.state,
        state_seconds: seconds(age(worker.since, now)),
        restarts: worker.restarts,
        last_exit: worker.last_exit.map(|exit| exit.to_string()),
        counts: worker.counts,
        memory_bytes: worker.memory_bytes,
    }
}

/// Workers that answer requests. During a roll the old and the new one of a slot can both be ready: one slot, one count.
fn workers_ready(picture: &Picture) -> u32 {
    let mut slots: Vec<u32> =
        picture.workers.iter().filter(|worker| worker.state == WorkerState::Ready).map(|worker| worker.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    u32::try_from(slots.len()).unwrap_or(u32::MAX)
}

fn unanswered(disk: Disk, now: Now<'_>) -> Option<f64> {
    disk.unanswered.map(|since| seconds(age(since, now)))
}

fn age(then: Instant, now: Now<'_>) -> Duration {
    now.instant.saturating_duration_since(then)
}

/// Seconds to three decimals.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
