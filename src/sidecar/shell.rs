//! Carries out what the tree decides: runs jobs, hands actions to services, publishes what others may know.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::front::{Front, ServedControl};
use super::orders::{Operator, RollReport};
use super::services::{Service, Services};
use super::slow_step::SlowStep;
use super::task::Shell;
use super::tree_view::TreeView;
use super::view::View;
use super::{Context, Errand, Goal, Step, attached, backups, counting, hooks, jobs, statistics};
use crate::boot;
use crate::companions::{Companion, MakeCommand};
use crate::config::{AfterReady, PostgresMode};
use crate::event_loop;
use crate::health::picture::Fault;
use crate::postgres::checkpoint;
use crate::postgres::service::{self as postmaster, DatabaseReading, Postmaster};
use crate::supervise::tree::{Cause, JobRun, Origin, Outcome, ServiceId, Tree, TreeAction, TreeEvent, TreePhase};
use crate::systemd::Upstream;
use crate::workers::life::Roster;
use crate::workers::socket_file::SocketFile;

/// As the end of a sentence about the stop.
fn at_most(limit: Duration) -> String {
    let limit = humantime::format_duration(limit);
    format!("; in {limit} at most (a second Ctrl-C or `tandem stop` skips the wait)")
}

/// Whether the database is away, and nothing that Tandem does brings it back: an application that needs it to start cannot.
fn is_away(samples: &watch::Sender<DatabaseReading>, mode: PostgresMode) -> impl Fn() -> bool + 'static {
    let samples = samples.subscribe();
    move || match (&*samples.borrow(), mode) {
        (Some((_, sample)), PostgresMode::Attach) => !sample.available,
        // One of its own that ends is back in a moment, unless its disk is full.
        (Some((_, sample)), PostgresMode::Managed) => matches!(sample.fault, Some(Fault::Full(_))),
        (None, _) => false,
    }
}

/// The shell around the tree.
pub struct Sidecar {
    pub(super) context: Rc<Context>,
    pub(super) steps: Vec<Step>,
    pub(super) events: UnboundedSender<TreeEvent>,
    pub services: Services,
    pub(super) operator: Rc<Operator>,
    pub(super) errand: Option<Errand>,
    /// Whether the errand has come to its end.
    errand_done: Rc<Cell<bool>>,
    pub(super) jobs: HashMap<JobRun, JoinHandle<()>>,
    /// The error of the job that failed.
    pub(super) error: Rc<RefCell<Option<anyhow::Error>>>,
    pub(super) samples: watch::Sender<DatabaseReading>,
    pub(super) view: View,
    slow_step: SlowStep,
    /// The workers that the hook after the start was last run for.
    pub(super) hooked: BTreeSet<i32>,
    /// The hook that runs.
    pub(super) hook: Option<JoinHandle<()>>,
    /// The task that takes the scheduled backups.
    pub(super) backups: Option<JoinHandle<()>>,
    pub(super) upstream: Rc<Upstream>,
    /// The hook at each worker's end.
    pub(super) exits: Option<JoinHandle<()>>,
    /// The files of the application's unix sockets, which go at the end.
    pub(super) application: Vec<SocketFile>,
    /// Tasks that live as long as the shell: the health port, the care for the workers, the sampler.
    pub(super) tasks: Vec<JoinHandle<()>>,
    /// Whether processes are being ended.
    pub(super) stopping: bool,
    /// When the stop was asked for.
    pub(super) stop_began: Option<Instant>,
    /// How long the stop may take, as the tree last had it.
    pub(super) stop_limit: Duration,
    pub(super) control: Option<ServedControl>,
}

