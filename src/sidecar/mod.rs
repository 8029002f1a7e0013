//! The boot list, and the same list reversed for the stop.
//!
//! [`run`] makes the tree from [`BOOT`] and lets `supervise` walk it; `jobs` is what each step does, `shell` carries
//! out the tree's actions, `view` is what health and the banner show of it.

mod jobs;
mod shell;
mod view;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc::unbounded_channel;

use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure};
use crate::health::picture::Migrations;
use crate::plan::{DatabaseUrl, Identity};
use crate::postgres::home::Home;
use crate::postgres::secret::Password;
use crate::postgres::service::Stocked;
use crate::postgres::stale;
use crate::postgres::{self, binaries::Installation};
use crate::process::orphans;
use crate::supervise::task;
use crate::supervise::tree::{Cause, Event, JobId, Plan, ServiceId, ServicePlan, Stage, Tree};
use crate::workers;

pub use view::Endpoints;

/// One step of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Find or fetch PostgreSQL, make the Python environment.
    Install,
    /// Make or open the data directory, write its settings.
    Cluster,
    /// Start the postmaster.
    Postgres,
    /// Wait for a server that Tandem does not run.
    Attach,
    /// Make the role, the database and its extensions.
    Provision,
    /// Bring the schema to where the application needs it.
    Migrate,
    /// Let the workers import the application and serve.
    Workers,
    /// What `tandem migrate` and its like came for, in the workers' place.
    Errand,
}

/// The boot, in order. A stop walks it backwards.
pub const BOOT: [Step; 6] =
    [Step::Install, Step::Cluster, Step::Postgres, Step::Provision, Step::Migrate, Step::Workers];

/// The same for a server that somebody else runs.
pub const BOOT_ATTACHED: [Step; 4] = [Step::Install, Step::Attach, Step::Migrate, Step::Workers];

/// Something to do with the database up, instead of serving.
pub type Errand = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// What the process tree is started for.
pub enum Goal {
    /// Serve until told to stop.
    Serve,
    /// Do this with the database up and provisioned, then stop.
    Errand(Errand),
}

/// What is known before the first child, and what the steps find out.
pub struct Context {
    pub settings: Settings,
    pub home: Home,
    /// Where the application's database is, password included.
    pub url: DatabaseUrl,
    /// The password of the application's role; `None` where the server is not ours.
    pub password: Option<Password>,
    pub installation: Rc<RefCell<Option<Installation>>>,
    pub python: Rc<RefCell<PathBuf>>,
    /// Whom the workers run as.
    pub worker_identity: Rc<RefCell<Option<Identity>>>,
    /// Whether the cluster was made by this run, and is empty.
    pub fresh: Cell<bool>,
    /// What the migrations did, for the health port.
    pub migrations: RefCell<Migrations>,
    /// How far the database has come, for the probe.
    pub database: Rc<Cell<Stocked>>,
}

impl Context {
    /// Resolve the password and the port: after this every URL is known, before any process runs.
    ///
    /// # Errors
    /// The port is taken and was chosen by hand; the state directory cannot be used.
    pub async fn resolve(settings: Settings, home: Home) -> anyhow::Result<Self> {
        if settings.postgres.mode == PostgresMode::Managed {
            // A server that outlives a killed Tandem by a moment still has the port that is to be chosen now.
            stale::end_leftover(&home).await?;
        }
        let (url, password) = jobs::database_url(&settings, &home)?;
        Ok(Self {
            settings,
            home,
            url,
            password,
            installation: Rc::default(),
            python: Rc::default(),
            worker_identity: Rc::default(),
            migrations: RefCell::default(),
            fresh: Cell::new(false),
            database: Rc::default(),
        })
    }
}

/// The steps of this run.
fn steps(context: &Context, goal: &Goal) -> Vec<Step> {
    let steps: &[Step] = match context.settings.postgres.mode {
        PostgresMode::Managed => &BOOT,
        PostgresMode::Attach => &BOOT_ATTACHED,
    };
    match goal {
        Goal::Serve => steps.to_vec(),
        Goal::Errand(_) => {
            let before = steps.iter().copied().filter(|step| !matches!(step, Step::Migrate | Step::Workers));
            before.chain([Step::Errand]).collect()
        }
    }
}

/// The postmaster's place among the services; workers follow it.
const POSTGRES: ServiceId = ServiceId(0);

/// The service of worker slot `number`.
fn worker(number: usize) -> ServiceId {
    ServiceId(number + 1)
}

/// The tree's plan for `steps`. Pure.
fn plan(settings: &Settings, steps: &[Step]) -> Plan {
    let count = settings.workers.count as usize;
    let stages = steps.iter().map(|&step| match step {
        Step::Postgres => Stage::Services(vec![POSTGRES]),
        Step::Workers => Stage::Services((0..count).map(worker).collect()),
        job => Stage::Job(JobId(job as usize)),
    });
    // Workers may import Python's libraries as soon as there is an environment.
    let installed = steps.iter().position(|&step| step == Step::Install).map(|install| install + 1);
    let postmaster =
        ServicePlan { policy: postgres::policy::policy(&settings.postgres, &settings.stop), prepare_at: None };
    let worker =
        ServicePlan { policy: workers::policy::policy(&settings.workers, &settings.stop), prepare_at: installed };
    let has_workers = steps.contains(&Step::Workers);
    let workers = std::iter::repeat_n(worker, if has_workers { count } else { 0 });
    Plan {
        stages: stages.collect(),
        services: std::iter::once(postmaster).chain(workers).collect(),
        drain_delay: if has_workers { settings.stop.drain_delay } else { Duration::ZERO },
    }
}

/// Boot, reach the goal, stop; ends when no process of the tree is left.
///
/// # Errors
/// What the first failing step said, or [`Code::GaveUp`] with the last lines of the service that gave up.
pub async fn run(context: Context, goal: Goal) -> anyhow::Result<()> {
    orphans::adopt();
    let mut inbox = crate::signals::Inbox::open().context("install signal handlers")?;
    let (events, receiver) = unbounded_channel();
    let steps = steps(&context, &goal);
    let tree = Tree::new(plan(&context.settings, &steps));
    let mut shell = shell::Sidecar::open(context, goal, steps, events.clone()).await?;
    let signals = async {
        loop {
            match inbox.next().await {
                crate::signals::Asked::Stop => {
                    let _ = events.send(Event::Stop);
                }
                crate::signals::Asked::Reap => orphans::reap(),
                asked @ (crate::signals::Asked::Reload
                | crate::signals::Asked::ScaleUp
                | crate::signals::Asked::ScaleDown) => tracing::warn!("{asked:?}: not possible yet"),
            }
        }
    };
    let cause = tokio::select! {
        cause = task::run(tree, receiver, &mut shell) => cause,
        () = signals => anyhow::bail!("the signal stream ended"),
    };
    orphans::end_strays(STRAY_ROUNDS);
    let outcome = match cause {
        Cause::Asked => Ok(()),
        Cause::JobFailed(_) => Err(shell.error()),
        Cause::GaveUp(id) => Err(gave_up(&shell, id)),
    };
    shell.close().await;
    outcome
}

/// A process that forks faster than it is killed is given up on after this many rounds.
const STRAY_ROUNDS: usize = 20;

fn gave_up(shell: &shell::Sidecar, id: ServiceId) -> anyhow::Error {
    let (name, why) = shell.last_words(id);
    Failure::new(Code::GaveUp, format!("{name} gave up{why}")).into()
}
