//! What the supervisor knows at one moment, as plain data: the input of `report`.
//!
//! The holders of the `watch::Sender<Arc<Picture>>` send a new picture whenever something in it changes. Times are instants,
//! not ages, so that a picture that is not renewed grows old by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::calendar::Day;
use super::history::History;
use super::statistics::Statistics;
use crate::http::{Counts, Unfinished};
use crate::phase::Phase;
use crate::process::Exit;

/// Everything that the health port can show.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Which deployment it is ([`crate::config::Settings::deployment`]).
    pub deployment: String,
    pub phase: Phase,
    /// When Tandem started.
    pub started: Instant,
    pub database: Database,
    /// One entry per process; during a replacement a slot has two.
    pub workers: Vec<Worker>,
    /// How many workers there should be.
    pub workers_wanted: u32,
    /// How many ready workers it takes to be ready (`health.workers_min`).
    pub workers_min: u32,
    pub migrations: Migrations,
    /// Why `hooks.after_ready` last failed.
    pub hook: Option<String>,
    /// What there is to say of databases whose texts are sorted by other rules here than where they were made.
    pub sorted_otherwise: Vec<String>,
    /// Until when the certificate holds with which the application is served.
    pub certificate: Option<SystemTime>,
    /// Until when PostgreSQL's does, where that is ours and serves over TLS.
    pub database_certificate: Option<SystemTime>,
    pub backups: Backups,
    /// The file system that `pg_wal` is on.
    pub disk: Disk,
    /// The file system that backups are on.
    pub backup_disk: Disk,
    /// Every service, in the order of the boot; for the control socket.
    pub services: Vec<Service>,
    /// The progress of a roll, in words.
    pub roll: Option<String>,
    /// What only the status page and `tandem top` show.
    pub details: Details,
}

/// What only the status page and `tandem top` show.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The name of the deployment, as the operator wrote it.
    pub name: String,
    /// Where the application is served, for people to read.
    pub application: String,
    /// The steps of the boot, in order.
    pub boot: Vec<BootStep>,
    /// The step of the deployment that is under way, in words.
    pub deployment: Option<String>,
    /// What happened last.
    pub history: History,
    /// Requests in a second between the last two reports, by process.
    pub rates: BTreeMap<i32, f64>,
    /// The backups of the last weeks, by day.
    pub backup_days: Vec<Day>,
    /// When each base backup ended, oldest first.
    pub bases: Vec<SystemTime>,
    /// Where the chain of archived WAL was given up, and why.
    pub gaps: Vec<String>,
    /// In how much time the data's file system is full, if it goes on as it did.
    pub disk_full_in: Option<Duration>,
    /// The same of the file system of backups.
    pub backup_disk_full_in: Option<Duration>,
    /// What the database says of itself while somebody looks.
    pub statistics: Arc<Statistics>,
}

/// A step of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootStep {
    pub name: &'static str,
    /// `None`: it is still to come.
    pub began: Option<Instant>,
    pub ended: Option<Instant>,
}

/// A service, with its process if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Such as `postgres`, `worker-0`.
    pub name: String,
    /// `postgres`, `template`, `worker` or `process`.
    pub kind: &'static str,
    pub pid: Option<i32>,
    /// As `supervise::state` calls it.
    pub state: &'static str,
    /// `standing`, `replacement` or `retiring`.
    pub role: &'static str,
    /// When it came into this state.
    pub since: Instant,
    /// When its process was first seen.
    pub started: Option<Instant>,
    pub restarts: u32,
    /// Why it was last started again, in words.
    pub last_reason: Option<String>,
    /// What its event loop last reported.
    pub counts: Option<Counts>,
    /// What it has still to finish, once it accepts no more.
    pub unfinished: Option<Unfinished>,
    /// Memory of its process and that one's descendants, as last measured (every `metrics.interval`).
    pub memory_bytes: Option<u64>,
}

