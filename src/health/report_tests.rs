//! The table of cases for `report`: every phase, every state of the database, every count of workers.

use expect_test::expect;

use super::*;
use crate::health::picture::{Backups, Database, Disk, Facts, Fault, Migrations, Pitr, Sample};
use crate::process::Exit;

const AGE_MAX: Duration = Duration::from_secs(4);

fn now() -> Now<'static> {
    Now {
        instant: Instant::now(),
        wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_250),
        supervisor: Supervisor { longest_stall: Duration::from_micros(1_500), stalls: 0, log_lines_dropped: 3 },
        under_way: &[],
    }
}

fn worker(slot: u32, state: WorkerState, now: Now<'_>) -> Worker {
    let gone = matches!(state, WorkerState::Resting | WorkerState::GaveUp);
    Worker {
        slot,
        pid: (!gone).then_some(100 + slot.cast_signed()),
        state,
        since: now.instant,
        restarts: u32::from(gone),
        last_exit: gone.then_some(Exit::Signal(9)),
        counts: None,
        memory_bytes: None,
    }
}

/// Serving, the database fresh, two workers of two ready, one needed.
fn picture(now: Now<'_>) -> Picture {
    Picture {
        deployment: "shop-1".into(),
        phase: Phase::Serving,
        started: now.instant,
        database: Database {
            sample: Some(Sample {
                taken: now.instant,
                outcome: Ok(Facts {
                    latency: Duration::from_micros(420),
                    schema_version: Some("004_add_indexes".into()),
                    tables: vec!["alembic_version".into(), "api_keys".into()],
                    connections: 12,
                    max_connections: Some(100),
                }),
            }),
            sample_age_max: AGE_MAX,
            pool_size: 20,
        },
        workers: vec![worker(0, WorkerState::Ready, now), worker(1, WorkerState::Ready, now)],
        workers_wanted: 2,
        workers_min: 1,
        migrations: Migrations::default(),
        hook: None,
        certificate: None,
        database_certificate: None,
        sorted_otherwise: Vec::new(),
        backups: Backups::default(),
        disk: Disk::default(),
        backup_disk: Disk::default(),
        services: vec![],
        roll: None,
        details: Default::default(),
    }
}

/// Status, `/health` code and `/ready` code.
fn answers(picture: &Picture, now: Now<'_>) -> (Status, u16, u16) {
    let status = report(picture, now).status;
    (status, status.http_code(), readiness(picture, now).http_code())
}

const HEALTHY: (Status, u16, u16) = (Status::Healthy, 200, 200);
const DEGRADED: (Status, u16, u16) = (Status::Degraded, 200, 200);
const UNHEALTHY: (Status, u16, u16) = (Status::Unhealthy, 503, 503);

#[test]
fn only_the_serving_phase_is_ready_and_every_phase_is_live() {
    let now = now();
    for phase in Phase::ALL {
        let picture = Picture { phase, ..picture(now) };
        let expected = if phase == Phase::Serving { HEALTHY } else { UNHEALTHY };
        assert_eq!(answers(&picture, now), expected, "{phase}");
        assert!(liveness(&picture, now).live);
    }
}

