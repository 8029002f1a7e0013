//! How a child is ended, rung by rung, and what follows once its process is gone. Pure.

use super::state::{ChildAction, Climb, Ending, Intent, Moment, Passed, Purpose, State};
use super::step::{Decision, Turn, stay};
use crate::policy::{KILL_AGAIN, Ladder};

/// The data of [`State::Abandoned`].
#[derive(Clone, Copy)]
pub(super) struct Abandoned {
    pub(super) pid: i32,
    pub(super) purpose: Purpose,
    pub(super) kill_at: Moment,
    pub(super) limit_at: Option<Moment>,
}

impl From<Abandoned> for State {
    fn from(Abandoned { pid, purpose, kill_at, limit_at }: Abandoned) -> Self {
        Self::Abandoned { pid, purpose, kill_at, limit_at }
    }
}

impl Turn<'_> {
    /// Step onto the first rung of `ladder`.
    pub(super) fn begin(&self, pid: i32, ladder: Ladder, purpose: Purpose) -> Decision {
        self.stand(pid, Climb { ladder, rung: 0 }, purpose, None)
    }

    /// It does already what the first rung of `ladder` would have it do: wait there, without a signal.
    pub(super) fn wait_on(&self, pid: i32, ladder: Ladder, purpose: Purpose) -> Decision {
        let (state, _) = self.begin(pid, ladder, purpose);
        stay(state)
    }

    /// The grace of the rung `at` has passed: step onto the next one.
    pub(super) fn climb(&self, pid: i32, at: Climb, purpose: Purpose) -> Decision {
        let stood = self.policy.rung(at.ladder, at.rung);
        let passed = stood.map(|rung| Passed { signal: rung.signal, grace: rung.grace });
        self.stand(pid, Climb { rung: at.rung + 1, ..at }, purpose, passed)
    }

    /// Step onto the next rung before the grace of this one has passed. Nothing is harder than the last rung; a hurried
    /// stop waits there for what it did.
    pub(super) fn hurry(&self, pid: i32, at: Climb, next_at: Moment) -> Decision {
        let next = Climb { rung: at.rung + 1, ..at };
        match self.policy.rung(next.ladder, next.rung) {
            Some(_) => self.stand(pid, next, Purpose::Stop, None),
            None => stay(State::Stopping { pid, at, next_at }),
        }
    }

    /// Step onto the rung `at`, or off the top of the ladder.
    pub(super) fn stand(&self, pid: i32, at: Climb, purpose: Purpose, passed: Option<Passed>) -> Decision {
        let Some(rung) = self.policy.rung(at.ladder, at.rung) else {
            let limit_at = (purpose != Purpose::Stop).then(|| self.after(self.policy.abandon_limit));
            let state = Abandoned { pid, purpose, kill_at: self.after(KILL_AGAIN), limit_at };
            let limit = passed.map(|passed| passed.grace).unwrap_or_default();
            return (state.into(), vec![ChildAction::Abandon { pid, limit }]);
        };
        let next_at = self.after(rung.grace);
        let state = match purpose {
            Purpose::Stop => State::Stopping { pid, at, next_at },
            Purpose::Replace => State::Replacing { pid, at, next_at },
            Purpose::Restart => State::Restarting { pid, at, next_at },
        };
        (state, vec![ChildAction::Signal { pid, rung, ladder: at.ladder, passed }])
    }

    /// A process that was being ended is gone: go on as `purpose` says.
    pub(super) fn gone(&mut self, purpose: Purpose, ending: Ending) -> Decision {
        match purpose {
            Purpose::Stop => stay(State::Down),
            Purpose::Replace => self.fail(ending, Intent::Start),
            // It ended because it was told to: nothing to count, and nothing to wait for but that time passes for it.
            Purpose::Restart => stay(State::Backoff { until: self.now, intent: Intent::Start }),
        }
    }

    /// The process is gone though it was wanted: try again later, or give up.
    pub(super) fn fail(&mut self, ending: Ending, intent: Intent) -> Decision {
        let (now, policy) = (self.now, self.policy);
        if ending == Ending::Starved {
            let delay = policy.starved_pause;
            return (State::Backoff { until: self.after(delay), intent }, vec![ChildAction::Restart(delay)]);
        }
        let failures = &mut self.child.failures;
        failures.push_back(now);
        while failures.front().is_some_and(|failed| failed.saturating_add(policy.period) < now) {
            failures.pop_front();
        }
        self.child.attempts += 1;
        // A start that takes long to fail never fails often within the period, so failures since it was last ready count too.
        let count = failures.len().max(self.child.attempts);
        let (intensity, delay) = match self.child.first_ready {
            Some(_) => (policy.intensity, policy.backoff(self.child.attempts)),
            None => (policy.start_intensity, policy.start_backoff(self.child.attempts)),
        };
        if ending == Ending::Unstartable || count > intensity {
            return (State::GaveUp, vec![ChildAction::GiveUp]);
        }
        (State::Backoff { until: self.after(delay), intent }, vec![ChildAction::Restart(delay)])
    }
}