impl Sidecar {
    /// Bind what is bound once and make every service, with no child yet.
    ///
    /// # Errors
    /// A port is taken.
    pub fn open(
        (context, front): (Rc<Context>, Front),
        goal: Goal,
        steps: Vec<Step>,
        events: UnboundedSender<TreeEvent>,
    ) -> anyhow::Result<Self> {
        let settings = context.settings();
        let samples = watch::Sender::new(None);
        let services = Services::new(Roster::with_database(is_away(&samples, settings.postgres.mode)), events.clone());
        let Front { view, viewers, upstream, mut tasks, control, orders } = front;
        let (launch, roster) = (services.launch(), services.roster());
        let operator = Operator::new(context.clone(), steps.clone(), events.clone(), launch, roster, upstream.clone());
        let operator = Rc::new(operator);
        if let Some(orders) = orders {
            tasks.push(event_loop::spawn("orders", operator.clone().carry_out(orders)));
        }
        let mut sidecar = Self {
            view,
            services,
            operator,
            errand: None,
            errand_done: Rc::default(),
            jobs: HashMap::new(),
            error: Rc::default(),
            samples,
            slow_step: SlowStep::default(),
            hooked: BTreeSet::new(),
            hook: None,
            backups: None,
            tasks,
            exits: None,
            upstream,
            application: Vec::new(),
            stopping: false,
            stop_began: None,
            stop_limit: Duration::ZERO,
            control,
            steps,
            events,
            context,
        };
        match goal {
            Goal::Errand(make) => sidecar.errand = Some(make(&sidecar.context.url())),
            Goal::Serve => {
                sidecar.open_doors()?;
                let statistics = statistics::follow(sidecar.view.picture(), viewers, sidecar.context.clone());
                sidecar.tasks.push(event_loop::spawn("the statistics", statistics));
                sidecar.follow_exits();
            }
        }
        Ok(sidecar)
    }

    /// Make the first services, as the tree plans them.
    pub fn stock(&mut self, tree: &Tree) {
        for (&id, member) in &tree.members {
            match self.steps[member.stage] {
                Step::Postgres => self.stock_postmaster(id),
                Step::Template => self.services.add(id, Origin::Template),
                Step::Workers => self.services.add(id, Origin::Slot(member.place)),
                Step::Companions => self.stock_companion(id, member.place),
                // These are jobs.
                Step::Install | Step::Cluster | Step::Attach | Step::Provision | Step::Migrate | Step::Errand => {}
            }
        }
    }

    fn stock_postmaster(&mut self, id: ServiceId) {
        let context = &self.context;
        let launch = postmaster::PostmasterSetup {
            home: context.home.clone(),
            installation: context.installation.clone(),
            url: context.urls(),
            stocked: context.database.clone(),
            settings: context.settings().postgres.clone(),
            grace: context.settings().stop.postgres_grace,
            waits_for_room: self.errand_is_absent(),
            samples: self.samples.clone(),
        };
        let postmaster = Postmaster::new(launch, self.services.reporter(id));
        self.services.insert(id, Service::Postgres(postmaster));
    }

    fn stock_companion(&mut self, id: ServiceId, place: usize) {
        let context = self.context.clone();
        let Some(name) = context.settings().processes.get(place).map(|process| process.name.clone()) else { return };
        let command: MakeCommand = Box::new(move || Box::pin(jobs::companion(context.clone(), place)));
        let companion = Companion::new(name, command, self.services.reporter(id));
        self.services.insert(id, Service::Companion(companion));
    }

    /// What gives the tree its orders.
    pub fn operator(&self) -> Rc<Operator> {
        self.operator.clone()
    }

    /// What the failed job said.
    pub fn error(&self) -> anyhow::Error {
        self.error.borrow_mut().take().unwrap_or_else(|| anyhow!("a step of the boot failed"))
    }

    /// Run the hook at each worker's end, from now on.
    fn follow_exits(&mut self) {
        let (events, error) = (self.events.clone(), self.error.clone());
        let on_failure = move |why: String| {
            *error.borrow_mut() = Some(anyhow!(why));
            let _ = events.send(TreeEvent::HookFailed);
        };
        let follow = hooks::follow_exits(self.context.clone(), self.services.roster().ended(), on_failure);
        self.exits = Some(event_loop::spawn("hooks.worker_exit", follow));
    }

    /// Wait for what is left of it, for a while.
    async fn end_exits(&mut self) {
        self.services.roster().close();
        let Some(mut exits) = self.exits.take() else { return };
        let limit = boot::exit_hook_limit(&self.context.settings());
        if timeout(limit, &mut exits).await.is_err() && !limit.is_zero() {
            tracing::warn!("hooks.worker_exit did not end within {limit:?} of the stop, and is killed");
        }
        exits.abort();
    }

