//! The workers: N slots on one listening socket, each slot one supervised process.
//!
//! A worker is spawned early and waits at a gate, a pipe, with Python and its libraries imported, until the migrations
//! are in; then one byte opens the gate. The pipe stays open as a lifeline: should Tandem die, the worker reads its end
//! and goes too.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal as OsSignal;

use super::notify::{Message, Notice, NotifySocket};
use crate::health::picture::Counts;
use crate::plan::{CommandLine, Identity};
use crate::process::{self, Exit, InheritedFd};
use crate::supervise::service::{self, Reporter, Service, Tail};
use crate::supervise::state::{Action, Ending, Event, Intent};

/// How long output of a worker that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// What every worker is started with. Pure data, but for what the install job finds out.
pub struct Launch {
    /// The interpreter of the Python environment, known once that is made.
    pub python: Rc<RefCell<PathBuf>>,
    /// `launcher.py`, written into the run directory.
    pub launcher: PathBuf,
    /// The application's socket, until the stop begins.
    pub listener: RefCell<Option<InheritedFd>>,
    pub dir: PathBuf,
    /// The environment of each slot, the launcher's protocol included.
    pub environment: Vec<Vec<(String, String)>>,
    /// Whom the workers run as, known once the interpreter is.
    pub identity: Rc<RefCell<Option<Identity>>>,
}

/// The processes that may speak on the notify socket, by pid.
#[derive(Clone, Default)]
pub struct Roster(Rc<RefCell<HashMap<i32, Rc<SlotState>>>>);

impl Roster {
    /// What the worker with this pid last told of itself.
    pub fn counts(&self, pid: i32) -> Option<Counts> {
        self.0.borrow().get(&pid).and_then(|state| state.counts.get())
    }
}

/// What is known of one slot's process.
struct SlotState {
    reporter: Reporter,
    pid: Cell<Option<i32>>,
    counts: Cell<Option<Counts>>,
    last_exit: Cell<Option<Exit>>,
    /// It said that the application cannot be imported.
    unstartable: Cell<bool>,
    /// The writing end of the gate, kept open as the lifeline.
    gate: RefCell<Option<std::fs::File>>,
}

/// One slot: a service whose process is a worker.
pub struct Slot {
    number: usize,
    name: String,
    launch: Rc<Launch>,
    roster: Roster,
    state: Rc<SlotState>,
    tail: Tail,
}

impl Slot {
    pub fn new(number: usize, launch: Rc<Launch>, roster: Roster, reporter: Reporter) -> Self {
        let state = SlotState {
            reporter,
            pid: Cell::new(None),
            counts: Cell::default(),
            last_exit: Cell::default(),
            unstartable: Cell::new(false),
            gate: RefCell::default(),
        };
        Self { number, name: name(number), launch, roster, state: Rc::new(state), tail: Tail::default() }
    }

    /// What the worker last told of itself.
    pub fn counts(&self) -> Option<Counts> {
        self.state.counts.get()
    }

