//! Watches the workers that are ready, for an event loop that has stopped and for what makes a replacement due.
//!
//! [`judge`] decides, and is pure; [`tend`] collects the facts and reports.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::life::{Life, Roster, WhyReplaced};
use crate::config::{MemoryKind, Settings, Workers};
use crate::event_loop;
use crate::metrics::names::DRAINS_CUT;
use crate::metrics::registry;
use crate::process::memory;
use crate::supervise::plan::ServiceId;

/// How often the workers are checked.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often their memory is measured: the kernel walks page tables for it.
const MEMORY_INTERVAL: Duration = Duration::from_secs(5);
/// How long after a replacement was asked for, and did not happen, it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What [`judge`] knows of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    pub age: Duration,
    /// How long it has said nothing; `None` if it is not watched.
    pub silent: Option<Duration>,
    /// How long it may say nothing.
    pub watchdog: Option<Duration>,
    pub requests: u64,
    /// In bytes; `None` if it was not measured.
    pub memory: Option<u64>,
    /// From 0 to 1, drawn once for each process: spreads `max_requests` over the workers.
    pub jitter: f64,
}

/// What to do about a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// Nothing.
    Fine,
    /// Its event loop does not turn.
    Hangs,
    /// It is due for replacement, new before old, for this reason.
    Due(WhyReplaced, String),
}

/// Decide about one worker.
pub fn judge(workers: &Workers, facts: &Facts) -> Diagnosis {
    if let (Some(limit), Some(silent)) = (facts.watchdog, facts.silent)
        && silent >= limit
    {
        return Diagnosis::Hangs;
    }
    if let Some(limit) = request_limit(workers, facts.jitter).filter(|&limit| facts.requests >= limit) {
        return Diagnosis::Due(
            WhyReplaced::MaxRequests,
            format!("{} requests (its limit was {limit})", facts.requests),
        );
    }
    if let Some(reason) = workers.max_memory.and_then(|limit| too_large(workers.memory_kind, facts.memory, limit)) {
        return Diagnosis::Due(WhyReplaced::MaxMemory, reason);
    }
    match workers.max_age {
        Some(limit) if facts.age >= limit => {
            let reason = format!("age of {} (its limit is {})", whole_seconds(facts.age), whole_seconds(limit));
            Diagnosis::Due(WhyReplaced::MaxAge, reason)
        }
        Some(_) | None => Diagnosis::Fine,
    }
}

/// Why a worker with so much `memory` is too large, if it is.
fn too_large(kind: MemoryKind, memory: Option<u64>, limit: u64) -> Option<String> {
    let memory = memory.filter(|&memory| memory >= limit)?;
    let kind = match kind {
        MemoryKind::Pss => "PSS",
        MemoryKind::Rss => "RSS",
    };
    let megabytes = |bytes: u64| bytes / (1024 * 1024);
    Some(format!("{kind} of {} MB (its limit is {} MB)", megabytes(memory), megabytes(limit)))
}

/// Why a replaced worker with so much `memory` gets no more time for its requests, if so. It may have been replaced for reaching
/// the limit itself: so it may grow by half as much again.
pub fn outgrown(workers: &Workers, memory: Option<u64>) -> Option<String> {
    let limit = workers.max_memory?;
    too_large(workers.memory_kind, memory, limit.saturating_add(limit / 2))
}

/// How many requests a worker may answer.
fn request_limit(workers: &Workers, jitter: f64) -> Option<u64> {
    let most = u64::from(workers.max_requests);
    let extra_max = match workers.max_requests_jitter {
        0 => most / 10,
        extra_max => u64::from(extra_max),
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "at most 2^32"
    )]
    let extra = (extra_max as f64 * jitter) as u64;
    (most > 0).then_some(most + extra)
}

fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

/// What is remembered of one process between two looks.
#[derive(Clone, Copy)]
struct Record {
    jitter: f64,
    asked: Option<Instant>,
    memory: Measurement,
    /// Whether it gets no more time for the requests it has.
    is_cut: bool,
}

/// What is known of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measurement {
    /// It was not measured yet, or could not be.
    Unknown,
    /// Bytes, when last measured.
    Measured(u64),
    /// The kernel does not say; the log was told.
    Late,
}

/// By process id. Measurements that are under way come back to it.
type Records = Rc<RefCell<HashMap<i32, Record>>>;

