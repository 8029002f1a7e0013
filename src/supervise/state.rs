//! One child as an explicit automaton: `step(child, event, now, policy) -> (child, actions)`. Pure.
//!
//! Every pair of state and event is written, "nothing happens" included. The table below is printed by a test from the
//! function itself.
//!
#![doc = include_str!("state_table.md")]

use std::collections::VecDeque;
use std::time::Duration;

pub use crate::plan::{Policy, Rung, Signal};

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
    /// It is being ended in order to be started again.
    Replacing { pid: i32, rung: usize, next_at: Moment },
    /// It is being ended for good.
    Stopping { pid: i32, rung: usize, next_at: Moment },
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
}

/// What happened to a child, or is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Spawn it, up to the gate.
    Prepare,
    /// Spawn it, or open its gate.
    Start,
    Spawned(i32),
    SpawnFailed,
    /// It is ready, or answers again.
    Ready,
    /// It does not answer.
    Hung,
    Exited(Ending),
    /// Time has passed.
    Tick,
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
            State::Replacing { next_at, .. } | State::Stopping { next_at, .. } => Some(next_at),
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
            State::Stopping { .. } => "stopping",
            State::Backoff { .. } => "backoff",
            State::GaveUp => "gave-up",
            State::Abandoned { .. } => "abandoned",
        }
    }
}

/// Decide: the next state of `child` after `event` at `now`, and what is to be done.
pub fn step(mut child: Child, event: Event, now: Moment, policy: &Policy) -> (Child, Vec<Action>) {
    let (state, actions) = match child.state {
        State::Down => down(event),
        State::Spawning { intent } => spawning(intent, event, now, policy, &mut child),
        State::Held { pid } => held(pid, event, now, policy, &mut child),
        State::Starting { pid, limit_at } => starting(pid, limit_at, event, now, policy, &mut child),
        State::Ready { pid, since } => ready(pid, since, event, now, policy, &mut child),
        State::Hung { pid, limit_at } => hung(pid, limit_at, event, now, policy, &mut child),
        State::Replacing { pid, rung, next_at } => replacing(pid, rung, next_at, event, now, policy, &mut child),
        State::Stopping { pid, rung, next_at } => stopping(pid, rung, next_at, event, now, policy),
        State::Backoff { until, intent } => backoff(until, intent, event, now),
        State::GaveUp => gave_up(event, now, policy),
        State::Abandoned { pid } => abandoned(pid, event),
    };
    if matches!(state, State::Ready { .. }) {
        child.attempts = 0;
    }
    if matches!(child.state, State::Backoff { .. }) && matches!(state, State::Spawning { .. }) {
        child.restarts += 1;
    }
    child.state = state;
    (child, actions)
}

type Step = (State, Vec<Action>);

fn stay(state: State) -> Step {
    (state, Vec::new())
}

fn down(event: Event) -> Step {
    match event {
        Event::Prepare => (State::Spawning { intent: Intent::Hold }, vec![Action::Spawn(Intent::Hold)]),
        Event::Start => (State::Spawning { intent: Intent::Start }, vec![Action::Spawn(Intent::Start)]),
        Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Exited(_)
        | Event::Tick
        | Event::Stop
        | Event::StopNow
        | Event::Rest => stay(State::Down),
    }
}

fn spawning(intent: Intent, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match (event, intent) {
        (Event::Spawned(pid), Intent::Hold) => stay(State::Held { pid }),
        (Event::Spawned(pid), Intent::Start) => stay(State::Starting { pid, limit_at: now + policy.ready_limit }),
        (Event::Spawned(pid), Intent::Stop) => climb(pid, 0, now, policy, Purpose::Stop),
        (Event::SpawnFailed, Intent::Stop) => stay(State::Down),
        (Event::SpawnFailed, Intent::Hold | Intent::Start) => fail(child, Ending::Ended, intent, now, policy),
        // The process was spawned to wait at the gate, so it must still be let through once it is there.
        (Event::Start, Intent::Hold) => (State::Spawning { intent: Intent::Start }, vec![Action::Release]),
        (Event::Stop | Event::StopNow, _) => stay(State::Spawning { intent: Intent::Stop }),
        (Event::Start, Intent::Start | Intent::Stop)
        | (Event::Prepare | Event::Ready | Event::Hung | Event::Exited(_) | Event::Tick | Event::Rest, _) => {
            stay(State::Spawning { intent })
        }
    }
}

fn held(pid: i32, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Start => (State::Starting { pid, limit_at: now + policy.ready_limit }, vec![Action::Release]),
        Event::Exited(ending) => fail(child, ending, Intent::Hold, now, policy),
        Event::Stop | Event::StopNow => climb(pid, 0, now, policy, Purpose::Stop),
        Event::Prepare
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Tick
        | Event::Rest => stay(State::Held { pid }),
    }
}

