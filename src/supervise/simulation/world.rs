//! The model world: which processes really live, and what they really said. It carries out the tree's actions, and checks
//! the invariants after every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::plans::{BUDGET, CLOSE_LIMIT, Kind, Stages, plan};
use crate::policy::{Rung, Signal};
use crate::state::{ChildAction, ChildEvent, Ending, Generation, Intent, Moment, ProcessEvent, State};
use crate::tree::{JobRun, Member, Outcome, Role, RollId, ServiceId, Stage, Tree, TreeAction, TreeEvent, TreePhase};

/// A process of the model world.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub pid: i32,
    pub generation: Generation,
    pub released: bool,
    /// Its last word was that it is ready.
    pub ready: bool,
    /// The last that it was told, and when.
    pub told: Option<Signal>,
    pub told_at: Moment,
    /// It has said that it accepts no more, and that it has no requests left.
    pub closed: bool,
    pub drained: bool,
    /// Once it is killed: when it is gone, if ever.
    pub gone_at: Option<Moment>,
}

/// A process that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Spawn {
    pub generation: Generation,
    pub intent: Intent,
    /// It never comes by itself.
    pub hangs: bool,
}

/// What is really so, whatever the tree believes.
pub struct World {
    pub random: SmallRng,
    pub now: Moment,
    tree: Option<Tree>,
    pub kind: Kind,
    pub at: Stages,
    pub preload: bool,
    /// The phase as of the action being carried out.
    entered: TreePhase,
    pub processes: BTreeMap<ServiceId, Process>,
    pub spawns: BTreeMap<ServiceId, Spawn>,
    /// What the shell says in the turn in which it was asked.
    pub answers: VecDeque<TreeEvent>,
    pub job: Option<JobRun>,
    /// The last job that is over, for late words of it.
    pub job_before: Option<JobRun>,
    migrated: bool,
    /// The services that are told to be ready.
    told_ready: BTreeSet<ServiceId>,
    pid_last: i32,
    /// Rolls asked for and not yet answered.
    pub asked: BTreeSet<RollId>,
    pub rolls: u64,
    /// Those that the roll under way has replaced.
    swapped: BTreeSet<ServiceId>,
    /// How many workers were wanted last.
    pub wanted: usize,
    replanned: bool,
    /// When a stop was asked for, and by when it must have ended.
    stop: Option<(Moment, Moment)>,
    pub seen: Seen,
}

