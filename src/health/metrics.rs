//! The answer of `/metrics`: free room, backups, WAL, workers and the supervisor's own measurements as OpenMetrics text.
//! Pure.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::picture::{Disk, Picture, Supervisor, WorkerState};

/// The content type of OpenMetrics 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, &'static str)>;

/// All metrics as text.
///
/// # Errors
/// It cannot be written as text.
pub fn metrics(picture: &Picture, supervisor: Supervisor, now: SystemTime) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tandem");
    disks(&mut registry, picture);
    backups(&mut registry, picture);
    let answers = picture.database.sample.as_ref().map(|sample| i64::from(sample.outcome.is_ok()));
    gauge(&mut registry, "database_available", "Whether the database answers and workers can use it", answers);
    let ready = picture.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    gauge(&mut registry, "workers_ready", "Workers that answer requests", Some(count(ready)));
    gauge(&mut registry, "workers_wanted", "Workers that there should be", Some(i64::from(picture.workers_wanted)));
    let days = picture.certificate.map(|until| days_until(until, now));
    gauge(&mut registry, "tls_certificate_days_left", "Days until the application's certificate expires", days);
    own(&mut registry, supervisor);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Whole days from `now` until `moment`, less than zero where that has passed.
fn days_until(moment: SystemTime, now: SystemTime) -> i64 {
    const DAY: u64 = 24 * 60 * 60;
    match moment.duration_since(now) {
        Ok(left) => signed(left.as_secs() / DAY),
        Err(past) => -1 - signed(past.duration().as_secs() / DAY),
    }
}

fn own(registry: &mut Registry, supervisor: Supervisor) {
    let longest: Gauge<f64, AtomicU64> = Gauge::default();
    longest.set(supervisor.longest_stall.as_secs_f64());
    registry.register("loop_stall_seconds_max", "The longest that the event loop stood still since the start", longest);
    let counters = [
        ("loop_stalls", "How often the event loop stood still for longer than 250 ms", supervisor.stalls),
        ("log_lines_dropped", "Lines of the log that standard error did not take", supervisor.log_lines_dropped),
    ];
    for (name, help, value) in counters {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
}

fn disks(registry: &mut Registry, picture: &Picture) {
    let of = |disk: &Disk| [disk.free_bytes, disk.total_bytes, disk.wanted_bytes];
    let (data, backups) = (of(&picture.disk), of(&picture.backup_disk));
    let metrics = [
        ("disk_free", "Free room of a file system"),
        ("disk_size", "Size of a file system"),
        ("disk_warn_free", "Free room below which health degrades"),
    ];
    let family = Family::<Labels, Gauge>::default();
    for (whose, disk) in [("data", picture.disk), ("backups", picture.backup_disk)] {
        family.get_or_create(&vec![("file_system", whose)]).set(i64::from(disk.unanswered.is_none()));
    }
    registry.register("disk_answers", "Whether a file system answers", family);
    for (place, (name, help)) in metrics.into_iter().enumerate() {
        let family = Family::<Labels, Gauge>::default();
        for (whose, values) in [("data", data), ("backups", backups)] {
            if let Some(bytes) = values[place] {
                family.get_or_create(&vec![("file_system", whose)]).set(signed(bytes));
            }
        }
        registry.register_with_unit(name, help, Unit::Bytes, family);
    }
}

fn backups(registry: &mut Registry, picture: &Picture) {
    let backups = &picture.backups;
    let time = |time: Option<SystemTime>| time?.duration_since(UNIX_EPOCH).ok().map(|since| signed(since.as_secs()));
    let last = backups.last.as_ref();
    let rows = [
        (
            "backup_last_ok",
            "Whether the last scheduled backup succeeded",
            last.map(|run| i64::from(run.error.is_none())),
        ),
        ("backup_last_timestamp_seconds", "When the last scheduled backup ended", time(last.map(|run| run.finished))),
        ("backup_next_timestamp_seconds", "When the next one is due", time(backups.next)),
        ("backup_newest_timestamp_seconds", "When the newest backup was taken", time(backups.newest)),
        ("backup_verified_timestamp_seconds", "When the newest verified one was taken", time(backups.newest_verified)),
        ("backup_count", "Backups that are kept", Some(count(backups.count))),
        ("base_backup_timestamp_seconds", "When the last base backup ended", time(backups.last_base)),
    ];
    for (name, help, value) in rows {
        gauge(registry, name, help, value);
    }
    let kept = backups.kept_databases;
    gauge(registry, "kept_databases", "Databases that restores replaced and that are kept", Some(count(kept.count)));
    gauge(registry, "kept_databases_bytes", "What these take of the data's disk", Some(signed(kept.bytes)));
    if let Some(pitr) = &backups.pitr {
        gauge(registry, "wal_ready_segments", "Segments that wait for the archive", Some(signed(pitr.ready_segments)));
        gauge(registry, "wal_backlog_bytes", "WAL that waits for the archive", Some(signed(pitr.backlog)));
        gauge(registry, "wal_archiving_failing", "Whether archiving fails", Some(i64::from(pitr.failing)));
        gauge(registry, "wal_archived_timestamp_seconds", "When WAL was last archived", time(pitr.last_archived));
    }
}

/// Register one gauge; an unknown value is left out.
fn gauge(registry: &mut Registry, name: &str, help: &str, value: Option<i64>) {
    let Some(value) = value else { return };
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