fn starting(pid: i32, limit_at: Moment, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Ready => stay(State::Ready { pid, since: now }),
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if now >= limit_at => climb(pid, 0, now, policy, Purpose::Replace),
        Event::Stop | Event::StopNow => climb(pid, 0, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Hung
        | Event::Rest => stay(State::Starting { pid, limit_at }),
    }
}

fn ready(pid: i32, since: Moment, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Hung => {
            let limit_at = policy.hang_limit.map(|limit| now + limit);
            (State::Hung { pid, limit_at }, vec![Action::Withdraw])
        }
        Event::Exited(ending) => withdrawn(fail(child, ending, Intent::Start, now, policy)),
        Event::Stop | Event::StopNow => withdrawn(climb(pid, 0, now, policy, Purpose::Stop)),
        Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Tick
        | Event::Rest => stay(State::Ready { pid, since }),
    }
}

fn hung(pid: i32, limit_at: Option<Moment>, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Ready => stay(State::Ready { pid, since: now }),
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if limit_at.is_some_and(|limit_at| now >= limit_at) => climb(pid, 0, now, policy, Purpose::Replace),
        Event::Stop | Event::StopNow => climb(pid, 0, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Hung
        | Event::Rest => stay(State::Hung { pid, limit_at }),
    }
}

fn replacing(
    pid: i32,
    rung: usize,
    next_at: Moment,
    event: Event,
    now: Moment,
    policy: &Policy,
    child: &mut Child,
) -> Step {
    match event {
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if now >= next_at => climb(pid, rung + 1, now, policy, Purpose::Replace),
        // It is on the ladder already: the stop goes on from the rung it stands on.
        Event::Stop => stay(State::Stopping { pid, rung, next_at }),
        Event::StopNow => climb(pid, rung + 1, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Rest => stay(State::Replacing { pid, rung, next_at }),
    }
}

fn stopping(pid: i32, rung: usize, next_at: Moment, event: Event, now: Moment, policy: &Policy) -> Step {
    match event {
        Event::Exited(_) => stay(State::Down),
        Event::Tick if now >= next_at => climb(pid, rung + 1, now, policy, Purpose::Stop),
        // Nothing is harder than the last rung; a hurried stop waits there for what it did.
        Event::StopNow if rung + 1 < policy.ladder.len() => climb(pid, rung + 1, now, policy, Purpose::Stop),
        Event::StopNow
        | Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Stop
        | Event::Rest => stay(State::Stopping { pid, rung, next_at }),
    }
}

fn backoff(until: Moment, intent: Intent, event: Event, now: Moment) -> Step {
    match event {
        Event::Tick if now >= until => (State::Spawning { intent }, vec![Action::Spawn(intent)]),
        Event::Start => stay(State::Backoff { until, intent: Intent::Start }),
        Event::Stop | Event::StopNow => stay(State::Down),
        Event::Tick
        | Event::Prepare
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Exited(_)
        | Event::Rest => stay(State::Backoff { until, intent }),
    }
}

fn gave_up(event: Event, now: Moment, policy: &Policy) -> Step {
    match event {
        Event::Rest => {
            let state = State::Backoff { until: now + policy.rest, intent: Intent::Start };
            (state, vec![Action::Restart(policy.rest)])
        }
        Event::Stop | Event::StopNow => stay(State::Down),
        Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Exited(_)
        | Event::Tick => stay(State::GaveUp),
    }
}

fn abandoned(pid: i32, event: Event) -> Step {
    match event {
        Event::Exited(_) => stay(State::Down),
        Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed
        | Event::Ready
        | Event::Hung
        | Event::Tick
        | Event::Stop
        | Event::StopNow
        | Event::Rest => stay(State::Abandoned { pid }),
    }
}

/// Why a child is on the ladder.
#[derive(Clone, Copy)]
enum Purpose {
    Stop,
    Replace,
}

/// Step onto `rung`, or off the top of the ladder.
fn climb(pid: i32, rung: usize, now: Moment, policy: &Policy, purpose: Purpose) -> Step {
    let Some(&at) = policy.ladder.get(rung) else {
        return stay(State::Abandoned { pid });
    };
    let next_at = now + at.grace;
    let state = match purpose {
        Purpose::Stop => State::Stopping { pid, rung, next_at },
        Purpose::Replace => State::Replacing { pid, rung, next_at },
    };
    (state, vec![Action::Signal(at)])
}

/// The process is gone though it was wanted: try again later, or give up.
fn fail(child: &mut Child, ending: Ending, intent: Intent, now: Moment, policy: &Policy) -> Step {
    child.failures.push_back(now);
    while child.failures.front().is_some_and(|&failed| failed + policy.period < now) {
        child.failures.pop_front();
    }
    if ending == Ending::Unstartable || child.failures.len() > policy.intensity {
        return (State::GaveUp, vec![Action::GiveUp]);
    }
    child.attempts += 1;
    let delay = policy.backoff(child.attempts);
    (State::Backoff { until: now + delay, intent }, vec![Action::Restart(delay)])
}

fn withdrawn((state, mut actions): Step) -> Step {
    actions.insert(0, Action::Withdraw);
    (state, actions)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
