//! The life of a service whose processes run our Python, or are another server's workers: each process from its pid to its
//! exit, its gate, what it says of itself, how it ended.
//!
//! One [`Life`] has one process after the other. It does not know whether a process was spawned or forked off a template.

mod failure;
mod leaving;
mod notices;
mod roster;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use nix::sys::signal::Signal as OsSignal;

use super::gate::Gate;
use super::notify::{NotifySocket, StartError, StartErrorKind};
use super::slot;
use crate::event_loop;
use crate::exit::own_limit;
use crate::http::{Counts, Unfinished};
use crate::plan::{Ladder, Signal};
use crate::process::{self, Child, Exit, Output, oom};
use crate::service::{self, ProcessReporter, Reporter, Tail};
use crate::supervise::plan::ServiceId;
use crate::supervise::state::{ChildAction, Ending, Generation, Intent};

pub use failure::{Failure, WhyReplaced};
pub use roster::{EndedWorker, Roster};

/// How long output of a process that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// A process that was just started, and what leads to it.
#[derive(Debug)]
pub struct Started {
    pub child: Child,
    pub output: Output,
    /// Where our Python waits; another server has none.
    pub gate: Option<Gate>,
    /// Where it speaks of itself; another server may have none.
    pub notify: Option<NotifySocket>,
}

/// A cheap handle; its clones are the same life.
#[derive(Clone)]
pub struct Life(Rc<Inner>);

struct Inner {
    name: String,
    kind: Kind,
    roster: Roster,
    reporter: Reporter,
    tail: Tail,
    current: RefCell<Current>,
    previous: RefCell<Previous>,
}

/// What the processes are.
#[derive(Clone, Copy)]
enum Kind {
    /// `watchdog`: how long one may say nothing, as it is told when it is started.
    Worker {
        slot: usize,
        watchdog: Option<Duration>,
    },
    Template,
}

/// What there is of the service now.
enum Current {
    /// No process. `released`: the next one's gate is to be opened as soon as there is one.
    Absent {
        released: bool,
    },
    Present(Box<Process>),
}

struct Process {
    pid: i32,
    reporter: ProcessReporter,
    began: Instant,
    standing: Standing,
    counts: Option<Counts>,
    /// What it has still to finish, once it accepts no more.
    unfinished: Option<Unfinished>,
    /// Why it is ended or replaced, where that is not its own doing.
    noted: Option<String>,
    /// The same in one word, where it was to be replaced.
    why_replaced: WhyReplaced,
    /// Whether it did not answer, or did not get ready in time.
    is_late: Option<Failure>,
    /// How often it said that it is not safe to fork.
    unsafe_count: usize,
    /// Kept as the lifeline, after the gate was opened too.
    gate: Option<Gate>,
    /// Where it speaks, and hears orders.
    notify: Option<Rc<NotifySocket>>,
}

/// How far a process has come.
#[derive(Clone, Copy)]
enum Standing {
    /// It has not said that it is ready.
    Starting,
    /// `heartbeat`: when it last said that its event loop turns, if it ever did.
    Ready { heartbeat: Option<Instant> },
    /// It does not answer. That is reported once; later notices from it are ignored.
    Hung,
    /// Another has taken over, and it has time: that its event loop turns is still looked after.
    Retiring { heartbeat: Option<Instant> },
    /// It is being ended, and its ladder looks after it.
    Leaving { was_ready: bool },
}

impl Standing {
    /// Whether it never got ready.
    fn is_start(self) -> bool {
        matches!(self, Self::Starting | Self::Leaving { was_ready: false })
    }
}

/// What is remembered of the last process.
#[derive(Default)]
struct Previous {
    exit: Option<Exit>,
    /// In one word how it failed.
    failure: Failure,
    /// Why it ended or was replaced: the reason that was noted, else its exit.
    reason: Option<String>,
    /// Why it could not serve, if it said so.
    start_error: Option<StartError>,
}

impl Life {
    /// The worker in `slot`, with no process yet. Each of its processes is told to speak up within `watchdog`.
    pub fn of_worker(slot: usize, watchdog: Option<Duration>, roster: Roster, reporter: Reporter) -> Self {
        Self::new(slot::name(slot), Kind::Worker { slot, watchdog }, roster, reporter)
    }

    /// The template, called `name`, with no process yet.
    pub fn of_template(name: String, roster: Roster, reporter: Reporter) -> Self {
        Self::new(name, Kind::Template, roster, reporter)
    }

    fn new(name: String, kind: Kind, roster: Roster, reporter: Reporter) -> Self {
        Self(Rc::new(Inner {
            name,
            kind,
            roster,
            reporter,
            tail: Tail::default(),
            current: RefCell::new(Current::Absent { released: false }),
            previous: RefCell::default(),
        }))
    }

    pub fn is_worker(&self) -> bool {
        matches!(self.0.kind, Kind::Worker { .. })
    }

