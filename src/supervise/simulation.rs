//! Random histories of the whole tree: children that die, hang or never get ready, jobs that fail, stops at any
//! moment, time that jumps. After every step the invariants of the design are checked against a model world that knows
//! which processes really live.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::state::{self, Ending, Intent, Moment, Policy, Rung, Signal};
use super::tree::{Action, Cause, Event, JobId, Phase, Plan, ServiceId, Stage, Tree};

/// Histories per run of the test.
const HISTORIES: u64 = 100_000;
/// Steps after which a history asks for the stop, if it has not yet.
const STEPS_MAX: usize = 60;

const INSTALL: JobId = JobId(0);
const MIGRATE: JobId = JobId(1);
const POSTGRES: ServiceId = ServiceId(0);
const WORKERS: [ServiceId; 2] = [ServiceId(1), ServiceId(2)];

fn plan() -> Plan {
    let rung = |signal, group, millis| Rung { signal, group, grace: Duration::from_millis(millis) };
    let policy = |ladder, hang: Option<u64>| Policy {
        ready_limit: Duration::from_secs(5),
        hang_limit: hang.map(Duration::from_secs),
        ladder,
        backoff_first: Duration::ZERO,
        backoff_step: Duration::from_millis(100),
        backoff_max: Duration::from_secs(2),
        intensity: 3,
        period: Duration::from_secs(20),
        rest: Duration::from_secs(10),
    };
    let worker = policy(vec![rung(Signal::Term, true, 2000), rung(Signal::Kill, true, 1000)], None);
    let postgres = policy(
        vec![rung(Signal::Interrupt, false, 2000), rung(Signal::Quit, false, 1000), rung(Signal::Kill, false, 1000)],
        Some(3),
    );
    let service = |policy: &Policy, prepare_at| super::tree::ServicePlan { policy: policy.clone(), prepare_at };
    Plan {
        stages: vec![
            Stage::Job(INSTALL),
            Stage::Services(vec![POSTGRES]),
            Stage::Job(MIGRATE),
            Stage::Services(WORKERS.to_vec()),
        ],
        services: vec![service(&postgres, None), service(&worker, Some(1)), service(&worker, Some(1))],
        drain_delay: Duration::from_millis(500),
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
    /// The phase as of the action being carried out.
    entered: Phase,
    processes: BTreeMap<ServiceId, Process>,
    spawns_due: BTreeMap<ServiceId, Intent>,
    job: Option<JobId>,
    migrated: bool,
    pid_last: i32,
    stop_asked_at: Option<Moment>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            tree: Tree::new(plan()),
            entered: Phase::Idle,
            processes: BTreeMap::new(),
            spawns_due: BTreeMap::new(),
            job: None,
            migrated: false,
            pid_last: 100,
            stop_asked_at: None,
        }
    }

    fn feed(&mut self, event: Event) {
        let before = self.tree.phase;
        let tree = std::mem::replace(&mut self.tree, Tree::new(Plan { stages: vec![], services: vec![], ..plan() }));
        let (tree, actions) = tree.step(event, self.now);
        self.tree = tree;
        if stopping(self.tree.phase) && self.stop_asked_at.is_none() {
            self.stop_asked_at = Some(self.now);
        }
        for action in actions {
            self.act(action);
        }
        self.check(before, event);
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
                assert!(id == POSTGRES || intent == Intent::Hold || self.migrated, "a worker before the migrations");
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
            Action::Enter(phase) => self.entered = phase,
        }
    }

    fn signal(&mut self, id: ServiceId, rung: Rung) {
        if id == POSTGRES {
            assert!(!rung.group, "the postmaster's backends were signalled");
            let stopping = matches!(self.entered, Phase::Stopping { .. });
            let workers_gone = WORKERS.iter().all(|worker| !self.processes.contains_key(worker));
            assert!(!stopping || workers_gone, "PostgreSQL was stopped under its workers");
        }
        self.processes.get_mut(&id).expect("a signal to nobody").told = Some(rung.signal);
    }

    fn check(&self, before: Phase, event: Event) {
        let phase = self.tree.phase;
        if self.tree.is_ready() {
            assert_eq!(phase, Phase::Serving);
            assert!(self.processes.contains_key(&POSTGRES), "ready without PostgreSQL");
            assert!(self.migrated, "ready without the migrations");
        }
        for (index, child) in self.tree.children.iter().enumerate() {
            let id = ServiceId(index);
            let real = self.processes.get(&id).map(|process| process.pid);
            assert_eq!(child.pid(), real, "{id:?} is {:?} after {event:?} in {before:?}", child.state);
        }
        if stopping(before) {
            assert!(stopping(phase), "a stop was taken back by {event:?}");
        }
        if matches!(phase, Phase::Stopped { .. }) {
            assert!(self.processes.is_empty(), "stopped, but {:?} live", self.processes);
            assert!(self.spawns_due.is_empty() && self.job.is_none(), "stopped with work under way");
        }
        if let Some(asked_at) = self.stop_asked_at
            && !matches!(phase, Phase::Stopped { .. })
        {
            assert!(self.now <= asked_at + self.tree.plan.stop_limit(), "the stop is over its ladder in {phase:?}");
        }
    }

    /// Let something happen that could happen now.
    fn happen(&mut self) {
        // A spawn in progress ends before anything else: the shell's fork takes no model time.
        if let Some((id, intent)) = self.spawns_due.pop_first() {
            self.spawned(id, intent);
            return;
        }
        match self.random.random_range(0..100) {
            0..15 => self.pass_time(),
            15..35 => self.job_ends(),
            35..65 => self.child_says(),
            65..85 => self.child_dies(),
            85..88 => self.feed(Event::Stop),
            _ => self.late_words(),
        }
    }

    fn spawned(&mut self, id: ServiceId, intent: Intent) {
        if self.random.random_bool(0.02) {
            self.feed(Event::Service(id, state::Event::SpawnFailed));
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
        let event = if self.random.random_bool(0.85) { state::Event::Ready } else { state::Event::Hung };
        self.feed(Event::Service(id, event));
    }

    fn child_dies(&mut self) {
        let Some((id, process)) = self.any() else { return };
        // One that was told nothing seldom dies by itself.
        if process.told.is_none() && self.random.random_bool(0.6) {
            return;
        }
        let unstartable = process.released && self.random.random_bool(0.03);
        self.dies(id, if unstartable { Ending::Unstartable } else { Ending::Ended });
    }

    fn dies(&mut self, id: ServiceId, ending: Ending) {
        self.processes.remove(&id);
        self.feed(Event::Service(id, state::Event::Exited(ending)));
    }

    /// Messages that arrive late, twice, or for nobody.
    fn late_words(&mut self) {
        let id = ServiceId(self.random.random_range(0..3));
        match self.random.random_range(0..5) {
            0 if self.tree.children[id.0].state != state::State::GaveUp => {
                self.feed(Event::Service(id, state::Event::Hung));
            }
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

/// Run one history to its end; returns why it ended and whether it ever served.
fn history(seed: u64) -> (Cause, bool) {
    let mut world = World::new(seed);
    let mut served = false;
    world.feed(Event::Begin);
    for step in 0.. {
        if let Phase::Stopped { cause } = world.tree.phase {
            return (cause, served);
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
    let (mut asked, mut gave_up, mut failed, mut served) = (0, 0, 0, 0);
    for seed in (0..HISTORIES).map(|n| first.wrapping_add(n)) {
        let outcome = std::panic::catch_unwind(|| history(seed));
        match outcome.unwrap_or_else(|_| panic!("history with seed {seed} broke an invariant")) {
            (Cause::Asked, ready) => (asked += 1, served += u64::from(ready)).0,
            (Cause::GaveUp(_), ready) => (gave_up += 1, served += u64::from(ready)).0,
            (Cause::JobFailed(_), _) => failed += 1,
        }
    }
    println!("{asked} stopped as asked, {gave_up} gave up, {failed} failed to boot; {served} served");
    // A simulation that never gets anywhere would pass every check.
    for (kind, count) in [("asked", asked), ("gave up", gave_up), ("job failed", failed), ("served", served)] {
        assert!(count > HISTORIES / 100, "only {count} histories: {kind}");
    }
}