    /// Close the health port; last the control socket, whose followers get the last line too.
    pub async fn close(mut self) {
        self.end_exits().await;
        for task in self.tasks.drain(..) {
            task.abort();
        }
        self.services.name_what_is_left();
        if let Some(began) = self.stop_began {
            tracing::info!("stopped in {:.0?}", began.elapsed());
        }
        if let Some(control) = self.control.take() {
            control.close().await;
        }
    }

    fn run_job(&mut self, run: JobRun) {
        let step = self.steps[run.stage];
        let context = self.context.clone();
        let errand = if step == Step::Errand { self.errand.take() } else { None };
        let (events, error) = (self.events.clone(), self.error.clone());
        let (serves, done) = (self.steps.contains(&Step::Workers), self.errand_done.clone());
        let job = async move {
            match step {
                Step::Install => jobs::install(context, serves).await,
                Step::Cluster => jobs::cluster(context).await,
                Step::Attach => attached::attach(context).await,
                Step::Provision => jobs::provision(context).await,
                Step::Migrate => jobs::migrate(context).await,
                Step::Errand => match errand {
                    Some(errand) => errand.await,
                    None => Err(anyhow!("the database went away; nothing was left half-done, run the command again")),
                },
                // These are services, which the tree starts by their own actions.
                Step::Postgres | Step::Template | Step::Workers | Step::Companions => Ok(()),
            }
        };
        let handle = event_loop::spawn("a step of the boot", async move {
            let event = match job.await {
                Ok(()) => {
                    done.set(step == Step::Errand);
                    TreeEvent::JobSucceeded(run)
                }
                Err(cause) => {
                    *error.borrow_mut() = Some(cause);
                    TreeEvent::JobFailed(run)
                }
            };
            let _ = events.send(event);
            if step == Step::Errand {
                let _ = events.send(TreeEvent::Stop);
            }
        });
        self.jobs.insert(run, handle);
    }

    fn enter(&mut self, phase: TreePhase) {
        self.view.enter(phase, &self.steps);
        self.slow_step.enter(phase, &self.steps, &self.context.settings(), &self.services.roster());
        match phase {
            TreePhase::Serving if self.errand_is_absent() => self.serving(),
            TreePhase::Draining { hook, .. } => {
                self.stop_began = Some(Instant::now());
                tracing::info!("stop asked for; readiness is withdrawn, still serving{}", at_most(self.stop_limit));
                if hook.is_some() {
                    self.before_stop();
                }
            }
            TreePhase::Stopping { cause, .. } if !self.stopping => self.stopping(cause),
            TreePhase::Idle
            | TreePhase::Booting { .. }
            | TreePhase::Serving
            | TreePhase::Stopping { .. }
            | TreePhase::Stopped { .. } => {}
        }
    }

    /// Whether what was to be done was done.
    pub fn errand_is_done(&self) -> bool {
        self.errand_done.get()
    }

    fn errand_is_absent(&self) -> bool {
        !self.steps.contains(&Step::Errand)
    }

    fn serving(&mut self) {
        self.view.banner(&self.context);
        let keep = backups::keep(self.context.clone(), self.view.picture());
        self.backups.get_or_insert_with(|| event_loop::spawn("scheduled backups", keep));
    }

    /// Run the hook after the start, and where that is wanted again whenever there are other workers.
    fn after_ready(&mut self, tree: &Tree) {
        let settings = self.context.settings();
        let (Some(_), Some(stage)) = (&settings.hooks.after_ready, tree.plan.roll.workers) else { return };
        let workers = tree.standing(stage);
        let pids: BTreeSet<i32> = workers.iter().filter_map(|id| tree.members[id].child.pid()).collect();
        let again = self.hooked.is_empty() || settings.hooks.after_ready_on == AfterReady::Replaced;
        // A hook that speaks to the application is to reach a worker that stays.
        let closing = tree.members.values().any(|member| member.child.is_closing());
        let settled = tree.is_ready() && tree.rolling().is_none() && !closing && self.hook.is_none();
        // Fewer of the same, after scaling down, are no others.
        if !again || !settled || pids.is_subset(&self.hooked) {
            return;
        }
        self.hooked = pids;
        let (context, events, error) = (self.context.clone(), self.events.clone(), self.error.clone());
        self.hook = Some(event_loop::spawn("hooks.after_ready", async move {
            if let Err(why) = hooks::run(context, hooks::HookPoint::AfterReady).await {
                *error.borrow_mut() = Some(anyhow!(why));
                let _ = events.send(TreeEvent::HookFailed);
            }
            // The tree looks again: there may be other workers by now.
            let _ = events.send(TreeEvent::Tick);
        }));
    }

