//! One child as an explicit automaton: `step(child, event, now, policy) -> (child, actions)`. Pure.
//!
//! Every pair of state and event is written, "nothing happens" included. The table below is printed by a test from the
//! function itself.
//!
#![doc = include_str!("state_table.md")]

use std::time::Duration;

use super::climb::Abandoned;
use super::leave::RETIRING;
use super::state::{
    Child, ChildAction, ChildEvent, Climb, Ending, Generation, Intent, Moment, ProcessEvent, Purpose, State,
};
use crate::policy::{KILL_AGAIN, Ladder, Policy};

/// How long the shell may take to say whether a process that is not wanted any more is there: it answers in the turn in
/// which it is asked, so more than this is a fault of its own.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);

/// Decide: the next state of `child` after `event` at `now`, and what is to be done.
pub fn step(mut child: Child, event: ChildEvent, now: Moment, policy: &Policy) -> (Child, Vec<ChildAction>) {
    if let ChildEvent::Process(generation, about) = event
        && generation != child.generation
    {
        return (child, former(about));
    }
    let before = child.state;
    let mut turn = Turn { now, policy, child: &mut child };
    let (state, actions) = match before {
        State::Down => turn.down(event),
        State::Spawning { intent, limit_at } => turn.spawning(intent, limit_at, event),
        State::Cancelling { wanted, limit_at } => turn.cancelling(wanted, limit_at, event),
        State::Held { pid } => turn.held(pid, event),
        State::Starting { pid, limit_at } => turn.starting(pid, limit_at, event),
        State::Ready { pid, since } => turn.ready(pid, since, event),
        State::Hung { pid, limit_at } => turn.hung(pid, limit_at, event),
        State::Replacing { pid, at, next_at } => turn.replacing(pid, at, next_at, event),
        State::Restarting { pid, at, next_at } => turn.restarting(pid, at, next_at, event),
        State::Stopping { pid, at, next_at } => turn.stopping(pid, at, next_at, event),
        State::Closing { pid, limit_at } => turn.closing(pid, limit_at, event),
        State::Draining { pid, firm_until, limit_at } => turn.draining(pid, firm_until, limit_at, event),
        State::Backoff { until, intent } => turn.backoff(until, intent, event),
        State::GaveUp => turn.gave_up(event),
        State::Abandoned { pid, purpose, kill_at, limit_at } => {
            turn.abandoned(Abandoned { pid, purpose, kill_at, limit_at }, event)
        }
    };
    if matches!(state, State::Ready { .. }) {
        child.attempts = 0;
        child.first_ready.get_or_insert(now);
    }
    if matches!(before, State::Backoff { .. } | State::GaveUp) && matches!(state, State::Spawning { .. }) {
        child.restarts += 1;
    }
    child.state = state;
    (child, actions)
}

/// What an event of a former process asks for: nothing, unless that process came after it was given up for lost.
fn former(about: ProcessEvent) -> Vec<ChildAction> {
    match about {
        ProcessEvent::Spawned(pid) => vec![ChildAction::Disown(pid)],
        ProcessEvent::SpawnFailed(_)
        | ProcessEvent::Ready
        | ProcessEvent::Hung
        | ProcessEvent::Closed
        | ProcessEvent::Drained
        | ProcessEvent::Unfit
        | ProcessEvent::Exited(_) => Vec::new(),
    }
}

/// The next state, and what is to be done.
pub(super) type Decision = (State, Vec<ChildAction>);

pub(super) fn stay(state: State) -> Decision {
    (state, Vec::new())
}

/// What a decision is made from, beside the state and the event.
pub(super) struct Turn<'a> {
    pub(super) now: Moment,
    pub(super) policy: &'a Policy,
    pub(super) child: &'a mut Child,
}

