//! One child: what it may be doing, what may happen to it, what is to be done about it. `step` is what decides.

use std::collections::VecDeque;
use std::time::Duration;

use crate::plan::{Ladder, Rung};

/// Time since Tandem started.
pub type Moment = Duration;

/// What a child is wanted for once it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Run up to the gate and wait there.
    Hold,
    /// Run.
    Start,
    /// End as soon as it is there: a stop came while it was being spawned.
    Stop,
}

/// Where on which ladder a child stands that is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub ladder: Ladder,
    /// Counted from 0.
    pub rung: usize,
}

/// What a child is doing. The data of a state lives in it, so a ready child without a process cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process, and none is wanted.
    Down,
    /// A process was asked for and is not there yet.
    Spawning { intent: Intent },
    /// A process waits at the gate.
    Held { pid: i32 },
    /// A process is on its way to ready.
    Starting { pid: i32, limit_at: Moment },
    /// It said it is ready.
    Ready { pid: i32, since: Moment },
    /// It lives, but does not answer; readiness is withdrawn.
    Hung { pid: i32, limit_at: Option<Moment> },
    /// It failed, and is being ended in order to be started again.
    Replacing { pid: i32, at: Place, next_at: Moment },
    /// It did nothing wrong, and is being ended in order to be started again.
    Restarting { pid: i32, at: Place, next_at: Moment },
    /// It is being ended for good.
    Stopping { pid: i32, at: Place, next_at: Moment },
    /// No process; the next one is spawned at `until`.
    Backoff { until: Moment, intent: Intent },
    /// No process; it failed too often, or said it can never start.
    GaveUp,
    /// SIGKILL did not end it within the last grace (uninterruptible sleep): it is no longer waited for.
    Abandoned { pid: i32 },
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// In any way; a later start may go better.
    Ended,
    /// It said that it can never start, such as an application that cannot be imported.
    Unstartable,
    /// It lacks something that is not in its hands, such as room on the disk: it is tried again slowly, for as long as that
    /// is so, and no failure is counted.
    Starved,
}

/// What happened to a child, or is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Spawn it, up to the gate.
    Prepare,
    /// Spawn it, or open its gate.
    Start,
    Spawned(i32),
    SpawnFailed(Ending),
    /// It is ready, or answers again.
    Ready,
    /// It does not answer.
    Hung,
    Exited(Ending),
    /// It runs, and will never get ready; it says so again, as [`Ending::Unstartable`], when it ends.
    Unfit,
    /// Time has passed.
    Tick,
    /// End it and start it again, though nothing is wrong with it.
    Restart,
    /// End it: another has taken over.
    Retire,
    /// End it.
    Stop,
    /// End it without waiting for the rung it stands on.
    StopNow,
    /// It gave up, but may try again later.
    Rest,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Spawn(Intent),
    /// Open the gate.
    Release,
    Signal(Rung),
    /// It was ready and is not any more.
    Withdraw,
    /// It will be spawned again after this delay.
    Restart(Duration),
    GiveUp,
}

/// A child: its state, and what is remembered of its failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    pub state: State,
    /// When it failed, oldest first, within the policy's period.
    pub failures: VecDeque<Moment>,
    /// How often it failed since it was last ready: what the pause before the next start grows with.
    pub attempts: usize,
    /// Processes spawned after the first, since Tandem started.
    pub restarts: u64,
}

impl Default for Child {
    fn default() -> Self {
        Self { state: State::Down, failures: VecDeque::new(), attempts: 0, restarts: 0 }
    }
}

impl Child {
    /// The process, if there is one.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Held { pid }
            | State::Starting { pid, .. }
            | State::Ready { pid, .. }
            | State::Hung { pid, .. }
            | State::Replacing { pid, .. }
            | State::Restarting { pid, .. }
            | State::Stopping { pid, .. }
            | State::Abandoned { pid } => Some(pid),
            State::Down | State::Spawning { .. } | State::Backoff { .. } | State::GaveUp => None,
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Whether nothing of it is left to wait for and nothing will be spawned.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Down | State::GaveUp | State::Abandoned { .. })
    }

    /// When it wants a [`Event::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Starting { limit_at, .. } => Some(limit_at),
            State::Hung { limit_at, .. } => limit_at,
            State::Replacing { next_at, .. } | State::Restarting { next_at, .. } | State::Stopping { next_at, .. } => {
                Some(next_at)
            }
            State::Backoff { until, .. } => Some(until),
            State::Down
            | State::Spawning { .. }
            | State::Held { .. }
            | State::Ready { .. }
            | State::GaveUp
            | State::Abandoned { .. } => None,
        }
    }

    /// The state's name, as status and health show it.
    pub fn label(&self) -> &'static str {
        match self.state {
            State::Down => "down",
            State::Spawning { .. } => "spawning",
            State::Held { .. } => "held",
            State::Starting { .. } => "starting",
            State::Ready { .. } => "ready",
            State::Hung { .. } => "hung",
            State::Replacing { .. } => "replacing",
            State::Restarting { .. } => "restarting",
            State::Stopping { .. } => "stopping",
            State::Backoff { .. } => "backoff",
            State::GaveUp => "gave-up",
            State::Abandoned { .. } => "abandoned",
        }
    }
}