/// What a worker has still to finish, as the end of a sentence.
pub fn in_words(unfinished: &Unfinished) -> String {
    let Unfinished { requests, streams, idle, on } = unfinished;
    let count = |count: u64, one: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        more => Some(format!("{more} {one}s")),
    };
    let parts = [count(*requests, "request"), count(*streams, "stream"), count(*idle, "idle connection")];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    let on = if on.is_empty() { String::new() } else { format!(": {}", on.join(", ")) };
    if parts.is_empty() { "nothing".to_owned() } else { format!("{}{on}", parts.join(", ")) }
}

/// The database as last sampled.
#[derive(Clone, Debug)]
pub struct Database {
    /// `None` until the first sample.
    pub sample: Option<Sample>,
    /// A sample older than this counts as no answer: the probe interval, its deadline, and some room.
    pub sample_age_max: Duration,
    /// `pool.size`: what the guide calls `pool_size`.
    pub pool_size: u32,
}

/// The outcome of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub taken: Instant,
    pub outcome: Result<Facts, Fault>,
}

/// What the database answered to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub latency: Duration,
    /// The revision in `alembic_version`.
    pub schema_version: Option<String>,
    /// The tables of `public`, sorted.
    pub tables: Vec<String>,
    pub connections: u32,
    /// `None` until the server was asked.
    pub max_connections: Option<u32>,
}

/// Why the database did not answer, or cannot be used. An enum and no free text: an error's text may quote a connection string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the server is not running")]
    Down,
    #[error("the server is starting or recovering")]
    Starting,
    #[error("the server refuses connections")]
    Unreachable,
    #[error("Tandem has no file left to open, and cannot ask it")]
    NoDescriptors,
    /// It ended the probe's own session, as it does when one of its processes dies, and let no other in at once.
    #[error("the server ended Tandem's session")]
    SessionEnded,
    #[error("the server did not answer within {}", tenths(*.0))]
    Hung(Duration),
    /// The server answered with an error; its SQLSTATE (five ASCII characters) names which.
    #[error("the server answered with SQLSTATE {}", sqlstate(*.0))]
    Rejected([u8; 5]),
    /// An error that lasts until a person corrects something; the log says what.
    #[error("{}{}", .0, in_brackets(*.1))]
    Lasting(&'static str, Option<[u8; 5]>),
    /// With the bytes that are free.
    #[error("its disk is full{}: PostgreSQL waits for room", free(*.0))]
    Full(Option<u64>),
    /// The file system has room, but not for the server.
    #[error("its disk quota is used up: PostgreSQL waits until it may write more")]
    QuotaUsed,
    #[error("the server is a standby, which takes no writes")]
    Standby,
    #[error("default_transaction_read_only is on, so that no worker can write")]
    ReadOnly,
    /// The workers' address refuses, though Tandem's own connection works.
    #[error("at the workers' address {}{}", .0, in_brackets(*.1))]
    Door(&'static str, Option<[u8; 5]>),
}

fn in_brackets(code: Option<[u8; 5]>) -> String {
    code.map(|code| format!(" (SQLSTATE {})", sqlstate(code))).unwrap_or_default()
}

fn free(bytes: Option<u64>) -> String {
    bytes.map(|bytes| format!(" ({:.1} MB free)", bytes as f64 / f64::from(1 << 20))).unwrap_or_default()
}

/// Rounded to a tenth of a second: a limit of two seconds is over after 2.001 of them.
fn tenths(time: Duration) -> String {
    let tenths = u64::try_from((time.as_millis() + 50) / 100).unwrap_or(u64::MAX);
    format!("{:?}", Duration::from_millis(tenths.saturating_mul(100)))
}

/// SQLSTATE as text; a byte that cannot be in one shows as `?`.
fn sqlstate(code: [u8; 5]) -> String {
    code.iter().map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '?' }).collect()
}

/// One worker process, or a slot without one.
#[derive(Clone, Debug)]
pub struct Worker {
    pub slot: u32,
    pub pid: Option<i32>,
    pub state: WorkerState,
    /// When it came into this state.
    pub since: Instant,
    /// How often this slot's worker was restarted after a crash.
    pub restarts: u32,
    pub last_exit: Option<Exit>,
    /// What its event loop last reported.
    pub counts: Option<Counts>,
    /// Memory of its process and that one's descendants, as last measured.
    pub memory_bytes: Option<u64>,
}

