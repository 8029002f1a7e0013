//! What happens in the model world: at random, or, in a calm, as well as it can.

use std::time::Duration;

use rand::RngExt;

use super::plans::plan;
use super::world::{Process, World, is_stopping};
use crate::policy::Signal;
use crate::state::{ChildEvent, Ending, Generation, ProcessEvent, State};
use crate::tree::{Member, Role, RollId, Scope, ServiceId, TreeEvent, TreePhase};

/// Steps within which a world in which all goes well must have come to rest.
const CALM_STEPS: usize = 2_000;

impl World {
    /// Let something happen that could happen now.
    pub fn happen(&mut self) {
        if let Some(answer) = self.answers.pop_front() {
            self.feed(answer);
            return;
        }
        // A tree that serves is asked for things; one that boots is first of all to get there.
        let asked = if self.phase() == TreePhase::Serving { 12 } else { 2 };
        match self.random.random_range(0..100 + asked) {
            0..15 => self.pass_time(),
            15..32 => self.job_ends(),
            32..52 => self.process_comes(),
            52..78 => self.process_says(),
            78..90 => self.process_dies(),
            90 => self.feed(TreeEvent::Stop),
            91..100 => self.late_words(),
            _ => self.operate(),
        }
    }

    /// A person or the platform asks for something.
    fn operate(&mut self) {
        let (id, count) = (ServiceId(self.random.random_range(0..6)), self.random.random_range(1..5));
        match self.random.random_range(0..32) {
            0..12 => self.roll(Scope::All),
            12..16 => self.roll(Scope::One(id)),
            16..24 => self.scale(count),
            24..27 => self.replan(),
            27 => self.feed(TreeEvent::HookFailed),
            _ => self.feed(TreeEvent::Service(id, ChildEvent::Restart)),
        }
    }

    fn roll(&mut self, scope: Scope) {
        self.rolls += 1;
        let id = RollId(self.rolls);
        self.asked.insert(id);
        self.feed(TreeEvent::Roll(id, scope));
    }

    /// As the shell does it: the plan for so many workers first.
    fn scale(&mut self, count: usize) {
        if self.phase() == TreePhase::Serving && !self.kind.errand {
            self.wanted = count;
            self.feed(TreeEvent::Replan(Box::new(plan(self.kind, self.preload, count).0)));
            self.feed(TreeEvent::Scale(count));
        } else {
            self.feed(TreeEvent::Scale(count));
        }
    }

    fn replan(&mut self) {
        self.preload = self.random.random_bool(0.5);
        self.feed(TreeEvent::Replan(Box::new(plan(self.kind, self.preload, self.wanted).0)));
    }

    fn of(&mut self, id: ServiceId, generation: Generation, about: ProcessEvent) {
        self.feed(TreeEvent::Service(id, ChildEvent::Process(generation, about)));
    }

    /// A process that was asked for is there, or cannot be.
    fn process_comes(&mut self) {
        let count = self.spawns.len();
        if count == 0 {
            return;
        }
        let nth = self.random.random_range(0..count);
        let Some((&id, &spawn)) = self.spawns.iter().nth(nth) else { return };
        if spawn.hangs {
            return;
        }
        self.spawns.remove(&id);
        let about = if self.random.random_ratio(1, 50) {
            ProcessEvent::SpawnFailed(self.ending(true))
        } else {
            ProcessEvent::Spawned(self.born(id, spawn))
        };
        self.of(id, spawn.generation, about);
    }

    fn pass_time(&mut self) {
        let jump = Duration::from_millis(self.random.random_range(1..8000));
        let due = self.tree().deadline().unwrap_or(Duration::MAX).max(self.now);
        self.advance((self.now + jump).min(due));
    }

    /// Let it be `until`, unless a process that was killed is gone before.
    fn advance(&mut self, until: Duration) {
        let gone = self.processes.iter().filter_map(|(&id, process)| Some((process.gone_at?, id))).min();
        match gone {
            Some((at, id)) if at <= until => {
                self.now = at.max(self.now);
                self.dies(id, Ending::Ended);
            }
            _ => {
                self.now = until;
                self.feed(TreeEvent::Tick);
            }
        }
    }

    fn job_ends(&mut self) {
        let well = !self.random.random_ratio(1, 20);
        self.job_done(well);
    }

    fn any(&mut self) -> Option<(ServiceId, Process)> {
        let count = self.processes.len();
        if count == 0 {
            return None;
        }
        let nth = self.random.random_range(0..count);
        self.processes.iter().nth(nth).map(|(&id, &process)| (id, process))
    }

    fn process_says(&mut self) {
        let Some((id, process)) = self.any() else { return };
        if !process.released {
            return;
        }
        match self.random.random_range(0..100) {
            0..20 if process.told == Some(Signal::Retire) => self.says_that_it_leaves(id, process),
            0..2 if process.ready => self.leaves_by_itself(id, process),
            0..88 => self.says_ready(id, process),
            88..97 => self.says_hung(id, process),
            _ => self.of(id, process.generation, ProcessEvent::Unfit),
        }
    }

