//! The shell around the tree: makes the plan from the boot list, lets `supervise` walk it, carries out what it decides.
//!
//! [`crate::boot`] holds the list; `jobs` is what each step does, `shell` carries out the tree's actions, `view` is what
//! health and the banner show of it.

mod absence;
mod answers;
mod attached;
mod away;
mod backups;
mod beginning;
mod context;
mod counting;
mod database_tls;
mod deploy;
mod disks;
mod doors;
mod front;
mod hooks;
mod init_scripts;
mod jobs;
mod marked_run;
mod measuring;
pub mod migration_run;
mod orders;
mod preflight;
pub mod rotate;
mod saved;
mod services;
mod shell;
mod slow_step;
mod statistics;
mod task;
mod tree_view;
mod view;

use anyhow::Context as _;
use tokio::sync::mpsc::unbounded_channel;

use crate::boot::{self, Step};
use crate::control::{Order, ScaleTo};
use crate::event_loop;
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::service::Postmaster;
use crate::process::orphans;
use crate::signals::{Asked, Inbox};
use crate::supervise::tree::{Cause, ServiceId, Tree, TreeEvent};

pub use context::{Configuration, Context};
use front::Front;
pub use jobs::migration_command;

/// Something to do with the database up, instead of serving.
pub type Errand = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// What the process tree is started for.
pub enum Goal {
    /// Serve until told to stop.
    Serve,
    /// Do what this makes with the database up and provisioned, then stop.
    Errand(MakeErrand),
}

/// Makes the errand once it is known where the database will be.
pub type MakeErrand = Box<dyn FnOnce(&DatabaseUrl) -> Errand>;

/// Boot, reach the goal, stop; ends when no process of the tree is left. The caller holds the state directory.
///
/// # Errors
/// What the first failing step said, or [`Code::GaveUp`] with the last lines of the service that gave up.
pub async fn run(configuration: Configuration, home: Home, goal: Goal) -> anyhow::Result<()> {
    orphans::adopt();
    let mut inbox = Inbox::open().context("install signal handlers")?;
    event_loop::measure();
    let serves = matches!(goal, Goal::Serve);
    let settings = &configuration.loaded.settings;
    let mut front = if serves { Front::open(settings, &home)? } else { Front::closed(settings) };
    let begun = beginning::begin(configuration, home, &mut inbox, &mut front, serves).await;
    let Some((context, marked)) = begun? else {
        tracing::info!("stop asked for before anything was started");
        front.close().await;
        let text = "stopped before it began: nothing was done";
        return if serves { Ok(()) } else { Err(Failure::new(Code::Failed, text).into()) };
    };
    let (events, receiver) = unbounded_channel();
    let settings = context.settings();
    let steps = match goal {
        Goal::Serve => boot::serving(&settings),
        Goal::Errand(_) => boot::errand(&settings),
    };
    let tree = Tree::new(boot::plan(&settings, &steps, context.reload));
    let mut shell = shell::Sidecar::open((context, front), goal, steps, events.clone())?;
    shell.stock(&tree);
    let operator = shell.operator();
    let signals = async {
        loop {
            match inbox.next().await {
                Asked::Stop => {
                    let _ = events.send(TreeEvent::Stop);
                }
                Asked::Reap => orphans::reap(),
                Asked::Reload => operator.clone().in_background(Order::Reload),
                Asked::ScaleUp => operator.clone().in_background(Order::Scale(ScaleTo::By(1))),
                Asked::ScaleDown => operator.clone().in_background(Order::Scale(ScaleTo::By(-1))),
            }
        }
    };
    let cause = tokio::select! {
        cause = event_loop::timed("the tree of services", task::run(tree, receiver, &mut shell)) => cause,
        () = event_loop::timed("the signals", signals) => anyhow::bail!("the signal stream ended"),
    };
    tokio::select! {
        () = orphans::end_strays() => marked.end().await,
        () = asked_again(&mut inbox) => tracing::warn!("asked to stop again: what was killed is not waited for"),
    }
    let outcome = match cause {
        Cause::Asked if serves || shell.errand_is_done() => Ok(()),
        Cause::Asked => Err(Failure::new(Code::Failed, "stopped before it was done").into()),
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
    if let Some(lasting) = shell.services.postmaster(id).and_then(Postmaster::lasting) {
        return Failure::new(lasting.code, format!("postgres gave up: {}", lasting.why)).into();
    }
    let (name, why) = (shell.services.name(id), shell.services.last_words(id));
    Failure::new(Code::GaveUp, format!("{name} gave up{why}")).into()
}
