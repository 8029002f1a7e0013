//! Random histories of the whole tree: children that die, hang or never get ready, jobs that fail, rolls, scaling and
//! stops at any moment, time that jumps. After every step the invariants of the design are checked against a model world that knows
//! which processes really live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::state::{self, Ending, Intent, Moment};
use super::tree::{
    Action, Cause, Event, JobId, Need, Outcome, Phase, Plan, Role, RollId, RollPlan, Scope, ServiceId, ServicePlan,
    Stage, Tree,
};
use crate::plan::{Policy, Rung, Signal};

/// Histories per run of the test.
const HISTORIES: u64 = 100_000;
/// Steps after which a history asks for the stop, if it has not yet.
const STEPS_MAX: usize = 90;

const INSTALL: JobId = JobId(0);
const MIGRATE: JobId = JobId(1);
const POSTGRES: ServiceId = ServiceId(0);
const TEMPLATE: ServiceId = ServiceId(1);
const WORKERS: [ServiceId; 2] = [ServiceId(2), ServiceId(3)];
const COMPANION: ServiceId = ServiceId(4);
const TEMPLATE_STAGE: usize = 3;
const WORKERS_STAGE: usize = 4;

fn rung(signal: Signal, group: bool, millis: u64) -> Rung {
    Rung { signal, group, grace: Duration::from_millis(millis) }
}

fn policy(ladder: Vec<Rung>, hang: Option<u64>) -> Policy {
    Policy {
        ready_limit: Duration::from_secs(5),
        hang_limit: hang.map(Duration::from_secs),
        ladder,
        retire: vec![],
        hang: vec![],
        backoff_first: Duration::ZERO,
        backoff_step: Duration::from_millis(100),
        backoff_max: Duration::from_secs(2),
        intensity: 3,
        period: Duration::from_secs(20),
        rest: Duration::from_secs(10),
        starved_pause: Duration::from_secs(5),
    }
}

fn plan(preload: bool, patient: bool) -> Plan {
    let worker = Policy {
        retire: vec![rung(Signal::Retire, false, 4000)],
        hang: vec![rung(Signal::Abort, false, 1000), rung(Signal::Kill, true, 1000)],
        ..policy(vec![rung(Signal::Term, true, 2000), rung(Signal::Kill, true, 1000)], Some(0))
    };
    let postgres = policy(
        vec![rung(Signal::Interrupt, false, 2000), rung(Signal::Quit, false, 1000), rung(Signal::Kill, false, 1000)],
        Some(3),
    );
    let aside = policy(vec![rung(Signal::Term, true, 1000), rung(Signal::Kill, true, 1000)], None);
    let service = |policy: &Policy, prepare_at, need| ServicePlan { policy: policy.clone(), prepare_at, need };
    let need = |need| if patient { Need::Never } else { need };
    let template = service(&worker, Some(1), need(Need::Boot));
    Plan {
        stages: vec![
            Stage::Job(INSTALL),
            Stage::Services(vec![POSTGRES]),
            Stage::Job(MIGRATE),
            Stage::Services(if preload { vec![TEMPLATE] } else { vec![] }),
            Stage::Services(WORKERS.to_vec()),
            Stage::Aside(vec![COMPANION]),
        ],
        services: vec![
            service(&postgres, None, Need::Always),
            template.clone(),
            service(&worker, Some(1), need(Need::Always)),
            service(&worker, Some(1), need(Need::Always)),
            service(&aside, None, Need::Never),
        ],
        drain_delay: Duration::from_millis(500),
        before_stop: preload.then_some(Duration::from_secs(2)),
        roll: RollPlan {
            workers: Some(WORKERS_STAGE),
            template: Some(TEMPLATE_STAGE),
            preload: preload.then_some(template),
            surge: 1,
            extra_max: 2,
        },
    }
}

/// A process of the model world.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    released: bool,
    /// What it was told, hardest last; SIGKILL always ends it.
    told: Option<Signal>,
}

