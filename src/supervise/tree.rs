//! The whole process tree as one automaton: the boot list upwards, the same list downwards. Pure.
//!
//! A stage is a job that must succeed, or services that must become ready. Booting climbs the list; a service that
//! falls while a later job runs takes the boot back to its stage. Stopping walks the list from its end, services of one
//! stage together, and goes on only when none of them is left. While it serves, [`super::roll`] puts new workers in the
//! place of old ones.

use std::collections::BTreeMap;

pub use super::plan::{JobId, Need, Plan, RollPlan, ServiceId, ServicePlan, Stage};
use super::roll::Rolls;
pub use super::roll::{Outcome, RollId, Scope};
use super::state::{self, Child, Ending, Moment, State};
use super::step;
pub use super::vocabulary::{Action, Cause, Event, Member, Origin, Phase, Role};

/// The tree: what is planned, where it is, and each service.
#[derive(Clone, Debug)]
pub struct Tree {
    pub plan: Plan,
    pub phase: Phase,
    pub members: BTreeMap<ServiceId, Member>,
    pub(super) rolls: Rolls,
    next: usize,
}

impl Tree {
    /// A tree in which nothing runs yet.
    pub fn new(plan: Plan) -> Self {
        let mut members = BTreeMap::new();
        for (stage, ids) in plan.stages.iter().map(Stage::services).enumerate() {
            for (place, &id) in ids.iter().enumerate() {
                let plan = plan.services[id.0].clone();
                members.insert(id, Member { child: Child::default(), plan, stage, place, role: Role::Standing });
            }
        }
        let next = plan.services.len();
        Self { plan, phase: Phase::Idle, members, rolls: Rolls::default(), next }
    }

