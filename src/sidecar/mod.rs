//! The boot list, and the same list reversed for the stop.
//!
//! [`run`] makes the tree from [`BOOT`] and lets `supervise` walk it; `jobs` is what each step does, `shell` carries
//! out the tree's actions, `view` is what health and the banner show of it.

mod backups;
mod context;
mod disks;
mod doors;
mod hooks;
mod jobs;
mod known;
mod marked_run;
mod orders;
mod services;
mod shell;
mod view;

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc::unbounded_channel;

use crate::companions;
use crate::config::{PostgresMode, Preload, ProcessSettings, Settings};
use crate::control::{Order, ScaleTo};
use crate::event_loop;
use crate::exit::{Code, Failure};
use crate::postgres;
use crate::process::orphans;
use crate::signals::{Asked, Inbox};
use crate::supervise::task;
use crate::supervise::tree::{Cause, Event, JobId, Need, Plan, RollPlan, ServiceId, ServicePlan, Stage, Tree};
use crate::workers;

pub use context::{Configuration, Context};
pub use jobs::migration_command;
use marked_run::MarkedRun;

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
    /// Let a template import the application, where workers are forked off one.
    Template,
    /// Let the workers import the application and serve.
    Workers,
    /// Start what else is to run beside the workers.
    Companions,
    /// What `tandem migrate` and its like came for, in the workers' place.
    Errand,
}

/// The boot, in order. A stop walks it backwards.
pub const BOOT: [Step; 8] = [
    Step::Install,
    Step::Cluster,
    Step::Postgres,
    Step::Provision,
    Step::Migrate,
    Step::Template,
    Step::Workers,
    Step::Companions,
];

/// The same for a server that somebody else runs.
pub const BOOT_ATTACHED: [Step; 6] =
    [Step::Install, Step::Attach, Step::Migrate, Step::Template, Step::Workers, Step::Companions];

/// Something to do with the database up, instead of serving.
pub type Errand = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// What the process tree is started for.
pub enum Goal {
    /// Serve until told to stop.
    Serve,
    /// Do this with the database up and provisioned, then stop.
    Errand(Errand),
}

/// The steps of this run.
fn steps(context: &Context, goal: &Goal) -> Vec<Step> {
    let steps: &[Step] = match context.settings().postgres.mode {
        PostgresMode::Managed => &BOOT,
        PostgresMode::Attach => &BOOT_ATTACHED,
    };
    match goal {
        Goal::Serve => steps.to_vec(),
        Goal::Errand(_) => {
            let serving = [Step::Migrate, Step::Template, Step::Workers, Step::Companions];
            let before = steps.iter().copied().filter(|step| !serving.contains(step));
            before.chain([Step::Errand]).collect()
        }
    }
}

/// The postmaster's place among the services; what else there is follows it.
const POSTGRES: ServiceId = ServiceId(0);

/// The tree's plan for `steps`; with `reload` workers that cannot start wait for better sources. Pure.
fn plan(settings: &Settings, steps: &[Step], reload: bool) -> Plan {
    let (workers, stop) = (&settings.workers, &settings.stop);
    // Workers may import Python's libraries as soon as there is an environment; another server knows no gate.
    let installed = steps.iter().position(|&step| step == Step::Install).map(|install| install + 1);
    let installed = installed.filter(|_| workers.command.is_none());
    let worker = |prepare_at, need| ServicePlan { policy: workers::policy::policy(workers, stop), prepare_at, need };
    let need = |need| if reload { Need::Never } else { need };
    let preload = (workers.preload != Preload::Off).then(|| worker(installed, need(Need::Boot)));
    let postmaster = ServicePlan {
        policy: postgres::policy::policy(&settings.postgres, stop),
        prepare_at: None,
        need: Need::Always,
    };
    let mut services = vec![postmaster];
    let mut more = |plans: Vec<ServicePlan>| -> Vec<ServiceId> {
        let ids = (services.len()..services.len() + plans.len()).map(ServiceId).collect();
        services.extend(plans);
        ids
    };
    let companion = |settings: &ProcessSettings| ServicePlan {
        policy: companions::policy(settings, workers),
        prepare_at: None,
        need: Need::Never,
    };
    let stages = steps.iter().map(|&step| match step {
        Step::Postgres => Stage::Services(vec![POSTGRES]),
        Step::Template => Stage::Services(more(preload.iter().cloned().collect())),
        Step::Workers => {
            // Forked off a template, they have nothing to import ahead.
            let prepare_at = installed.filter(|_| preload.is_none());
            Stage::Services(more(vec![worker(prepare_at, need(Need::Always)); workers.count as usize]))
        }
        Step::Companions => Stage::Aside(more(settings.processes.iter().map(companion).collect())),
        job => Stage::Job(JobId(job as usize)),
    });
    let stages: Vec<Stage> = stages.collect();
    let has_workers = steps.contains(&Step::Workers);
    Plan {
        stages,
        services,
        drain_delay: if has_workers { stop.drain_delay } else { Duration::ZERO },
        before_stop: settings.hooks.before_stop.as_ref().filter(|_| has_workers).map(|_| settings.hooks.limit),
        roll: RollPlan {
            workers: steps.iter().position(|&step| step == Step::Workers),
            template: steps.iter().position(|&step| step == Step::Template),
            preload,
            surge: workers.surge as usize,
            extra_max: extra_max(settings),
        },
    }
}