/// What is really so, whatever the tree believes.
struct World {
    random: SmallRng,
    now: Moment,
    tree: Tree,
    /// Workers may fail as often as they like.
    patient: bool,
    /// The phase as of the action being carried out.
    entered: Phase,
    processes: BTreeMap<ServiceId, Process>,
    spawns_due: BTreeMap<ServiceId, Intent>,
    job: Option<JobId>,
    migrated: bool,
    pid_last: i32,
    /// Rolls asked for and not yet answered.
    asked: BTreeSet<RollId>,
    rolls: u64,
    replaced: usize,
    /// When a stop was asked for, and by when it must have ended.
    stop_asked_at: Option<(Moment, Moment)>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            tree: Tree::new(plan(seed.is_multiple_of(2), seed.is_multiple_of(3))),
            patient: seed.is_multiple_of(3),
            entered: Phase::Idle,
            processes: BTreeMap::new(),
            spawns_due: BTreeMap::new(),
            job: None,
            migrated: false,
            pid_last: 100,
            asked: BTreeSet::new(),
            rolls: 0,
            replaced: 0,
            stop_asked_at: None,
        }
    }

    fn feed(&mut self, event: Event) {
        let before = self.tree.phase;
        let (ready, limit) = (self.ready_places(), self.tree.stop_limit());
        let nothing = Plan { stages: vec![], services: vec![], ..plan(false, false) };
        let tree = std::mem::replace(&mut self.tree, Tree::new(nothing));
        let (tree, actions) = tree.step(event.clone(), self.now);
        self.tree = tree;
        let planned =
            matches!(event, Event::Roll(..) | Event::Service(_, state::Event::Ready | state::Event::Spawned(_)));
        // Before it serves, there is nothing that would have to go on.
        let planned = planned && (before == Phase::Serving || !matches!(event, Event::Roll(..)));
        assert!(!planned || ready.is_subset(&self.ready_places()), "{event:?} took readiness from {ready:?}");
        if stopping(self.tree.phase) && self.stop_asked_at.is_none() {
            self.stop_asked_at = Some((self.now, self.now + limit));
        }
        for action in actions {
            self.act(action);
        }
        self.check(before, &event);
    }

    /// The slots with a worker that is ready.
    fn ready_places(&self) -> BTreeSet<usize> {
        let ready =
            self.tree.members.values().filter(|member| member.stage == WORKERS_STAGE && member.child.is_ready());
        ready.map(|member| member.place).collect()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::RunJob(job) => {
                assert!(self.job.is_none(), "two jobs at once");
                assert!(self.stop_asked_at.is_none(), "a job was begun after a stop");
                self.job = Some(job);
            }
            Action::CancelJob(job) => {
                assert_eq!(self.job.take(), Some(job), "a job was cancelled that does not run");
            }
            Action::Service(id, state::Action::Spawn(intent)) => {
                let stopping = matches!(self.entered, Phase::Stopping { .. } | Phase::Stopped { .. });
                assert!(!stopping, "{id:?} was spawned during the stop");
                assert!(!self.processes.contains_key(&id), "{id:?} was spawned twice");
                let early = id == POSTGRES || intent == Intent::Hold;
                assert!(early || self.migrated, "a worker before the migrations");
                assert!(self.spawns_due.insert(id, intent).is_none(), "{id:?} was asked for twice");
            }
            Action::Service(id, state::Action::Release) => {
                assert!(self.migrated, "{id:?} was released before the migrations");
                if let Some(process) = self.processes.get_mut(&id) {
                    process.released = true;
                } else {
                    *self.spawns_due.get_mut(&id).expect("a gate without a process") = Intent::Start;
                }
            }
            Action::Service(id, state::Action::Signal(rung)) => self.signal(id, rung),
            Action::Service(_, state::Action::Withdraw | state::Action::Restart(_) | state::Action::GiveUp) => {}
            Action::Add(..) => {
                let stopping = matches!(self.entered, Phase::Stopping { .. } | Phase::Stopped { .. });
                assert!(!stopping, "a service more during the stop");
            }
            Action::Swapped(new, old) => {
                assert!(self.tree.members[&new].child.is_ready(), "{old:?} leaves before {new:?} is ready");
                self.replaced += 1;
            }
            Action::Remove(id) => assert!(!self.processes.contains_key(&id), "{id:?} was forgotten while it lives"),
            Action::RollEnded(id, outcome) => {
                assert!(self.asked.remove(&id), "{id:?} was answered twice");
                if let Outcome::Aborted(failed, _) = outcome {
                    let role = self.tree.members.get(&failed).map(|member| member.role);
                    assert!(role.is_none_or(|role| role == Role::Retiring), "{failed:?} failed and stays as {role:?}");
                }
            }
            Action::Enter(phase) => self.entered = phase,
        }
    }

    fn signal(&mut self, id: ServiceId, rung: Rung) {
        if id == POSTGRES {
            assert!(!rung.group, "the postmaster's backends were signalled");
            let stopping = matches!(self.entered, Phase::Stopping { .. });
            let alone = self.processes.keys().all(|&id| id == POSTGRES);
            assert!(!stopping || alone, "PostgreSQL was stopped under its workers");
        }
        self.processes.get_mut(&id).expect("a signal to nobody").told = Some(rung.signal);
    }

    fn check(&self, before: Phase, event: &Event) {
        let phase = self.tree.phase;
        if self.tree.is_ready() {
            assert_eq!(phase, Phase::Serving);
            assert!(self.processes.contains_key(&POSTGRES), "ready without PostgreSQL");
            assert!(self.migrated, "ready without the migrations");
        }
        for (id, member) in &self.tree.members {
            let real = self.processes.get(id).map(|process| process.pid);
            let state = member.child.state;
            assert_eq!(member.child.pid(), real, "{id:?} is {state:?} after {event:?} in {before:?}");
        }
        for id in self.processes.keys() {
            assert!(self.tree.members.contains_key(id), "{id:?} lives and is forgotten after {event:?} in {before:?}");
        }
        let extra = |role| move |member: &&super::tree::Member| member.stage == WORKERS_STAGE && member.role == role;
        let replacements = self.tree.members.values().filter(extra(Role::Replacement)).count();
        assert!(replacements <= self.tree.plan.roll.surge, "{replacements} replacements at once");
        if stopping(before) {
            assert!(stopping(phase), "a stop was taken back by {event:?}");
        }
        if matches!(phase, Phase::Stopped { .. }) {
            assert!(self.processes.is_empty(), "stopped, but {:?} live", self.processes);
            assert!(self.spawns_due.is_empty() && self.job.is_none(), "stopped with work under way");
            assert!(self.asked.is_empty(), "{:?} were never answered", self.asked);
        }
        if let Some((asked_at, limit)) = self.stop_asked_at
            && !matches!(phase, Phase::Stopped { .. })
        {
            assert!(self.now <= limit, "the stop of {asked_at:?} is over its ladder in {phase:?} at {:?}", self.now);
        }
    }

    /// Let something happen that could happen now.
    fn happen(&mut self) {
        // A spawn in progress ends before anything else: the shell's fork takes no model time.
        if let Some((id, intent)) = self.spawns_due.pop_first() {
            self.spawned(id, intent);
            return;
        }
        // Whoever serves is asked for things; who boots is first of all to get there.
        let asked = if self.tree.phase == Phase::Serving { 15 } else { 2 };
        match self.random.random_range(0..100 + asked) {
            0..15 => self.pass_time(),
            15..35 => self.job_ends(),
            35..75 => self.child_says(),
            75..90 => self.child_dies(),
            90..91 => self.feed(Event::Stop),
            91..100 => self.late_words(),
            _ => self.operate(),
        }
    }

    /// Somebody asks for something.
    fn operate(&mut self) {
        let (place, count, preload) =
            (self.random.random_range(0..5), self.random.random_range(1..4), self.random.random_bool(0.5));
        match self.random.random_range(0..8) {
            0..3 => self.roll(Scope::All),
            3 => self.roll(Scope::One(ServiceId(place))),
            4 | 5 => self.feed(Event::Scale(count)),
            6 => self.feed(Event::Replan(Box::new(plan(preload, self.patient)))),
            _ => self.feed(Event::Service(ServiceId(place), state::Event::Restart)),
        }
    }

    fn roll(&mut self, scope: Scope) {
        self.rolls += 1;
        let id = RollId(self.rolls);
        self.asked.insert(id);
        self.feed(Event::Roll(id, scope));
    }

    fn spawned(&mut self, id: ServiceId, intent: Intent) {
        if self.random.random_bool(0.02) {
            let ending = self.ending(true);
            self.feed(Event::Service(id, state::Event::SpawnFailed(ending)));
            return;
        }
        self.pid_last += 1;
        let pid = self.pid_last;
        self.processes.insert(id, Process { pid, released: intent == Intent::Start, told: None });
        self.feed(Event::Service(id, state::Event::Spawned(pid)));
    }

    fn pass_time(&mut self) {
        let jump = Duration::from_millis(self.random.random_range(1..8000));
        let due = self.tree.deadline().unwrap_or(self.now + jump);
        // SIGKILL works at once, so the world never lets a killed process reach a deadline.
        let killed = self.processes.iter().find(|(_, process)| process.told == Some(Signal::Kill));
        if let Some((&id, _)) = killed {
            self.dies(id, Ending::Ended);
            return;
        }
        self.now = (self.now + jump).min(due.max(self.now));
        self.feed(Event::Tick);
    }

    fn job_ends(&mut self) {
        let Some(job) = self.job.take() else { return };
        if self.random.random_bool(0.05) {
            self.feed(Event::JobFailed(job));
        } else {
            self.migrated |= job == MIGRATE;
            self.feed(Event::JobSucceeded(job));
        }
    }

    fn any(&mut self) -> Option<(ServiceId, Process)> {
        let count = self.processes.len();
        if count == 0 {
            return None;
        }
        let nth = self.random.random_range(0..count);
        self.processes.iter().nth(nth).map(|(&id, &process)| (id, process))
    }

    fn child_says(&mut self) {
        let Some((id, process)) = self.any() else { return };
        if !process.released {
            return;
        }
        let event = match self.random.random_range(0..100) {
            0..90 => state::Event::Ready,
            90..98 => state::Event::Hung,
            _ => state::Event::Unfit,
        };
        self.feed(Event::Service(id, event));
    }

    fn child_dies(&mut self) {
        let Some((id, process)) = self.any() else { return };
        // One that was told nothing seldom dies by itself.
        if process.told.is_none() && self.random.random_bool(0.6) {
            return;
        }
        let ending = self.ending(process.released);
        self.dies(id, ending);
    }

    /// Why a process is gone; only one that ran can tell that it is for good.
    fn ending(&mut self, ran: bool) -> Ending {
        match self.random.random_range(0..100) {
            0..3 if ran => Ending::Unstartable,
            3..6 => Ending::Starved,
            _ => Ending::Ended,
        }
    }

    fn dies(&mut self, id: ServiceId, ending: Ending) {
        self.processes.remove(&id);
        self.feed(Event::Service(id, state::Event::Exited(ending)));
    }

    /// Messages that arrive late, twice, or for nobody.
    fn late_words(&mut self) {
        let id = ServiceId(self.random.random_range(0..6));
        match self.random.random_range(0..6) {
            0 if !self.spawns_due.contains_key(&id) => self.feed(Event::Service(id, state::Event::Hung)),
            4 => self.feed(Event::HookEnded),
            1 => self.feed(Event::Tick),
            2 if self.job.is_none() => self.feed(Event::JobFailed(INSTALL)),
            3 if self.job.is_none() => self.feed(Event::JobSucceeded(MIGRATE)),
            _ => self.feed(Event::Begin),
        }
    }
}

