//! One child as an explicit automaton: `step(child, event, now, policy) -> (child, actions)`. Pure.
//!
//! Every pair of state and event is written, "nothing happens" included. The table below is printed by a test from the
//! function itself.
//!
#![doc = include_str!("state_table.md")]

use super::state::{Action, Child, Ending, Event, Intent, Moment, Place, State};
use crate::plan::{Ladder, Policy};

/// Decide: the next state of `child` after `event` at `now`, and what is to be done.
pub fn step(mut child: Child, event: Event, now: Moment, policy: &Policy) -> (Child, Vec<Action>) {
    let (state, actions) = match child.state {
        State::Down => down(event),
        State::Spawning { intent } => spawning(intent, event, now, policy, &mut child),
        State::Held { pid } => held(pid, event, now, policy, &mut child),
        State::Starting { pid, limit_at } => starting(pid, limit_at, event, now, policy, &mut child),
        State::Ready { pid, since } => ready(pid, since, event, now, policy, &mut child),
        State::Hung { pid, limit_at } => hung(pid, limit_at, event, now, policy, &mut child),
        State::Replacing { pid, at, next_at } => replacing(pid, at, next_at, event, now, policy, &mut child),
        State::Restarting { pid, at, next_at } => restarting(pid, at, next_at, event, now, policy),
        State::Stopping { pid, at, next_at } => stopping(pid, at, next_at, event, now, policy),
        State::Backoff { until, intent } => backoff(until, intent, event, now),
        State::GaveUp => gave_up(event, now, policy, &mut child),
        State::Abandoned { pid } => abandoned(pid, event),
    };
    if matches!(state, State::Ready { .. }) {
        child.attempts = 0;
    }
    if matches!(child.state, State::Backoff { .. } | State::GaveUp) && matches!(state, State::Spawning { .. }) {
        child.restarts += 1;
    }
    child.state = state;
    (child, actions)
}

type Step = (State, Vec<Action>);

fn stay(state: State) -> Step {
    (state, Vec::new())
}

fn spawn(intent: Intent) -> Step {
    (State::Spawning { intent }, vec![Action::Spawn(intent)])
}

fn down(event: Event) -> Step {
    match event {
        Event::Prepare => spawn(Intent::Hold),
        Event::Start => spawn(Intent::Start),
        Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Exited(_)
        | Event::Tick
        | Event::Restart
        | Event::Retire
        | Event::Stop
        | Event::StopNow
        | Event::Rest => stay(State::Down),
    }
}

fn spawning(intent: Intent, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match (event, intent) {
        (Event::Spawned(pid), Intent::Hold) => stay(State::Held { pid }),
        (Event::Spawned(pid), Intent::Start) => stay(State::Starting { pid, limit_at: now + policy.ready_limit }),
        (Event::Spawned(pid), Intent::Stop) => begin(pid, Ladder::Stop, now, policy, Purpose::Stop),
        (Event::SpawnFailed(_), Intent::Stop) => stay(State::Down),
        (Event::SpawnFailed(ending), Intent::Hold | Intent::Start) => fail(child, ending, intent, now, policy),
        // The process was spawned to wait at the gate, so it must still be let through once it is there.
        (Event::Start, Intent::Hold) => (State::Spawning { intent: Intent::Start }, vec![Action::Release]),
        (Event::Retire | Event::Stop | Event::StopNow, _) => stay(State::Spawning { intent: Intent::Stop }),
        (Event::Start, Intent::Start | Intent::Stop)
        | (
            Event::Prepare
            | Event::Ready
            | Event::Hung
            | Event::Exited(_)
            | Event::Unfit
            | Event::Tick
            | Event::Restart
            | Event::Rest,
            _,
        ) => stay(State::Spawning { intent }),
    }
}

fn held(pid: i32, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Start => (State::Starting { pid, limit_at: now + policy.ready_limit }, vec![Action::Release]),
        Event::Exited(ending) => fail(child, ending, Intent::Hold, now, policy),
        Event::Retire | Event::Stop | Event::StopNow => begin(pid, Ladder::Stop, now, policy, Purpose::Stop),
        Event::Prepare
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Tick
        | Event::Restart
        | Event::Rest => stay(State::Held { pid }),
    }
}

fn starting(pid: i32, limit_at: Moment, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Ready => stay(State::Ready { pid, since: now }),
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if now >= limit_at => begin(pid, Ladder::Hang, now, policy, Purpose::Replace),
        // It hears a polite word: nothing hangs.
        Event::Unfit => begin(pid, Ladder::Stop, now, policy, Purpose::Replace),
        Event::Restart => begin(pid, Ladder::Stop, now, policy, Purpose::Restart),
        Event::Retire | Event::Stop | Event::StopNow => begin(pid, Ladder::Stop, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
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
        Event::Restart => withdrawn(begin(pid, Ladder::Stop, now, policy, Purpose::Restart)),
        Event::Retire => withdrawn(begin(pid, Ladder::Retire, now, policy, Purpose::Stop)),
        Event::Stop | Event::StopNow => withdrawn(begin(pid, Ladder::Stop, now, policy, Purpose::Stop)),
        Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Tick
        | Event::Unfit
        | Event::Rest => stay(State::Ready { pid, since }),
    }
}

fn hung(pid: i32, limit_at: Option<Moment>, event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Ready => stay(State::Ready { pid, since: now }),
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if limit_at.is_some_and(|limit_at| now >= limit_at) => {
            begin(pid, Ladder::Hang, now, policy, Purpose::Replace)
        }
        Event::Restart => begin(pid, Ladder::Hang, now, policy, Purpose::Restart),
        Event::Retire | Event::Stop | Event::StopNow => begin(pid, Ladder::Stop, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Unfit
        | Event::Hung
        | Event::Rest => stay(State::Hung { pid, limit_at }),
    }
}

