//! How a child is kept: its restart policy and its stop ladder. Pure.

use std::time::Duration;

/// What follows SIGKILL: the kernel needs a moment. A process that is still there then is abandoned.
pub const KILL_GRACE: Duration = Duration::from_secs(2);

/// How often an abandoned process is killed again: a tracer may have swallowed the first SIGKILL.
pub const KILL_AGAIN: Duration = Duration::from_secs(5);

/// Between two tries of a child that lacks something outside itself.
pub const STARVED_PAUSE: Duration = Duration::from_secs(5);

/// How hard a child is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGWINCH, and the same on Tandem's own channel: leave, another has taken over (nginx's word for it; a process that
    /// does not know it ignores it).
    Retire,
    /// SIGTERM: finish what is in flight.
    Term,
    /// SIGINT: for a postmaster, the fast shutdown.
    Interrupt,
    /// SIGQUIT: for a postmaster, the immediate shutdown.
    Quit,
    /// SIGABRT: a worker prints what each of its threads is doing, and ends.
    Abort,
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

/// Why a child is asked to end, and so by which rungs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ladder {
    /// Another has taken over: it may take its time.
    Retire,
    /// It is not wanted any more.
    Stop,
    /// It does not answer, or did not get ready in time: it would not hear a polite word.
    Hang,
}

/// What to do with a child that does not do as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Longest time until the process is there, whatever has to be done for it before.
    pub spawn_limit: Duration,
    /// Longest time from spawn, or from release, to ready.
    pub ready_limit: Duration,
    /// How long a child may be hung before it is ended and started again; `None`: for ever.
    pub hang_limit: Option<Duration>,
    /// The rungs of [`Ladder::Stop`]. Never empty; the last rung cannot be refused.
    pub ladder: Vec<Rung>,
    /// The rungs that [`Ladder::Retire`] has before those of the stop. The grace of the first is for one that has not said
    /// that it accepts no more, and for what is left to do once the last request has its answer.
    pub retire: Vec<Rung>,
    /// How long one that retires may take to say that it accepts no more; then nothing waits for that word any more.
    pub close_limit: Duration,
    /// How long one that accepts no more may take for the requests it has.
    pub drain_limit: Duration,
    /// How long it certainly gets for them, though another waits for its place.
    pub drain_firm: Duration,
    /// The rungs of [`Ladder::Hang`]; empty: those of the stop.
    pub hang: Vec<Rung>,
    /// Delay before the first restart; it doubles from `backoff_step` on.
    pub backoff_first: Duration,
    pub backoff_step: Duration,
    pub backoff_max: Duration,
    /// More failures than this within `period`, or since it was last ready, and the child gives up.
    pub intensity: usize,
    pub period: Duration,
    /// The same for a child that was never ready: what it fails by will most likely be so again.
    pub start_intensity: usize,
    /// Delay before the first restart of such a child, doubled each time; zero: as for any other.
    pub start_pause: Duration,
    /// Delay before a child that gave up is tried again, where its siblings still serve.
    pub rest: Duration,
    /// How long an abandoned process may still be there before its service gives up.
    pub abandon_limit: Duration,
    /// Delay before a child is tried again that lacks something outside itself, such as room on the disk.
    pub starved_pause: Duration,
}

impl Signal {
    /// As the kernel calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retire => "SIGWINCH",
            Self::Term => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Abort => "SIGABRT",
            Self::Kill => "SIGKILL",
        }
    }
}

impl Policy {
    /// The rung `number` of `ladder`, counted from 0; `None` past the last one.
    pub fn rung(&self, ladder: Ladder, number: usize) -> Option<Rung> {
        let found = match ladder {
            Ladder::Retire => self.retire.iter().chain(&self.ladder).nth(number),
            Ladder::Hang if !self.hang.is_empty() => self.hang.get(number),
            Ladder::Hang | Ladder::Stop => self.ladder.get(number),
        };
        found.copied()
    }

    /// The longest a stop of this child takes, whatever ladder it stands on when the stop comes.
    pub fn stop_limit(&self) -> Duration {
        let total = |rungs: &[Rung]| rungs.iter().fold(Duration::ZERO, |sum, rung| sum.saturating_add(rung.grace));
        total(&self.ladder).max(total(&self.hang))
    }

    /// The last rung of the stop, for what outlived it.
    pub fn kill(&self) -> Option<Rung> {
        self.ladder.last().copied()
    }

    /// The delay before the restart of a child that was never ready, after that many failures.
    pub fn start_backoff(&self, attempts: usize) -> Duration {
        if self.start_pause.is_zero() {
            return self.backoff(attempts);
        }
        let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
        self.start_pause.saturating_mul(1 << doublings).min(self.backoff_max)
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