fn stopping(phase: Phase) -> bool {
    matches!(phase, Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped { .. })
}

/// Run one history to its end; returns why it ended, whether it ever served, and how many were replaced.
fn history(seed: u64) -> (Cause, bool, usize) {
    let mut world = World::new(seed);
    let mut served = false;
    world.feed(Event::Begin);
    for step in 0.. {
        if let Phase::Stopped { cause } = world.tree.phase {
            return (cause, served, world.replaced);
        }
        served |= world.tree.phase == Phase::Serving;
        assert!(step < 100_000, "a history without an end");
        if step == STEPS_MAX {
            world.feed(Event::Stop);
        }
        world.happen();
    }
    unreachable!("the loop returns")
}

#[test]
fn no_history_breaks_an_invariant() {
    let first: u64 = rand::random();
    println!("seed {first}: replay one history with history(seed + n)");
    let (mut asked, mut gave_up, mut failed, mut served, mut rolled) = (0, 0, 0, 0, 0);
    for seed in (0..HISTORIES).map(|n| first.wrapping_add(n)) {
        let outcome = std::panic::catch_unwind(|| history(seed));
        let (cause, ready, replaced) =
            outcome.unwrap_or_else(|_| panic!("history with seed {seed} broke an invariant"));
        served += u64::from(ready);
        rolled += u64::from(replaced > 0);
        match cause {
            Cause::Asked => asked += 1,
            Cause::GaveUp(_) => gave_up += 1,
            Cause::JobFailed(_) | Cause::HookFailed => failed += 1,
        }
    }
    println!("{asked} stopped as asked, {gave_up} gave up, {failed} failed to boot; {served} served, {rolled} rolled");
    // A simulation that never gets anywhere would pass every check.
    let kinds =
        [("asked", asked), ("gave up", gave_up), ("job failed", failed), ("served", served), ("rolled", rolled)];
    for (kind, count) in kinds {
        assert!(count > HISTORIES / 100, "only {count} histories: {kind}");
    }
}
