//! The life of a process that runs our Python, from its pid to its exit: its gate, what it says, how it ended.
//!
//! One [`Life`] has one process after the other. Where those come from is not its concern: spawned, or forked off a
//! template.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use nix::sys::signal::Signal as OsSignal;

use super::gate::Gate;
use super::notify::{Message, Notice, NotifySocket};
use crate::health::picture::Counts;
use crate::plan::{Ladder, Signal};
use crate::process::{self, Child, Exit, Output, oom};
use crate::service::{self, ProcessReporter, Reporter, Tail};
use crate::supervise::plan::ServiceId;
use crate::supervise::state::{ChildAction, Ending, Generation, Intent};

/// How long output of a process that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// The processes that may speak on the notify socket, by pid.
#[derive(Clone, Default)]
pub struct Roster(Rc<RefCell<HashMap<i32, Life>>>);

impl Roster {
    /// The life that a message of process `pid` is about: its own, or that of the service whose process group it is in,
    /// for a server's own children may speak for it.
    fn of(&self, pid: i32) -> Option<Life> {
        let lives = self.0.borrow();
        lives.get(&pid).or_else(|| lives.get(&process::group_of(pid)?)).cloned()
    }

    /// Every process that is there.
    pub fn lives(&self) -> Vec<Life> {
        self.0.borrow().values().cloned().collect()
    }

    /// What the worker with this pid last told of itself.
    pub fn counts(&self, pid: i32) -> Option<Counts> {
        self.0.borrow().get(&pid).and_then(Life::counts)
    }
}

/// A cheap handle; its clones are the same life.
#[derive(Clone)]
pub struct Life(Rc<Inner>);

struct Inner {
    name: String,
    roster: Roster,
    reporter: Reporter,
    tail: Tail,
    pid: Cell<Option<i32>>,
    /// Speaks for the process that is there.
    process: RefCell<Option<ProcessReporter>>,
    ready: Cell<bool>,
    counts: Cell<Option<Counts>>,
    last_exit: Cell<Option<Exit>>,
    /// It said why the application cannot be imported.
    import_error: RefCell<Option<String>>,
    began: Cell<Option<Instant>>,
    /// When it last said that its event loop turns, if it ever did.
    heartbeat: Cell<Option<Instant>>,
    /// How long it may say nothing, as it was told when it was started.
    watchdog: Cell<Option<Duration>>,
    /// Why the process is ended, where that is not its own doing.
    noted: RefCell<Option<String>>,
    last_reason: RefCell<Option<String>>,
    /// Kept as the lifeline, after the gate was opened too; another server's process has none.
    gate: RefCell<Option<Gate>>,
    /// The gate is to be opened as soon as there is one.
    released: Cell<bool>,
}

impl Life {
    /// The service called `name`, with no process yet.
    pub fn new(name: String, roster: Roster, reporter: Reporter) -> Self {
        Self(Rc::new(Inner {
            name,
            roster,
            reporter,
            tail: Tail::default(),
            pid: Cell::default(),
            process: RefCell::default(),
            ready: Cell::default(),
            counts: Cell::default(),
            last_exit: Cell::default(),
            import_error: RefCell::default(),
            began: Cell::default(),
            heartbeat: Cell::default(),
            watchdog: Cell::default(),
            noted: RefCell::default(),
            last_reason: RefCell::default(),
            gate: RefCell::default(),
            released: Cell::default(),
        }))
    }

    /// As [`Life::new`], for processes that are told to speak up within `watchdog`.
    pub fn watched(self, watchdog: Option<Duration>) -> Self {
        self.0.watchdog.set(watchdog);
        self
    }

    /// How long the process may say nothing; a new configuration reaches only those that come after it.
    pub fn watchdog(&self) -> Option<Duration> {
        self.0.watchdog.get()
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What the process last told of itself.
    pub fn counts(&self) -> Option<Counts> {
        self.0.counts.get()
    }

    /// How the last process ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.0.last_exit.get()
    }

    /// Whether the last process said that its application cannot be imported.
    pub fn is_unstartable(&self) -> bool {
        self.0.import_error.borrow().is_some()
    }

