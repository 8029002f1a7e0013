//! The whole process tree as one automaton: the boot list upwards, the same list downwards. Pure.
//!
//! A stage is a job that must succeed, or services that must become ready. Booting climbs the list; a service that
//! falls while a later job runs takes the boot back to its stage. Stopping walks the list from its end, services of one
//! stage together, and goes on only when none of them is left.

use super::state::{self, Child, Ending, Moment, Policy, State};
use std::time::Duration;

/// A service's place in [`Plan::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub usize);

/// A job's place in the shell's own list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(pub usize);

/// One entry of the boot list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Must succeed before the next stage begins.
    Job(JobId),
    /// Must all be ready before the next stage begins.
    Services(Vec<ServiceId>),
}

/// How one service is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub policy: Policy,
    /// The stage from which it may already wait at its gate.
    pub prepare_at: Option<usize>,
}

/// What is run, in which order, and how patiently it is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub stages: Vec<Stage>,
    pub services: Vec<ServicePlan>,
    /// How long to go on serving after readiness was withdrawn.
    pub drain_delay: Duration,
}

impl Plan {
    /// The longest a stop takes: every stage's slowest ladder, one after another.
    pub fn stop_limit(&self) -> Duration {
        let stages = self.stages.iter().map(|stage| match stage {
            Stage::Job(_) => Duration::ZERO,
            Stage::Services(ids) => {
                ids.iter().map(|id| self.services[id.0].policy.stop_limit()).max().unwrap_or_default()
            }
        });
        self.drain_delay + stages.sum::<Duration>()
    }

    fn members(&self, stage: usize) -> &[ServiceId] {
        match &self.stages[stage] {
            Stage::Job(_) => &[],
            Stage::Services(ids) => ids,
        }
    }

    fn stage_of(&self, id: ServiceId) -> usize {
        (0..self.stages.len()).find(|&stage| self.members(stage).contains(&id)).unwrap_or_default()
    }
}

/// Why everything is being stopped, or has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A person or the platform asked.
    Asked,
    /// A service gave up.
    GaveUp(ServiceId),
    /// A boot job failed.
    JobFailed(JobId),
}

/// Where the whole tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// This stage is under way; those below it are done.
    Booting { stage: usize },
    /// Every stage was reached.
    Serving,
    /// Readiness is withdrawn, requests are still served.
    Draining { until: Moment },
    /// The services of this stage are being ended; those above it are gone.
    Stopping { stage: usize, cause: Cause },
    /// Nothing is left.
    Stopped { cause: Cause },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Begin,
    JobSucceeded(JobId),
    JobFailed(JobId),
    Service(ServiceId, state::Event),
    Tick,
    /// A stop was asked for; asked again, it skips the waits.
    Stop,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    RunJob(JobId),
    CancelJob(JobId),
    Service(ServiceId, state::Action),
    Enter(Phase),
}

/// The tree: what is planned, where it is, and each child.
#[derive(Clone, Debug)]
pub struct Tree {
    pub plan: Plan,
    pub phase: Phase,
    pub children: Vec<Child>,
}

impl Tree {
    /// A tree in which nothing runs yet.
    pub fn new(plan: Plan) -> Self {
        let children = vec![Child::default(); plan.services.len()];
        Self { plan, phase: Phase::Idle, children }
    }

