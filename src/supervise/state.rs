//! One child: what it may be doing, what may happen to it, and what is to be done about it. `step` decides.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::{Ladder, Rung, Signal};

/// Time since Tandem started.
pub type Moment = Duration;

/// Which process of a service an event speaks of: the first, the second, … An event of a former process counts for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What a child is wanted for once its process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Run up to the gate and wait there.
    Hold,
    /// Run.
    Start,
}

/// What follows when a process that is being ended is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Nothing.
    Stop,
    /// It failed: it is started again, and the failure counts.
    Replace,
    /// It did nothing wrong: it is started again at once.
    Restart,
}

/// Where a child that is being ended stands: on which ladder, and on which rung of it, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Climb {
    pub ladder: Ladder,
    pub rung: usize,
}

/// What a child is doing. The data of a state lives in it, so a ready child without a process cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process, and none is wanted.
    Down,
    /// A process was asked for and is not there yet.
    Spawning { intent: Intent, limit_at: Moment },
    /// A process was asked for, and its start is broken off; the shell says whether it is there all the same. `wanted` is
    /// what for, unless it is not wanted any more.
    Cancelling { wanted: Option<Intent>, limit_at: Moment },
    /// A process waits at the gate.
    Held { pid: i32 },
    /// A process is on its way to ready.
    Starting { pid: i32, limit_at: Moment },
    /// It said that it is ready.
    Ready { pid: i32, since: Moment },
    /// It lives, but does not answer; readiness is withdrawn.
    Hung { pid: i32, limit_at: Option<Moment> },
    /// It failed, and is being ended in order to be started again.
    Replacing { pid: i32, at: Climb, next_at: Moment },
    /// It did nothing wrong, and is being ended in order to be started again.
    Restarting { pid: i32, at: Climb, next_at: Moment },
    /// It is being ended for good.
    Stopping { pid: i32, at: Climb, next_at: Moment },
    /// Another has taken over, and it was told to leave: it may still accept connections.
    Closing { pid: i32, limit_at: Moment },
    /// It has said that it accepts no more, and finishes the requests it has. Until `firm_until` no other gets its place.
    Draining { pid: i32, firm_until: Option<Moment>, limit_at: Moment },
    /// No process; the next one is spawned at `until`.
    Backoff { until: Moment, intent: Intent },
    /// No process; it failed too often, or said that it can never start.
    GaveUp,
    /// SIGKILL did not end it within the last grace: uninterruptible sleep, a tracer, gigabytes to free. It is killed again
    /// at `kill_at`, and `purpose` holds once it is gone. At `limit_at` it gives up, and goes on being killed.
    Abandoned { pid: i32, purpose: Purpose, kill_at: Moment, limit_at: Option<Moment> },
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

/// What happened to one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessEvent {
    Spawned(i32),
    /// There is no process, and none will come.
    SpawnFailed(Ending),
    /// It is ready, or answers again.
    Ready,
    /// It does not answer.
    Hung,
    /// It accepts no connections any more.
    Closed,
    /// It has no requests left.
    Drained,
    /// It runs, and will never get ready; it says so again, as [`Ending::Unstartable`], when it ends.
    Unfit,
    Exited(Ending),
}

/// What happened to a child, or is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildEvent {
    /// Spawn it, up to the gate.
    Prepare,
    /// Spawn it, or open its gate.
    Start,
    /// Something happened to its process of this generation.
    Process(Generation, ProcessEvent),
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

/// The rung before: its signal, and the grace that passed without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    pub signal: Signal,
    pub grace: Duration,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildAction {
    /// Make the process of this generation; the answer is `Spawned` or `SpawnFailed`.
    Spawn(Generation, Intent),
    /// Make no process any more. Where the answer to `Spawn` was not given yet, it is given now.
    CancelSpawn(Generation),
    /// Open the gate.
    Release,
    /// Climb to `rung` of `ladder`; `passed` is the rung that was waited for in vain, if one was.
    Signal {
        pid: i32,
        rung: Rung,
        ladder: Ladder,
        passed: Option<Passed>,
    },
    /// The process was told to leave, and did not say within this time that it accepts no more.
    Unheard {
        pid: i32,
        limit: Duration,
    },
    /// SIGKILL did not end the process within this time.
    Abandon {
        pid: i32,
        limit: Duration,
    },
    /// This process came after it was given up for lost: kill it.
    Disown(i32),
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
    /// The process that was asked for last.
    pub generation: Generation,
    /// When it failed, oldest first, within the policy's period.
    pub failures: VecDeque<Moment>,
    /// How often it failed since it was last ready: the pause before the next start grows with it, and the child gives up
    /// after so many, however long each start took.
    pub attempts: usize,
    /// Processes spawned after the first, since Tandem started.
    pub restarts: u64,
    /// When one of its processes was ready for the first time.
    pub first_ready: Option<Moment>,
}

impl Default for Child {
    fn default() -> Self {
        Self {
            state: State::Down,
            generation: Generation::default(),
            failures: VecDeque::new(),
            attempts: 0,
            restarts: 0,
            first_ready: None,
        }
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
            | State::Closing { pid, .. }
            | State::Draining { pid, .. }
            | State::Abandoned { pid, .. } => Some(pid),
            State::Down | State::Spawning { .. } | State::Cancelling { .. } | State::Backoff { .. } | State::GaveUp => {
                None
            }
        }
    }

    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// Whether it was told to leave and may still accept connections.
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing { .. })
    }

    /// Whether SIGKILL did not end its process, which is still there.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.state, State::Abandoned { .. })
    }

    /// Whether nothing of it is left to wait for and nothing will be spawned. An abandoned process is not waited for.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Down | State::GaveUp | State::Abandoned { purpose: Purpose::Stop, .. })
    }

    /// When it wants a [`ChildEvent::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Spawning { limit_at, .. }
            | State::Cancelling { limit_at, .. }
            | State::Starting { limit_at, .. }
            | State::Closing { limit_at, .. } => Some(limit_at),
            State::Draining { firm_until, limit_at, .. } => {
                Some(firm_until.map_or(limit_at, |firm_until| firm_until.min(limit_at)))
            }
            State::Hung { limit_at, .. } => limit_at,
            State::Replacing { next_at, .. } | State::Restarting { next_at, .. } | State::Stopping { next_at, .. } => {
                Some(next_at)
            }
            State::Backoff { until, .. } => Some(until),
            State::Abandoned { kill_at, limit_at, .. } => {
                Some(limit_at.map_or(kill_at, |limit_at| limit_at.min(kill_at)))
            }
            State::Down | State::Held { .. } | State::Ready { .. } | State::GaveUp => None,
        }
    }

    /// The state's name, as status and health show it.
    pub fn label(&self) -> &'static str {
        match self.state {
            State::Down => "down",
            State::Spawning { .. } => "spawning",
            State::Cancelling { .. } => "cancelling",
            State::Held { .. } => "held",
            State::Starting { .. } => "starting",
            State::Ready { .. } => "ready",
            State::Hung { .. } => "hung",
            State::Replacing { .. } => "replacing",
            State::Restarting { .. } => "restarting",
            State::Stopping { .. } => "stopping",
            State::Closing { .. } => "closing",
            State::Draining { .. } => "draining",
            State::Backoff { .. } => "backoff",
            State::GaveUp => "gave-up",
            State::Abandoned { .. } => "abandoned",
        }
    }
}
