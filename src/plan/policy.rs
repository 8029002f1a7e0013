//! How a child is kept: its restart policy and its stop ladder. Pure.

use std::time::Duration;

use crate::config::{Postgres, Stop, Workers};

/// How hard a child is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGTERM: finish what is in flight.
    Term,
    /// SIGINT: for a postmaster, the fast shutdown.
    Interrupt,
    /// SIGQUIT: for a postmaster, the immediate shutdown.
    Quit,
    /// SIGKILL.
    Kill,
}

/// One rung of a stop ladder: whom to signal, and how long to wait before the next rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    pub signal: Signal,
    /// The whole process group, or the child alone (a postmaster's backends give signals other meanings).
    pub group: bool,
    pub grace: Duration,
}

/// What to do with a child that does not do as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest time from spawn, or from release, to ready.
    pub ready_limit: Duration,
    /// How long a child may be hung before it is ended and started again; `None`: for ever.
    pub hang_limit: Option<Duration>,
    /// Never empty; the last rung cannot be refused.
    pub ladder: Vec<Rung>,
    /// Delay before the first restart; it doubles from `backoff_step` on.
    pub backoff_first: Duration,
    pub backoff_step: Duration,
    pub backoff_max: Duration,
    /// More failures than this within `period`, and the child gives up.
    pub intensity: usize,
    pub period: Duration,
    /// Delay before a child that gave up is tried again, where its siblings still serve.
    pub rest: Duration,
}

impl Policy {
    /// The longest a stop of this child takes.
    pub fn stop_limit(&self) -> Duration {
        self.ladder.iter().map(|rung| rung.grace).sum()
    }

    /// The delay before the restart after that many failures within the period.
    pub fn backoff(&self, failures: usize) -> Duration {
        match failures {
            0 | 1 => self.backoff_first,
            more => {
                let doublings = u32::try_from(more - 2).unwrap_or(u32::MAX).min(20);
                self.backoff_step.saturating_mul(1 << doublings).min(self.backoff_max)
            }
        }
    }
}

/// What follows SIGKILL: the kernel needs a moment, and nothing comes after it.
const KILL_GRACE: Duration = Duration::from_secs(2);

impl Policy {
    /// How a worker is kept.
    ///
    /// Signals go to its whole process group, for a worker may have started processes of its own.
    pub fn worker(workers: &Workers, stop: &Stop) -> Self {
        let ladder = vec![
            Rung { signal: Signal::Term, group: true, grace: stop.grace },
            Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE },
        ];
        Self {
            ready_limit: workers.ready_limit,
            hang_limit: None,
            ladder,
            backoff_first: workers.backoff_first,
            backoff_step: workers.backoff_first.saturating_mul(2),
            backoff_max: workers.backoff_max,
            intensity: workers.restart_intensity as usize,
            period: workers.restart_period,
            rest: workers.restart_period,
        }
    }

    /// How the postmaster is kept: SIGINT is its fast shutdown, SIGQUIT its immediate one (PostgreSQL documentation,
    /// "Shutting Down the Server").
    ///
    /// Signals go to the postmaster alone: its backends give the same signals other meanings. SIGKILL is for one that
    /// acts on nothing; what it leaves behind is cleared before the next start.
    pub fn postmaster(postgres: &Postgres, stop: &Stop) -> Self {
        let rung = |signal, grace| Rung { signal, group: false, grace };
        let ladder = vec![
            rung(Signal::Interrupt, stop.postgres_grace),
            rung(Signal::Quit, IMMEDIATE_GRACE),
            rung(Signal::Kill, KILL_GRACE),
        ];
        Self {
            ready_limit: postgres.ready_limit,
            hang_limit: postgres.hang_limit,
            ladder,
            // Recovery takes a third of a second and every request waits for it: the first restart is at once.
            backoff_first: Duration::ZERO,
            backoff_step: Duration::from_millis(500),
            backoff_max: Duration::from_secs(10),
            intensity: 5,
            period: Duration::from_secs(60),
            rest: Duration::from_secs(60),
        }
    }
}

/// How long an immediate shutdown may take; PostgreSQL itself kills its children after five seconds.
const IMMEDIATE_GRACE: Duration = Duration::from_secs(6);