#[test]
fn workers_decide_between_healthy_degraded_and_unhealthy() {
    use WorkerState::{GaveUp, Ready, Resting, Retiring, Starting};
    /// Slot and state of each process, wanted, min, answer.
    type Row = (&'static [(u32, WorkerState)], u32, u32, (Status, u16, u16));
    let table: &[Row] = &[
        (&[(0, Ready), (1, Ready)], 2, 2, HEALTHY),
        (&[(0, Ready), (1, Starting)], 2, 1, DEGRADED),
        (&[(0, Ready), (1, Starting)], 2, 2, UNHEALTHY),
        (&[(0, Ready), (1, Resting)], 2, 1, DEGRADED),
        (&[(0, Ready), (1, GaveUp)], 2, 1, DEGRADED),
        (&[(0, Ready), (1, Retiring)], 2, 1, DEGRADED),
        (&[(0, Starting), (1, Starting)], 2, 1, UNHEALTHY),
        (&[(0, GaveUp), (1, GaveUp)], 2, 1, UNHEALTHY),
        (&[], 2, 1, UNHEALTHY),
        // A roll: the old one serves until the new one is ready, and for a moment both are.
        (&[(0, Ready), (0, Starting), (1, Ready)], 2, 2, HEALTHY),
        (&[(0, Ready), (0, Ready), (1, Ready)], 2, 2, HEALTHY),
        (&[(0, Retiring), (0, Ready), (1, Ready)], 2, 2, HEALTHY),
        // Two processes of one slot do not make up for a missing slot.
        (&[(0, Ready), (0, Ready)], 2, 2, UNHEALTHY),
        // Scaled down: a slot too many is leaving; one that rests still tells that something is wrong.
        (&[(0, Ready), (1, Retiring)], 1, 1, HEALTHY),
        (&[(0, Ready), (1, Resting)], 1, 1, DEGRADED),
        (&[], 0, 0, HEALTHY),
    ];
    let now = now();
    for &(workers, wanted, min, expected) in table {
        let picture = Picture {
            workers: workers.iter().map(|&(slot, state)| worker(slot, state, now)).collect(),
            workers_wanted: wanted,
            workers_min: min,
            ..picture(now)
        };
        assert_eq!(answers(&picture, now), expected, "{workers:?} of {wanted}, min {min}");
    }
}

#[test]
fn a_database_that_is_away_or_unknown_is_unhealthy() {
    let now = now();
    let faults = [
        (Fault::Down, "the server is not running"),
        (Fault::Starting, "the server is starting or recovering"),
        (Fault::Unreachable, "the server refuses connections"),
        (Fault::NoDescriptors, "Tandem has no file left to open, and cannot ask it"),
        (Fault::Hung(Duration::from_secs(2)), "the server did not answer within 2s"),
        (Fault::Rejected(*b"53300"), "the server answered with SQLSTATE 53300"),
        (Fault::Rejected([0x1b, b'[', b'2', b'J', 0]), "the server answered with SQLSTATE ??2J?"),
    ];
    for (fault, words) in faults {
        let mut picture = picture(now);
        picture.database.sample = Some(Sample { taken: now.instant, outcome: Err(fault) });
        assert_eq!(answers(&picture, now), UNHEALTHY, "{fault}");
        let report = report(&picture, now);
        assert!(!report.database.available);
        assert_eq!(report.database.error.as_deref(), Some(words));
        assert_eq!((report.database.connections, report.database.tables), (None, &[][..]));
        assert_eq!(readiness(&picture, now).missing, [format!("database: {words}")]);
    }
    let mut picture = picture(now);
    picture.database.sample = None;
    assert_eq!(answers(&picture, now), UNHEALTHY);
    assert_eq!(readiness(&picture, now).missing, ["database: not sampled yet"]);
}

#[test]
fn a_sample_grows_old_by_itself() {
    let taken = now();
    let picture = picture(taken);
    let at = |age: Duration| Now { instant: taken.instant + age, ..taken };
    assert_eq!(answers(&picture, at(AGE_MAX)), HEALTHY);
    let late = at(AGE_MAX + Duration::from_millis(100));
    assert_eq!(answers(&picture, late), UNHEALTHY);
    let report = report(&picture, late);
    assert_eq!(report.database.error.as_deref(), Some("last answer is 4.1 s old"));
    assert_eq!(report.database.sample_age_seconds, Some(4.1));
    assert_eq!(report.database.schema_version, Some("004_add_indexes"), "the last that was known is still shown");
}

#[test]
fn a_sample_from_the_future_is_fresh() {
    let taken = now();
    let picture = picture(taken);
    let before = Now { instant: taken.instant.checked_sub(Duration::from_secs(1)).unwrap_or(taken.instant), ..taken };
    assert_eq!(answers(&picture, before), HEALTHY);
}

#[test]
fn readiness_names_each_missing_condition() {
    let now = now();
    let mut picture = picture(now);
    picture.phase = Phase::StartingDatabase;
    picture.database.sample = None;
    picture.workers.clear();
    expect![[r#"
        {
          "ready": false,
          "phase": "starting-database",
          "deployment": "shop-1",
          "database": false,
          "workers_ready": 0,
          "workers_min": 1,
          "missing": [
            "not serving: starting-database",
            "database: not sampled yet",
            "workers: 0 ready, 1 needed"
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&readiness(&picture, now)).unwrap());
}

#[test]
fn the_report_has_the_keys_that_users_were_promised() {
    let now = now();
    let mut picture = picture(now);
    picture.started = now.instant.checked_sub(Duration::from_millis(12_300)).unwrap();
    picture.workers[0].counts = Some(Counts { requests: 7, connections: 2, in_flight: 1, loop_lag_ms: Some(3) });
    picture.workers[0].memory_bytes = Some(50 << 20);
    picture.workers[1] = worker(1, WorkerState::Resting, now);
    picture.migrations = Migrations {
        newest: Some("004_add_indexes".into()),
        applied: Some(4),
        took: Some(Duration::from_millis(87)),
        finished: Some(now.wall),
    };
    picture.disk = Disk { free_bytes: Some(10), total_bytes: Some(20), ..Disk::default() };
    let text = serde_json::to_string_pretty(&report(&picture, now)).unwrap();
    expect![[r#"
        {
          "status": "degraded",
          "phase": "serving",
          "version": "VERSION",
          "deployment": "shop-1",
          "uptime_seconds": 12.3,
          "timestamp": "2026-09-21T14:13:20.250Z",
          "reasons": [
            "1 of 2 workers are ready",
            "worker 1 rests after a crash"
          ],
          "database": {
            "available": true,
            "latency_ms": 1,
            "schema_version": "004_add_indexes",
            "tables": [
              "alembic_version",
              "api_keys"
            ],
            "connections": 12,
            "pool_size": 20,
            "error": null,
            "max_connections": 100,
            "sample_age_seconds": 0.0
          },
          "workers_ready": 1,
          "workers_wanted": 2,
          "workers": [
            {
              "slot": 0,
              "pid": 100,
              "state": "ready",
              "state_seconds": 0.0,
              "restarts": 0,
              "last_exit": null,
              "requests": 7,
              "connections": 2,
              "in_flight": 1,
              "loop_lag_ms": 3,
              "memory_bytes": 52428800
            },
            {
              "slot": 1,
              "pid": null,
              "state": "resting",
              "state_seconds": 0.0,
              "restarts": 1,
              "last_exit": "SIGKILL"
            }
          ],
          "migrations": {
            "newest": "004_add_indexes",
            "applied": 4,
            "duration_ms": 87,
            "finished": "2026-09-21T14:13:20.250Z"
          },
          "backups": {
            "schedule": null,
            "next": null,
            "running": false,
            "last": null,
            "count": 0,
            "newest": null,
            "newest_verified": null,
            "kept_databases": 0,
            "kept_databases_bytes": 0
          },
          "disk": {
            "free_bytes": 10,
            "total_bytes": 20
          },
          "supervisor": {
            "longest_stall_ms": 1.5,
            "stalls": 0,
            "log_lines_dropped": 3
          }
        }"#]]
    .assert_eq(&text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[test]
fn wal_that_is_not_archived_degrades_and_is_told() {
    let now = now();
    let pitr = Pitr { ready_segments: 3, backlog: 48 << 20, last_archived: Some(now.wall), ..Pitr::default() };
    let mut picture = picture(now);
    picture.backups = Backups { pitr: Some(pitr.clone()), ..Backups::default() };
    assert_eq!(answers(&picture, now), HEALTHY);
    let trouble = "48 MB of WAL wait for the archive: archiving fails: no space".to_owned();
    picture.backups.pitr = Some(Pitr { failing: true, trouble: Some(trouble.clone()), ..pitr });
    assert_eq!(answers(&picture, now), DEGRADED, "it still serves");
    let report = report(&picture, now);
    assert_eq!(report.reasons, [trouble]);
    let shown = serde_json::to_value(&report.backups).unwrap();
    assert_eq!((&shown["pitr"]["ready_segments"], &shown["pitr"]["failing"]), (&3.into(), &true.into()), "{shown}");
    assert!(shown["pitr"]["last_archived"].as_str().unwrap().ends_with('Z') && shown["pitr"]["enabled"] == true);
}

#[test]
fn a_disk_that_does_not_answer_degrades_and_its_numbers_stay() {
    let now = now();
    let since = now.instant.checked_sub(Duration::from_secs(7)).unwrap();
    let mut picture = picture(now);
    picture.backup_disk = Disk { free_bytes: Some(10), unanswered: Some(since), ..Disk::default() };
    picture.backups.unanswered = Some(since);
    assert_eq!(answers(&picture, now), DEGRADED, "it still serves");
    let report = report(&picture, now);
    assert_eq!(
        report.reasons,
        ["the directory of backups does not answer", "disk of the backups: it does not answer, its numbers are old"]
    );
    assert_eq!((report.disk.backup_free_bytes, report.disk.backup_unanswered_seconds), (Some(10), Some(7.0)));
    assert_eq!(report.disk.unanswered_seconds, None);
}