    /// How long the process may say nothing; a new configuration reaches only those that come after it.
    pub fn watchdog(&self) -> Option<Duration> {
        match self.0.kind {
            Kind::Worker { watchdog, .. } => watchdog,
            Kind::Template => None,
        }
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What `look` sees of the process, if there is one.
    fn of_process<T>(&self, look: impl FnOnce(&mut Process) -> T) -> Option<T> {
        match &mut *self.0.current.borrow_mut() {
            Current::Present(process) => Some(look(process)),
            Current::Absent { .. } => None,
        }
    }

    /// What the process last told of itself.
    pub fn counts(&self) -> Option<Counts> {
        self.of_process(|process| process.counts).flatten()
    }

    /// How the last process ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.0.previous.borrow().exit
    }

    /// Whether the last process said that its application cannot be imported.
    pub fn is_unstartable(&self) -> bool {
        self.start_error().is_some_and(|error| error.kind == StartErrorKind::Import)
    }

    /// Why the last process could not serve, if it said so.
    pub fn start_error(&self) -> Option<StartError> {
        self.0.previous.borrow().start_error.clone()
    }

    /// The process, if there is one.
    pub fn pid(&self) -> Option<i32> {
        self.of_process(|process| process.pid)
    }

    /// The service whose process it is.
    pub fn service(&self) -> ServiceId {
        self.0.reporter.id()
    }

    /// How long the process has been there.
    pub fn age(&self) -> Duration {
        self.of_process(|process| process.began.elapsed()).unwrap_or_default()
    }

    /// When it last said that its event loop turns; `None` if it is not ready, or never did.
    pub fn heartbeat(&self) -> Option<Instant> {
        self.of_process(|process| match process.standing {
            Standing::Ready { heartbeat } | Standing::Retiring { heartbeat } => heartbeat,
            Standing::Starting | Standing::Hung | Standing::Leaving { .. } => None,
        })
        .flatten()
    }

    /// Take its silence until now for nothing: Tandem did not listen, or something that it said may have been lost.
    pub fn forgive(&self) {
        self.of_process(|process| {
            if let Standing::Ready { heartbeat } | Standing::Retiring { heartbeat } = &mut process.standing
                && heartbeat.is_some()
            {
                *heartbeat = Some(Instant::now());
            }
        });
    }

    /// Report that the process does not answer.
    pub fn report_hang(&self) {
        self.of_process(|process| {
            process.standing = Standing::Hung;
            process.is_late = Some(Failure::Hung);
            process.reporter.hung();
        });
    }

    /// Whether there is a process that said that it is ready, and nothing speaks against it since.
    pub fn is_ready(&self) -> bool {
        self.of_process(|process| matches!(process.standing, Standing::Ready { .. })).unwrap_or_default()
    }

    /// Why the last process ended or was replaced: the reason that was noted, else its exit.
    pub fn last_reason(&self) -> Option<String> {
        self.0.previous.borrow().reason.clone()
    }

    /// Note that the process before this one was replaced, and why.
    pub fn replaced(&self, reason: String) {
        self.0.previous.borrow_mut().reason = Some(reason);
    }

    /// Note why the process that is there now is ended or replaced.
    pub fn note(&self, reason: String) {
        self.of_process(|process| process.noted = Some(reason));
    }

    /// Why the process that is there now is ended or replaced, if that was noted.
    pub fn noted(&self) -> Option<String> {
        self.of_process(|process| process.noted.clone()).flatten()
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }

    /// The process is there: report it, open its gate where `intent` says so, hear what it says, forward what it prints,
    /// report its end.
    pub fn begin(&self, started: Started, (generation, intent): (Generation, Intent)) {
        let Started { child, output, gate, notify } = started;
        let (inner, pid) = (&self.0, child.pid());
        let reporter = inner.reporter.of(generation);
        oom::take_first(pid);
        inner.previous.borrow_mut().start_error = None;
        let notify = notify.map(Rc::new);
        let process = Process {
            pid,
            reporter: reporter.clone(),
            began: Instant::now(),
            standing: Standing::Starting,
            counts: None,
            unfinished: None,
            noted: None,
            why_replaced: WhyReplaced::default(),
            is_late: None,
            unsafe_count: 0,
            gate,
            notify: notify.clone(),
        };
        let before = inner.current.replace(Current::Present(Box::new(process)));
        inner.roster.insert(pid, self.clone());
        reporter.spawned(pid);
        if intent != Intent::Hold || matches!(before, Current::Absent { released: true }) {
            self.release();
        }
        let life = self.clone();
        let listening = notify.as_ref().map(|notify| life.clone().listen(pid, Rc::clone(notify)));
        event_loop::spawn("a worker's life", async move {
            let exit = service::attend_family(child, output, &life.0.name, &life.0.tail, OUTPUT_LIMIT).await;
            if let Some(listening) = listening {
                listening.abort();
            }
            if let Some(notify) = notify {
                // What it said last is in the socket before its end is known. An error of the socket was told before.
                let _ = notify.take(|heard| life.hear(pid, heard));
            }
            life.end(pid, exit, &reporter);
        });
    }

