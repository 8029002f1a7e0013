//! What the registry of `/metrics` counts of the services and of what people ask.

use std::time::{Duration, SystemTime};

use super::services::{Service, Services};
use crate::backup::scheduled::Run;
use crate::boot::Step;
use crate::config::Settings;
use crate::control::Answer;
use crate::metrics::names::{
    BACKUPS, BASE_BACKUPS, BOOT, BOOT_STEPS, BUDGET, COPIES, COPY_TIME, DEPLOYMENT_SECONDS, DEPLOYMENT_TIME,
    DEPLOYMENTS, GAVE_UP, MIGRATIONS, RESTARTS, ROLLS,
};
use crate::metrics::registry;
use crate::process::Exit;
use crate::supervise::state::ChildAction;
use crate::supervise::tree::{Outcome, ServiceId};

/// How something ended, as its label.
fn outcome(is_done: bool) -> &'static str {
    if is_done { "done" } else { "failed" }
}

impl Services {
    /// Count what the tree decided for one of them.
    pub(super) fn count(&self, id: ServiceId, action: ChildAction) {
        match action {
            ChildAction::Restart(_) => registry().count(&RESTARTS, &[&self.name(id), self.restart_reason(id)]),
            ChildAction::GiveUp => registry().count(&GAVE_UP, &[&self.name(id)]),
            ChildAction::Spawn(..)
            | ChildAction::CancelSpawn(_)
            | ChildAction::Release
            | ChildAction::Signal { .. }
            | ChildAction::Unheard { .. }
            | ChildAction::Abandon { .. }
            | ChildAction::Disown(_)
            | ChildAction::Withdraw => {}
        }
    }

    /// Why its process failed, in one of a few words.
    fn restart_reason(&self, id: ServiceId) -> &'static str {
        let exit = match self.service(id) {
            Some(Service::Postgres(postmaster)) => postmaster.last_exit(),
            Some(Service::Companion(companion)) => companion.last_exit(),
            Some(Service::Template(_) | Service::Worker(_)) => {
                return self.life(id).map_or("unknown", |life| life.failure().word());
            }
            None => None,
        };
        match exit {
            Some(Exit::Code(_)) => "exit",
            Some(Exit::Signal(_)) => "signal",
            None => "not_started",
        }
    }
}

/// A roll has ended.
pub fn roll(ended: Outcome) {
    let word = match ended {
        Outcome::Done(_) => "done",
        Outcome::Aborted(..) => "aborted",
        Outcome::Interrupted => "interrupted",
    };
    registry().count(&ROLLS, &[word]);
}

/// A deployment has ended.
pub fn deployment(answer: &Answer, took: Duration) {
    registry().count(&DEPLOYMENTS, &[outcome(answer.is_done())]);
    registry().set(&DEPLOYMENT_SECONDS, &[], took.as_secs_f64());
    registry().set_time(&DEPLOYMENT_TIME, &[], SystemTime::now());
}

/// The migrations have run.
pub fn migrations(is_done: bool) {
    registry().count(&MIGRATIONS, &[outcome(is_done)]);
}

/// A base backup has ended.
pub fn base_backup(is_done: bool) {
    registry().count(&BASE_BACKUPS, &[outcome(is_done)]);
}

/// A scheduled backup has ended.
pub fn backup(run: &Run) {
    registry().count(&BACKUPS, &[outcome(run.error.is_none())]);
    for (destination, &is_whole) in &run.destinations {
        registry().count(&COPIES, &[destination, outcome(is_whole)]);
    }
    copies(run);
}

/// What is known of the copies from `run`, which may be one of an earlier Tandem.
pub fn copies(run: &Run) {
    for destination in run.destinations.iter().filter(|(_, is_whole)| **is_whole).map(|(destination, _)| destination) {
        registry().set_time(&COPY_TIME, &[destination], run.finished.into());
    }
}

/// A step of the boot has ended.
pub fn boot_step(name: &str, took: Duration) {
    registry().set(&BOOT_STEPS, &[name], took.as_secs_f64());
}

/// Everything is ready for the first time.
pub fn boot(took: Duration) {
    registry().set(&BOOT, &[], took.as_secs_f64());
}

/// How the connections are shared out by `settings`.
pub fn budget(settings: &Settings) {
    let budget = settings.budget();
    let [workers, rolling] = [budget.workers, budget.rolling].map(|count| u64::from(count) * budget.per_worker());
    let kept = budget.total().saturating_sub(workers + rolling);
    for (part, count) in [("workers", workers), ("roll", rolling), ("reserved", kept)] {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        registry().set(&BUDGET, &[part], count as f64);
    }
}

/// As the label of a step.
pub fn step_name(step: Step) -> &'static str {
    match step {
        Step::Install => "install",
        Step::Cluster => "cluster",
        Step::Postgres => "postgres",
        Step::Attach => "attach",
        Step::Provision => "provision",
        Step::Migrate => "migrate",
        Step::Template => "template",
        Step::Workers => "workers",
        Step::Companions => "processes",
        Step::Errand => "errand",
    }
}
