//! The picture as families for `/metrics`, and the whole text but for what was measured of the database. Pure.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::picture::{Destination, Disk, Picture, Service, Supervisor, WorkerState};
use super::report;
use crate::metrics::{Family, Format, Kind, Registry, text};
use crate::phase::Phase;

/// The metrics of `picture` and `registry` at `now` as text, without what was measured of the database and without what ends
/// the text.
pub fn text(
    picture: &Picture,
    supervisor: Supervisor,
    now: (Instant, SystemTime),
    registry: &Registry,
    format: Format,
) -> String {
    text::write(&own(picture, supervisor, now, registry), format)
}

/// Everything that `/metrics` has, the database included.
#[cfg(feature = "otlp")]
pub fn all(picture: &Picture, supervisor: Supervisor, now: (Instant, SystemTime), registry: &Registry) -> Vec<Family> {
    let mut families = own(picture, supervisor, now, registry);
    families.extend(registry.database().iter().flat_map(|database| database.families().iter().cloned()));
    families
}

fn own(picture: &Picture, supervisor: Supervisor, now: (Instant, SystemTime), registry: &Registry) -> Vec<Family> {
    let mut families = families(picture, supervisor, now);
    families.extend(registry.families());
    families.extend(registry.database().map(|database| {
        let age = now.0.saturating_duration_since(database.taken);
        Family::gauge(
            "tandem_metrics_sample_age_seconds",
            "How old what was measured of the database is",
            age.as_secs_f64(),
        )
    }));
    families
}

/// What the picture has.
fn families(picture: &Picture, supervisor: Supervisor, (instant, wall): (Instant, SystemTime)) -> Vec<Family> {
    let mut all = Families(Vec::new());
    of_tandem(&mut all, picture, supervisor, (instant, wall));
    disks(&mut all, picture);
    database(&mut all, picture);
    workers(&mut all, picture);
    services(&mut all, picture);
    schema(&mut all, picture);
    backups(&mut all, picture, wall);
    let days = picture.certificate.map(|until| days_until(until, wall));
    all.gauge("tandem_tls_certificate_days_left", "Days until the application's certificate expires", days);
    let days = picture.database_certificate.map(|until| days_until(until, wall));
    all.gauge("tandem_postgres_certificate_days_left", "Days until PostgreSQL's certificate expires", days);
    all.0
}

/// Families that are being collected.
struct Families(Vec<Family>);

impl Families {
    /// One gauge; an unknown value is left out.
    fn gauge(&mut self, name: &'static str, help: &'static str, value: Option<f64>) {
        self.0.extend(value.map(|value| Family::gauge(name, help, value)));
    }

    /// A point in time, in seconds since 1970.
    fn time(&mut self, name: &'static str, help: &'static str, time: Option<SystemTime>) {
        self.gauge(name, help, time.map(since_1970));
    }

