//! The boot list, and the plan that the tree walks; a stop walks the list backwards. Pure.

use std::time::Duration;

use crate::companions;
use crate::config::{PostgresMode, Preload, ProcessSettings, Settings};
use crate::plan::{StopLadder, StopTerm};
use crate::postgres;
use crate::process::keeper::DISMISS_LIMIT;
use crate::process::orphans::STRAY_LIMIT;
use crate::supervise::plan::{Need, Plan, RollPlan, ServiceId, ServicePlan, Stage};
use crate::workers;

/// What the hook at a worker's end gets after the last worker has ended: by then most of it has run beside PostgreSQL's stop.
const EXIT_HOOK_LIMIT: Duration = Duration::from_secs(3);

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
    /// The one job of a command such as `tandem migrate`, run instead of the workers.
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

/// The same for a server that Tandem does not run.
pub const BOOT_ATTACHED: [Step; 6] =
    [Step::Install, Step::Attach, Step::Migrate, Step::Template, Step::Workers, Step::Companions];

/// The steps up to an application that serves.
pub fn serving(settings: &Settings) -> Vec<Step> {
    match settings.postgres.mode {
        PostgresMode::Managed => BOOT.to_vec(),
        PostgresMode::Attach => BOOT_ATTACHED.to_vec(),
    }
}

/// The steps of a command that needs the database and no application.
pub fn errand(settings: &Settings) -> Vec<Step> {
    let serve = [Step::Migrate, Step::Template, Step::Workers, Step::Companions];
    serving(settings).into_iter().filter(|step| !serve.contains(step)).chain([Step::Errand]).collect()
}

/// The tree's plan for `steps`; with `reload`, workers that cannot start wait for better sources.
pub fn plan(settings: &Settings, steps: &[Step], reload: bool) -> Plan {
    let (workers, stop) = (&settings.workers, &settings.stop);
    // Workers may import Python's libraries as soon as there is an environment; another server knows no gate.
    let installed = steps.iter().position(|&step| step == Step::Install).map(|install| install + 1);
    let installed = installed.filter(|_| workers.command.is_none());
    let worker = |prepare_at, need| ServicePlan { policy: workers::policy::policy(workers, stop), prepare_at, need };
    let need = |need| if reload { Need::Never } else { need };
    let preload = (workers.preload != Preload::Off).then(|| worker(installed, need(Need::Boot)));
    let postmaster = || ServicePlan {
        policy: postgres::policy::policy(&settings.postgres, stop),
        prepare_at: None,
        need: Need::Always,
    };
    let companion = |settings: &ProcessSettings| ServicePlan {
        policy: companions::policy(settings, workers),
        prepare_at: None,
        need: Need::Never,
    };
    let mut services = Vec::new();
    let mut more = |plans: Vec<ServicePlan>| -> Vec<ServiceId> {
        let ids = (services.len()..services.len() + plans.len()).map(ServiceId).collect();
        services.extend(plans);
        ids
    };
    let stages = steps.iter().map(|step| match step {
        Step::Postgres => Stage::Services(more(vec![postmaster()])),
        Step::Template => Stage::Services(more(preload.iter().cloned().collect())),
        Step::Workers => {
            // Forked off a template, they have nothing to import ahead.
            let prepare_at = installed.filter(|_| preload.is_none());
            Stage::Services(more(vec![worker(prepare_at, need(Need::Always)); workers.count as usize]))
        }
        Step::Companions => Stage::Aside(more(settings.processes.iter().map(companion).collect())),
        Step::Install | Step::Cluster | Step::Attach | Step::Provision | Step::Migrate | Step::Errand => Stage::Job,
    });
    let stages: Vec<Stage> = stages.collect();
    let has_workers = steps.contains(&Step::Workers);
    Plan {
        stages,
        services,
        drain_delay: if has_workers { stop.drain_delay } else { Duration::ZERO },
        after_stop: if has_workers { LAST_STEPS.saturating_add(exit_hook_limit(settings)) } else { LAST_STEPS },
        before_stop: settings.hooks.before_stop.as_ref().filter(|_| has_workers).map(|_| settings.hooks.limit),
        roll: RollPlan {
            workers: steps.iter().position(|&step| step == Step::Workers),
            template: steps.iter().position(|&step| step == Step::Template),
            preload,
            surge: workers.surge as usize,
            most: most(settings),
        },
    }
}

/// How many workers there may be at once: each may open all the connections of its pool.
fn most(settings: &Settings) -> usize {
    let count = settings.workers.count as usize;
    count.saturating_add(match settings.postgres.mode {
        PostgresMode::Managed => settings.budget().room() as usize,
        // What the other server bears is not known here; so many beside them are a roll of all.
        PostgresMode::Attach => count.max(settings.workers.surge as usize),
    })
}

/// How long a stop waits at its end for `hooks.worker_exit`.
pub fn exit_hook_limit(settings: &Settings) -> Duration {
    settings.hooks.worker_exit.as_ref().map_or(Duration::ZERO, |_| settings.hooks.limit.min(EXIT_HOOK_LIMIT))
}

/// How long the removal of the note of a run may take.
pub const NOTE_LIMIT: Duration = Duration::from_secs(1);

/// What follows when the last service has ended: what services left behind is killed, the keeper is dismissed, the note of
/// the run is removed.
const LAST_STEPS: Duration = STRAY_LIMIT.saturating_add(DISMISS_LIMIT).saturating_add(NOTE_LIMIT);

/// The stop of a Tandem that serves with these settings, as `tandem check` tells it.
pub fn stop_ladder(settings: &Settings) -> StopLadder {
    let steps = serving(settings);
    let sum = plan(settings, &steps, false).stop_sum();
    let waits_for_hook = settings.hooks.before_stop.is_some() && settings.hooks.limit > settings.stop.drain_delay;
    let draining =
        StopTerm { what: if waits_for_hook { "hooks.before_stop" } else { "stop.drain_delay" }, limit: sum.draining };
    let stages = sum.stages.into_iter().map(|(stage, limit)| StopTerm { what: what_ends(steps[stage]), limit });
    let exits = StopTerm { what: "hooks.worker_exit", limit: exit_hook_limit(settings) };
    let after = StopTerm { what: "what they left", limit: LAST_STEPS };
    let terms = std::iter::once(draining).chain(stages).chain([after, exits]);
    let terms = terms.filter(|term| !term.limit.is_zero()).collect();
    let of_server = if steps.contains(&Step::Postgres) { postgres::policy::LAST_RESORT } else { Duration::ZERO };
    let last_resort = of_server.saturating_add(sum.after);
    StopLadder { terms, last_resort, platform_grace: settings.stop.platform_grace }
}

/// The services of a step, in a word.
fn what_ends(step: Step) -> &'static str {
    match step {
        Step::Postgres => "PostgreSQL",
        Step::Template => "template",
        Step::Workers => "workers",
        Step::Companions => "processes",
        Step::Install | Step::Cluster | Step::Attach | Step::Provision | Step::Migrate | Step::Errand => "a job",
    }
}
