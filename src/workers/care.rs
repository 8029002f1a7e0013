//! Looks after workers that are ready: finds those whose event loop has stopped, and those that are due for replacement.
//!
//! [`judge`] decides, and is pure; [`tend`] collects the facts and reports.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::life::{Life, Roster};
use super::template;
use crate::config::{MemoryKind, Settings, Workers};
use crate::event_loop::within;
use crate::process::memory;
use crate::supervise::plan::ServiceId;

/// How often workers are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often their memory is: the kernel walks page tables for it.
const MEMORY_INTERVAL: Duration = Duration::from_secs(5);
/// How long the measuring of one may take.
const MEASURE_LIMIT: Duration = Duration::from_secs(1);
/// How long after one that was to be replaced, and was not, it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What is known of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Facts {
    pub age: Duration,
    /// How long it has said nothing; `None`: it is not watched.
    pub silent: Option<Duration>,
    /// How long it may.
    pub watchdog: Option<Duration>,
    pub requests: u64,
    /// Bytes; `None`: not measured.
    pub memory: Option<u64>,
    /// A number of its own from 0 to 1, by which it may live longer than others.
    pub luck: f64,
}

/// What is to be done about a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Its event loop does not turn.
    Hangs,
    /// It is to be replaced, new before old; why, in words.
    Due(String),
}

/// Decide about one worker.
pub fn judge(workers: &Workers, facts: &Facts) -> Verdict {
    if let (Some(limit), Some(silent)) = (facts.watchdog, facts.silent)
        && silent >= limit
    {
        return Verdict::Hangs;
    }
    if let Some(limit) = request_limit(workers, facts.luck).filter(|&limit| facts.requests >= limit) {
        return Verdict::Due(format!("{} requests (its limit was {limit})", facts.requests));
    }
    if let (Some(limit), Some(memory)) = (workers.max_memory, facts.memory)
        && memory >= limit
    {
        let kind = match workers.memory_kind {
            MemoryKind::Pss => "PSS",
            MemoryKind::Rss => "RSS",
        };
        let megabytes = |bytes: u64| bytes / (1024 * 1024);
        return Verdict::Due(format!("{kind} of {} MB (its limit is {} MB)", megabytes(memory), megabytes(limit)));
    }
    match workers.max_age {
        Some(limit) if facts.age >= limit => {
            Verdict::Due(format!("age of {} (its limit is {})", whole_seconds(facts.age), whole_seconds(limit)))
        }
        Some(_) | None => Verdict::Fine,
    }
}

/// How many requests a worker with this luck may answer.
fn request_limit(workers: &Workers, luck: f64) -> Option<u64> {
    let most = u64::from(workers.max_requests);
    let jitter = match workers.max_requests_jitter {
        0 => most / 10,
        jitter => u64::from(jitter),
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "at most 2^32"
    )]
    let extra = (jitter as f64 * luck) as u64;
    (most > 0).then_some(most + extra)
}

fn whole_seconds(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

/// What is remembered of one process between two looks.
#[derive(Clone, Copy)]
struct Memo {
    luck: f64,
    asked: Option<Instant>,
    memory: Option<u64>,
}

/// Look after the workers on `roster`, for ever. `settings` are those that hold at each look; `due` is told which
/// service is to be replaced.
pub async fn tend(roster: Roster, settings: impl Fn() -> Rc<Settings>, due: impl Fn(ServiceId)) {
    let mut memos: HashMap<i32, Memo> = HashMap::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut measured) = (Instant::now(), None::<Instant>);
    loop {
        ticks.tick().await;
        let settings = settings();
        let lives = roster.lives();
        if last.elapsed() > 2 * INTERVAL {
            // It was this process that stood still; what the workers said meanwhile is still to be read.
            lives.iter().for_each(Life::forgive);
        }
        last = Instant::now();
        memos.retain(|pid, _| lives.iter().any(|life| life.pid() == Some(*pid)));
        let workers = || lives.iter().filter(|life| life.is_ready() && life.name() != template::NAME);
        if settings.workers.max_memory.is_some() && measured.is_none_or(|at| at.elapsed() >= MEMORY_INTERVAL) {
            measured = Some(Instant::now());
            let pids: Vec<i32> = workers().filter_map(Life::pid).collect();
            measure(&mut memos, pids, settings.workers.memory_kind).await;
        }
        for life in workers() {
            let Some(pid) = life.pid() else { continue };
            let memo = memos.entry(pid).or_insert_with(Memo::new);
            look(life, memo, &settings.workers, &due);
        }
    }
}

impl Memo {
    fn new() -> Self {
        Self { luck: rand::random(), asked: None, memory: None }
    }
}

/// Each on another thread, for it takes milliseconds, and longer where a process is stuck in the kernel: then what was last
/// measured of it stays, and the others are watched on.
async fn measure(memos: &mut HashMap<i32, Memo>, pids: Vec<i32>, kind: MemoryKind) {
    let one = async |pid| {
        let read = move || match kind {
            // Blocks: called by `within`.
            MemoryKind::Pss => memory::pss(pid),
            MemoryKind::Rss => memory::rss(pid),
        };
        (pid, within(MEASURE_LIMIT, format!("measure the memory of process {pid}"), read).await)
    };
    for (pid, measured) in join_all(pids.into_iter().map(one)).await {
        if let Ok(memory) = measured {
            memos.entry(pid).or_insert_with(Memo::new).memory = memory;
        }
    }
}

fn look(life: &Life, memo: &mut Memo, workers: &Workers, due: &impl Fn(ServiceId)) {
    let facts = Facts {
        age: life.age(),
        silent: life.heartbeat().map(|last| last.elapsed()),
        watchdog: life.watchdog(),
        requests: life.counts().map_or(0, |counts| counts.requests),
        memory: memo.memory,
        luck: memo.luck,
    };
    match judge(workers, &facts) {
        Verdict::Fine => {}
        Verdict::Hangs => {
            let silent = facts.silent.unwrap_or_default();
            tracing::error!(
                { service.name = %life.name() },
                "its event loop has been silent for {silent:.1?}: it is told to show what its threads do, and is replaced"
            );
            life.note(format!("hung: its event loop was silent for {silent:.1?}"));
            life.hangs();
        }
        Verdict::Due(_) if memo.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) => {}
        Verdict::Due(reason) => {
            memo.asked = Some(Instant::now());
            tracing::info!({ service.name = %life.name() }, "due for replacement: {reason}");
            life.note(reason);
            due(life.service());
        }
    }
}

#[cfg(test)]
#[path = "care_tests.rs"]
mod tests;
