//! One slot of the workers: a service whose process is a worker, on the listening socket that all share.
//!
//! A worker is spawned early and waits at a gate, a pipe, with Python and its libraries imported, until the migrations
//! are in; then one byte opens the gate. The pipe stays open as a lifeline: when Tandem dies, the pipe closes and the
//! worker ends. Where there is a template, a worker is forked off it instead; while the template is not ready, a worker is
//! spawned as without one.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::signal::Signal as OsSignal;
use tokio::task::JoinHandle;

use super::gate::Gate;
use super::launch::Launch;
use super::life::{Life, Roster, Started};
use super::notify::NotifySocket;
use super::readiness;
use super::template::Template;
use crate::config::Readiness;
use crate::process::{self, InheritedFd};
use crate::service::Reporter;
use crate::supervise::state::{ChildAction, Generation, Intent};

/// One slot. Its clones are the same slot.
#[derive(Clone)]
pub struct Slot {
    number: usize,
    launch: Rc<Launch>,
    template: Option<Template>,
    life: Life,
    /// The fork under way, or the last one.
    fork: Rc<RefCell<Option<JoinHandle<()>>>>,
}

impl Slot {
    /// Slot `number`, started as `launch` says, forked off `template` if there is one.
    pub fn new(
        number: usize,
        launch: Rc<Launch>,
        template: Option<Template>,
        roster: Roster,
        reporter: Reporter,
    ) -> Self {
        let life = Life::of_worker(name(number), launch.settings.workers.watchdog, roster, reporter);
        Self { number, launch, template, life, fork: Rc::default() }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// The life of its process: counts, last exit, reasons.
    pub fn life(&self) -> &Life {
        &self.life
    }

    fn spawn(&self, of: (Generation, Intent)) {
        match &self.template {
            Some(template) if template.is_ready() => {
                let forking = tokio::task::spawn_local(fork(template.clone(), self.clone(), of));
                *self.fork.borrow_mut() = Some(forking);
            }
            Some(_) | None => self.spawn_alone(of),
        }
    }

    fn spawn_alone(&self, of: (Generation, Intent)) {
        let spawned = match &self.launch.settings.workers.command {
            Some(words) => self.spawn_other_server(words, of),
            None => self.spawn_launcher(of),
        };
        if let Err(error) = spawned {
            self.life.fail(of.0, &error);
        }
    }

    fn spawn_launcher(&self, of: (Generation, Intent)) -> io::Result<()> {
        let (gate, gate_end) = Gate::new()?;
        let (notify, notify_end) = NotifySocket::pair()?;
        let listener = self.launch.listener()?;
        let (gate_end, notify_end) = (InheritedFd(Arc::new(gate_end)), InheritedFd(Arc::new(notify_end)));
        let command = self.launch.environment(self.number).apply(self.launch.launcher());
        let command = command
            .env("TANDEM_LISTEN_FD", listener.number().to_string())
            .env("TANDEM_GATE_FD", gate_end.number().to_string())
            .env("TANDEM_NOTIFY_FD", notify_end.number().to_string());
        // SIGKILL: a worker that hangs or is stopped acts on nothing less.
        let (child, output) = process::spawn(&command, &[listener, gate_end, notify_end], OsSignal::SIGKILL)?;
        self.life.begin(Started { child, output, gate: Some(gate), notify: Some(notify) }, of);
        Ok(())
    }

    fn spawn_other_server(&self, words: &[String], of: (Generation, Intent)) -> io::Result<()> {
        let listener = if self.launch.hands_down_socket() { Some(self.launch.listener()?) } else { None };
        let notify = self.launch.notify_socket(&name(self.number))?;
        let path = notify.as_ref().and_then(NotifySocket::path);
        let command = self.launch.other_server(words, self.number, listener.as_ref(), path);
        let fds: Vec<InheritedFd> = listener.into_iter().collect();
        let (child, output) =
            process::spawn(&command, &fds, OsSignal::SIGKILL).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    let text =
                        format!("{} (workers.command) is not there: install it, or write its path", words.join(" "));
                    io::Error::new(error.kind(), text)
                }
                _ => error,
            })?;
        self.life.begin(Started { child, output, gate: None, notify }, of);
        if let Readiness::Http(path) = &self.launch.settings.workers.ready {
            let address = self.launch.settings.workers.listen;
            tokio::task::spawn_local(readiness::watch(self.life.clone(), address, path.clone()));
        }
        Ok(())
    }
}

/// Fork the worker of `slot` off `template`; if that fails, spawn it.
async fn fork(template: Template, slot: Slot, of: (Generation, Intent)) {
    match template.fork(slot.number, slot.launch.environment(slot.number)).await {
        Ok(started) => slot.life.begin(started, of),
        Err(error) => {
            tracing::error!({ service.name = %slot.life.name() }, "fork off the template: {error}; it is spawned instead");
            slot.spawn_alone(of);
        }
    }
}

impl Slot {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        match action {
            ChildAction::Spawn(generation, intent) => self.spawn((generation, intent)),
            ChildAction::CancelSpawn(generation) => {
                // The template may fork it all the same: it then finds its gate closed, and ends.
                if let Some(forking) = self.fork.take() {
                    forking.abort();
                }
                self.life.cancelled(generation);
            }
            other => self.life.act(other),
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.life.tail()
    }
}

/// The name of slot `number`, in the log and everywhere else.
pub fn name(number: usize) -> String {
    format!("worker-{number}")
}