/// The state of a worker's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// Spawned, not yet ready.
    Starting,
    Ready,
    /// It accepts nothing new, and finishes what it has.
    Retiring,
    /// SIGKILL did not end it; it is killed again and again.
    Abandoned,
    /// No process: the next attempt comes after a pause.
    Resting,
    /// No process: it was restarted too often.
    GaveUp,
}

impl WorkerState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Ready, Self::Retiring, Self::Abandoned, Self::Resting, Self::GaveUp];

    /// As reports and metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Retiring => "retiring",
            Self::Abandoned => "abandoned",
            Self::Resting => "resting",
            Self::GaveUp => "gave-up",
        }
    }
}

/// The outcome of the migrations.
#[derive(Clone, Debug, Default)]
pub struct Migrations {
    /// The newest revision this binary knows.
    pub newest: Option<String>,
    /// How many this start applied.
    pub applied: Option<u32>,
    pub took: Option<Duration>,
    pub finished: Option<SystemTime>,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// What should be free at least (`disk.warn_free`).
    pub wanted_bytes: Option<u64>,
    /// Since when it does not answer; its numbers are as old then.
    pub unanswered: Option<Instant>,
}

/// Backups, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Backups {
    /// The schedule in words; `None`: there is none.
    pub schedule: Option<String>,
    pub next: Option<SystemTime>,
    pub running: bool,
    /// The last scheduled one.
    pub last: Option<BackupRun>,
    pub count: usize,
    pub newest: Option<SystemTime>,
    pub newest_verified: Option<SystemTime>,
    /// `None`: it is not enabled.
    pub pitr: Option<Pitr>,
    /// When the last base backup ended, once that is known.
    pub last_base: Option<SystemTime>,
    /// Which base backups cannot be read, and why.
    pub unreadable_bases: Vec<String>,
    /// Why the directory of backups cannot be read; `count` and the times are old then.
    pub unreadable: Option<String>,
    /// The databases that restores replaced and nobody has dropped yet.
    pub kept_databases: KeptDatabases,
    /// Since when the directory of backups does not answer; `count` and the times are as old then.
    pub unanswered: Option<Instant>,
}

/// Databases that restores replaced, which take room on the data's disk until they are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptDatabases {
    pub count: usize,
    pub bytes: u64,
}

/// A scheduled run that has ended.
#[derive(Clone, Debug)]
pub struct BackupRun {
    pub started: SystemTime,
    pub finished: SystemTime,
    pub name: Option<String>,
    pub size_bytes: Option<u64>,
    pub verified: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// Measurements of the supervisor itself since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Supervisor {
    /// The longest time for which the event loop stood still.
    pub longest_stall: Duration,
    /// How often it stood still for longer than `event_loop::STALL`.
    pub stalls: u64,
    /// Lines of the log that standard error did not take.
    pub log_lines_dropped: u64,
}

/// Point-in-time recovery: how the archiving of WAL is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pitr {
    /// Segments that wait.
    pub ready_segments: u64,
    /// Bytes of them.
    pub backlog: u64,
    pub last_archived: Option<SystemTime>,
    /// Whether archiving fails.
    pub failing: bool,
    pub given_up: bool,
    /// What is wrong, in words; it holds paths and numbers.
    pub trouble: Option<String>,
    /// Where base backups and WAL go, off the machine.
    pub destinations: Vec<Destination>,
}

/// A place off the machine for base backups and WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    pub address: String,
    pub behind_segments: u64,
    pub behind_bytes: u64,
    pub behind_bases: u64,
    /// Since when the oldest that it lacks is there to be sent.
    pub behind_since: Option<SystemTime>,
    /// What it lacks, in words.
    pub lag: String,
    pub last_sent: Option<SystemTime>,
    /// When it was last read again.
    pub verified: Option<SystemTime>,
    /// Why nothing is sent at this moment.
    pub error: Option<String>,
    /// What is wrong, in words, where that degrades health.
    pub trouble: Option<String>,
}