/// How many workers there may be beyond those wanted: each may open all the connections of its pool.
fn extra_max(settings: &Settings) -> usize {
    match settings.postgres.mode {
        PostgresMode::Managed => settings.budget().room() as usize,
        // What the other server bears is not known here; so many at once are a roll of all.
        PostgresMode::Attach => settings.workers.count.max(settings.workers.surge) as usize,
    }
}

/// Boot, reach the goal, stop; ends when no process of the tree is left.
///
/// # Errors
/// What the first failing step said, or [`Code::GaveUp`] with the last lines of the service that gave up.
pub async fn run(context: Context, goal: Goal) -> anyhow::Result<()> {
    orphans::adopt();
    let mut inbox = Inbox::open().context("install signal handlers")?;
    let marked = MarkedRun::begin(&context.home).await;
    let (events, receiver) = unbounded_channel();
    let steps = steps(&context, &goal);
    let tree = Tree::new(plan(&context.settings(), &steps, context.reload));
    let mut shell = shell::Sidecar::open(context, goal, steps, events.clone()).await?;
    shell.stock(&tree);
    let operator = shell.operator();
    let signals = async {
        loop {
            match inbox.next().await {
                Asked::Stop => {
                    let _ = events.send(Event::Stop);
                }
                Asked::Reap => orphans::reap(),
                Asked::Reload => operator.clone().in_background(Order::Reload),
                Asked::ScaleUp => operator.clone().in_background(Order::Scale(ScaleTo::By(1))),
                Asked::ScaleDown => operator.clone().in_background(Order::Scale(ScaleTo::By(-1))),
            }
        }
    };
    event_loop::measure();
    let cause = tokio::select! {
        cause = event_loop::timed("the tree of services", task::run(tree, receiver, &mut shell)) => cause,
        () = event_loop::timed("the signals", signals) => anyhow::bail!("the signal stream ended"),
    };
    tokio::select! {
        () = orphans::end_strays() => marked.end().await,
        () = asked_again(&mut inbox) => tracing::warn!("asked to stop again: what was killed is not waited for"),
    }
    let outcome = match cause {
        Cause::Asked => Ok(()),
        Cause::JobFailed(_) | Cause::HookFailed => Err(shell.error()),
        Cause::GaveUp(id) => Err(gave_up(&shell, id)),
    };
    shell.close().await;
    outcome
}

/// Until another stop is asked for.
async fn asked_again(inbox: &mut Inbox) {
    while inbox.next().await != Asked::Stop {}
}

fn gave_up(shell: &shell::Sidecar, id: ServiceId) -> anyhow::Error {
    if id == POSTGRES
        && let Some(lasting) = shell.services.postmaster.lasting()
    {
        return Failure::new(lasting.code, format!("postgres gave up: {}", lasting.why)).into();
    }
    let (name, why) = (shell.services.name(id), shell.services.last_words(id));
    Failure::new(Code::GaveUp, format!("{name} gave up{why}")).into()
}