    /// Whether everything planned is ready and no stop has begun.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && self.children.iter().all(Child::is_ready)
    }

    /// When the tree wants a [`Event::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let own = match self.phase {
            Phase::Draining { until } => Some(until),
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Stopping { .. } | Phase::Stopped { .. } => {
                None
            }
        };
        let minded = (0..self.children.len()).map(ServiceId).filter(|&id| self.minds(id));
        minded.filter_map(|id| self.children[id.0].deadline()).chain(own).min()
    }

    /// Whether time passes for this service. During the stop it does only for the stage that is being ended: one below
    /// that died or hangs is neither started again nor ended under those that still finish their requests.
    fn minds(&self, id: ServiceId) -> bool {
        match self.phase {
            Phase::Stopping { stage, .. } => self.plan.stage_of(id) == stage,
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Draining { .. } | Phase::Stopped { .. } => {
                true
            }
        }
    }

    /// Decide: what `event` at `now` makes of the tree, and what is to be done, in order.
    pub fn step(mut self, event: Event, now: Moment) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        match event {
            Event::Begin => self.begin(now, &mut actions),
            Event::JobSucceeded(job) => self.job_succeeded(job, now, &mut actions),
            Event::JobFailed(job) => self.job_failed(job, now, &mut actions),
            Event::Service(id, event) => self.service(id, event, now, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Stop => self.stop(now, &mut actions),
        }
        self.advance(now, &mut actions);
        (self, actions)
    }

    fn begin(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.phase == Phase::Idle {
            self.enter(0, now, actions);
        }
    }

    /// Begin `stage`: run its job, or start its services; past the last one, serve.
    fn enter(&mut self, stage: usize, now: Moment, actions: &mut Vec<Action>) {
        if stage == self.plan.stages.len() {
            self.change(Phase::Serving, actions);
            return;
        }
        self.change(Phase::Booting { stage }, actions);
        for id in (0..self.children.len()).map(ServiceId) {
            let due = self.plan.services[id.0].prepare_at.is_some_and(|at| at <= stage);
            if due && self.children[id.0].state == State::Down && self.plan.stage_of(id) > stage {
                self.child(id, state::Event::Prepare, now, actions);
            }
        }
        match &self.plan.stages[stage] {
            Stage::Job(job) => actions.push(Action::RunJob(*job)),
            Stage::Services(ids) => {
                for id in ids.clone() {
                    self.child(id, state::Event::Start, now, actions);
                }
            }
        }
    }

    fn job_succeeded(&mut self, job: JobId, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Booting { stage } = self.phase
            && self.plan.stages[stage] == Stage::Job(job)
        {
            self.enter(stage + 1, now, actions);
        }
    }

    fn job_failed(&mut self, job: JobId, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Booting { stage } = self.phase
            && self.plan.stages[stage] == Stage::Job(job)
        {
            self.descend(Cause::JobFailed(job), now, actions);
        }
    }

    fn service(&mut self, id: ServiceId, event: state::Event, now: Moment, actions: &mut Vec<Action>) {
        let was_ready = self.children[id.0].is_ready();
        self.child(id, event, now, actions);
        if was_ready && !self.children[id.0].is_ready() {
            self.fall_back(id, actions);
        }
        if self.children[id.0].state == State::GaveUp {
            self.gave_up(id, now, actions);
        }
    }

    /// A service fell: a job of a later stage that needs it is broken off, and the boot waits at the service's stage.
    fn fall_back(&mut self, id: ServiceId, actions: &mut Vec<Action>) {
        let own = self.plan.stage_of(id);
        if let Phase::Booting { stage } = self.phase
            && own < stage
            && let Stage::Job(job) = self.plan.stages[stage]
        {
            actions.push(Action::CancelJob(job));
            self.change(Phase::Booting { stage: own }, actions);
        }
    }

    /// A service that gave up ends everything, unless a sibling still serves: then it rests and tries again.
    fn gave_up(&mut self, id: ServiceId, now: Moment, actions: &mut Vec<Action>) {
        let stage = self.plan.stage_of(id);
        let sibling_serves = self.plan.members(stage).iter().any(|sibling| self.children[sibling.0].is_ready());
        match self.phase {
            Phase::Serving if sibling_serves => self.child(id, state::Event::Rest, now, actions),
            Phase::Booting { .. } | Phase::Serving => self.descend(Cause::GaveUp(id), now, actions),
            Phase::Idle | Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped { .. } => {}
        }
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for id in (0..self.children.len()).map(ServiceId) {
            if self.minds(id) && self.children[id.0].deadline().is_some_and(|deadline| deadline <= now) {
                self.service(id, state::Event::Tick, now, actions);
            }
        }
        if let Phase::Draining { until } = self.phase
            && until <= now
        {
            self.descend(Cause::Asked, now, actions);
        }
    }

    fn stop(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Idle => self.change(Phase::Stopped { cause: Cause::Asked }, actions),
            Phase::Serving if !self.plan.drain_delay.is_zero() => {
                self.change(Phase::Draining { until: now + self.plan.drain_delay }, actions);
            }
            Phase::Booting { .. } | Phase::Serving | Phase::Draining { .. } => {
                self.descend(Cause::Asked, now, actions);
            }
            Phase::Stopping { stage, .. } => {
                for id in self.plan.members(stage).to_vec() {
                    self.child(id, state::Event::StopNow, now, actions);
                }
            }
            Phase::Stopped { .. } => {}
        }
    }

    /// Begin the way down, at the last stage: services prepared ahead of their stage are ended too.
    fn descend(&mut self, cause: Cause, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Booting { stage } = self.phase
            && let Stage::Job(job) = self.plan.stages[stage]
            && cause != Cause::JobFailed(job)
        {
            actions.push(Action::CancelJob(job));
        }
        self.end(self.plan.stages.len() - 1, cause, now, actions);
    }

    fn end(&mut self, stage: usize, cause: Cause, now: Moment, actions: &mut Vec<Action>) {
        self.change(Phase::Stopping { stage, cause }, actions);
        for id in self.plan.members(stage).to_vec() {
            self.child(id, state::Event::Stop, now, actions);
        }
    }

    /// Go on where a stage has come to its end.
    fn advance(&mut self, now: Moment, actions: &mut Vec<Action>) {
        loop {
            match self.phase {
                Phase::Booting { stage } => {
                    let members = self.plan.members(stage);
                    if members.is_empty() || !members.iter().all(|id| self.children[id.0].is_ready()) {
                        return;
                    }
                    self.enter(stage + 1, now, actions);
                }
                Phase::Stopping { stage, cause } => {
                    if !self.plan.members(stage).iter().all(|id| self.children[id.0].is_over()) {
                        return;
                    }
                    match stage.checked_sub(1) {
                        Some(below) => self.end(below, cause, now, actions),
                        None => self.change(Phase::Stopped { cause }, actions),
                    }
                }
                Phase::Idle | Phase::Serving | Phase::Draining { .. } | Phase::Stopped { .. } => return,
            }
        }
    }

    fn child(&mut self, id: ServiceId, event: state::Event, now: Moment, actions: &mut Vec<Action>) {
        let child = std::mem::take(&mut self.children[id.0]);
        let (child, done) = state::step(child, event, now, &self.plan.services[id.0].policy);
        self.children[id.0] = child;
        actions.extend(done.into_iter().map(|action| Action::Service(id, action)));
    }

    fn change(&mut self, phase: Phase, actions: &mut Vec<Action>) {
        self.phase = phase;
        actions.push(Action::Enter(phase));
    }
}

/// The event that a child's end makes.
pub fn exited(id: ServiceId, ending: Ending) -> Event {
    Event::Service(id, state::Event::Exited(ending))
}
