//! One slot of the workers: a service whose process is a worker, on the listening socket that all share.
//!
//! A worker is spawned early and waits at a gate, a pipe, with Python and its libraries imported, until the migrations
//! are in; then one byte opens the gate. The pipe stays open as a lifeline: should Tandem die, the worker reads its end
//! and goes too. Where there is a template, a worker is forked off it instead; should it be away, a worker is spawned as
//! without one.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::signal::Signal as OsSignal;

use super::gate::Gate;
use super::launch::Launch;
use super::life::{Life, Roster};
use super::readiness;
use super::template::{Forked, Template};
use crate::config::Readiness;
use crate::event_loop;
use crate::process::{self, InheritedFd};
use crate::supervise::service::{Reporter, Service};
use crate::supervise::state::{Action, Intent};

/// One slot. Its clones are the same slot.
#[derive(Clone)]
pub struct Slot {
    number: usize,
    launch: Rc<Launch>,
    template: Option<Template>,
    life: Life,
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
        Self { number, launch, template, life }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// Its process's life: counts, last exit, reasons.
    pub fn life(&self) -> &Life {
        &self.life
    }

    async fn spawn(self, intent: Intent) {
        let _starting = self.life.starting();
        let template = self.template.as_ref().filter(|template| template.is_ready());
        if let Some(template) = template {
            match self.fork(template).await {
                Ok(Forked { child, output, gate }) => return self.life.begin(child, output, Some(gate), intent),
                Err(error) => {
                    let name = self.life.name();
                    tracing::warn!({ service.name = %name }, "fork off the template: {error}; it is spawned instead");
                }
            }
        }
        let spawned = match &self.launch.settings.workers.command {
            Some(words) => self.spawn_other_server(words, intent).await,
            None => self.spawn_launcher(intent).await,
        };
        if let Err(error) = spawned {
            self.life.fail(&error);
        }
    }

    async fn fork(&self, template: &Template) -> io::Result<Forked> {
        let number = self.number;
        let environment = self.launch.aside(move |launch| launch.environment(number)).await?;
        template.fork(number, environment).await
    }

    async fn spawn_launcher(&self, intent: Intent) -> io::Result<()> {
        let (gate, gate_end) = Gate::new()?;
        let (listener, gate_end) = (self.launch.listener()?, InheritedFd(Arc::new(gate_end)));
        let number = self.number;
        let command = self.launch.aside(move |launch| launch.environment(number).apply(launch.launcher())).await?;
        let command = command
            .env("TANDEM_LISTEN_FD", listener.number().to_string())
            .env("TANDEM_GATE_FD", gate_end.number().to_string());
        // SIGKILL, because a worker that hangs or is stopped would act on nothing less.
        let (child, output) = process::spawn_aside(&command, &[listener, gate_end], OsSignal::SIGKILL).await?;
        self.life.begin(child, output, Some(gate), intent);
        Ok(())
    }

    async fn spawn_other_server(&self, words: &[String], intent: Intent) -> io::Result<()> {
        let listener = if self.launch.hands_down_socket() { Some(self.launch.listener()?) } else { None };
        let (number, owned, fd) = (self.number, words.to_vec(), listener.clone());
        let command = self.launch.aside(move |launch| launch.other_server(&owned, number, fd.as_ref())).await?;
        let fds: Vec<InheritedFd> = listener.into_iter().collect();
        let spawned = process::spawn_aside(&command, &fds, OsSignal::SIGKILL).await;
        let (child, output) = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let text = format!("{} (workers.command) is not there: install it, or write its path", words.join(" "));
                io::Error::new(error.kind(), text)
            }
            _ => error,
        })?;
        self.life.begin(child, output, None, intent);
        if let Readiness::Http(path) = &self.launch.settings.workers.ready {
            let address = self.launch.settings.workers.listen;
            event_loop::spawn("a worker's readiness", readiness::watch(self.life.clone(), address, path.clone()));
        }
        Ok(())
    }
}

impl Service for Slot {
    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(intent) => {
                event_loop::spawn("the start of a worker", self.clone().spawn(intent));
            }
            other => self.life.act(other),
        }
    }

    fn tail(&self) -> Vec<String> {
        self.life.tail()
    }
}

/// The name of slot `number`, in the log and everywhere else.
pub fn name(number: usize) -> String {
    format!("worker-{number}")
}