    fn before_stop(&mut self) {
        let (context, events) = (self.context.clone(), self.events.clone());
        self.end_hook();
        self.hook = Some(event_loop::spawn("hooks.before_stop", async move {
            if let Err(why) = hooks::run(context, hooks::HookPoint::BeforeStop).await {
                tracing::error!("{why}; the stop goes on");
            }
            let _ = events.send(TreeEvent::HookEnded);
        }));
    }

    /// Dropped, it takes its process group along.
    fn end_hook(&mut self) {
        if let Some(hook) = self.hook.take() {
            hook.abort();
        }
    }

    fn stopping(&mut self, cause: Cause) {
        self.stopping = true;
        self.end_hook();
        // Its process goes with it, and leaves nothing under a final name.
        if let Some(backups) = self.backups.take() {
            backups.abort();
        }
        let drained = self.stop_began.is_some();
        self.stop_began.get_or_insert_with(Instant::now);
        if cause == Cause::Asked && self.errand_is_absent() {
            let limit = if drained { String::new() } else { at_most(self.stop_limit) };
            tracing::info!("stopping: workers finish what they have, then PostgreSQL{limit}");
        }
        self.services.postmasters().for_each(Postmaster::unwatch);
        // Closed here too, so that the kernel refuses new connections as soon as the workers have closed theirs.
        if let Some(launch) = &*self.services.launch().borrow() {
            launch.listeners.borrow_mut().clear();
        }
        if self.context.settings().postgres.mode == PostgresMode::Managed && self.server_answers() {
            // What is written out while the workers drain need not be at the shutdown: 192 ms become 62 ms.
            let checkpoint = checkpoint::checkpoint(self.context.home.clone(), self.context.url().port);
            event_loop::spawn("the checkpoint before the stop", checkpoint);
        }
    }

    fn server_answers(&self) -> bool {
        self.samples.borrow().as_ref().is_some_and(|(_, sample)| sample.available)
    }
}

impl Shell for Sidecar {
    fn act(&mut self, action: TreeAction) {
        event_loop::step("an action", || format!("{action:?}"), || self.carry_out(action));
    }

    fn observe(&mut self, tree: &Tree) {
        event_loop::step("observe", || "publish what others read".to_owned(), || self.publish(tree));
    }
}

impl Sidecar {
    fn carry_out(&mut self, action: TreeAction) {
        match action {
            TreeAction::RunJob(run) => self.run_job(run),
            TreeAction::CancelJob(run) => {
                if let Some(handle) = self.jobs.remove(&run) {
                    handle.abort();
                }
            }
            TreeAction::Add(id, origin) => self.services.add(id, origin),
            TreeAction::Service(id, action) => self.services.act(id, action),
            TreeAction::Swapped(new, old) => self.services.swapped(new, old),
            TreeAction::Cut(id) => self.services.cut(id),
            TreeAction::Remove(id) => self.services.remove(id),
            TreeAction::RollEnded(id, outcome) => {
                counting::roll(outcome);
                let report = match outcome {
                    Outcome::Done(count) => RollReport::Done(count),
                    Outcome::Aborted(failed, replaced) => RollReport::Aborted(self.services.failure(failed), replaced),
                    Outcome::Interrupted => RollReport::Interrupted,
                };
                self.operator.hear(id, report);
            }
            TreeAction::Enter(phase) => self.enter(phase),
        }
    }

    fn publish(&mut self, tree: &Tree) {
        if self.hook.as_ref().is_some_and(JoinHandle::is_finished) {
            self.hook = None;
        }
        self.services.observe(tree);
        self.stop_limit = tree.stop_sum().total();
        self.after_ready(tree);
        self.view.publish(tree, &self.services, &self.context);
        let fault = self.samples.borrow().as_ref().and_then(|(_, sample)| sample.fault);
        self.upstream.show(self.view.phase(), &self.view.line(&self.context, fault), self.stop_limit);
        self.operator.see(TreeView::of(tree, &self.services, self.view.phase()));
        // A stranger behind one of our own in the kernel's list could not be reaped when its signal came.
        crate::process::orphans::reap();
    }
}
