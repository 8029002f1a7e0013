//! What the health port, the control socket and the banner show of the tree.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Context;
use super::counting::{self, step_name};
use super::services::{ServiceKind, Services};
use crate::boot::Step;
use crate::config::{PostgresMode, Preload, Settings};
use crate::health::history::{self, Marks};
use crate::health::picture::{self, Picture};
use crate::health::rates::Rates;
use crate::phase::Phase as Public;
use crate::postgres::probe::Sample;
use crate::postgres::service::DatabaseReading;
use crate::supervise::state::State;
use crate::supervise::tree::{Role, Tree, TreePhase};
use crate::telemetry;
use crate::workers::life::Roster;

/// The phase, when each step began, and the picture for the health port.
pub struct View {
    picture: watch::Sender<Arc<Picture>>,
    started: Instant,
    phase: Public,
    /// When each step of the boot began.
    began: Vec<(Step, Instant)>,
}

impl View {
    pub fn new(settings: &Settings) -> Self {
        let started = Instant::now();
        let postgres = &settings.postgres;
        let picture = Picture {
            // Blocks: it may, on a disk that hangs, before the loop turns.
            deployment: settings.deployment(),
            phase: Public::Installing,
            started,
            database: picture::Database {
                sample: None,
                // One interval, one probe that passes its deadline, and some room for the event loop.
                sample_age_max: postgres.probe_interval + postgres.probe_deadline + Duration::from_millis(500),
                pool_size: settings.pool.size,
            },
            workers: Vec::new(),
            workers_wanted: settings.workers.count,
            workers_min: settings.health.workers_min,
            migrations: picture::Migrations::default(),
            hook: None,
            certificate: None,
            database_certificate: None,
            sorted_otherwise: Vec::new(),
            backups: picture::Backups::default(),
            disk: picture::Disk::default(),
            backup_disk: picture::Disk::default(),
            services: Vec::new(),
            roll: None,
            details: picture::Details {
                name: settings.name.clone(),
                application: settings.urls(),
                ..picture::Details::default()
            },
        };
        Self { picture: watch::Sender::new(Arc::new(picture)), started, phase: Public::Installing, began: Vec::new() }
    }

    /// The sender of the picture.
    pub fn picture(&self) -> watch::Sender<Arc<Picture>> {
        self.picture.clone()
    }