impl Turn<'_> {
    /// So much later; a limit without end stays one.
    pub(super) fn after(&self, duration: Duration) -> Moment {
        self.now.saturating_add(duration)
    }

    fn spawn(&mut self, intent: Intent) -> Decision {
        let generation = Generation(self.child.generation.0 + 1);
        self.child.generation = generation;
        let limit_at = self.after(self.policy.spawn_limit);
        (State::Spawning { intent, limit_at }, vec![ChildAction::Spawn(generation, intent)])
    }

    fn down(&mut self, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Prepare => self.spawn(Intent::Hold),
            ChildEvent::Start => self.spawn(Intent::Start),
            ChildEvent::Process(_, Of::Spawned(pid)) => (State::Down, vec![ChildAction::Disown(pid)]),
            ChildEvent::Process(
                _,
                Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit | Of::Exited(_),
            )
            | ChildEvent::Tick
            | ChildEvent::Restart
            | ChildEvent::Retire
            | ChildEvent::Stop
            | ChildEvent::StopNow
            | ChildEvent::Rest => stay(State::Down),
        }
    }

    fn spawning(&mut self, intent: Intent, limit_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Spawned(pid)) => match intent {
                Intent::Hold => stay(State::Held { pid }),
                Intent::Start => stay(self.on_its_way(pid)),
            },
            ChildEvent::Process(_, Of::SpawnFailed(ending)) => self.fail(ending, intent),
            // The process was spawned to wait at the gate, so it must still be let through once it is there.
            ChildEvent::Start if intent == Intent::Hold => {
                (State::Spawning { intent: Intent::Start, limit_at }, vec![ChildAction::Release])
            }
            ChildEvent::Tick if self.now >= limit_at => self.cancel(Some(intent)),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => self.cancel(None),
            ChildEvent::Process(_, Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit | Of::Exited(_))
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Tick
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(State::Spawning { intent, limit_at }),
        }
    }

    fn cancel(&self, wanted: Option<Intent>) -> Decision {
        let state = State::Cancelling { wanted, limit_at: self.after(CANCEL_LIMIT) };
        (state, vec![ChildAction::CancelSpawn(self.child.generation)])
    }

    fn cancelling(&mut self, wanted: Option<Intent>, limit_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            // It came at the last moment.
            ChildEvent::Process(_, Of::Spawned(pid)) => match wanted {
                Some(Intent::Hold) => stay(State::Held { pid }),
                Some(Intent::Start) => stay(self.on_its_way(pid)),
                None => self.begin(pid, Ladder::Stop, Purpose::Stop),
            },
            ChildEvent::Process(_, Of::SpawnFailed(_)) => self.cancelled(wanted),
            ChildEvent::Tick if self.now >= limit_at => self.cancelled(wanted),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => {
                stay(State::Cancelling { wanted: None, limit_at })
            }
            ChildEvent::Start if wanted != Some(Intent::Start) => {
                (State::Cancelling { wanted: Some(Intent::Start), limit_at }, vec![ChildAction::Release])
            }
            ChildEvent::Process(_, Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit | Of::Exited(_))
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Tick
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(State::Cancelling { wanted, limit_at }),
        }
    }

    fn cancelled(&mut self, wanted: Option<Intent>) -> Decision {
        match wanted {
            Some(intent) => self.fail(Ending::Ended, intent),
            None => stay(State::Down),
        }
    }

    fn held(&mut self, pid: i32, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Start => (self.on_its_way(pid), vec![ChildAction::Release]),
            ChildEvent::Process(_, Of::Exited(ending)) => self.fail(ending, Intent::Hold),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => self.begin(pid, Ladder::Stop, Purpose::Stop),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Prepare
            | ChildEvent::Tick
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(State::Held { pid }),
        }
    }

    fn on_its_way(&self, pid: i32) -> State {
        State::Starting { pid, limit_at: self.after(self.policy.ready_limit) }
    }

    fn starting(&mut self, pid: i32, limit_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Ready) => stay(State::Ready { pid, since: self.now }),
            ChildEvent::Process(_, Of::Exited(ending)) => self.fail(ending, Intent::Start),
            ChildEvent::Tick if self.now >= limit_at => self.begin(pid, Ladder::Hang, Purpose::Replace),
            // It hears a polite signal: nothing hangs.
            ChildEvent::Process(_, Of::Unfit) => self.begin(pid, Ladder::Stop, Purpose::Replace),
            ChildEvent::Restart => self.begin(pid, Ladder::Stop, Purpose::Restart),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => self.begin(pid, Ladder::Stop, Purpose::Stop),
            ChildEvent::Process(_, Of::Spawned(_) | Of::SpawnFailed(_) | Of::Hung | Of::Closed | Of::Drained)
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Rest => stay(State::Starting { pid, limit_at }),
        }
    }

    fn ready(&mut self, pid: i32, since: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Hung) => {
                let limit_at = self.policy.hang_limit.map(|limit| self.after(limit));
                (State::Hung { pid, limit_at }, vec![ChildAction::Withdraw])
            }
            ChildEvent::Process(_, Of::Exited(ending)) => withdrawn(self.fail(ending, Intent::Start)),
            ChildEvent::Restart => withdrawn(self.begin(pid, Ladder::Stop, Purpose::Restart)),
            // It leaves of its own accord, and needs no signal for that.
            ChildEvent::Process(_, Of::Closed) => withdrawn(self.wait_on(pid, Ladder::Stop, Purpose::Replace)),
            ChildEvent::Retire => withdrawn(self.retire(pid)),
            ChildEvent::Stop | ChildEvent::StopNow => withdrawn(self.begin(pid, Ladder::Stop, Purpose::Stop)),
            ChildEvent::Process(_, Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Drained | Of::Unfit)
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Tick
            | ChildEvent::Rest => stay(State::Ready { pid, since }),
        }
    }

    fn hung(&mut self, pid: i32, limit_at: Option<Moment>, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Ready) => stay(State::Ready { pid, since: self.now }),
            ChildEvent::Process(_, Of::Exited(ending)) => self.fail(ending, Intent::Start),
            ChildEvent::Tick if limit_at.is_some_and(|limit_at| self.now >= limit_at) => {
                self.begin(pid, Ladder::Hang, Purpose::Replace)
            }
            ChildEvent::Restart => self.begin(pid, Ladder::Hang, Purpose::Restart),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => self.begin(pid, Ladder::Stop, Purpose::Stop),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Rest => stay(State::Hung { pid, limit_at }),
        }
    }

    fn replacing(&mut self, pid: i32, at: Climb, next_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(Purpose::Replace, ending),
            ChildEvent::Tick if self.now >= next_at => self.climb(pid, at, Purpose::Replace),
            // It is on the ladder already: the stop goes on from the rung it stands on.
            ChildEvent::Retire | ChildEvent::Stop => stay(State::Stopping { pid, at, next_at }),
            ChildEvent::StopNow => self.hurry(pid, at, next_at),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(State::Replacing { pid, at, next_at }),
        }
    }

    fn restarting(&mut self, pid: i32, at: Climb, next_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(Purpose::Restart, ending),
            ChildEvent::Tick if self.now >= next_at => self.climb(pid, at, Purpose::Restart),
            ChildEvent::Retire | ChildEvent::Stop => stay(State::Stopping { pid, at, next_at }),
            ChildEvent::StopNow => self.hurry(pid, at, next_at),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(State::Restarting { pid, at, next_at }),
        }
    }

    fn stopping(&mut self, pid: i32, at: Climb, next_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(Purpose::Stop, ending),
            ChildEvent::Tick if self.now >= next_at => self.climb(pid, at, Purpose::Stop),
            // It has heard it after all.
            ChildEvent::Process(_, Of::Closed) if at == RETIRING => stay(self.drain(pid)),
            ChildEvent::Process(_, Of::Hung) if at == RETIRING => self.begin(pid, Ladder::Hang, Purpose::Stop),
            // It was given time that a stop does not give.
            ChildEvent::Stop | ChildEvent::StopNow if at.ladder == Ladder::Retire => {
                self.begin(pid, Ladder::Stop, Purpose::Stop)
            }
            ChildEvent::StopNow => self.hurry(pid, at, next_at),
            // The stage that it belongs to begins after all.
            ChildEvent::Start => stay(State::Restarting { pid, at, next_at }),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Restart
            | ChildEvent::Retire
            | ChildEvent::Stop
            | ChildEvent::Rest => stay(State::Stopping { pid, at, next_at }),
        }
    }

    fn backoff(&mut self, until: Moment, intent: Intent, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Tick if self.now >= until => self.spawn(intent),
            // A person asks: the pause is over.
            ChildEvent::Restart => self.spawn(intent),
            ChildEvent::Start => stay(State::Backoff { until, intent: Intent::Start }),
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => stay(State::Down),
            ChildEvent::Process(_, Of::Spawned(pid)) => {
                (State::Backoff { until, intent }, vec![ChildAction::Disown(pid)])
            }
            ChildEvent::Process(
                _,
                Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit | Of::Exited(_),
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Rest => stay(State::Backoff { until, intent }),
        }
    }

    fn gave_up(&mut self, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Rest => {
                let rest = self.policy.rest;
                let state = State::Backoff { until: self.after(rest), intent: Intent::Start };
                (state, vec![ChildAction::Restart(rest)])
            }
            ChildEvent::Restart => {
                self.child.failures.clear();
                self.child.attempts = 0;
                self.spawn(Intent::Start)
            }
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => stay(State::Down),
            ChildEvent::Process(_, Of::Spawned(pid)) => (State::GaveUp, vec![ChildAction::Disown(pid)]),
            ChildEvent::Process(
                _,
                Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit | Of::Exited(_),
            )
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Tick => stay(State::GaveUp),
        }
    }

    fn abandoned(&mut self, it: Abandoned, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        let again = Some(self.after(self.policy.abandon_limit));
        match event {
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(it.purpose, ending),
            ChildEvent::Tick if it.limit_at.is_some_and(|limit_at| self.now >= limit_at) => {
                (Abandoned { limit_at: None, ..it }.into(), vec![ChildAction::GiveUp])
            }
            ChildEvent::Tick if self.now >= it.kill_at => {
                let kill_at = self.after(KILL_AGAIN);
                let kill = self.policy.kill().map(|rung| ChildAction::Signal {
                    pid: it.pid,
                    rung,
                    ladder: Ladder::Stop,
                    passed: None,
                });
                (Abandoned { kill_at, ..it }.into(), kill.into_iter().collect())
            }
            ChildEvent::Retire | ChildEvent::Stop | ChildEvent::StopNow => {
                stay(Abandoned { purpose: Purpose::Stop, limit_at: None, ..it }.into())
            }
            // A person asks: once it is gone, the pause is over.
            ChildEvent::Restart if it.purpose == Purpose::Replace => {
                stay(Abandoned { purpose: Purpose::Restart, ..it }.into())
            }
            // The stage that it belongs to begins after all.
            ChildEvent::Start if it.purpose == Purpose::Stop => {
                stay(Abandoned { purpose: Purpose::Restart, limit_at: again, ..it }.into())
            }
            // Tandem does without it; whether it still can is asked again later.
            ChildEvent::Rest if it.purpose != Purpose::Stop => stay(Abandoned { limit_at: again, ..it }.into()),
            ChildEvent::Process(
                _,
                Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Hung | Of::Closed | Of::Drained | Of::Unfit,
            )
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Start
            | ChildEvent::Restart
            | ChildEvent::Rest => stay(it.into()),
        }
    }
}

fn withdrawn((state, mut actions): Decision) -> Decision {
    actions.insert(0, ChildAction::Withdraw);
    (state, actions)
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