/// Watch the workers on `roster`, for ever. `settings` returns the settings of the moment; `due` is called with each
/// service that is due for replacement, `cut` with each whose replaced worker gets no more time.
pub async fn tend(
    roster: Roster,
    settings: impl Fn() -> Rc<Settings>,
    due: impl Fn(ServiceId),
    cut: impl Fn(ServiceId),
) {
    let records = Records::default();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut measured) = (Instant::now(), None::<Instant>);
    loop {
        ticks.tick().await;
        let settings = settings();
        let lives = roster.lives();
        if last.elapsed() > 2 * INTERVAL {
            // This process stood still; what the workers said meanwhile is still unread.
            lives.iter().for_each(Life::forgive);
        }
        last = Instant::now();
        records.borrow_mut().retain(|pid, _| lives.iter().any(|life| life.pid() == Some(*pid)));
        let workers = || lives.iter().filter(|life| life.is_ready() && life.is_worker());
        let retiring = || lives.iter().filter(|life| life.is_retiring() && life.is_worker());
        if settings.workers.max_memory.is_some() && measured.is_none_or(|at| at.elapsed() >= MEMORY_INTERVAL) {
            measured = Some(Instant::now());
            let read = match settings.workers.memory_kind {
                MemoryKind::Pss => memory::pss,
                MemoryKind::Rss => memory::rss,
            };
            for life in workers().chain(retiring()) {
                if let Some(pid) = life.pid() {
                    records.borrow_mut().entry(pid).or_insert_with(Record::new);
                    measure(&records, pid, life.name().to_owned(), read);
                }
            }
        }
        // One that finishes what it has is replaced already; what is left to see to is that it neither hangs nor grows for ever.
        for life in lives.iter().filter(|life| life.is_retiring() && hangs(life)) {
            report_hang(life, "it is told to show what its threads do, and ended");
        }
        for life in retiring() {
            let Some(pid) = life.pid() else { continue };
            let mut records = records.borrow_mut();
            let Some(record) = records.get_mut(&pid).filter(|record| !record.is_cut) else { continue };
            if let Some(reason) = outgrown(&settings.workers, record.bytes()) {
                record.is_cut = true;
                let what =
                    "it was replaced and grows on with the requests it still has, which are cut after stop.grace";
                tracing::warn!({ service.name = %life.name() }, "{reason}: {what}");
                life.note(reason);
                registry().count(&DRAINS_CUT, &[]);
                cut(life.service());
            }
        }
        for life in workers() {
            let Some(pid) = life.pid() else { continue };
            let mut record = *records.borrow_mut().entry(pid).or_insert_with(Record::new);
            look(life, &mut record, &settings.workers, &due);
            records.borrow_mut().insert(pid, record);
        }
    }
}

impl Record {
    fn new() -> Self {
        Self { jitter: rand::random(), asked: None, memory: Measurement::Unknown, is_cut: false }
    }

    /// Its memory, if it is known.
    fn bytes(&self) -> Option<u64> {
        match self.memory {
            Measurement::Measured(bytes) => Some(bytes),
            Measurement::Unknown | Measurement::Late => None,
        }
    }
}

/// Have the memory of process `pid` measured. That may take for ever, so nothing here waits for it.
fn measure(records: &Records, pid: i32, name: String, read: fn(i32) -> Option<u64>) {
    let records = Rc::clone(records);
    event_loop::spawn("the measuring of memory", async move {
        let found = match memory::within(memory::LIMIT, pid, read).await {
            Ok(Some(bytes)) => Measurement::Measured(bytes),
            Ok(None) => Measurement::Unknown,
            Err(memory::Late) => Measurement::Late,
        };
        let mut records = records.borrow_mut();
        let Some(record) = records.get_mut(&pid) else { return };
        if found == Measurement::Late && record.memory != Measurement::Late {
            tracing::warn!(
                { service.name = %name },
                "its memory cannot be measured (the kernel says nothing within {:?}): workers.max_memory does not hold for it",
                memory::LIMIT
            );
        }
        record.memory = found;
    });
}

fn hangs(life: &Life) -> bool {
    let silent = life.heartbeat().map(|last| last.elapsed());
    matches!((life.watchdog(), silent), (Some(limit), Some(silent)) if silent >= limit)
}

fn report_hang(life: &Life, what_follows: &str) {
    let silent = life.heartbeat().map(|last| last.elapsed()).unwrap_or_default();
    tracing::error!({ service.name = %life.name() }, "its event loop has been silent for {silent:.1?}: {what_follows}");
    life.note(format!("hung: its event loop was silent for {silent:.1?}"));
    life.report_hang();
}

fn look(life: &Life, record: &mut Record, workers: &Workers, due: &impl Fn(ServiceId)) {
    let facts = Facts {
        age: life.age(),
        silent: life.heartbeat().map(|last| last.elapsed()),
        watchdog: life.watchdog(),
        requests: life.counts().map_or(0, |counts| counts.requests),
        memory: record.bytes(),
        jitter: record.jitter,
    };
    match judge(workers, &facts) {
        Diagnosis::Fine => {}
        Diagnosis::Hangs => {
            report_hang(life, "it is told to show what its threads do, and is replaced");
        }
        Diagnosis::Due(..) if record.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) => {}
        Diagnosis::Due(why, reason) => {
            record.asked = Some(Instant::now());
            tracing::info!({ service.name = %life.name() }, "due for replacement: {reason}");
            life.note_replacement(why, reason);
            due(life.service());
        }
    }
}

#[cfg(test)]
#[path = "care_tests.rs"]
mod tests;