    /// Why the last process could not import its application, if it said so.
    pub fn import_error(&self) -> Option<String> {
        self.0.import_error.borrow().clone()
    }

    /// The process, if there is one.
    pub fn pid(&self) -> Option<i32> {
        self.0.pid.get()
    }

    /// The service whose process it is.
    pub fn service(&self) -> ServiceId {
        self.0.reporter.id()
    }

    /// How long the process has been there.
    pub fn age(&self) -> Duration {
        self.0.began.get().map(|began| began.elapsed()).unwrap_or_default()
    }

    /// When it last said that its event loop turns; `None` if it never did.
    pub fn heartbeat(&self) -> Option<Instant> {
        self.0.heartbeat.get()
    }

    /// Take its silence until now for nothing: it was this process that did not listen.
    pub fn forgive(&self) {
        if self.0.heartbeat.get().is_some() {
            self.0.heartbeat.set(Some(Instant::now()));
        }
    }

    /// It does not answer.
    pub fn hangs(&self) {
        // Report a hang once per process; later notices from it are ignored.
        self.0.heartbeat.set(None);
        self.0.ready.set(false);
        self.say(ProcessReporter::hung);
    }

    /// Whether there is a process, and it said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.0.ready.get()
    }

    /// Why the last process ended, or was replaced: in somebody's words, or as its exit.
    pub fn last_reason(&self) -> Option<String> {
        self.0.last_reason.borrow().clone()
    }

    /// Note that the process before this one was replaced, and why.
    pub fn replaced(&self, reason: String) {
        *self.0.last_reason.borrow_mut() = Some(reason);
    }

    /// Note why the process that is there now is ended or replaced.
    pub fn note(&self, reason: String) {
        *self.0.noted.borrow_mut() = Some(reason);
    }

    /// Why the process that is there now is ended or replaced, if anybody noted it.
    pub fn noted(&self) -> Option<String> {
        self.0.noted.borrow().clone()
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }

    /// The process is there: report it, open its gate where `intent` says so, forward what it prints, report its end.
    ///
    /// Must be called in the turn of the event loop in which the process was started or adopted, or its first notice may
    /// be taken for a stranger's.
    pub fn begin(&self, of: (Generation, Intent), child: Child, output: Output, gate: Option<Gate>) {
        let (inner, pid) = (&self.0, child.pid());
        let (reporter, intent) = (inner.reporter.of(of.0), of.1);
        oom::take_first(pid);
        inner.pid.set(Some(pid));
        inner.import_error.take();
        inner.noted.take();
        inner.counts.set(None);
        inner.heartbeat.set(None);
        inner.began.set(Some(Instant::now()));
        *inner.gate.borrow_mut() = gate;
        inner.roster.0.borrow_mut().insert(pid, self.clone());
        *inner.process.borrow_mut() = Some(reporter.clone());
        reporter.spawned(pid);
        if intent != Intent::Hold || inner.released.take() {
            self.release();
        }
        let life = self.clone();
        tokio::task::spawn_local(async move {
            let exit = service::attend(child, output, &life.0.name, &life.0.tail, OUTPUT_LIMIT).await;
            // The notices of a process that has ended are in the socket before its end is known: let them be read.
            tokio::task::yield_now().await;
            life.end(pid, exit, &reporter);
        });
    }

    fn end(&self, pid: i32, exit: Exit, reporter: &ProcessReporter) {
        let inner = &self.0;
        inner.roster.0.borrow_mut().remove(&pid);
        inner.pid.set(None);
        inner.process.take();
        let was_well = inner.ready.take();
        inner.released.set(false);
        inner.gate.borrow_mut().take();
        // What it left in its group must not outlive it.
        process::signal_group(pid, OsSignal::SIGKILL);
        tracing::debug!({ service.name = %inner.name, process.pid = pid }, "ended: {exit}");
        inner.last_exit.set(Some(exit));
        // What it was to be replaced for is not what ended it, unless it was told to.
        let reason = inner.noted.take().filter(|_| !was_well);
        *inner.last_reason.borrow_mut() = Some(reason.unwrap_or_else(|| why(exit)));
        let ending = if self.is_unstartable() { Ending::Unstartable } else { Ending::Ended };
        reporter.exited(ending);
    }

    /// There is no process of this generation, and why.
    pub fn fail(&self, generation: Generation, error: &io::Error) {
        tracing::error!({ service.name = %self.0.name }, "start: {error}");
        self.0.released.set(false);
        self.0.reporter.of(generation).failed(Ending::Ended);
    }

    /// The start of a process of this generation was broken off: say so, unless it is there all the same.
    pub fn cancelled(&self, generation: Generation) {
        if self.0.pid.get().is_none() {
            self.0.released.set(false);
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
                }
                // One that leaves is not looked after any more: its ladder does that.
                self.0.ready.set(false);
                if self.0.pid.get() == Some(pid) {
                    service::signal(pid, rung);
                }
            }
            ChildAction::Restart(delay) => {
                let cause = self.last_reason().unwrap_or_else(|| "could not be started".into());
                tracing::warn!({ service.name = %name }, "ended: {cause}; restart {}", service::after(delay));
            }
            ChildAction::GiveUp if self.is_unstartable() => tracing::error!({ service.name = %name }, "cannot start"),
            ChildAction::GiveUp => tracing::error!({ service.name = %name }, "failed too often, gives up"),
        }
    }

    fn release(&self) {
        match self.0.gate.borrow_mut().as_mut().map(Gate::open) {
            Some(Ok(())) => {}
            // The process is gone already; its end is on the way.
            Some(Err(error)) => tracing::debug!({ service.name = %self.0.name }, "open gate: {error}"),
            None => self.0.released.set(true),
        }
    }

    /// It said that it is ready, or was found to be.
    pub fn became_ready(&self) {
        self.0.ready.set(true);
        self.say(ProcessReporter::ready);
    }

    /// Report something of the process that is there.
    fn say(&self, what: impl Fn(&ProcessReporter)) {
        if let Some(process) = &*self.0.process.borrow() {
            what(process);
        }
    }

    fn hear(&self, message: Message) {
        match message {
            Message::Ready => self.became_ready(),
            // Not armed before it is ready: an import may take its time.
            Message::Watchdog if self.is_ready() => self.0.heartbeat.set(Some(Instant::now())),
            Message::Counts(counts) => self.0.counts.set(Some(counts)),
            Message::ImportError(text) => *self.0.import_error.borrow_mut() = Some(text),
            Message::ForkUnsafe(findings) => tracing::warn!(
                { service.name = %self.0.name },
                "the application is not safe to fork: its import leaves behind {}. Workers share connections, and have \
                 none of the threads: open and start them in the application's startup (its lifespan)",
                findings.join(", ")
            ),
            Message::Watchdog | Message::Stopping | Message::Other(_) => {}
        }
    }
}

/// How a process ended, and whose doing it was where that can be told.
fn why(exit: Exit) -> String {
    if exit == Exit::Signal(OsSignal::SIGKILL as i32) && oom::has_killed() {
        return format!("{exit}, by the kernel, for want of memory (raise the limit, or set workers.max_memory)");
    }
    exit.to_string()
}

/// Hand what processes say to their lives, for ever.
///
/// An import error is logged once however many processes run into it, and again only after one of them got ready.
pub async fn listen(socket: NotifySocket, roster: Roster) {
    let mut import_error = String::new();
    loop {
        let Notice { pid, messages } = match socket.recv().await {
            Ok(notice) => notice,
            Err(error) => {
                tracing::error!("the notify socket broke, workers cannot say that they are ready: {error}");
                return;
            }
        };
        let Some(life) = roster.of(pid) else { continue };
        for message in messages {
            match &message {
                Message::Ready => import_error.clear(),
                Message::ImportError(text) if *text != import_error => {
                    tracing::error!("the application cannot be imported:\n{}", text.trim_end());
                    import_error.clone_from(text);
                }
                _ => {}
            }
            life.hear(message);
        }
    }
}