    /// Whether everything planned is ready and no stop has begun.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && (0..self.plan.stages.len()).all(|stage| self.is_reached(stage))
    }

    /// The services of a stage, in order of their places.
    pub fn of_stage(&self, stage: usize) -> Vec<ServiceId> {
        let mut found: Vec<_> = self.members.iter().filter(|(_, member)| member.stage == stage).collect();
        found.sort_by_key(|(id, member)| (member.place, **id));
        found.into_iter().map(|(&id, _)| id).collect()
    }

    /// Those of a stage that hold their places, in order.
    pub fn standing(&self, stage: usize) -> Vec<ServiceId> {
        self.of_stage(stage).into_iter().filter(|id| self.members[id].role == Role::Standing).collect()
    }

    /// Whether all that a stage waits for is ready.
    fn is_reached(&self, stage: usize) -> bool {
        match &self.plan.stages[stage] {
            Stage::Services(_) => self.standing(stage).iter().all(|id| self.members[id].child.is_ready()),
            Stage::Job(_) | Stage::Aside(_) => true,
        }
    }

    /// The longest a stop takes from here: the drain, then every stage's slowest ladder, one after another.
    pub fn stop_limit(&self) -> Moment {
        let slowest = |stage| {
            let members = self.members.values().filter(|member| member.stage == stage);
            members.map(|member| member.plan.policy.stop_limit()).max().unwrap_or_default()
        };
        let drain = self.plan.drain_delay.max(self.plan.before_stop.unwrap_or_default());
        drain + (0..self.plan.stages.len()).map(slowest).sum::<Moment>()
    }

    /// When the tree wants a [`Event::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let own = match self.phase {
            Phase::Draining { until, hook } => Some(hook.unwrap_or(until)),
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Stopping { .. } | Phase::Stopped { .. } => {
                None
            }
        };
        let minded = self.members.values().filter(|member| self.minds(member));
        minded.filter_map(|member| member.child.deadline()).chain(own).min()
    }

    /// Whether time passes for this service. During the stop it does only for the stage that is being ended: one below
    /// that died or hangs is neither started again nor ended under those that still finish their requests.
    fn minds(&self, member: &Member) -> bool {
        match self.phase {
            Phase::Stopping { stage, .. } => member.stage == stage,
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
            Event::Roll(id, scope) => self.ask_roll(id, scope, now, &mut actions),
            Event::Scale(count) => self.scale(count, now, &mut actions),
            Event::Replan(plan) => self.replan(*plan),
            Event::Stop => self.stop(now, &mut actions),
            Event::HookEnded => self.hook_ended(now, &mut actions),
            Event::HookFailed => self.hook_failed(now, &mut actions),
        }
        self.go_on_rolling(now, &mut actions);
        self.advance(now, &mut actions);
        self.forget(&mut actions);
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
        let due = self.members.iter().filter(|(_, member)| {
            let due = member.plan.prepare_at.is_some_and(|at| at <= stage);
            due && member.child.state == State::Down && member.stage > stage
        });
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.child(id, state::Event::Prepare, now, actions);
        }
        if let Stage::Job(job) = self.plan.stages[stage] {
            actions.push(Action::RunJob(job));
        }
        for id in self.of_stage(stage) {
            self.child(id, state::Event::Start, now, actions);
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

    pub(super) fn service(&mut self, id: ServiceId, event: state::Event, now: Moment, actions: &mut Vec<Action>) {
        let Some(before) = self.members.get(&id).map(|member| member.child.is_ready()) else { return };
        if event == state::Event::Restart && !self.may_restart(id) {
            return;
        }
        // It is ended in its turn: not under those that still finish their requests.
        if event == state::Event::Unfit && !self.minds(&self.members[&id]) {
            return;
        }
        if self.members[&id].role == Role::Replacement {
            self.replacement(id, event, now, actions);
            return;
        }
        self.child(id, event, now, actions);
        if before && !self.members[&id].child.is_ready() {
            self.fall_back(id, actions);
        }
        if self.members[&id].child.state == State::GaveUp {
            self.gave_up(id, now, actions);
        }
    }

    /// A service fell: a job of a later stage that needs it is broken off, and the boot waits at the service's stage.
    fn fall_back(&mut self, id: ServiceId, actions: &mut Vec<Action>) {
        let own = self.members[&id].stage;
        if let Phase::Booting { stage } = self.phase
            && own < stage
            && let Stage::Job(job) = self.plan.stages[stage]
        {
            actions.push(Action::CancelJob(job));
            self.change(Phase::Booting { stage: own }, actions);
        }
    }

    /// A service that gave up ends everything, unless the whole can do without it: then it rests and tries again.
    fn gave_up(&mut self, id: ServiceId, now: Moment, actions: &mut Vec<Action>) {
        let member = &self.members[&id];
        let serving = self.phase == Phase::Serving;
        let can_rest = match member.plan.need {
            Need::Always => {
                let sibling_serves = self.of_stage(member.stage).iter().any(|id| self.members[id].child.is_ready());
                serving && sibling_serves
            }
            Need::Boot => serving,
            Need::Never => true,
        };
        match self.phase {
            // It waited at the gate for its stage, which starts it.
            Phase::Booting { stage } if can_rest && member.stage > stage => {
                self.child(id, state::Event::Stop, now, actions);
            }
            Phase::Booting { .. } | Phase::Serving if can_rest => self.child(id, state::Event::Rest, now, actions),
            Phase::Booting { .. } | Phase::Serving => self.descend(Cause::GaveUp(id), now, actions),
            Phase::Idle | Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped { .. } => {}
        }
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let due = |member: &Member| self.minds(member) && member.child.deadline().is_some_and(|at| at <= now);
        let due: Vec<ServiceId> = self.members.iter().filter(|(_, member)| due(member)).map(|(&id, _)| id).collect();
        for id in due {
            self.service(id, state::Event::Tick, now, actions);
        }
        self.drained(now, actions);
    }

    fn replan(&mut self, plan: Plan) {
        for member in self.members.values_mut() {
            if let Some(new) = plan.service(member.stage, member.place).or(plan.roll.preload.as_ref()) {
                member.plan.clone_from(new);
            }
        }
        self.plan = plan;
    }

    fn stop(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.interrupt_rolls(now, actions);
        let (delay, hook) = (self.plan.drain_delay, self.plan.before_stop);
        match self.phase {
            Phase::Idle => self.change(Phase::Stopped { cause: Cause::Asked }, actions),
            Phase::Serving if hook.is_some() || !delay.is_zero() => {
                let (until, hook) = (now + delay, hook.map(|limit| now + limit.max(delay)));
                self.change(Phase::Draining { until, hook }, actions);
            }
            Phase::Booting { .. } | Phase::Serving | Phase::Draining { .. } => {
                self.descend(Cause::Asked, now, actions);
            }
            Phase::Stopping { stage, .. } => {
                for id in self.of_stage(stage) {
                    self.child(id, state::Event::StopNow, now, actions);
                }
            }
            Phase::Stopped { .. } => {}
        }
    }

    fn hook_ended(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Draining { until, hook: Some(_) } = self.phase {
            self.phase = Phase::Draining { until, hook: None };
            self.drained(now, actions);
        }
    }

    fn drained(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Phase::Draining { until, hook } = self.phase
            && hook.unwrap_or(until) <= now
        {
            self.descend(Cause::Asked, now, actions);
        }
    }

    fn hook_failed(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.phase == Phase::Serving {
            self.interrupt_rolls(now, actions);
            self.descend(Cause::HookFailed, now, actions);
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
        self.interrupt_rolls(now, actions);
    }

    fn end(&mut self, stage: usize, cause: Cause, now: Moment, actions: &mut Vec<Action>) {
        self.change(Phase::Stopping { stage, cause }, actions);
        for id in self.of_stage(stage) {
            self.child(id, state::Event::Stop, now, actions);
        }
    }

    /// Go on where a stage has come to its end.
    fn advance(&mut self, now: Moment, actions: &mut Vec<Action>) {
        loop {
            match self.phase {
                Phase::Booting { stage } => {
                    if matches!(self.plan.stages[stage], Stage::Job(_)) || !self.is_reached(stage) {
                        return;
                    }
                    self.enter(stage + 1, now, actions);
                }
                Phase::Stopping { stage, cause } => {
                    if !self.of_stage(stage).iter().all(|id| self.members[id].child.is_over()) {
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

    /// Let go of those that were to leave and are gone.
    fn forget(&mut self, actions: &mut Vec<Action>) {
        let gone = |member: &Member| member.role == Role::Retiring && member.child.is_over();
        let gone: Vec<ServiceId> = self.members.iter().filter(|(_, member)| gone(member)).map(|(&id, _)| id).collect();
        for id in gone {
            self.members.remove(&id);
            actions.push(Action::Remove(id));
        }
    }

    /// A service more, in `place` of `stage`.
    pub(super) fn add(
        &mut self,
        stage: usize,
        place: usize,
        role: Role,
        plan: ServicePlan,
        origin: Origin,
        actions: &mut Vec<Action>,
    ) -> ServiceId {
        let id = ServiceId(self.next);
        self.next += 1;
        self.members.insert(id, Member { child: Child::default(), plan, stage, place, role });
        actions.push(Action::Add(id, origin));
        id
    }

    pub(super) fn child(&mut self, id: ServiceId, event: state::Event, now: Moment, actions: &mut Vec<Action>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let child = std::mem::take(&mut member.child);
        let (child, done) = step::step(child, event, now, &member.plan.policy);
        member.child = child;
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
