//! The process tree as one automaton: it walks the boot list up, and the same list down for the stop. Pure.
//!
//! A stage is a job that must succeed, or services that must become ready. Booting climbs the list; a service that
//! falls while a later job runs takes the boot back to its stage. Stopping walks the list from its end, services of one
//! stage together, and goes on only when none of them is left. While it serves, [`super::roll`] puts new workers in the
//! place of old ones.

use std::collections::BTreeMap;
use std::time::Duration;

pub use super::plan::{Need, Plan, RollPlan, ServiceId, ServicePlan, Stage, StopSum};
use super::roll::Rolls;
pub use super::roll::{Outcome, RollId, Scope};
use super::state::{Child, ChildAction, ChildEvent, Moment, ProcessEvent, State};
use super::step;
pub use super::vocabulary::{Cause, JobRun, Member, Origin, Role, TreeAction, TreeEvent, TreePhase};

/// The tree: what is planned, where it is, and each service.
#[derive(Clone, Debug)]
pub struct Tree {
    pub plan: Plan,
    pub phase: TreePhase,
    pub members: BTreeMap<ServiceId, Member>,
    pub(super) rolls: Rolls,
    /// The job under way, and how many there have been.
    job: Option<JobRun>,
    runs: u64,
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
        Self { plan, phase: TreePhase::Idle, members, rolls: Rolls::default(), job: None, runs: 0, next }
    }

    /// Whether everything planned is ready and no stop has begun.
    pub fn is_ready(&self) -> bool {
        self.phase == TreePhase::Serving && (0..self.plan.stages.len()).all(|stage| self.is_reached(stage))
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
            Stage::Job | Stage::Aside(_) => true,
        }
    }

    /// The longest a stop takes from here: what is planned, and what is left of an earlier plan.
    pub fn stop_sum(&self) -> StopSum {
        let planned = self.plan.stop_sum();
        self.plan.stop_sum_of(|stage| {
            let planned = planned.stages.iter().find(|(of, _)| *of == stage).map(|(_, limit)| *limit);
            let members = self.members.values().filter(|member| member.stage == stage);
            planned.into_iter().chain(members.map(|member| member.plan.policy.stop_limit())).max().unwrap_or_default()
        })
    }

    /// The longest that it takes to end this service and to have it ready again.
    pub fn restart_limit(&self, id: ServiceId) -> Duration {
        let Some(member) = self.members.get(&id) else { return Duration::ZERO };
        let policy = &member.plan.policy;
        [policy.stop_limit(), policy.spawn_limit, policy.ready_limit]
            .into_iter()
            .fold(Duration::ZERO, Duration::saturating_add)
    }

    /// When the tree wants a [`TreeEvent::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let own = match self.phase {
            TreePhase::Draining { until, hook } => Some(hook.unwrap_or(until)),
            TreePhase::Idle
            | TreePhase::Booting { .. }
            | TreePhase::Serving
            | TreePhase::Stopping { .. }
            | TreePhase::Stopped { .. } => None,
        };
        let minded = self.members.values().filter(|member| self.minds(member));
        minded.filter_map(|member| member.child.deadline()).chain(own).min()
    }

    /// Whether time passes for this service. During the stop it does only for the stage that is being ended: a service
    /// below that died or hangs is neither started again nor ended under those that still finish their requests. What
    /// SIGKILL did not end is killed again at any time.
    fn minds(&self, member: &Member) -> bool {
        match self.phase {
            TreePhase::Stopping { .. } if member.child.is_abandoned() => true,
            TreePhase::Stopping { stage, .. } => self.plan.ended_with(stage).any(|stage| member.stage == stage),
            TreePhase::Idle
            | TreePhase::Booting { .. }
            | TreePhase::Serving
            | TreePhase::Draining { .. }
            | TreePhase::Stopped { .. } => true,
        }
    }

    /// Decide: what `event` at `now` makes of the tree, and what is to be done, in order.
    pub fn step(mut self, event: TreeEvent, now: Moment) -> (Self, Vec<TreeAction>) {
        let mut actions = Vec::new();
        match event {
            TreeEvent::Begin => self.begin(now, &mut actions),
            TreeEvent::JobSucceeded(job) => self.job_succeeded(job, now, &mut actions),
            TreeEvent::JobFailed(job) => self.job_failed(job, now, &mut actions),
            TreeEvent::Service(id, event) => self.service(id, event, now, &mut actions),
            TreeEvent::Tick => self.tick(now, &mut actions),
            TreeEvent::Roll(id, scope) => self.ask_roll(id, scope, now, &mut actions),
            TreeEvent::Scale(count) => self.scale(count, now, &mut actions),
            TreeEvent::Replan(plan) => self.replan(*plan),
            TreeEvent::Stop => self.stop(now, &mut actions),
            TreeEvent::HookEnded => self.hook_ended(now, &mut actions),
            TreeEvent::HookFailed => self.hook_failed(now, &mut actions),
        }
        self.go_on_rolling(now, &mut actions);
        self.go_on_scaling(now, &mut actions);
        self.advance(now, &mut actions);
        self.forget(&mut actions);
        (self, actions)
    }

    fn begin(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if self.phase == TreePhase::Idle {
            self.enter(0, now, actions);
        }
    }

    /// Begin `stage`: run its job, or start its services; past the last one, serve.
    fn enter(&mut self, stage: usize, now: Moment, actions: &mut Vec<TreeAction>) {
        if stage == self.plan.stages.len() {
            self.change(TreePhase::Serving, actions);
            return;
        }
        self.change(TreePhase::Booting { stage }, actions);
        let due = self.members.iter().filter(|(_, member)| {
            let due = member.plan.prepare_at.is_some_and(|at| at <= stage);
            due && member.child.state == State::Down && member.stage > stage
        });
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.child(id, ChildEvent::Prepare, now, actions);
        }
        if self.plan.stages[stage] == Stage::Job {
            self.runs += 1;
            let job = JobRun { stage, run: self.runs };
            self.job = Some(job);
            actions.push(TreeAction::RunJob(job));
        }
        for id in self.of_stage(stage) {
            self.child(id, ChildEvent::Start, now, actions);
        }
    }

    fn job_succeeded(&mut self, job: JobRun, now: Moment, actions: &mut Vec<TreeAction>) {
        if self.job == Some(job) {
            self.job = None;
            self.enter(job.stage + 1, now, actions);
        }
    }

    fn job_failed(&mut self, job: JobRun, now: Moment, actions: &mut Vec<TreeAction>) {
        if self.job == Some(job) {
            self.job = None;
            self.descend(Cause::JobFailed(job.stage), now, actions);
        }
    }

    /// Break off the job under way, if there is one.
    fn cancel_job(&mut self, actions: &mut Vec<TreeAction>) -> bool {
        let job = self.job.take();
        actions.extend(job.map(TreeAction::CancelJob));
        job.is_some()
    }

    pub(super) fn service(&mut self, id: ServiceId, event: ChildEvent, now: Moment, actions: &mut Vec<TreeAction>) {
        let Some(before) = self.members.get(&id).map(|member| member.child.is_ready()) else { return };
        if event == ChildEvent::Restart && !self.may_restart(id) {
            return;
        }
        // It is ended in its turn: not under those that still finish their requests.
        if matches!(event, ChildEvent::Process(_, ProcessEvent::Unfit)) && !self.minds(&self.members[&id]) {
            return;
        }
        if self.members[&id].role == Role::Replacement {
            self.replacement(id, event, now, actions);
            return;
        }
        let done = actions.len();
        self.child(id, event, now, actions);
        if before && !self.members[&id].child.is_ready() {
            self.fall_back(id, actions);
        }
        if actions[done..].contains(&TreeAction::Service(id, ChildAction::GiveUp)) {
            self.gave_up(id, now, actions);
        }
    }

    /// A service fell: a job of a later stage that needs it is broken off, and the boot waits at the service's stage.
    fn fall_back(&mut self, id: ServiceId, actions: &mut Vec<TreeAction>) {
        let own = self.members[&id].stage;
        if let TreePhase::Booting { stage } = self.phase
            && own < stage
            && self.cancel_job(actions)
        {
            self.change(TreePhase::Booting { stage: own }, actions);
        }
    }

    /// A service gave up: everything ends, unless Tandem can do without it. Then it rests and is tried again.
    fn gave_up(&mut self, id: ServiceId, now: Moment, actions: &mut Vec<TreeAction>) {
        let member = &self.members[&id];
        let serving = self.phase == TreePhase::Serving;
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
            TreePhase::Booting { stage } if can_rest && member.stage > stage => {
                self.child(id, ChildEvent::Stop, now, actions);
            }
            TreePhase::Booting { .. } | TreePhase::Serving if can_rest => {
                self.child(id, ChildEvent::Rest, now, actions)
            }
            TreePhase::Booting { .. } | TreePhase::Serving => self.descend(Cause::GaveUp(id), now, actions),
            TreePhase::Idle | TreePhase::Draining { .. } | TreePhase::Stopping { .. } | TreePhase::Stopped { .. } => {}
        }
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        let due = |member: &Member| self.minds(member) && member.child.deadline().is_some_and(|at| at <= now);
        let due: Vec<ServiceId> = self.members.iter().filter(|(_, member)| due(member)).map(|(&id, _)| id).collect();
        for id in due {
            self.service(id, ChildEvent::Tick, now, actions);
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

    fn stop(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        self.interrupt_rolls(now, actions);
        let (delay, hook) = (self.plan.drain_delay, self.plan.before_stop);
        match self.phase {
            TreePhase::Idle => self.change(TreePhase::Stopped { cause: Cause::Asked }, actions),
            TreePhase::Serving if hook.is_some() || !delay.is_zero() => {
                let at = |limit| now.saturating_add(limit);
                let (until, hook) = (at(delay), hook.map(|limit| at(limit.max(delay))));
                self.change(TreePhase::Draining { until, hook }, actions);
            }
            TreePhase::Booting { .. } | TreePhase::Serving | TreePhase::Draining { .. } => {
                self.descend(Cause::Asked, now, actions);
            }
            TreePhase::Stopping { stage, .. } => {
                for id in self.ending(stage) {
                    self.child(id, ChildEvent::StopNow, now, actions);
                }
            }
            TreePhase::Stopped { .. } => {}
        }
    }

    fn hook_ended(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if let TreePhase::Draining { until, hook: Some(_) } = self.phase {
            self.phase = TreePhase::Draining { until, hook: None };
            self.drained(now, actions);
        }
    }

    fn drained(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if let TreePhase::Draining { until, hook } = self.phase
            && hook.unwrap_or(until) <= now
        {
            self.descend(Cause::Asked, now, actions);
        }
    }

    fn hook_failed(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        if self.phase == TreePhase::Serving {
            self.interrupt_rolls(now, actions);
            self.descend(Cause::HookFailed, now, actions);
        }
    }

    /// Begin the way down, at the last stage: services prepared ahead of their stage are ended too.
    fn descend(&mut self, cause: Cause, now: Moment, actions: &mut Vec<TreeAction>) {
        self.cancel_job(actions);
        self.end(self.plan.stages.len() - 1, cause, now, actions);
        self.interrupt_rolls(now, actions);
    }

    fn end(&mut self, stage: usize, cause: Cause, now: Moment, actions: &mut Vec<TreeAction>) {
        self.change(TreePhase::Stopping { stage, cause }, actions);
        for id in self.ending(stage) {
            self.child(id, ChildEvent::Stop, now, actions);
        }
    }

    /// The services that are ended when the stop has come down to `stage`.
    fn ending(&self, stage: usize) -> Vec<ServiceId> {
        self.plan.ended_with(stage).flat_map(|stage| self.of_stage(stage)).collect()
    }

    /// Go on where a stage has come to its end.
    fn advance(&mut self, now: Moment, actions: &mut Vec<TreeAction>) {
        loop {
            match self.phase {
                TreePhase::Booting { stage } => {
                    if self.plan.stages[stage] == Stage::Job || !self.is_reached(stage) {
                        return;
                    }
                    self.enter(stage + 1, now, actions);
                }
                TreePhase::Stopping { stage, cause } => {
                    if !self.ending(stage).iter().all(|id| self.members[id].child.is_over()) {
                        return;
                    }
                    match stage.checked_sub(1) {
                        Some(below) => self.end(below, cause, now, actions),
                        None => self.change(TreePhase::Stopped { cause }, actions),
                    }
                }
                TreePhase::Idle | TreePhase::Serving | TreePhase::Draining { .. } | TreePhase::Stopped { .. } => return,
            }
        }
    }

    /// Let go of those that were to leave and are gone. An abandoned process is not gone.
    fn forget(&mut self, actions: &mut Vec<TreeAction>) {
        let gone =
            |member: &Member| member.role == Role::Retiring && member.child.is_over() && !member.child.is_abandoned();
        let gone: Vec<ServiceId> = self.members.iter().filter(|(_, member)| gone(member)).map(|(&id, _)| id).collect();
        for id in gone {
            self.members.remove(&id);
            actions.push(TreeAction::Remove(id));
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
        actions: &mut Vec<TreeAction>,
    ) -> ServiceId {
        let id = ServiceId(self.next);
        self.next += 1;
        self.members.insert(id, Member { child: Child::default(), plan, stage, place, role });
        actions.push(TreeAction::Add(id, origin));
        id
    }

    pub(super) fn child(&mut self, id: ServiceId, event: ChildEvent, now: Moment, actions: &mut Vec<TreeAction>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let child = std::mem::take(&mut member.child);
        let (child, done) = step::step(child, event, now, &member.plan.policy);
        member.child = child;
        actions.extend(done.into_iter().map(|action| TreeAction::Service(id, action)));
    }

    fn change(&mut self, phase: TreePhase, actions: &mut Vec<TreeAction>) {
        self.phase = phase;
        actions.push(TreeAction::Enter(phase));
    }
}