fn replacing(
    pid: i32,
    at: Place,
    next_at: Moment,
    event: Event,
    now: Moment,
    policy: &Policy,
    child: &mut Child,
) -> Step {
    match event {
        Event::Exited(ending) => fail(child, ending, Intent::Start, now, policy),
        Event::Tick if now >= next_at => climb(pid, at, now, policy, Purpose::Replace),
        // It is on the ladder already: the stop goes on from the rung it stands on.
        Event::Retire | Event::Stop => stay(State::Stopping { pid, at, next_at }),
        Event::StopNow => climb(pid, at, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Restart
        | Event::Rest => stay(State::Replacing { pid, at, next_at }),
    }
}

fn restarting(pid: i32, at: Place, next_at: Moment, event: Event, now: Moment, policy: &Policy) -> Step {
    match event {
        // It ended because it was told to: nothing to count, and nothing to wait for but that time passes for it.
        Event::Exited(_) => stay(State::Backoff { until: now, intent: Intent::Start }),
        Event::Tick if now >= next_at => climb(pid, at, now, policy, Purpose::Restart),
        Event::Retire | Event::Stop => stay(State::Stopping { pid, at, next_at }),
        Event::StopNow => climb(pid, at, now, policy, Purpose::Stop),
        Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Restart
        | Event::Rest => stay(State::Restarting { pid, at, next_at }),
    }
}

fn stopping(pid: i32, at: Place, next_at: Moment, event: Event, now: Moment, policy: &Policy) -> Step {
    match event {
        Event::Exited(_) => stay(State::Down),
        Event::Tick if now >= next_at => climb(pid, at, now, policy, Purpose::Stop),
        // It was given time that a stop does not give.
        Event::Stop | Event::StopNow if at.ladder == Ladder::Retire => {
            begin(pid, Ladder::Stop, now, policy, Purpose::Stop)
        }
        // Nothing is harder than the last rung; a hurried stop waits there for what it did.
        Event::StopNow if policy.rung(at.ladder, at.rung + 1).is_some() => climb(pid, at, now, policy, Purpose::Stop),
        Event::StopNow
        | Event::Tick
        | Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Restart
        | Event::Retire
        | Event::Stop
        | Event::Rest => stay(State::Stopping { pid, at, next_at }),
    }
}

fn backoff(until: Moment, intent: Intent, event: Event, now: Moment) -> Step {
    match event {
        Event::Tick if now >= until => spawn(intent),
        // A person asks: the pause is over.
        Event::Restart => spawn(intent),
        Event::Start => stay(State::Backoff { until, intent: Intent::Start }),
        Event::Retire | Event::Stop | Event::StopNow => stay(State::Down),
        Event::Tick
        | Event::Prepare
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Exited(_)
        | Event::Rest => stay(State::Backoff { until, intent }),
    }
}

fn gave_up(event: Event, now: Moment, policy: &Policy, child: &mut Child) -> Step {
    match event {
        Event::Rest => {
            let state = State::Backoff { until: now + policy.rest, intent: Intent::Start };
            (state, vec![Action::Restart(policy.rest)])
        }
        Event::Restart => {
            child.failures.clear();
            child.attempts = 0;
            spawn(Intent::Start)
        }
        Event::Retire | Event::Stop | Event::StopNow => stay(State::Down),
        Event::Prepare
        | Event::Start
        | Event::Spawned(_)
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
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
        | Event::SpawnFailed(_)
        | Event::Ready
        | Event::Unfit
        | Event::Hung
        | Event::Tick
        | Event::Restart
        | Event::Retire
        | Event::Stop
        | Event::StopNow
        | Event::Rest => stay(State::Abandoned { pid }),
    }
}

/// What a child is on a ladder for.
#[derive(Clone, Copy)]
enum Purpose {
    Stop,
    /// To be started again after a failure.
    Replace,
    /// To be started again, with no failure.
    Restart,
}

/// Step onto the first rung of `ladder`.
fn begin(pid: i32, ladder: Ladder, now: Moment, policy: &Policy, purpose: Purpose) -> Step {
    stand(pid, Place { ladder, rung: 0 }, now, policy, purpose)
}

/// Step onto the rung after `at`.
fn climb(pid: i32, at: Place, now: Moment, policy: &Policy, purpose: Purpose) -> Step {
    stand(pid, Place { rung: at.rung + 1, ..at }, now, policy, purpose)
}

/// Step onto the rung `at`, or off the top of the ladder.
fn stand(pid: i32, at: Place, now: Moment, policy: &Policy, purpose: Purpose) -> Step {
    let Some(rung) = policy.rung(at.ladder, at.rung) else {
        return stay(State::Abandoned { pid });
    };
    let next_at = now + rung.grace;
    let state = match purpose {
        Purpose::Stop => State::Stopping { pid, at, next_at },
        Purpose::Replace => State::Replacing { pid, at, next_at },
        Purpose::Restart => State::Restarting { pid, at, next_at },
    };
    (state, vec![Action::Signal(rung)])
}

/// The process is gone though it was wanted: try again later, or give up.
fn fail(child: &mut Child, ending: Ending, intent: Intent, now: Moment, policy: &Policy) -> Step {
    if ending == Ending::Starved {
        let delay = policy.starved_pause;
        return (State::Backoff { until: now + delay, intent }, vec![Action::Restart(delay)]);
    }
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
#[path = "step_tests.rs"]
mod tests;
