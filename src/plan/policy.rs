//! How a child is kept: its restart policy and its stop ladder. Pure.

use std::time::Duration;

/// What follows SIGKILL: the kernel needs a moment, and nothing comes after it.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

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

    /// The delay before the restart after that many failures since the child was last ready.
    pub fn backoff(&self, attempts: usize) -> Duration {
        match attempts {
            0 | 1 => self.backoff_first,
            more => {
                let doublings = u32::try_from(more - 2).unwrap_or(u32::MAX).min(20);
                self.backoff_step.saturating_mul(1 << doublings).min(self.backoff_max)
            }
        }
    }
}
