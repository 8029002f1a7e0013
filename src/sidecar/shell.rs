//! Carries out what the tree decides: runs jobs, hands actions to services, publishes what others may know.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::anyhow;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::view::{Endpoints, View};
use super::{Context, Errand, Goal, POSTGRES, Step, jobs, orders, worker};
use crate::config::PostgresMode;
use crate::control;
use crate::health::server as health;
use crate::postgres::probe::Probe;
use crate::postgres::service::{self as postmaster, Postmaster, Reading};
use crate::process::ports;
use crate::supervise::service::{Reporter, Service};
use crate::supervise::task::Shell;
use crate::supervise::tree::{Action, Cause, Event, JobId, Phase, ServiceId, Tree};
use crate::workers::notify::NotifySocket;
use crate::workers::pool::{self, Roster, Slot};
use crate::workers::{launch, listener};

/// Length of the health port's listening queue.
const HEALTH_BACKLOG: u32 = 128;

/// The shell around the tree.
pub struct Sidecar {
    context: Rc<Context>,
    steps: Vec<Step>,
    events: UnboundedSender<Event>,
    postmaster: Postmaster,
    slots: Vec<Slot>,
    launch: Option<Rc<pool::Launch>>,
    errand: Option<Errand>,
    jobs: HashMap<JobId, JoinHandle<()>>,
    /// The error of the job that failed.
    error: Rc<RefCell<Option<anyhow::Error>>>,
    samples: watch::Sender<Reading>,
    view: View,
    /// Tasks that live as long as the shell: the health port, the notify socket, the sampler.
    tasks: Vec<JoinHandle<()>>,
    stop_began: Option<Instant>,
    /// Dropped, the first closes the control socket; the second is its end.
    control: Option<(tokio::sync::oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Sidecar {
    /// Bind what is bound once and make every service, with no child yet.
    ///
    /// # Errors
    /// A port is taken, or the run directory cannot be written.
    pub async fn open(
        context: Context,
        goal: Goal,
        steps: Vec<Step>,
        events: UnboundedSender<Event>,
    ) -> anyhow::Result<Self> {
        let context = Rc::new(context);
        let samples = watch::Sender::new(None);
        let reporter = |id| Reporter::new(id, events.clone());
        let postmaster = Postmaster::new(
            Rc::new(postmaster::Launch {
                home: context.home.clone(),
                installation: context.installation.clone(),
                port: context.url.port,
                database: context.url.database.clone(),
                stocked: context.database.clone(),
                probe_interval: context.settings.postgres.probe_interval,
                probe_deadline: context.settings.postgres.probe_deadline,
                samples: samples.clone(),
            }),
            reporter(POSTGRES),
        );
        let mut sidecar = Self {
            view: View::new(&context.settings),
            postmaster,
            slots: Vec::new(),
            launch: None,
            errand: None,
            jobs: HashMap::new(),
            error: Rc::default(),
            samples,
            tasks: Vec::new(),
            stop_began: None,
            control: None,
            steps,
            events: events.clone(),
            context,
        };
        match goal {
            Goal::Errand(errand) => sidecar.errand = Some(errand),
            Goal::Serve => {
                sidecar.open_doors(&reporter)?;
                sidecar.open_control()?;
            }
        }
        Ok(sidecar)
    }

    /// Bind the application's socket, the health port and the notify socket, and make the slots.
    fn open_doors(&mut self, reporter: &dyn Fn(ServiceId) -> Reporter) -> anyhow::Result<()> {
        let settings = &self.context.settings;
        let workers = &settings.workers;
        let socket = listener::bind(workers.listen, workers.backlog, "workers.listen", ports::holder)?;
        let port = listener::bind(settings.health.listen, HEALTH_BACKLOG, "health.listen", ports::holder)?;
        let port = tokio::net::TcpListener::from_std(port.try_clone_std()?)?;
        let notify = NotifySocket::open()?;
        let launch = Rc::new(launch::plan(
            settings,
            &self.context.home.run,
            &self.context.url,
            socket.inherited(),
            notify.name(),
            self.context.python.clone(),
            self.context.worker_identity.clone(),
        )?);
        let roster = Roster::default();
        let count = settings.workers.count as usize;
        self.slots = (0..count)
            .map(|number| Slot::new(number, launch.clone(), roster.clone(), reporter(worker(number))))
            .collect();
        self.launch = Some(launch);
        self.tasks.push(tokio::task::spawn_local(pool::listen(notify, roster.clone())));
        let pictures = self.view.pictures();
        self.tasks.push(tokio::task::spawn_local(self.view.follow(
            self.samples.subscribe(),
            roster.clone(),
            self.context.home.data.join("pg_wal"),
        )));
        let never = std::future::pending();
        self.tasks.push(tokio::task::spawn_local(health::serve(port, pictures, never)));
        if settings.postgres.mode == PostgresMode::Attach {
            let probe = Probe::attached(&self.context.url)?;
            let (context, samples) = (self.context.clone(), self.samples.clone());
            self.tasks.push(tokio::task::spawn_local(sample(probe, context, samples)));
        }
        Ok(())
    }

    /// Let our own user and root ask and order through the control socket.
    fn open_control(&mut self) -> anyhow::Result<()> {
        let socket = control::open(&self.context.home.control)?;
        let (asks, orders) = tokio::sync::mpsc::unbounded_channel();
        let (close, closing) = tokio::sync::oneshot::channel();
        let closing = async {
            let _ = closing.await;
        };
        let served = tokio::task::spawn_local(control::serve(socket, self.view.pictures(), asks, closing));
        self.control = Some((close, served));
        self.tasks.push(tokio::task::spawn_local(orders::carry_out(orders, self.events.clone())));
        Ok(())
    }

    /// What the failed job said.
    pub fn error(&self) -> anyhow::Error {
        self.error.borrow_mut().take().unwrap_or_else(|| anyhow!("a step of the boot failed"))
    }

    /// The name of a service that gave up, and the last lines it printed.
    pub fn last_words(&self, id: ServiceId) -> (String, String) {
        if id == POSTGRES {
            return (postmaster::NAME.into(), quoted(&self.postmaster.tail()));
        }
        let slot = &self.slots[id.0 - 1];
        let app = &self.context.settings.workers.app;
        let why = if slot.is_unstartable() {
            format!(": {app} cannot be imported (the traceback is above)")
        } else {
            quoted(&slot.tail())
        };
        (pool::name(id.0 - 1), why)
    }

    /// Close the health port and remove what said where to reach us; last the control socket, whose followers get the
    /// last line too.
    pub async fn close(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        Endpoints::remove(&self.context.home.run);
        if let Some(began) = self.stop_began {
            tracing::info!("stopped in {:.0?}", began.elapsed());
        }
        if let Some((close, served)) = self.control.take() {
            drop(close);
            let _ = served.await;
        }
    }

    fn run_job(&mut self, id: JobId) {
        let Some(&step) = self.steps.iter().find(|&&step| step as usize == id.0) else { return };
        let context = self.context.clone();
        let errand = if step == Step::Errand { self.errand.take() } else { None };
        let (events, error) = (self.events.clone(), self.error.clone());
        let job = async move {
            match step {
                Step::Install => jobs::install(context).await,
                Step::Cluster => jobs::cluster(context).await,
                Step::Attach => jobs::attach(context).await,
                Step::Provision => jobs::provision(context).await,
                Step::Migrate => jobs::migrate(context).await,
                Step::Errand => match errand {
                    Some(errand) => errand.await,
                    None => Err(anyhow!("the database went away; nothing was left half-done, run the command again")),
                },
                // These are services, which the tree starts by their own actions.
                Step::Postgres | Step::Workers => Ok(()),
            }
        };
        let handle = tokio::task::spawn_local(async move {
            let event = match job.await {
                Ok(()) => Event::JobSucceeded(id),
                Err(cause) => {
                    *error.borrow_mut() = Some(cause);
                    Event::JobFailed(id)
                }
            };
            let _ = events.send(event);
            if step == Step::Errand {
                let _ = events.send(Event::Stop);
            }
        });
        self.jobs.insert(id, handle);
    }

    fn enter(&mut self, phase: Phase) {
        self.view.enter(phase, &self.steps);
        match phase {
            Phase::Serving if self.errand_is_absent() => self.serving(),
            Phase::Draining { .. } => tracing::info!("stop asked for; readiness is withdrawn, still serving"),
            Phase::Stopping { cause, .. } if self.stop_began.is_none() => self.stopping(cause),
            Phase::Idle | Phase::Booting { .. } | Phase::Serving | Phase::Stopping { .. } | Phase::Stopped { .. } => {}
        }
    }

    fn errand_is_absent(&self) -> bool {
        !self.steps.contains(&Step::Errand)
    }

    fn serving(&mut self) {
        let endpoints = Endpoints::new(&self.context);
        if let Err(error) = endpoints.write(&self.context.home.run) {
            tracing::warn!("write {}: {error}", self.context.home.run.display());
        }
        self.view.banner(&self.context);
    }

    fn stopping(&mut self, cause: Cause) {
        self.stop_began = Some(Instant::now());
        if cause == Cause::Asked && self.errand_is_absent() {
            tracing::info!("stopping: workers finish what they have, then PostgreSQL");
        }
        self.postmaster.unwatch();
        // Closed here too, so that the kernel refuses new connections as soon as the workers have closed theirs.
        if let Some(launch) = &self.launch {
            launch.listener.borrow_mut().take();
        }
        if self.context.settings.postgres.mode == PostgresMode::Managed && self.server_answers() {
            // What is written out while the workers drain need not be at the shutdown: 192 ms become 62 ms.
            tokio::task::spawn_local(postmaster::checkpoint(self.context.home.clone(), self.context.url.port));
        }
    }

    fn server_answers(&self) -> bool {
        self.samples.borrow().as_ref().is_some_and(|(_, sample)| sample.available)
    }
}

impl Shell for Sidecar {
    fn act(&mut self, action: Action) {
        match action {
            Action::RunJob(id) => self.run_job(id),
            Action::CancelJob(id) => {
                if let Some(handle) = self.jobs.remove(&id) {
                    handle.abort();
                }
            }
            Action::Service(POSTGRES, action) => self.postmaster.act(action),
            Action::Service(ServiceId(place), action) => self.slots[place - 1].act(action),
            Action::Enter(phase) => self.enter(phase),
        }
    }

    fn observe(&mut self, tree: &Tree) {
        self.view.publish(tree, &self.slots, &self.context.migrations.borrow());
        // A stranger behind one of our own in the kernel's list could not be reaped when its signal came.
        crate::process::orphans::reap();
    }
}

/// Sample a server that somebody else runs, for ever.
async fn sample(mut probe: Probe, context: Rc<Context>, samples: watch::Sender<Reading>) {
    let postgres = &context.settings.postgres;
    let mut stocked = context.database.get();
    loop {
        if context.database.get() != stocked {
            stocked = context.database.get();
            probe.refresh();
        }
        let sample = probe.sample(postgres.probe_deadline).await;
        samples.send_replace(Some((std::time::Instant::now(), sample)));
        tokio::time::sleep(postgres.probe_interval).await;
    }
}

fn quoted(tail: &[String]) -> String {
    if tail.is_empty() {
        return ", having printed nothing".into();
    }
    format!("; the last it printed:\n  {}", tail.join("\n  "))
}
