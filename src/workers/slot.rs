//! One slot of the workers: a service whose process is a worker, on the listening socket that all share.
//!
//! A worker is spawned early and waits at a gate, a pipe, with Python and its libraries imported, until the migrations
//! are in; then one byte opens the gate. The pipe stays open as a lifeline: when Tandem dies, the pipe closes and the
//! worker ends. Where there is a template, a worker is forked off it instead; while the template is not ready, a worker is
//! spawned as without one.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::signal::Signal as OsSignal;

use super::gate::Gate;
use super::launch::Launch;
use super::life::{Life, Roster, Started};
use super::notify::NotifySocket;
use super::readiness;
use super::template::Template;
use crate::config::Readiness;
use crate::event_loop;
use crate::process::{self, InheritedFd};
use crate::service::{Reporter, Start};
use crate::supervise::state::{ChildAction, Generation, Intent};

/// One slot. Its clones are the same slot.
#[derive(Clone)]
pub struct Slot {
    number: usize,
    launch: Rc<Launch>,
    template: Option<Template>,
    life: Life,
    start: Start,
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
        let life = Life::of_worker(number, launch.settings.workers.watchdog, roster, reporter);
        Self { number, launch, template, life, start: Start::default() }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// The life of its process: counts, last exit, reasons.
    pub fn life(&self) -> &Life {
        &self.life
    }

    async fn spawn(self, of: (Generation, Intent)) {
        let template = self.template.as_ref().filter(|template| template.is_ready());
        if let Some(template) = template {
            match self.fork(template).await {
                Ok(started) => return self.life.begin(started, of),
                Err(error) => {
                    let name = self.life.name();
                    tracing::error!({ service.name = %name }, "fork off the template: {error}; it is spawned instead");
                }
            }
        }
        let spawned = match &self.launch.settings.workers.command {
            Some(words) => self.spawn_other_server(words, of).await,
            None => self.spawn_launcher(of).await,
        };
        if let Err(error) = spawned {
            self.life.fail(of.0, &error);
        }
    }

    async fn fork(&self, template: &Template) -> io::Result<Started> {
        let number = self.number;
        let environment = self.launch.aside(move |launch| launch.environment(number)).await?;
        template.fork(number, environment).await
    }

    async fn spawn_launcher(&self, of: (Generation, Intent)) -> io::Result<()> {
        let (gate, gate_end) = Gate::new()?;
        let (notify, notify_end) = NotifySocket::pair()?;
        let mut inherited = self.launch.listeners()?;
        let (gate_end, notify_end) = (InheritedFd(Arc::new(gate_end)), InheritedFd(Arc::new(notify_end)));
        let number = self.number;
        let command = self.launch.aside(move |launch| launch.environment(number).apply(launch.launcher())).await?;
        let command = command
            .env("TANDEM_LISTEN_FD", InheritedFd::numbers(&inherited))
            .env("TANDEM_GATE_FD", gate_end.number().to_string())
            .env("TANDEM_NOTIFY_FD", notify_end.number().to_string());
        // SIGKILL: a worker that hangs or is stopped acts on nothing less.
        inherited.extend([gate_end, notify_end]);
        let (child, output) = process::spawn_aside(&command, &inherited, OsSignal::SIGKILL).await?;
        self.life.begin(Started { child, output, gate: Some(gate), notify: Some(notify) }, of);
        Ok(())
    }

    async fn spawn_other_server(&self, words: &[String], of: (Generation, Intent)) -> io::Result<()> {
        let listeners = if self.launch.hands_down_socket() { self.launch.listeners()? } else { Vec::new() };
        let label = name(self.number);
        let notify = self.launch.aside(move |launch| launch.notify_socket(&label)).await??;
        let path = notify.as_ref().and_then(NotifySocket::path).map(ToOwned::to_owned);
        let (number, owned, fds) = (self.number, words.to_vec(), listeners.clone());
        let make = move |launch: &Launch| launch.other_server(&owned, number, &fds, path.as_deref());
        let command = self.launch.aside(make).await?;
        let spawned = process::spawn_aside(&command, &listeners, OsSignal::SIGKILL).await;
        let (child, output) = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let text = format!("{} (workers.command) is not there: install it, or write its path", words.join(" "));
                io::Error::new(error.kind(), text)
            }
            _ => error,
        })?;
        self.life.begin(Started { child, output, gate: None, notify }, of);
        if let Readiness::Http(path) = &self.launch.settings.workers.ready {
            let settings = self.launch.settings.clone();
            event_loop::spawn("a worker's readiness", readiness::watch(self.life.clone(), settings, path.clone()));
        }
        Ok(())
    }
}

impl Slot {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        match action {
            ChildAction::Spawn(generation, intent) => {
                let task = event_loop::spawn("the start of a worker", self.clone().spawn((generation, intent)));
                self.start.begun(&task);
            }
            ChildAction::CancelSpawn(generation) => {
                // The template may fork it all the same: it then finds its gate closed, and ends.
                self.start.cancel();
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