    fn says_ready(&mut self, id: ServiceId, process: Process) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.ready = process.told.is_none();
        }
        self.of(id, process.generation, ProcessEvent::Ready);
    }

    fn says_hung(&mut self, id: ServiceId, process: Process) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.ready = false;
        }
        self.of(id, process.generation, ProcessEvent::Hung);
    }

    /// A worker that was told to leave says that it accepts no more, and then that it has no requests left.
    fn says_that_it_leaves(&mut self, id: ServiceId, process: Process) {
        let about = if process.closed { ProcessEvent::Drained } else { ProcessEvent::Closed };
        if let Some(process) = self.processes.get_mut(&id) {
            (process.closed, process.drained) = (true, process.closed);
        }
        self.of(id, process.generation, about);
    }

    /// As one whose application has closed the socket, or sent it a signal.
    fn leaves_by_itself(&mut self, id: ServiceId, process: Process) {
        if let Some(process) = self.processes.get_mut(&id) {
            (process.closed, process.ready, process.told) = (true, false, Some(Signal::Term));
        }
        self.of(id, process.generation, ProcessEvent::Closed);
    }

    fn process_dies(&mut self) {
        let Some((id, process)) = self.any() else { return };
        // One that was told nothing seldom dies by itself, and what SIGKILL does not end ends by nothing else.
        // One that finishes its requests does not end before.
        let drains = process.told == Some(Signal::Retire) && !process.drained;
        let stays = drains || process.told.is_none() && self.random.random_bool(0.6);
        if stays || process.told == Some(Signal::Kill) && process.gone_at.is_none_or(|at| at > self.now) {
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
        if let Some(process) = self.processes.remove(&id) {
            let abandoned = self.tree().members.get(&id).is_some_and(|member| member.child.is_abandoned());
            self.seen.gone_after_all |= abandoned;
            self.of(id, process.generation, ProcessEvent::Exited(ending));
        }
    }

    /// Events that come late, twice, or for no service.
    fn late_words(&mut self) {
        let id = ServiceId(self.random.random_range(0..8));
        match self.random.random_range(0..8) {
            0..3 => self.late_word_of_a_process(id),
            3 => {
                if let Some(job) = self.job_before {
                    self.feed_late(TreeEvent::JobSucceeded(job));
                    self.feed_late(TreeEvent::JobFailed(job));
                }
            }
            4 => self.feed(TreeEvent::HookEnded),
            5 => self.feed_late(TreeEvent::Begin),
            _ => self.feed(TreeEvent::Tick),
        }
    }

    /// A former process speaks, or one of a service that is gone.
    fn late_word_of_a_process(&mut self, id: ServiceId) {
        let current = self.tree().members.get(&id).map_or(1, |member| member.child.generation.0);
        let Some(former) = current.checked_sub(1) else { return };
        let about = match self.random.random_range(0..7) {
            5 => ProcessEvent::Closed,
            6 => ProcessEvent::Drained,
            0 => ProcessEvent::Ready,
            1 => ProcessEvent::Hung,
            2 => ProcessEvent::Unfit,
            3 => ProcessEvent::SpawnFailed(Ending::Ended),
            _ => ProcessEvent::Exited(Ending::Ended),
        };
        self.feed_late(TreeEvent::Service(id, ChildEvent::Process(Generation(former), about)));
    }

    /// From now on all goes well: what is asked for comes, what is started gets ready, what is killed ends. Then every order
    /// is answered, and the tree comes to what was wanted of it, or has ended.
    pub fn calm(&mut self) {
        for _ in 0..CALM_STEPS {
            if self.is_at_rest() {
                return;
            }
            self.go_well();
        }
        let tree = self.tree();
        let states: Vec<_> = tree.members.iter().map(|(id, it)| (id, it.role, it.child.state)).collect();
        panic!("all goes well, and it comes to nothing: {:?} {states:?}, orders {:?}", tree.phase, self.asked);
    }

    fn is_at_rest(&self) -> bool {
        let tree = self.tree();
        if matches!(tree.phase, TreePhase::Stopped { .. }) {
            return true;
        }
        let workers = self.at.workers.map_or(0, |stage| tree.standing(stage).len());
        let drains =
            |member: &Member| member.role == Role::Retiring && matches!(member.child.state, State::Draining { .. });
        let stands = |member: &Member| member.role == Role::Standing && member.child.is_ready();
        let all = tree.members.values().all(|member| stands(member) || drains(member));
        tree.is_ready() && all && self.asked.is_empty() && workers == if self.kind.errand { 0 } else { self.wanted }
    }

    fn go_well(&mut self) {
        if let Some(answer) = self.answers.pop_front() {
            return self.feed(answer);
        }
        if let Some((&id, &spawn)) = self.spawns.iter().next() {
            self.spawns.remove(&id);
            let pid = self.born(id, spawn);
            return self.of(id, spawn.generation, ProcessEvent::Spawned(pid));
        }
        if self.job.is_some() {
            return self.job_done(true);
        }
        // One that was told to leave finishes its requests, which have no end.
        let drains = |process: &Process| process.told == Some(Signal::Retire) && !process.drained;
        let closing = self.processes.iter().find(|(_, process)| drains(process) && !process.closed);
        if let Some((&id, &process)) = closing {
            return self.says_that_it_leaves(id, process);
        }
        let ending = self.processes.iter().find(|(_, process)| process.told.is_some() && !drains(process));
        if let Some((&id, _)) = ending {
            return self.dies(id, Ending::Ended);
        }
        let is_quiet = |process: &Process| process.released && !process.ready && process.told.is_none();
        let quiet = self.processes.iter().find(|(_, process)| is_quiet(process));
        if let Some((&id, &process)) = quiet.filter(|_| !is_stopping(self.phase())) {
            return self.says_ready(id, process);
        }
        let due = self.tree().deadline().unwrap_or(self.now);
        self.advance(due.max(self.now));
    }
}