/// What a history has come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub served: bool,
    pub replaced: bool,
    pub abandoned: bool,
    pub cancelled: bool,
    pub gone_after_all: bool,
    pub cut: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let kind = Kind::draw(&mut random);
        let (preload, wanted) = (random.random_bool(0.5), random.random_range(1..4));
        let (plan, at) = plan(kind, preload, wanted);
        Self {
            random,
            now: Duration::ZERO,
            tree: Some(Tree::new(plan)),
            kind,
            at,
            preload,
            entered: TreePhase::Idle,
            processes: BTreeMap::new(),
            spawns: BTreeMap::new(),
            answers: VecDeque::new(),
            job: None,
            job_before: None,
            migrated: false,
            told_ready: BTreeSet::new(),
            pid_last: 100,
            asked: BTreeSet::new(),
            rolls: 0,
            swapped: BTreeSet::new(),
            wanted,
            replanned: false,
            stop: None,
            seen: Seen::default(),
        }
    }

    pub fn tree(&self) -> &Tree {
        self.tree.as_ref().expect("the tree is here between two steps")
    }

    pub fn phase(&self) -> TreePhase {
        self.tree().phase
    }

    /// Let the tree decide about `event`, carry out what it wants, and check what must hold.
    pub fn feed(&mut self, event: TreeEvent) {
        let tree = self.tree.take().expect("the tree is here between two steps");
        let (before, ready) = (tree.phase, ready_slots(&tree, self.at.workers));
        let said = Said::of(&event);
        self.replanned |= matches!(event, TreeEvent::Replan(_));
        let (tree, actions) = tree.step(event, self.now);
        let after = ready_slots(&tree, self.at.workers);
        self.tree = Some(tree);
        // Before it serves, there is nothing that would have to go on.
        let planned =
            said == Said::Roll && before == TreePhase::Serving || matches!(said, Said::Spawned | Said::Ready(_));
        assert!(!planned || ready & after == ready, "readiness was taken from a slot: {ready:b} became {after:b}");
        if is_stopping(self.phase()) && self.stop.is_none() {
            self.begin_stop();
        }
        if let Said::Ready(id) = said
            && self.tree().members.get(&id).is_some_and(|member| member.child.is_ready())
        {
            self.told_ready.insert(id);
        }
        for action in actions {
            self.act(action);
        }
        self.seen.served |= self.phase() == TreePhase::Serving;
        self.check(before);
    }

    /// The stop that is told is the stop that must happen.
    fn begin_stop(&mut self) {
        let (told, planned) = (self.tree().stop_sum(), self.tree().plan.stop_sum());
        assert!(self.replanned || told == planned, "{told:?} is told, and {planned:?} was");
        self.stop = Some((self.now, self.now.saturating_add(told.total())));
    }

    fn act(&mut self, action: TreeAction) {
        let ending = matches!(self.entered, TreePhase::Stopping { .. } | TreePhase::Stopped { .. });
        match action {
            TreeAction::RunJob(job) => {
                assert!(self.job.is_none(), "two jobs at once");
                assert!(self.stop.is_none(), "a job was begun after a stop");
                self.job = Some(job);
            }
            TreeAction::CancelJob(job) => {
                assert_eq!(self.job.take(), Some(job), "a job was cancelled that does not run");
                self.job_before = Some(job);
            }
            TreeAction::Service(id, action) => self.act_on(id, action, ending),
            TreeAction::Add(..) => assert!(!ending, "a service more during the stop"),
            TreeAction::Swapped(new, old) => {
                assert!(self.tree().members[&new].child.is_ready(), "{old:?} leaves before {new:?} is ready");
                self.seen.replaced = true;
                self.swapped.insert(old);
            }
            TreeAction::Cut(id) => self.cut(id),
            TreeAction::Remove(id) => {
                assert!(!self.processes.contains_key(&id), "{id:?} was forgotten while it lives");
                assert!(!self.spawns.contains_key(&id), "{id:?} was forgotten while its process is on its way");
            }
            TreeAction::RollEnded(id, outcome) => {
                assert!(self.asked.remove(&id), "{id:?} was answered twice");
                let swapped = std::mem::take(&mut self.swapped);
                if let Outcome::Done(_) = outcome {
                    let old = swapped.iter().filter_map(|id| self.processes.get(id));
                    let accepts = |old: &Process| {
                        old.told == Some(Signal::Retire) && !old.closed && self.now < old.told_at + CLOSE_LIMIT
                    };
                    assert!(!old.into_iter().any(accepts), "{id:?} is over, and an old worker still accepts");
                }
                if let Outcome::Aborted(failed, _) = outcome {
                    let role = self.tree().members.get(&failed).map(|member| member.role);
                    assert!(role.is_none_or(|role| role == Role::Retiring), "{failed:?} failed and stays as {role:?}");
                }
            }
            TreeAction::Enter(phase) => self.entered = phase,
        }
    }

    fn act_on(&mut self, id: ServiceId, action: ChildAction, ending: bool) {
        match action {
            ChildAction::Spawn(generation, intent) => {
                assert!(!ending, "{id:?} was spawned during the stop");
                assert!(!self.processes.contains_key(&id), "{id:?} was spawned twice");
                let early = Some(self.tree().members[&id].stage) == self.at.postgres || intent == Intent::Hold;
                assert!(early || self.migrated, "a worker before the migrations");
                let spawn = Spawn { generation, intent, hangs: self.random.random_ratio(1, 64) };
                assert!(self.spawns.insert(id, spawn).is_none(), "{id:?} was asked for twice");
            }
            ChildAction::CancelSpawn(generation) => self.cancel(id, generation),
            ChildAction::Release => {
                assert!(self.migrated, "{id:?} was released before the migrations");
                match self.processes.get_mut(&id) {
                    Some(process) => process.released = true,
                    None if self.answers.is_empty() => {
                        self.spawns.get_mut(&id).expect("a gate without a process").intent = Intent::Start;
                    }
                    // Its start was broken off, and the answer is on its way.
                    None => {}
                }
            }
            ChildAction::Signal { pid, rung, .. } => self.signal(id, pid, rung),
            ChildAction::Abandon { pid, .. } => {
                assert_eq!(self.processes.get(&id).map(|process| process.pid), Some(pid), "a stranger is abandoned");
                self.seen.abandoned = true;
            }
            ChildAction::Disown(pid) => panic!("process {pid} of {id:?} was forgotten"),
            ChildAction::Withdraw => assert!(self.told_ready.remove(&id), "{id:?} was not told to be ready"),
            ChildAction::Unheard { pid, limit } => {
                let process = &self.processes[&id];
                assert_eq!((process.pid, process.closed), (pid, false), "it had said so");
                assert!(self.now >= process.told_at + limit, "{id:?} had more time to say so");
            }
            ChildAction::Restart(_) | ChildAction::GiveUp => {}
        }
    }

    /// A drain is cut short only for another worker, and not before its time.
    fn cut(&mut self, id: ServiceId) {
        let (tree, process) = (self.tree(), &self.processes[&id]);
        assert_eq!(tree.phase, TreePhase::Serving);
        assert!(process.closed && !process.drained, "{id:?} does not drain, and is cut");
        let workers = tree.members.values().filter(|member| Some(member.stage) == self.at.workers);
        let standing = workers.clone().filter(|member| member.role == Role::Standing).count();
        let there = workers.filter(|member| member.role == Role::Standing || !member.child.is_over()).count();
        assert!(there >= tree.plan.roll.most.max(standing), "{there} workers: there is room for another");
        self.seen.cut = true;
    }

    /// The shell answers at once; now and then the process had come just before.
    fn cancel(&mut self, id: ServiceId, generation: Generation) {
        self.seen.cancelled = true;
        let Some(spawn) = self.spawns.remove(&id) else {
            panic!("{id:?}: nothing is on its way that could be cancelled");
        };
        assert_eq!(spawn.generation, generation);
        let about = if self.random.random_ratio(1, 4) {
            ProcessEvent::Spawned(self.born(id, spawn))
        } else {
            ProcessEvent::SpawnFailed(Ending::Ended)
        };
        self.answers.push_back(TreeEvent::Service(id, ChildEvent::Process(generation, about)));
    }

    /// The process of `spawn` is there.
    pub fn born(&mut self, id: ServiceId, spawn: Spawn) -> i32 {
        self.pid_last += 1;
        let Spawn { generation, intent, .. } = spawn;
        let (pid, released) = (self.pid_last, intent == Intent::Start);
        let process = Process {
            pid,
            generation,
            released,
            ready: false,
            told: None,
            told_at: Duration::ZERO,
            closed: false,
            drained: false,
            gone_at: None,
        };
        self.processes.insert(id, process);
        pid
    }

    fn signal(&mut self, id: ServiceId, pid: i32, rung: Rung) {
        let member = &self.tree().members[&id];
        let postgres = Some(member.stage) == self.at.postgres;
        if postgres && !member.child.is_abandoned() {
            assert!(!rung.group, "the postmaster's backends were signalled");
            let ending = matches!(self.entered, TreePhase::Stopping { .. });
            let alone =
                self.processes.keys().all(|other| *other == id || self.tree().members[other].child.is_abandoned());
            assert!(!ending || alone, "PostgreSQL was stopped under its workers");
        }
        let (now, luck) = (self.now, self.random.random_range(0..100_u64));
        let process = self.processes.get_mut(&id).expect("a signal to no process");
        assert_eq!(process.pid, pid, "a signal to a stranger");
        (process.told, process.told_at, process.ready) = (Some(rung.signal), now, false);
        if rung.signal == Signal::Kill {
            process.gone_at = match luck {
                // Gone before any time passes.
                0..85 => Some(now),
                // In one to three seconds: it may be abandoned meanwhile.
                85..95 => Some(now + Duration::from_millis(200 * luck - 16_000)),
                _ => None,
            };
        }
    }

    /// A job is over.
    pub fn job_done(&mut self, well: bool) {
        let Some(job) = self.job.take() else { return };
        self.job_before = Some(job);
        if well {
            self.migrated |= Some(job.stage) == self.at.migrate;
            self.feed(TreeEvent::JobSucceeded(job));
        } else {
            self.feed(TreeEvent::JobFailed(job));
        }
    }

    /// Hand the tree an event that comes too late: it must count for nothing.
    pub fn feed_late(&self, event: TreeEvent) {
        let (tree, actions) = self.tree().clone().step(event.clone(), self.now);
        assert!(actions.is_empty(), "{event:?} came late, and led to {actions:?}");
        assert_eq!(tree.phase, self.phase(), "{event:?} came late");
        for (id, member) in &self.tree().members {
            assert_eq!(member.child, tree.members[id].child, "{event:?} came late");
        }
    }

    fn check(&self, before: TreePhase) {
        let (tree, phase) = (self.tree(), self.phase());
        let mut live_workers = 0;
        let mut replacements = 0;
        for (id, member) in &tree.members {
            self.check_member(*id, member);
            if Some(member.stage) == self.at.workers {
                let counts = member.role == Role::Standing || !member.child.is_over();
                live_workers += usize::from(counts);
                replacements += usize::from(member.role == Role::Replacement);
            }
        }
        for id in self.processes.keys().chain(self.spawns.keys()) {
            assert!(tree.members.contains_key(id), "{id:?} lives and is forgotten");
        }
        assert!(live_workers <= BUDGET, "{live_workers} workers, and the budget has room for {BUDGET}");
        assert!(replacements <= tree.plan.roll.surge, "{replacements} replacements at once");
        assert_eq!(tree.is_ready(), self.is_ready(), "what is told of readiness is not so");
        if is_stopping(before) {
            assert!(is_stopping(phase), "a stop was taken back");
        }
        if matches!(phase, TreePhase::Stopped { .. }) {
            let left = self.processes.keys().filter(|id| !tree.members[id].child.is_abandoned()).count();
            assert_eq!(left, 0, "stopped, but {:?} live", self.processes);
            assert!(self.spawns.is_empty() && self.job.is_none(), "stopped with work under way");
            assert!(self.asked.is_empty(), "{:?} were never answered", self.asked);
        } else if let Some((asked_at, limit)) = self.stop {
            assert!(
                self.now <= limit,
                "the stop of {asked_at:?} takes longer than was told: {phase:?} at {:?}",
                self.now
            );
        }
    }

    fn check_member(&self, id: ServiceId, member: &Member) {
        let (child, real) = (&member.child, self.processes.get(&id));
        let state = child.state;
        let pid = real.map(|process| process.pid);
        if self.answers.is_empty() {
            assert_eq!(child.pid(), pid, "{id:?} is {state:?}");
            let spawning = matches!(state, State::Spawning { .. } | State::Cancelling { .. });
            assert_eq!(spawning, self.spawns.contains_key(&id), "{id:?} is {state:?}");
        }
        let ready = real.is_some_and(|process| process.ready);
        assert_eq!(child.is_ready(), ready, "{id:?} is {state:?}, and that is not so");
        assert_eq!(ready, self.told_ready.contains(&id), "{id:?} is {state:?}, and told otherwise");
        if self.phase() == TreePhase::Serving && member.role == Role::Standing {
            let has_future = match state {
                State::Down | State::Held { .. } | State::GaveUp => false,
                State::Ready { .. } => true,
                State::Hung { .. } => child.deadline().is_some() || member.plan.policy.hang_limit.is_none(),
                _ => child.deadline().is_some(),
            };
            assert!(has_future, "{id:?} is {state:?} while the tree serves, and nothing will become of it");
        }
    }

    /// Whether all that is planned is really ready.
    fn is_ready(&self) -> bool {
        let tree = self.tree();
        let stands = |(_, member): &(&ServiceId, &Member)| {
            member.role == Role::Standing && matches!(tree.plan.stages[member.stage], Stage::Services(_))
        };
        let mut standing = tree.members.iter().filter(stands);
        tree.phase == TreePhase::Serving
            && self.migrated
            && standing.all(|(id, _)| self.processes.get(id).is_some_and(|process| process.ready))
    }
}

/// What kind of event is handed to the tree, as far as more is promised of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Roll,
    Spawned,
    Ready(ServiceId),
    Other,
}

impl Said {
    fn of(event: &TreeEvent) -> Self {
        match event {
            TreeEvent::Roll(..) => Self::Roll,
            TreeEvent::Service(_, ChildEvent::Process(_, ProcessEvent::Spawned(_))) => Self::Spawned,
            TreeEvent::Service(id, ChildEvent::Process(_, ProcessEvent::Ready)) => Self::Ready(*id),
            _ => Self::Other,
        }
    }
}

/// The slots with a worker that is ready, a bit each.
fn ready_slots(tree: &Tree, workers: Option<usize>) -> u32 {
    let ready = tree.members.values().filter(|member| Some(member.stage) == workers && member.child.is_ready());
    ready.fold(0, |slots, member| slots | 1 << member.place)
}

pub fn is_stopping(phase: TreePhase) -> bool {
    matches!(phase, TreePhase::Draining { .. } | TreePhase::Stopping { .. } | TreePhase::Stopped { .. })
}
