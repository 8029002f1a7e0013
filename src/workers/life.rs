//! The life of a process that runs our Python, from its pid to its exit: its gate, what it says, how it ended.
//!
//! One [`Life`] has one process after the other. Where those come from is not its concern: spawned, or forked off a
//! template.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal as OsSignal;

use super::gate::Gate;
use super::notify::{Message, Notice, NotifySocket};
use super::pool::Launch;
use crate::health::picture::Counts;
use crate::plan::CommandLine;
use crate::process::{self, Child, Exit, InheritedFd, Output};
use crate::supervise::service::{self, Reporter, Tail};
use crate::supervise::state::{Action, Ending, Event, Intent};

/// How long output of a process that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// The processes that may speak on the notify socket, by pid.
#[derive(Clone, Default)]
pub struct Roster(Rc<RefCell<HashMap<i32, Life>>>);

impl Roster {
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
    ready: Cell<bool>,
    counts: Cell<Option<Counts>>,
    last_exit: Cell<Option<Exit>>,
    /// It said that the application cannot be imported.
    unstartable: Cell<bool>,
    /// Kept as the lifeline, after the gate was opened too.
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
            ready: Cell::default(),
            counts: Cell::default(),
            last_exit: Cell::default(),
            unstartable: Cell::default(),
            gate: RefCell::default(),
            released: Cell::default(),
        }))
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
        self.0.unstartable.get()
    }

    /// Whether there is a process, and it said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.0.ready.get()
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }

    /// The process is there: report it, open its gate where `intent` says so, forward what it prints, report its end.
    ///
    /// Must be called in the turn of the event loop in which the process was started or adopted, or its first notice may
    /// be taken for a stranger's.
    pub fn begin(&self, child: Child, output: Output, gate: Gate, intent: Intent) {
        let (inner, pid) = (&self.0, child.pid());
        inner.pid.set(Some(pid));
        inner.unstartable.set(false);
        inner.counts.set(None);
        *inner.gate.borrow_mut() = Some(gate);
        inner.roster.0.borrow_mut().insert(pid, self.clone());
        inner.reporter.say(Event::Spawned(pid));
        if intent != Intent::Hold || inner.released.take() {
            self.release();
        }
        let life = self.clone();
        tokio::task::spawn_local(async move {
            let exit = service::attend(child, output, &life.0.name, &life.0.tail, OUTPUT_LIMIT).await;
            // The notices of a process that has ended are in the socket before its end is known: let them be read.
            tokio::task::yield_now().await;
            life.end(pid, exit);
        });
    }

    fn end(&self, pid: i32, exit: Exit) {
        let inner = &self.0;
        inner.roster.0.borrow_mut().remove(&pid);
        inner.pid.set(None);
        inner.ready.set(false);
        inner.released.set(false);
        inner.gate.borrow_mut().take();
        // What it left in its group must not outlive it.
        process::signal_group(pid, OsSignal::SIGKILL);
        tracing::debug!({ service.name = %inner.name, process.pid = pid }, "ended: {exit}");
        inner.last_exit.set(Some(exit));
        let ending = if inner.unstartable.get() { Ending::Unstartable } else { Ending::Ended };
        inner.reporter.say(Event::Exited(ending));
    }

    /// There is no process, and why.
    pub fn fail(&self, error: &io::Error) {
        tracing::error!({ service.name = %self.0.name }, "start: {error}");
        self.0.released.set(false);
        self.0.reporter.say(Event::SpawnFailed);
    }

    /// Carry out any action but [`Action::Spawn`].
    pub fn act(&self, action: Action) {
        let name = &self.0.name;
        match action {
            Action::Spawn(_) | Action::Withdraw => {}
            Action::Release => self.release(),
            Action::Signal(rung) => {
                if let Some(pid) = self.0.pid.get() {
                    service::signal(pid, rung);
                }
            }
            Action::Restart(delay) => {
                let cause = self.last_exit().map_or("could not be started".into(), |exit| exit.to_string());
                tracing::warn!({ service.name = %name }, "ended: {cause}; restart {}", service::after(delay));
            }
            Action::GiveUp if self.is_unstartable() => tracing::error!({ service.name = %name }, "cannot start"),
            Action::GiveUp => tracing::error!({ service.name = %name }, "failed too often, gives up"),
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

    fn hear(&self, message: Message) {
        match message {
            Message::Ready => {
                self.0.ready.set(true);
                self.0.reporter.say(Event::Ready);
            }
            Message::Counts(counts) => self.0.counts.set(Some(counts)),
            Message::ImportError(_) => self.0.unstartable.set(true),
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
        let Some(life) = roster.0.borrow().get(&pid).cloned() else { continue };
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

/// The command that runs `script`, `launcher.py` or `template.py`, with what both need.
pub fn command(
    launch: &Launch,
    script: &Path,
    environment: &[(String, String)],
    listener: &InheritedFd,
    gate: &InheritedFd,
) -> CommandLine {
    let mut command = CommandLine::new(launch.python.borrow().clone())
        .arg(script)
        .dir(&launch.dir)
        .identity(launch.identity.borrow().clone())
        .env("TANDEM_LISTEN_FD", listener.number().to_string())
        .env("TANDEM_GATE_FD", gate.number().to_string());
    if let Some(identity) = &*launch.identity.borrow() {
        command = command.env("HOME", &identity.home).env("USER", &identity.name);
    }
    for (name, value) in environment {
        command = command.env(name, value);
    }
    command
}