    /// How the slot's last process ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.state.last_exit.get()
    }

    /// Whether the last process said that its application cannot be imported.
    pub fn is_unstartable(&self) -> bool {
        self.state.unstartable.get()
    }

    fn spawn(&self, intent: Intent) {
        if let Err(error) = self.try_spawn(intent) {
            tracing::error!({ service.name = %self.name }, "start worker: {error}");
            self.state.reporter.say(Event::SpawnFailed);
        }
    }

    fn try_spawn(&self, intent: Intent) -> std::io::Result<()> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        *self.state.gate.borrow_mut() = Some(std::fs::File::from(writer));
        let gate = InheritedFd(Arc::new(reader));
        let Some(listener) = self.launch.listener.borrow().clone() else {
            return Err(std::io::Error::other("the listening socket is closed"));
        };
        let command = self.command(&listener, &gate);
        let fds = [listener, gate];
        // SIGKILL, because a worker that hangs or is stopped would act on nothing less.
        let (child, output) = process::spawn(&command, &fds, OsSignal::SIGKILL)?;
        let pid = child.pid();
        self.state.pid.set(Some(pid));
        self.state.unstartable.set(false);
        self.state.counts.set(None);
        self.roster.0.borrow_mut().insert(pid, self.state.clone());
        self.state.reporter.say(Event::Spawned(pid));
        if intent != Intent::Hold {
            self.release();
        }
        let (state, roster, tail, name) =
            (self.state.clone(), self.roster.clone(), self.tail.clone(), self.name.clone());
        tokio::task::spawn_local(async move {
            let exit = service::attend(child, output, &name, &tail, OUTPUT_LIMIT).await;
            // The notices of a process that has ended are in the socket before its end is known: let them be read.
            tokio::task::yield_now().await;
            roster.0.borrow_mut().remove(&pid);
            state.pid.set(None);
            state.gate.borrow_mut().take();
            // What it left in its group must not outlive it.
            process::signal_group(pid, OsSignal::SIGKILL);
            tracing::debug!({ service.name = %name, process.pid = pid }, "worker ended: {exit}");
            state.last_exit.set(Some(exit));
            let ending = if state.unstartable.get() { Ending::Unstartable } else { Ending::Ended };
            state.reporter.say(Event::Exited(ending));
        });
        Ok(())
    }

    fn command(&self, listener: &InheritedFd, gate: &InheritedFd) -> CommandLine {
        let launch = &self.launch;
        let mut command = CommandLine::new(launch.python.borrow().clone())
            .arg(&launch.launcher)
            .dir(&launch.dir)
            .identity(launch.identity.borrow().clone())
            .env("TANDEM_LISTEN_FD", listener.number().to_string())
            .env("TANDEM_GATE_FD", gate.number().to_string());
        if let Some(identity) = &*launch.identity.borrow() {
            command = command.env("HOME", &identity.home).env("USER", &identity.name);
        }
        for (name, value) in &launch.environment[self.number] {
            command = command.env(name, value);
        }
        command
    }

    fn release(&self) {
        if let Some(gate) = self.state.gate.borrow_mut().as_mut()
            && let Err(error) = gate.write_all(b"1")
        {
            // The worker is gone already; its end is on the way.
            tracing::debug!({ service.name = %self.name }, "open gate: {error}");
        }
    }
}

impl Service for Slot {
    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(intent) => self.spawn(intent),
            Action::Release => self.release(),
            Action::Signal(rung) => {
                if let Some(pid) = self.state.pid.get() {
                    service::signal(pid, rung);
                }
            }
            Action::Restart(delay) => {
                let cause = self.last_exit().map_or("could not be started".into(), |exit| exit.to_string());
                tracing::warn!({ service.name = %self.name }, "ended: {cause}; restart {}", service::after(delay));
            }
            Action::GiveUp if self.is_unstartable() => tracing::error!({ service.name = %self.name }, "cannot start"),
            Action::GiveUp => tracing::error!({ service.name = %self.name }, "failed too often, gives up"),
            Action::Withdraw => {}
        }
    }

    fn tail(&self) -> Vec<String> {
        self.tail.lines()
    }
}

/// The name of slot `number`, in the log and everywhere else.
pub fn name(number: usize) -> String {
    format!("worker-{number}")
}

/// Hand what workers say to their slots, for ever.
///
/// An import error is logged once however many workers run into it, and again only after one of them got ready.
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
        let Some(state) = roster.0.borrow().get(&pid).cloned() else { continue };
        for message in messages {
            match message {
                Message::Ready => {
                    import_error.clear();
                    state.reporter.say(Event::Ready);
                }
                Message::Counts(counts) => state.counts.set(Some(counts)),
                Message::ImportError(text) => {
                    state.unstartable.set(true);
                    if text != import_error {
                        tracing::error!("the application cannot be imported:\n{}", text.trim_end());
                        import_error = text;
                    }
                }
                Message::Watchdog | Message::Stopping | Message::ForkUnsafe(_) | Message::Other(_) => {}
            }
        }
    }
}