    fn end(&self, pid: i32, exit: Exit, reporter: &ProcessReporter) {
        let inner = &self.0;
        process::take_back(pid);
        let slot = match inner.kind {
            Kind::Worker { slot, .. } => Some(slot),
            Kind::Template => None,
        };
        inner.roster.remove(pid, slot);
        let ended = inner.current.replace(Current::Absent { released: false });
        tracing::debug!({ service.name = %inner.name, process.pid = pid }, "ended: {exit}");
        let is_late = match &ended {
            Current::Present(process) => process.is_late,
            Current::Absent { .. } => None,
        };
        let was_start = matches!(&ended, Current::Present(process) if process.standing.is_start());
        // What it was to be replaced for is not what ended it, unless it was told to.
        let noted = match ended {
            Current::Present(process) if !matches!(process.standing, Standing::Ready { .. }) => process.noted,
            Current::Present(_) | Current::Absent { .. } => None,
        };
        let ending = {
            let mut last = inner.previous.borrow_mut();
            last.exit = Some(exit);
            let start_failed = last.start_error.is_some().then_some(Failure::StartError);
            // Asked once: the kernel's count has grown for one death.
            let how = Failure::of(exit);
            last.failure = is_late.or(start_failed).unwrap_or(how);
            last.reason = Some(noted.unwrap_or_else(|| why(exit, how)));
            let kind = last.start_error.as_ref().map(|error| error.kind);
            if was_start && inner.roster.lacks_database() {
                last.reason = last.reason.take().map(|reason| format!("{reason}, while the database is away"));
                Ending::Starved
            } else if kind == Some(StartErrorKind::Import) {
                Ending::Unstartable
            } else {
                Ending::Ended
            }
        };
        reporter.exited(ending);
    }

    /// There is no process of this generation, and why.
    pub fn fail(&self, generation: Generation, error: &io::Error) {
        let whose = own_limit(error).map(|whose| format!(": {whose}")).unwrap_or_default();
        tracing::error!({ service.name = %self.0.name }, "start: {error}{whose}");
        self.0.current.replace(Current::Absent { released: false });
        self.0.previous.borrow_mut().failure = Failure::NotStarted;
        self.0.reporter.of(generation).failed(Ending::Ended);
    }

    /// The start of a process of this generation was broken off: say so, unless it is there all the same.
    pub fn cancelled(&self, generation: Generation) {
        if self.pid().is_none() {
            self.0.current.replace(Current::Absent { released: false });
            self.0.reporter.of(generation).failed(Ending::Ended);
        }
    }

    /// Carry out any action but [`ChildAction::Spawn`].
    pub fn act(&self, action: ChildAction) {
        let name = &self.0.name;
        match action {
            ChildAction::Spawn(..) | ChildAction::Withdraw | ChildAction::Abandon { .. } => {}
            ChildAction::CancelSpawn(generation) => self.cancelled(generation),
            ChildAction::Disown(pid) => process::signal_group(pid, OsSignal::SIGKILL),
            ChildAction::Release => self.release(),
            ChildAction::Signal { pid, rung, ladder, .. } => {
                if ladder == Ladder::Hang && rung.signal == Signal::Abort && self.noted().is_none() {
                    let why = "did not get ready within workers.ready_limit";
                    tracing::error!({ service.name = %name }, "{why}: it is told to show what it does, and ended");
                    self.note(why.into());
                    self.of_process(|process| process.is_late = Some(Failure::NotReady));
                }
                if self.is_to_leave(rung.signal) == Some(pid) {
                    service::signal(pid, rung);
                    self.order(rung.signal);
                }
            }
            ChildAction::Unheard { pid, limit } => self.log_unheard(pid, limit),
            ChildAction::Restart(delay) => {
                let cause = self.last_reason().unwrap_or_else(|| "could not be started".into());
                tracing::warn!({ service.name = %name }, "ended: {cause}; restart {}", service::after(delay));
            }
            ChildAction::GiveUp if self.is_unstartable() => tracing::error!({ service.name = %name }, "cannot start"),
            ChildAction::GiveUp => tracing::error!({ service.name = %name }, "failed too often, gives up"),
        }
    }

    fn release(&self) {
        let opened = match &mut *self.0.current.borrow_mut() {
            Current::Absent { released } => {
                *released = true;
                return;
            }
            Current::Present(process) => process.gate.as_mut().map(Gate::open),
        };
        if let Some(Err(error)) = opened {
            // The process is gone already; its end is on the way.
            tracing::debug!({ service.name = %self.0.name }, "open gate: {error}");
        }
    }

    /// Report that the process is ready: it said so, or was found to be.
    pub fn report_ready(&self) {
        let is_news = self.of_process(|process| {
            let is_news = matches!(process.standing, Standing::Starting);
            if is_news {
                process.standing = Standing::Ready { heartbeat: None };
                process.reporter.ready();
            }
            is_news
        });
        if is_news == Some(true) {
            self.0.roster.forget_start_error();
        }
    }
}

/// How a process ended, with the cause where the kernel shows one.
fn why(exit: Exit, how: Failure) -> String {
    if how == Failure::OutOfMemory {
        return format!("{exit}, by the kernel, for want of memory (raise the limit, or set workers.max_memory)");
    }
    exit.to_string()
}
