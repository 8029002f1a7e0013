//! Every counter and gauge of the registry.

use super::family::Kind;

/// A counter or gauge of the registry.
#[derive(Debug)]
pub struct Definition {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The series that are there before anything has happened: an alert on `increase()` misses the first step of a series
    /// that begins with it.
    pub begin: &'static [&'static [&'static str]],
}

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    begin: &'static [&'static [&'static str]],
) -> Definition {
    Definition { name, help, kind: Kind::Counter, labels, begin }
}

const fn gauge(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Definition {
    Definition { name, help, kind: Kind::Gauge, labels, begin: &[] }
}

pub static RESTARTS: Definition = counter(
    "tandem_service_restarts",
    "Processes started again after they failed, by the reason",
    &["service", "reason"],
    &[&["postgres", "exit"], &["postgres", "signal"]],
);
pub static GAVE_UP: Definition =
    counter("tandem_service_gave_up", "How often a service failed too often and was given up", &["service"], &[]);
pub static REPLACEMENTS: Definition = counter(
    "tandem_worker_replacements",
    "Workers replaced on purpose, new before old, by the reason",
    &["reason"],
    &[&["reload"], &["restart"], &["max_requests"], &["max_memory"], &["max_age"]],
);
pub static REQUESTS: Definition = counter(
    "tandem_worker_requests",
    "Requests that the workers of a slot answered since Tandem started",
    &["slot"],
    &[],
);
pub static DRAINS_BEGUN: Definition =
    counter("tandem_worker_drains_begun", "Workers that stopped accepting connections", &[], &[&[]]);
pub static DRAINS_ENDED: Definition =
    counter("tandem_worker_drains_ended", "Workers that answered their last request and then ended", &[], &[&[]]);
pub static DRAINS_CUT: Definition = counter(
    "tandem_worker_drains_cut",
    "Replaced workers whose last requests were cut for the sake of the next worker or of memory",
    &[],
    &[&[]],
);
pub static ROLLS: Definition = counter(
    "tandem_rolls",
    "Replacements of workers that were ordered, by how they ended",
    &["outcome"],
    &[&["done"], &["aborted"], &["interrupted"]],
);
pub static DEPLOYMENTS: Definition =
    counter("tandem_deployments", "Deployments, by how they ended", &["outcome"], &[&["done"], &["failed"]]);
pub static DEPLOYMENT_SECONDS: Definition =
    gauge("tandem_deployment_duration_seconds", "How long the last deployment took", &[]);
pub static DEPLOYMENT_TIME: Definition =
    gauge("tandem_deployment_timestamp_seconds", "When the last deployment ended", &[]);
pub static MIGRATIONS: Definition = counter(
    "tandem_migration_runs",
    "Runs of the migrations, by how they ended",
    &["outcome"],
    &[&["done"], &["failed"]],
);
pub static BACKUPS: Definition =
    counter("tandem_backups", "Scheduled backups, by how they ended", &["outcome"], &[&["done"], &["failed"]]);
pub static BASE_BACKUPS: Definition =
    counter("tandem_base_backups", "Base backups, by how they ended", &["outcome"], &[&["done"], &["failed"]]);
pub static COPIES: Definition = counter(
    "tandem_backup_copies",
    "Runs that sent copies of backups to a destination, by how they ended",
    &["destination", "outcome"],
    &[],
);
pub static COPY_TIME: Definition = gauge(
    "tandem_backup_copy_timestamp_seconds",
    "When a destination last had every backup that it should have",
    &["destination"],
);
pub static BOOT_STEPS: Definition =
    gauge("tandem_boot_step_duration_seconds", "How long a step of the last boot took", &["step"]);
pub static BOOT: Definition =
    gauge("tandem_boot_duration_seconds", "How long it took from the start until everything was ready", &[]);
pub static BUDGET: Definition = gauge(
    "tandem_connection_budget",
    "Connections that each part may open; together no more than the server accepts",
    &["part"],
);
pub static SERIES_LEFT_OUT: Definition = counter(
    "tandem_metrics_series_left_out",
    "Series that were not begun, because a metric has no more than 1000 of them",
    &[],
    &[&[]],
);

/// All of them, in the order of the text.
pub static ALL: &[&Definition] = &[
    &RESTARTS,
    &GAVE_UP,
    &REPLACEMENTS,
    &REQUESTS,
    &DRAINS_BEGUN,
    &DRAINS_ENDED,
    &DRAINS_CUT,
    &ROLLS,
    &DEPLOYMENTS,
    &DEPLOYMENT_SECONDS,
    &DEPLOYMENT_TIME,
    &MIGRATIONS,
    &BACKUPS,
    &BASE_BACKUPS,
    &COPIES,
    &COPY_TIME,
    &BOOT_STEPS,
    &BOOT,
    &BUDGET,
    &SERIES_LEFT_OUT,
];
