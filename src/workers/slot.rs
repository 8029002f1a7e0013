//! One slot of the workers: a service whose process is a worker, on the listening socket that all share.
//!
//! A worker is spawned early and waits at a gate, a pipe, with Python and its libraries imported, until the migrations
//! are in; then one byte opens the gate. The pipe stays open as a lifeline: should Tandem die, the worker reads its end
//! and goes too. Where there is a template, a worker is forked off it instead; should it be away, a worker is spawned as
//! without one.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::signal::Signal as OsSignal;
use tokio::task::JoinHandle;

use super::gate::Gate;
use super::launch::Launch;
use super::life::{Life, Roster};
use super::readiness;
use super::template::{Forked, Template};
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
        let life = Life::new(name(number), roster, reporter).watched(launch.settings.workers.watchdog);
        Self { number, launch, template, life, fork: Rc::default() }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// Its process's life: counts, last exit, reasons.
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
        let (listener, gate_end) = (self.launch.listener()?, InheritedFd(Arc::new(gate_end)));
        let command = self.launch.environment(self.number).apply(self.launch.launcher());
        let command = command
            .env("TANDEM_LISTEN_FD", listener.number().to_string())
            .env("TANDEM_GATE_FD", gate_end.number().to_string());
        // SIGKILL, because a worker that hangs or is stopped would act on nothing less.
        let (child, output) = process::spawn(&command, &[listener, gate_end], OsSignal::SIGKILL)?;
        self.life.begin(of, child, output, Some(gate));
        Ok(())
    }

    fn spawn_other_server(&self, words: &[String], of: (Generation, Intent)) -> io::Result<()> {
        let listener = if self.launch.hands_down_socket() { Some(self.launch.listener()?) } else { None };
        let command = self.launch.other_server(words, self.number, listener.as_ref());
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
        self.life.begin(of, child, output, None);
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
        Ok(Forked { child, output, gate }) => slot.life.begin(of, child, output, Some(gate)),
        Err(error) => {
            tracing::warn!({ service.name = %slot.life.name() }, "fork off the template: {error}; it is spawned instead");
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