    /// One sample for each value of one label.
    fn each(
        &mut self,
        (name, kind): (&'static str, Kind),
        help: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = (String, f64)>,
    ) {
        let family = Family::new(name, help, kind);
        let add = |family: Family, (of, value): (String, f64)| family.with(&[(label, &of)], value);
        self.0.push(values.into_iter().fold(family, add));
    }
}

fn of_tandem(all: &mut Families, picture: &Picture, supervisor: Supervisor, (instant, wall): (Instant, SystemTime)) {
    let version = env!("CARGO_PKG_VERSION");
    let info = Family::new("tandem_build_info", "The version of Tandem, and which deployment it is", Kind::Gauge);
    all.0.push(info.with(&[("version", version), ("deployment", &picture.deployment)], 1.0));
    let began = wall.checked_sub(instant.saturating_duration_since(picture.started));
    all.time("tandem_start_time_seconds", "When Tandem was started, in seconds since 1970", began);
    let phases = Phase::ALL.into_iter().map(|phase| (phase.name().to_owned(), flag(phase == picture.phase)));
    all.each(("tandem_phase", Kind::Gauge), "The phase that Tandem is in: 1, the others 0", "phase", phases);
    let now = report::Now { instant, wall, supervisor, under_way: &[] };
    let status = report::status(picture, now);
    let statuses = [report::Status::Healthy, report::Status::Degraded, report::Status::Unhealthy];
    let statuses = statuses.into_iter().map(|one| (one.name().to_owned(), flag(one == status)));
    all.each(("tandem_health_status", Kind::Gauge), "What /health says: 1, the others 0", "status", statuses);
    let ready = report::readiness(picture, now).ready;
    all.gauge("tandem_ready", "Whether requests should be sent here", Some(flag(ready)));
    all.gauge("tandem_roll_running", "Whether workers are being replaced", Some(flag(picture.roll.is_some())));
    all.gauge(
        "tandem_loop_stall_seconds_max",
        "The longest that the event loop stood still since the start",
        Some(supervisor.longest_stall.as_secs_f64()),
    );
    for (name, help, value) in [
        ("tandem_loop_stalls", "How often the event loop stood still for longer than 250 ms", supervisor.stalls),
        ("tandem_log_lines_dropped", "Lines of the log that standard error did not take", supervisor.log_lines_dropped),
    ] {
        all.0.push(Family::new(name, help, Kind::Counter).with(&[], number(value)));
    }
}

fn disks(all: &mut Families, picture: &Picture) {
    let disks = [("data", picture.disk), ("backups", picture.backup_disk)];
    let mut each = |name, help, value: &dyn Fn(&Disk) -> Option<f64>| {
        let values = disks.iter().filter_map(|(whose, disk)| Some(((*whose).to_owned(), value(disk)?)));
        all.each((name, Kind::Gauge), help, "file_system", values);
    };
    each("tandem_disk_answers", "Whether a file system answers", &|disk| Some(flag(disk.unanswered.is_none())));
    each("tandem_disk_free_bytes", "Free room of a file system", &|disk| disk.free_bytes.map(number));
    each("tandem_disk_size_bytes", "Size of a file system", &|disk| disk.total_bytes.map(number));
    each("tandem_disk_warn_free_bytes", "Free room below which health degrades", &|disk| disk.wanted_bytes.map(number));
}

fn database(all: &mut Families, picture: &Picture) {
    let sample = picture.database.sample.as_ref();
    let answers = sample.map(|sample| flag(sample.outcome.is_ok()));
    all.gauge("tandem_database_available", "Whether the database answers and workers can use it", answers);
    let facts = sample.and_then(|sample| sample.outcome.as_ref().ok());
    let latency = facts.map(|facts| facts.latency.as_secs_f64());
    all.gauge("tandem_database_latency_seconds", "How long the last probe of the database took", latency);
    let connections = facts.map(|facts| f64::from(facts.connections));
    all.gauge("tandem_database_connections", "Client connections, over all databases", connections);
    let most = facts.and_then(|facts| facts.max_connections).map(f64::from);
    all.gauge("tandem_database_connections_max", "Connections that the server accepts (max_connections)", most);
}

fn workers(all: &mut Families, picture: &Picture) {
    let ready = picture.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    all.gauge("tandem_workers_ready", "Workers that answer requests", Some(count(ready)));
    let wanted = f64::from(picture.workers_wanted);
    all.gauge("tandem_workers_wanted", "Workers that there should be", Some(wanted));
    let states = WorkerState::ALL.into_iter().map(|state| {
        let there = picture.workers.iter().filter(|worker| worker.state == state).count();
        (state.name().to_owned(), count(there))
    });
    all.each(("tandem_workers", Kind::Gauge), "Workers in each state", "state", states);
    // During a replacement a slot has two processes.
    let by_slot = |value: &dyn Fn(&super::picture::Worker) -> Option<f64>, join: fn(f64, f64) -> f64| {
        let mut slots = BTreeMap::new();
        for (slot, value) in picture.workers.iter().filter_map(|worker| Some((worker.slot, value(worker)?))) {
            slots.entry(slot).and_modify(|sum| *sum = join(*sum, value)).or_insert(value);
        }
        slots.into_iter().map(|(slot, value)| (slot.to_string(), value)).collect::<Vec<_>>()
    };
    let sum = |one: f64, other: f64| one + other;
    let in_flight = by_slot(&|worker| worker.counts.map(|counts| number(counts.in_flight)), sum);
    let connections = by_slot(&|worker| worker.counts.map(|counts| number(counts.connections)), sum);
    let memory = by_slot(&|worker| worker.memory_bytes.map(number), sum);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let lag = by_slot(&|worker| Some(worker.counts?.loop_lag_ms? as f64 / 1000.0), f64::max);
    for (name, help, values) in [
        ("tandem_worker_requests_in_flight", "Requests that the workers of a slot answer now", in_flight),
        ("tandem_worker_connections", "Connections that the workers of a slot have open", connections),
        ("tandem_worker_memory_bytes", "Memory of the workers of a slot and their children (PSS)", memory),
        ("tandem_worker_loop_lag_seconds", "The longest that a worker's event loop was late in its last report", lag),
    ] {
        all.each((name, Kind::Gauge), help, "slot", values);
    }
    let (requests, streams) = picture
        .services
        .iter()
        .filter_map(|service| service.unfinished.as_ref())
        .fold((0, 0), |(requests, streams), unfinished| (requests + unfinished.requests, streams + unfinished.streams));
    let unfinished = [("requests".to_owned(), number(requests)), ("streams".to_owned(), number(streams))];
    let help = "What workers that accept no more have still to finish";
    all.each(("tandem_workers_unfinished", Kind::Gauge), help, "what", unfinished);
}

fn services(all: &mut Families, picture: &Picture) {
    // The workers have metrics of their own: their number may be large, and a slot may have two processes.
    let services = || picture.services.iter().filter(|service| service.kind != "worker");
    let mut each = |name, help, value: &dyn Fn(&Service) -> Option<f64>| {
        let mut values = BTreeMap::new();
        for (name, value) in services().filter_map(|service| Some((service.name.clone(), value(service)?))) {
            values.entry(name).and_modify(|sum| *sum += value).or_insert(value);
        }
        all.each((name, Kind::Gauge), help, "service", values);
    };
    each("tandem_service_up", "Whether a service beside the workers is ready", &|service| {
        Some(flag(service.state == "ready"))
    });
    each("tandem_service_memory_bytes", "Memory of a service beside the workers and its children", &|service| {
        service.memory_bytes.map(number)
    });
    let abandoned = picture.services.iter().filter(|service| service.state == report::ABANDONED).count();
    all.gauge("tandem_processes_abandoned", "Processes that SIGKILL did not end", Some(count(abandoned)));
}

fn schema(all: &mut Families, picture: &Picture) {
    let migrations = &picture.migrations;
    let applied = migrations.applied.map(f64::from);
    all.gauge("tandem_migrations_applied", "Migrations that this start applied", applied);
    let took = migrations.took.map(|took| took.as_secs_f64());
    all.gauge("tandem_migrations_duration_seconds", "How long the migrations of this start took", took);
    all.time("tandem_migrations_timestamp_seconds", "When they ended", migrations.finished);
    let sorted = count(picture.sorted_otherwise.len());
    all.gauge(
        "tandem_databases_sorted_otherwise",
        "Databases whose indexes may miss rows: other sorting rules",
        Some(sorted),
    );
}

fn backups(all: &mut Families, picture: &Picture, wall: SystemTime) {
    let backups = &picture.backups;
    let last = backups.last.as_ref();
    let ok = last.map(|run| flag(run.error.is_none()));
    all.gauge("tandem_backup_last_ok", "Whether the last scheduled backup succeeded", ok);
    let ended = last.map(|run| run.finished);
    all.time("tandem_backup_last_timestamp_seconds", "When the last scheduled backup ended", ended);
    let took = last.and_then(|run| run.finished.duration_since(run.started).ok()).map(|took| took.as_secs_f64());
    all.gauge("tandem_backup_last_duration_seconds", "How long the last scheduled backup took", took);
    let size = last.and_then(|run| run.size_bytes).map(number);
    all.gauge("tandem_backup_last_size_bytes", "How large the last scheduled backup is", size);
    all.gauge("tandem_backup_scheduled", "Whether backups are scheduled", Some(flag(backups.schedule.is_some())));
    all.gauge("tandem_backup_running", "Whether a scheduled backup runs", Some(flag(backups.running)));
    all.time("tandem_backup_next_timestamp_seconds", "When the next one is due", backups.next);
    all.time("tandem_backup_newest_timestamp_seconds", "When the newest backup was taken", backups.newest);
    let proven = backups.newest_verified;
    all.time("tandem_backup_verified_timestamp_seconds", "When the newest verified one was taken", proven);
    let age = |time: Option<SystemTime>| time.map(|time| since_1970(wall) - since_1970(time));
    all.gauge("tandem_backup_newest_age_seconds", "How old the newest backup is", age(backups.newest));
    all.gauge("tandem_backup_verified_age_seconds", "How old the newest verified backup is", age(proven));
    all.gauge("tandem_backup_count", "Backups that are kept", Some(count(backups.count)));
    all.time("tandem_base_backup_timestamp_seconds", "When the last base backup ended", backups.last_base);
    let kept = backups.kept_databases;
    all.gauge("tandem_kept_databases", "Databases that restores replaced and that are kept", Some(count(kept.count)));
    all.gauge("tandem_kept_databases_bytes", "What these take of the data's disk", Some(number(kept.bytes)));
    let unreadable = flag(backups.unanswered.is_some() || backups.unreadable.is_some());
    all.gauge(
        "tandem_backup_directory_unreadable",
        "Whether the directory of backups cannot be read",
        Some(unreadable),
    );
    let Some(pitr) = &backups.pitr else { return };
    let (ready, backlog) = (number(pitr.ready_segments), number(pitr.backlog));
    all.gauge("tandem_wal_ready_segments", "Segments that wait for the archive", Some(ready));
    all.gauge("tandem_wal_backlog_bytes", "WAL that waits for the archive", Some(backlog));
    all.gauge("tandem_wal_archiving_failing", "Whether archiving fails", Some(flag(pitr.failing)));
    let given_up = flag(pitr.given_up);
    all.gauge(
        "tandem_wal_archiving_given_up",
        "Whether the chain of WAL was given up to save the disk",
        Some(given_up),
    );
    all.time("tandem_wal_archived_timestamp_seconds", "When WAL was last archived", pitr.last_archived);
    destinations(all, &pitr.destinations, wall);
}

/// Where base backups and WAL go, off the machine.
fn destinations(all: &mut Families, destinations: &[Destination], wall: SystemTime) {
    if destinations.is_empty() {
        return;
    }
    let behind =
        |destination: &Destination| destination.behind_since.map_or(0.0, |since| since_1970(wall) - since_1970(since));
    type Value<'a> = &'a dyn Fn(&Destination) -> f64;
    let families: [(&'static str, &'static str, Value<'_>); 5] = [
        ("tandem_wal_behind_segments", "Files of WAL that a destination lacks", &|it| number(it.behind_segments)),
        ("tandem_wal_behind_bytes", "Base backups and WAL that a destination lacks", &|it| number(it.behind_bytes)),
        ("tandem_wal_behind_base_backups", "Base backups that a destination lacks", &|it| number(it.behind_bases)),
        ("tandem_wal_behind_seconds", "How long a destination lacks the oldest of it", &behind),
        ("tandem_wal_sending_failing", "Whether nothing can be sent", &|it| flag(it.error.is_some())),
    ];
    for (name, help, value) in families {
        let values = destinations.iter().map(|destination| (destination.address.clone(), value(destination)));
        all.each((name, Kind::Gauge), help, "destination", values);
    }
}

/// Whole days from `now` until `moment`, less than zero where that has passed.
fn days_until(moment: SystemTime, now: SystemTime) -> f64 {
    const DAY: u64 = 24 * 60 * 60;
    match moment.duration_since(now) {
        Ok(left) => number(left.as_secs() / DAY),
        Err(past) => -1.0 - number(past.duration().as_secs() / DAY),
    }
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn number(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn count(number: usize) -> f64 {
    number as f64
}
