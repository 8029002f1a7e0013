//! Carries out what the tree decides: runs jobs, hands actions to services, publishes what others may know.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use anyhow::anyhow;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::known::Known;
use super::orders::{Operator, Report};
use super::services::Services;
use super::view::{Endpoints, View};
use super::{Context, Errand, Goal, POSTGRES, Step, jobs};
use crate::config::{PostgresMode, WorkerSocket};
use crate::exit::{Code, Failure};
use crate::health::server as health;
use crate::postgres::probe::Probe;
use crate::postgres::service::{self as postmaster, Postmaster, Reading};
use crate::process::ports;
use crate::supervise::service::Reporter;
use crate::supervise::task::Shell;
use crate::supervise::tree::{Action, Cause, Event, JobId, Origin, Outcome, Phase, Tree};
use crate::systemd::Upstream;
use crate::workers::launch::{self, Launch};
use crate::workers::life::{self, Roster};
use crate::workers::listener::Listener;
use crate::workers::notify::NotifySocket;
use crate::workers::{care, listener};
use crate::{control, systemd};

/// Length of the health port's listening queue.
const HEALTH_BACKLOG: u32 = 128;

/// The shell around the tree.
pub struct Sidecar {
    context: Rc<Context>,
    steps: Vec<Step>,
    events: UnboundedSender<Event>,
    pub services: Services,
    operator: Rc<Operator>,
    errand: Option<Errand>,
    jobs: HashMap<JobId, JoinHandle<()>>,
    /// The error of the job that failed.
    error: Rc<RefCell<Option<anyhow::Error>>>,
    samples: watch::Sender<Reading>,
    view: View,
    upstream: Rc<Upstream>,
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
        let settings = context.settings();
        let samples = watch::Sender::new(None);
        let postmaster = Postmaster::new(
            Rc::new(postmaster::Launch {
                home: context.home.clone(),
                installation: context.installation.clone(),
                port: context.url.port,
                database: context.url.database.clone(),
                stocked: context.database.clone(),
                probe_interval: settings.postgres.probe_interval,
                probe_deadline: settings.postgres.probe_deadline,
                samples: samples.clone(),
            }),
            Reporter::new(POSTGRES, events.clone()),
        );
        let services = Services::new(postmaster, Roster::default(), events.clone());
        let mut tasks = Vec::new();
        let upstream = Rc::new(match goal {
            Goal::Serve => {
                let (upstream, telling) = Upstream::of_process();
                tasks.push(tokio::task::spawn_local(telling));
                upstream
            }
            // An errand is over when it ends, and says so by its exit code.
            Goal::Errand(_) => Upstream::default(),
        });
        let (launch, roster) = (services.launch(), services.roster());
        let operator = Operator::new(context.clone(), steps.clone(), events.clone(), launch, roster, upstream.clone());
        let mut sidecar = Self {
            view: View::new(&settings),
            services,
            operator: Rc::new(operator),
            errand: None,
            jobs: HashMap::new(),
            error: Rc::default(),
            samples,
            tasks,
            upstream,
            stop_began: None,
            control: None,
            steps,
            events,
            context,
        };
        match goal {
            Goal::Errand(errand) => sidecar.errand = Some(errand),
            Goal::Serve => {
                sidecar.open_doors()?;
                sidecar.open_control()?;
            }
        }
        Ok(sidecar)
    }

    /// Bind the application's socket, the health port and the notify socket, and look after the workers.
    fn open_doors(&mut self) -> anyhow::Result<()> {
        let socket = self.application_socket()?;
        let settings = self.context.settings();
        let port = listener::bind(settings.health.listen, HEALTH_BACKLOG, "health.listen", ports::holder)?;
        let port = tokio::net::TcpListener::from_std(port.try_clone_std()?)?;
        let notify = NotifySocket::open()?;
        launch::write_files(&self.context.home.run)?;
        *self.services.launch().borrow_mut() = Some(Rc::new(Launch {
            settings: settings.clone(),
            url: self.context.url.clone(),
            run: self.context.home.run.clone(),
            notify: notify.name().to_owned(),
            listener: Rc::new(RefCell::new(socket.map(|socket| socket.inherited()))),
            python: self.context.python.clone(),
            identity: self.context.worker_identity.clone(),
        }));
        let roster = self.services.roster();
        self.tasks.push(tokio::task::spawn_local(life::listen(notify, roster.clone())));
        self.tasks.push(tokio::task::spawn_local(self.tend(roster.clone())));
        let pictures = self.view.pictures();
        self.tasks.push(tokio::task::spawn_local(self.view.follow(
            self.samples.subscribe(),
            roster,
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

    /// The socket that the supervisor above hands down, else one of our own; none where the workers bind it.
    fn application_socket(&self) -> anyhow::Result<Option<Listener>> {
        let settings = self.context.settings();
        let workers = &settings.workers;
        match (workers.socket, systemd::inherited_listener()?) {
            (WorkerSocket::Inherited, None) => {
                Ok(Some(listener::bind(workers.listen, workers.backlog, "workers.listen", ports::holder)?))
            }
            (WorkerSocket::Inherited, Some(fd)) => {
                let listener = Listener::inherit(fd)?;
                let (ours, given) = (workers.listen, listener.address());
                if ours == given {
                    tracing::info!("the socket on {given} is the one that was handed down");
                } else {
                    tracing::warn!("workers.listen = {ours}, but the socket handed down is on {given}, which holds");
                    self.context.set_listen(given);
                }
                Ok(Some(listener))
            }
            (WorkerSocket::Own, None) => Ok(None),
            (WorkerSocket::Own, Some(_)) => {
                let text = "a socket was handed down (LISTEN_FDS), which workers with workers.socket = \"own\" cannot \
                            use: set it to \"inherited\", or do without the socket unit";
                Err(Failure::new(Code::Config, text).into())
            }
        }
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
        self.tasks.push(tokio::task::spawn_local(self.operator.clone().carry_out(orders)));
        Ok(())
    }

    /// Look after the workers for ever.
    fn tend(&self, roster: Roster) -> impl Future<Output = ()> + use<> {
        let (context, operator) = (self.context.clone(), self.operator.clone());
        care::tend(roster, move || context.settings(), move |id| operator.recycle(id))
    }

    /// Make the first services, as the tree plans them.
    pub fn stock(&mut self, tree: &Tree) {
        let roll = &tree.plan.roll;
        for (&id, member) in &tree.members {
            let stage = Some(member.stage);
            if stage == roll.template {
                self.services.add(id, Origin::Template);
            } else if stage == roll.workers {
                self.services.add(id, Origin::Slot(member.place));
            }
        }
    }

    /// Who gives the tree its orders.
    pub fn operator(&self) -> Rc<Operator> {
        self.operator.clone()
    }

    /// What the failed job said.
    pub fn error(&self) -> anyhow::Error {
        self.error.borrow_mut().take().unwrap_or_else(|| anyhow!("a step of the boot failed"))
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
                Step::Postgres | Step::Template | Step::Workers => Ok(()),
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
        self.services.postmaster.unwatch();
        // Closed here too, so that the kernel refuses new connections as soon as the workers have closed theirs.
        if let Some(launch) = &*self.services.launch().borrow() {
            launch.listener.borrow_mut().take();
        }
        if self.context.settings().postgres.mode == PostgresMode::Managed && self.server_answers() {
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
            Action::Add(id, origin) => self.services.add(id, origin),
            Action::Service(id, action) => self.services.act(id, action),
            Action::Swapped(new, old) => self.services.swapped(new, old),
            Action::Remove(id) => self.services.remove(id),
            Action::RollEnded(id, outcome) => {
                let report = match outcome {
                    Outcome::Done(count) => Report::Done(count),
                    Outcome::Aborted(failed, replaced) => Report::Aborted(self.services.failure(failed), replaced),
                    Outcome::Interrupted => Report::Interrupted,
                };
                self.operator.hear(id, report);
            }
            Action::Enter(phase) => self.enter(phase),
        }
    }

    fn observe(&mut self, tree: &Tree) {
        self.view.publish(tree, &self.services, &self.context);
        self.upstream.show(self.view.phase(), &self.view.line(&self.context));
        self.operator.see(Known::of(tree, &self.services, self.view.phase()));
        // A stranger behind one of our own in the kernel's list could not be reaped when its signal came.
        crate::process::orphans::reap();
    }
}

/// Sample a server that somebody else runs, for ever.
async fn sample(mut probe: Probe, context: Rc<Context>, samples: watch::Sender<Reading>) {
    let settings = context.settings();
    let postgres = &settings.postgres;
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
