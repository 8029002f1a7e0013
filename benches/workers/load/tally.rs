//! What the clients saw.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::{Failure, Kind};

/// Requests of one kind, or of all.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub asked: u64,
    pub failed: u64,
}

/// A worker as its answers show it.
#[derive(Clone, Copy)]
pub struct Worker {
    pub first: Instant,
    pub last: Instant,
    pub answers: u64,
}

#[derive(Clone)]
pub struct Tally {
    /// In the order of [`Kind::ALL`].
    kinds: [Counts; 4],
    pub causes: BTreeMap<Failure, u64>,
    pub workers: HashMap<i32, Worker>,
    last: Instant,
    closed: bool,
    /// Longest time in which nobody had an answer.
    pub gap: Duration,
    /// How long the client itself was held up at most.
    pub held_up: Duration,
    /// From before the send, or the connect, to the whole answer, in milliseconds; in the order of [`Kind::ALL`].
    latencies: [Vec<f64>; 4],
}

impl Tally {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            kinds: Default::default(),
            causes: BTreeMap::new(),
            workers: HashMap::new(),
            last: now,
            closed: false,
            gap: Duration::ZERO,
            held_up: Duration::ZERO,
            latencies: Default::default(),
        }
    }

    pub(super) fn answered(&mut self, kind: Kind, pid: i32, took: Duration) {
        let now = Instant::now();
        if !self.closed {
            self.gap = self.gap.max(now - self.last);
        }
        self.last = now;
        self.kinds[kind as usize].asked += 1;
        let worker = self.workers.entry(pid).or_insert(Worker { first: now, last: now, answers: 0 });
        worker.answers += 1;
        worker.last = now;
        self.latencies[kind as usize].push(took.as_secs_f64() * 1000.0);
    }

    pub(super) fn failed(&mut self, kind: Kind, failure: Failure, count: u32) {
        let counts = &mut self.kinds[kind as usize];
        counts.asked += u64::from(count);
        counts.failed += u64::from(count);
        *self.causes.entry(failure).or_default() += u64::from(count);
    }

    /// The load is over: a silence that lasts still counts, and none that comes now.
    pub(super) fn close(&mut self) {
        self.gap = self.gap.max(self.last.elapsed());
        self.closed = true;
    }

    pub fn of(&self, kind: Kind) -> Counts {
        self.kinds[kind as usize]
    }

    pub fn all(&self) -> Counts {
        let sum = |pick: fn(&Counts) -> u64| self.kinds.iter().map(pick).sum();
        Counts { asked: sum(|counts| counts.asked), failed: sum(|counts| counts.failed) }
    }

    /// What was answered.
    pub fn good(&self) -> u64 {
        let all = self.all();
        all.asked - all.failed
    }

    /// Failures by cause, the most frequent first.
    pub fn why(&self) -> String {
        let mut causes: Vec<_> = self.causes.iter().collect();
        causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let parts: Vec<String> = causes.iter().map(|(cause, count)| format!("{} {count}", cause.name())).collect();
        parts.join(", ")
    }

    /// The share of requests that the busiest of `count` workers answered, as a multiple of the mean.
    pub fn busiest(&self, count: usize) -> f64 {
        let answers: Vec<u64> = self.workers.values().map(|worker| worker.answers).collect();
        let most = answers.iter().max().copied().unwrap_or_default();
        most as f64 * count as f64 / answers.iter().sum::<u64>() as f64
    }

    /// How long each request of a kind took, in milliseconds.
    pub fn latencies(&self, kind: Kind) -> &[f64] {
        &self.latencies[kind as usize]
    }
}