    /// What the health port reads.
    pub fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
        self.picture.subscribe()
    }

    /// The phase that users see.
    pub fn phase(&self) -> Public {
        self.phase
    }

    /// Note that the tree entered `phase`.
    pub fn enter(&mut self, phase: TreePhase, steps: &[Step]) {
        self.show_boot(phase, steps);
        if self.phase < Public::Serving
            && let Some((step, began)) = self.began.last()
        {
            counting::boot_step(step_name(*step), began.elapsed());
            if phase == TreePhase::Serving {
                counting::boot(self.started.elapsed());
            }
        }
        self.phase = match phase {
            TreePhase::Idle => Public::Installing,
            TreePhase::Booting { stage } => {
                self.began.push((steps[stage], Instant::now()));
                public(steps[stage])
            }
            TreePhase::Serving => Public::Serving,
            TreePhase::Draining { .. } => Public::Draining,
            TreePhase::Stopping { .. } => Public::Stopping,
            TreePhase::Stopped { .. } => Public::Stopped,
        };
    }

    /// Show how far the boot is that enters `phase`.
    fn show_boot(&self, phase: TreePhase, steps: &[Step]) {
        let now = Instant::now();
        self.picture.send_modify(|picture| {
            let boot = &mut Arc::make_mut(picture).details.boot;
            if boot.len() != steps.len() {
                *boot = steps
                    .iter()
                    .map(|step| picture::BootStep { name: step_name(*step), began: None, ended: None })
                    .collect();
            }
            let at = match phase {
                TreePhase::Booting { stage } => stage,
                _ => steps.len(),
            };
            // A stop before the boot is over leaves the rest as it is.
            if matches!(phase, TreePhase::Booting { .. } | TreePhase::Serving) {
                boot.iter_mut().take(at).filter(|step| step.began.is_some()).for_each(|step| {
                    step.ended.get_or_insert(now);
                });
            }
            if let Some(step) = boot.get_mut(at) {
                (step.began, step.ended) = (Some(now), None);
            }
        });
    }

    /// Make a new picture and hand it to the health port.
    pub fn publish(&mut self, tree: &Tree, services: &Services, context: &Context) {
        counting::budget(&context.settings());
        let phase = self.phase;
        let stage = tree.plan.roll.workers;
        let workers = stage.map(|stage| tree.of_stage(stage)).unwrap_or_default();
        let wanted = stage.map_or(0, |stage| tree.standing(stage).len());
        let workers: Vec<_> = workers
            .into_iter()
            .map(|id| {
                let member = &tree.members[&id];
                let life = services.life(id);
                let retiring = member.role == Role::Retiring && !member.child.is_abandoned();
                let state = worker_state(member.child.state);
                picture::Worker {
                    slot: u32::try_from(member.place).unwrap_or(u32::MAX),
                    pid: member.child.pid(),
                    state: if retiring { picture::WorkerState::Retiring } else { state },
                    since: Instant::now(),
                    restarts: u32::try_from(member.child.restarts).unwrap_or(u32::MAX),
                    last_exit: life.as_ref().and_then(|life| life.last_exit()),
                    counts: life.and_then(|life| life.counts()),
                    memory_bytes: None,
                }
            })
            .collect();
        let roll = tree.rolling().map(|(done, left)| format!("{done} workers are replaced, {left} are still to be"));
        self.picture.send_modify(|picture| {
            let picture = Arc::make_mut(picture);
            let marks = Marks::of(picture);
            let before = std::mem::replace(&mut picture.workers, workers);
            for worker in &mut picture.workers {
                let same = before.iter().find(|old| old.pid == worker.pid && old.slot == worker.slot);
                worker.since = same.filter(|old| old.state == worker.state).map_or(worker.since, |old| old.since);
                worker.memory_bytes = worker.pid.and(same).and_then(|old| old.memory_bytes);
            }
            picture.workers_wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            picture.phase = phase;
            picture.migrations = context.migrations.borrow().clone();
            picture.hook = context.hook_failure.borrow().clone();
            picture.certificate = context.certificate.get();
            picture.database_certificate = context.database_certificate.get();
            picture.services = shown(tree, services, &picture.services);
            picture.roll = roll;
            picture.workers_min = context.settings().health.workers_min;
            picture.details.deployment = context.deployment_step.borrow().clone();
            history::note(picture, &marks, SystemTime::now());
        });
    }

    /// The state in one line, for the supervisor above; `fault` is the database's.
    pub fn line(&self, context: &Context, fault: Option<picture::Fault>) -> String {
        if self.phase != Public::Serving {
            return self.phase.to_string();
        }
        let picture = self.picture.borrow();
        let ready = picture.workers.iter().filter(|worker| worker.state == picture::WorkerState::Ready);
        // During a replacement the old and the new worker of a slot are ready.
        let ready = ready.map(|worker| worker.slot).collect::<HashSet<_>>().len();
        let (listen, wanted) = (context.settings().listens(), picture.workers_wanted);
        let roll = picture.roll.as_ref().map(|roll| format!("; {roll}")).unwrap_or_default();
        let fault = fault.map(|fault| format!("; database: {fault}")).unwrap_or_default();
        format!("serving on {listen}, {ready} of {wanted} workers ready{fault}{roll}")
    }

    /// Put each reading of the database and the workers' counts into the picture, for ever.
    pub fn follow(
        &self,
        mut readings: watch::Receiver<DatabaseReading>,
        roster: Roster,
    ) -> impl Future<Output = ()> + use<> {
        let pictures = self.picture.clone();
        async move {
            let (mut known, mut rates) = (Sample::failed(picture::Fault::Down), Rates::default());
            loop {
                let mut reading = readings.borrow_and_update().clone();
                if let Some((_, sample)) = &mut reading {
                    keep_facts(&mut known, sample);
                }
                pictures.send_modify(|picture| {
                    let picture = Arc::make_mut(picture);
                    let marks = Marks::of(picture);
                    picture.database.sample = Some(sample(reading));
                    for worker in &mut picture.workers {
                        worker.counts = worker.pid.and_then(|pid| roster.counts(pid));
                    }
                    for service in &mut picture.services {
                        service.counts = service.pid.and_then(|pid| roster.counts(pid));
                        service.unfinished = service.pid.and_then(|pid| roster.unfinished(pid));
                    }
                    let counted = picture.services.iter().filter_map(|it| Some((it.pid?, it.counts?.requests)));
                    picture.details.rates = rates.after(Instant::now(), &counted.collect::<Vec<_>>());
                    history::note(picture, &marks, SystemTime::now());
                });
                if readings.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Print once that everything is ready: the addresses, how to connect, and how long each step took.
    pub fn banner(&self, context: &Context) {
        let settings = &*context.settings();
        let ends = self.began.iter().skip(1).map(|(_, began)| *began).chain([Instant::now()]);
        let took = self
            .began
            .iter()
            .zip(ends)
            .filter(|((step, _), _)| match step {
                Step::Companions => false,
                Step::Template => settings.workers.preload != Preload::Off,
                _ => true,
            })
            .map(|((step, began), end)| format!("{} {:.0?}", step_name(*step), end.duration_since(*began)));
        let took: Vec<String> = took.collect();
        let server = match settings.postgres.mode {
            PostgresMode::Managed => "tandem psql, or with the URL that `tandem url` prints",
            PostgresMode::Attach => "tandem psql (the server is run by somebody else)",
        };
        telemetry::banner(
            &format!("{} is ready after {:.0?}", settings.name, self.started.elapsed()),
            &[
                ("app", format!("{} ({} workers)", settings.urls(), settings.workers.count)),
                ("health", format!("{}/health", settings.health.listen.shown("http"))),
                ("database", context.url().to_string()),
                ("connect", server.to_owned()),
                ("steps", took.join(", ")),
                ("next", next(context.reload)),
            ],
        );
    }
}

/// What one may want to do next, in another terminal.
fn next(reload: bool) -> String {
    let development =
        if reload { "saved files replace the workers" } else { "`tandem up --reload` follows saved files" };
    format!("tandem status, tandem logs -f, tandem test; {development}; Ctrl-C or `tandem stop` ends it")
}

/// Every service of `tree` as the control socket shows it; a service that did not change since `before` keeps its times.
fn shown(tree: &Tree, services: &Services, before: &[picture::Service]) -> Vec<picture::Service> {
    let now = Instant::now();
    let mut ids: Vec<_> = tree.members.keys().copied().collect();
    ids.sort_by_key(|id| (tree.members[id].stage, tree.members[id].place, *id));
    let one = |id| {
        let member = &tree.members[&id];
        let (name, pid, state) = (services.name(id), member.child.pid(), member.child.label());
        let same = before.iter().find(|service| service.name == name && service.pid == pid);
        picture::Service {
            kind: services.kind(id).map_or("gone", ServiceKind::name),
            pid,
            state,
            role: match member.role {
                Role::Standing => "standing",
                Role::Replacement => "replacement",
                Role::Retiring => "retiring",
            },
            since: same.filter(|service| service.state == state).map_or(now, |service| service.since),
            started: pid.and(same.map_or(Some(now), |service| service.started)),
            restarts: u32::try_from(member.child.restarts).unwrap_or(u32::MAX),
            last_reason: services.last_reason(id),
            counts: services.counts(id),
            unfinished: services.unfinished(id),
            memory_bytes: pid.and(same).and_then(|service| service.memory_bytes),
            name,
        }
    };
    ids.into_iter().map(one).collect()
}

/// Keep the `known` facts where the sample has none: on a full disk the server may not answer the question.
fn keep_facts(known: &mut Sample, sample: &mut Sample) {
    if sample.max_connections.is_some() {
        known.clone_from(sample);
    } else if sample.available {
        sample.tables.clone_from(&known.tables);
        sample.schema_version.clone_from(&known.schema_version);
        sample.max_connections = known.max_connections;
    }
}

/// A reading as the health port shows it. Its error's text stays in the log: it may quote a connection string.
fn sample(reading: DatabaseReading) -> picture::Sample {
    let Some((taken, sample)) = reading else {
        return picture::Sample { taken: Instant::now(), outcome: Err(picture::Fault::Down) };
    };
    let Sample { available, latency, schema_version, tables, connections, max_connections, fault, .. } = sample;
    let facts = picture::Facts { latency, schema_version, tables, connections, max_connections };
    let outcome = match fault {
        Some(fault) => Err(fault),
        None if available => Ok(facts),
        None => Err(picture::Fault::Unreachable),
    };
    picture::Sample { taken, outcome }
}

fn public(step: Step) -> Public {
    match step {
        Step::Install => Public::Installing,
        Step::Cluster | Step::Postgres | Step::Attach | Step::Provision => Public::StartingDatabase,
        Step::Migrate | Step::Errand => Public::Migrating,
        Step::Template | Step::Workers | Step::Companions => Public::StartingWorkers,
    }
}

fn worker_state(state: State) -> picture::WorkerState {
    match state {
        State::Spawning { .. } | State::Cancelling { .. } | State::Held { .. } | State::Starting { .. } => {
            picture::WorkerState::Starting
        }
        State::Ready { .. } => picture::WorkerState::Ready,
        State::Hung { .. }
        | State::Replacing { .. }
        | State::Restarting { .. }
        | State::Stopping { .. }
        | State::Closing { .. }
        | State::Draining { .. } => picture::WorkerState::Retiring,
        State::Abandoned { .. } => picture::WorkerState::Abandoned,
        State::Down | State::Backoff { .. } => picture::WorkerState::Resting,
        State::GaveUp => picture::WorkerState::GaveUp,
    }
}
