//! How a child leaves whose place another has taken: it is told, says that it accepts no more, and finishes what it has. Pure.

use super::state::{ChildAction, ChildEvent, Climb, Moment, Passed, ProcessEvent, Purpose, State};
use super::step::{Decision, Turn, stay};
use crate::policy::Ladder;

/// The rung on which a child was told to leave, and no more.
pub(super) const RETIRING: Climb = Climb { ladder: Ladder::Retire, rung: 0 };

impl Turn<'_> {
    /// Tell it to leave, for another has taken over.
    pub(super) fn retire(&self, pid: i32) -> Decision {
        let (state, actions) = self.begin(pid, Ladder::Retire, Purpose::Stop);
        if self.policy.retire.is_empty() {
            return (state, actions);
        }
        (State::Closing { pid, limit_at: self.after(self.policy.close_limit) }, actions)
    }

    /// It accepts no more, and has its time for the requests it has.
    pub(super) fn drain(&self, pid: i32) -> State {
        let (firm_until, limit_at) = (Some(self.after(self.policy.drain_firm)), self.after(self.policy.drain_limit));
        State::Draining { pid, firm_until, limit_at }
    }

    /// The time for its requests has passed: step past the rung on which it was told to leave.
    pub(super) fn overdue(&self, pid: i32) -> Decision {
        let grace = self.policy.drain_limit;
        let passed = self.policy.rung(RETIRING.ladder, RETIRING.rung).map(|rung| Passed { signal: rung.signal, grace });
        self.stand(pid, Climb { rung: RETIRING.rung + 1, ..RETIRING }, Purpose::Stop, passed)
    }

    pub(super) fn closing(&mut self, pid: i32, limit_at: Moment, event: ChildEvent) -> Decision {
        use ProcessEvent as Of;
        match event {
            ChildEvent::Process(_, Of::Closed) => stay(self.drain(pid)),
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(Purpose::Stop, ending),
            ChildEvent::Process(_, Of::Hung) => self.begin(pid, Ladder::Hang, Purpose::Stop),
            ChildEvent::Tick if self.now >= limit_at => {
                let (state, mut actions) = self.wait_on(pid, Ladder::Retire, Purpose::Stop);
                actions.push(ChildAction::Unheard { pid, limit: self.policy.close_limit });
                (state, actions)
            }
            ChildEvent::Stop | ChildEvent::StopNow => self.begin(pid, Ladder::Stop, Purpose::Stop),
            // The stage that it belongs to begins after all.
            ChildEvent::Start => self.wait_on(pid, Ladder::Retire, Purpose::Restart),
            ChildEvent::Process(_, Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Drained | Of::Unfit)
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Restart
            | ChildEvent::Retire
            | ChildEvent::Rest => stay(State::Closing { pid, limit_at }),
        }
    }

    pub(super) fn draining(
        &mut self,
        pid: i32,
        firm_until: Option<Moment>,
        limit_at: Moment,
        event: ChildEvent,
    ) -> Decision {
        use ProcessEvent as Of;
        match event {
            // What is left to do is the application's own shutdown.
            ChildEvent::Process(_, Of::Drained) => self.wait_on(pid, Ladder::Retire, Purpose::Stop),
            ChildEvent::Process(_, Of::Exited(ending)) => self.gone(Purpose::Stop, ending),
            ChildEvent::Process(_, Of::Hung) => self.begin(pid, Ladder::Hang, Purpose::Stop),
            ChildEvent::Tick if self.now >= limit_at => self.overdue(pid),
            ChildEvent::Tick if firm_until.is_some_and(|firm_until| self.now >= firm_until) => {
                stay(State::Draining { pid, firm_until: None, limit_at })
            }
            ChildEvent::Stop | ChildEvent::StopNow => self.begin(pid, Ladder::Stop, Purpose::Stop),
            // The stage that it belongs to begins after all.
            ChildEvent::Start => self.wait_on(pid, Ladder::Retire, Purpose::Restart),
            ChildEvent::Process(_, Of::Spawned(_) | Of::SpawnFailed(_) | Of::Ready | Of::Closed | Of::Unfit)
            | ChildEvent::Tick
            | ChildEvent::Prepare
            | ChildEvent::Restart
            | ChildEvent::Retire
            | ChildEvent::Rest => stay(State::Draining { pid, firm_until, limit_at }),
        }
    }
}
