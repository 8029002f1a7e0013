//! From a picture to what people see.

use super::*;
use crate::health::calendar::Day;
use crate::health::picture::Supervisor;
use crate::health::picture::{
    Backups, BootStep, Database, Details, Disk, Facts, Fault, Migrations, Pitr, Sample, Worker, WorkerState,
};
use crate::http::{Counts, Unfinished};
use crate::phase::Phase;

/// A Tandem that serves with two workers, one of which drains.
pub(crate) fn picture() -> Picture {
    let now = tokio::time::Instant::now().into_std();
    let started = now.checked_sub(Duration::from_secs(90)).unwrap();
    let counts = Counts { requests: 1234, connections: 3, in_flight: 2, ..Counts::default() };
    let worker = Service {
        name: "worker-0".into(),
        kind: "worker",
        pid: Some(41),
        state: "ready",
        role: "standing",
        since: started,
        started: Some(started),
        restarts: 2,
        last_reason: Some("SIGKILL".into()),
        counts: Some(counts),
        unfinished: None,
        memory_bytes: None,
    };
    let unfinished = Unfinished { requests: 1, on: vec!["GET /export".into()], ..Unfinished::default() };
    let retiring = Service {
        pid: Some(40),
        state: "draining",
        role: "retiring",
        counts: None,
        unfinished: Some(unfinished),
        ..worker.clone()
    };
    let facts = Facts {
        latency: Duration::from_micros(1234),
        schema_version: Some("004".into()),
        tables: vec!["a".into(), "b".into()],
        connections: 12,
        max_connections: Some(100),
    };
    let step = |name, began: Option<u64>, ended: Option<u64>| {
        let at = |second| started + Duration::from_secs(second);
        BootStep { name, began: began.map(at), ended: ended.map(at) }
    };
    Picture {
        deployment: "shop".into(),
        phase: Phase::Serving,
        started,
        database: Database {
            sample: Some(Sample { taken: now, outcome: Ok(facts) }),
            sample_age_max: Duration::from_secs(60),
            pool_size: 20,
        },
        workers: vec![Worker {
            slot: 0,
            pid: Some(41),
            state: WorkerState::Ready,
            since: started,
            restarts: 2,
            last_exit: None,
            counts: Some(counts),
            memory_bytes: None,
        }],
        workers_wanted: 1,
        workers_min: 1,
        migrations: Migrations::default(),
        hook: None,
        certificate: None,
        database_certificate: None,
        sorted_otherwise: Vec::new(),
        backups: Backups::default(),
        disk: Disk {
            free_bytes: Some(50 << 30),
            total_bytes: Some(100 << 30),
            wanted_bytes: Some(10 << 30),
            unanswered: None,
        },
        backup_disk: Disk::default(),
        services: vec![worker, retiring],
        roll: Some("1 workers are replaced, 1 are still to be".into()),
        details: Details {
            application: "http://127.0.0.1:8000".into(),
            boot: vec![
                step("postgres", Some(1), Some(3)),
                step("workers", Some(3), None),
                step("processes", None, None),
            ],
            rates: [(41, 12.34)].into(),
            disk_full_in: Some(Duration::from_secs(7200)),
            ..Details::default()
        },
    }
}

/// At the moment of the picture.
pub(crate) fn shown(picture: &Picture) -> Overview {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let supervisor = Supervisor::default();
    let instant = picture.started + Duration::from_secs(90);
    overview(picture, Now { instant, wall, supervisor, under_way: &["an index".to_owned()] })
}

#[test]
fn an_overview_has_what_the_picture_knows() {
    let overview = shown(&picture());
    assert_eq!((overview.status.as_str(), overview.phase.as_str()), ("healthy", "serving"));
    assert_eq!((overview.uptime_seconds, overview.workers_ready, overview.pid), (90.0, 1, std::process::id()));
    let [worker, retiring] = &overview.services[..] else { panic!("{overview:#?}") };
    assert_eq!((worker.requests, worker.requests_per_second, worker.in_flight), (Some(1234), Some(12.3), Some(2)));
    assert_eq!((worker.uptime_seconds, worker.restarts), (Some(90.0), 2));
    assert_eq!(retiring.draining.as_deref(), Some("1 request: GET /export"));
    let database = &overview.database;
    assert_eq!((database.latency_ms, database.tables, database.connections), (Some(1.23), Some(2), Some(12)));
    let states: Vec<_> = overview.boot.iter().map(|step| (step.state.as_str(), step.took_seconds)).collect();
    assert_eq!(states, [("done", Some(2.0)), ("running", Some(87.0)), ("pending", None)]);
    assert_eq!(overview.disks[0].full_in_seconds, Some(7200.0));
    assert!(overview.recovery.is_none() && overview.statistics.is_none() && overview.log.is_empty());
}

#[test]
fn it_survives_json_and_a_reader_of_another_version_understands_it() {
    let mut picture = picture();
    picture.backups.pitr = Some(Pitr { backlog: 5, ..Pitr::default() });
    picture.details.backup_days =
        vec![Day { date: "2026-01-31".into(), weekday: 5, state: DayState::Verified, backups: 1, bytes: 10 }];
    let overview = shown(&picture);
    let json = serde_json::to_string(&overview).unwrap();
    assert_eq!(serde_json::from_str::<Overview>(&json).unwrap(), overview);
    let other = r#"{"phase": "serving", "services": [{"name": "worker-0", "colour": "blue"}], "more": 1}"#;
    let read: Overview = serde_json::from_str(other).unwrap();
    assert_eq!((read.phase.as_str(), read.services[0].name.as_str()), ("serving", "worker-0"));
}

#[test]
fn the_reach_of_a_recovery_ends_at_the_last_archived_wal_and_begins_with_a_base_backup() {
    let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    for (bases, archived, from, until) in [
        (vec![], Some(at(50)), None, None),
        (vec![at(100), at(200)], Some(at(300)), Some(100), Some(300)),
        // Nothing was archived since the base backup: its end can be reached.
        (vec![at(100)], Some(at(50)), Some(100), Some(100)),
        (vec![at(100)], None, Some(100), Some(100)),
    ] {
        let mut picture = picture();
        picture.backups.pitr = Some(Pitr { last_archived: archived, ..Pitr::default() });
        picture.details.bases.clone_from(&bases);
        let recovery = shown(&picture).recovery.unwrap();
        let text = |second: Option<u64>| second.map(|second| rfc3339(at(second)));
        assert_eq!((recovery.from, recovery.until), (text(from), text(until)), "{bases:?}");
    }
}

#[test]
fn what_a_database_says_wrong_is_shown_in_words() {
    let mut picture = picture();
    picture.database.sample.as_mut().unwrap().outcome = Err(Fault::Down);
    let overview = shown(&picture);
    assert_eq!(overview.status, "unhealthy");
    assert!(!overview.database.available && overview.database.latency_ms.is_none());
    assert_eq!(overview.database.error.as_deref(), Some("the server is not running"));
    assert_eq!(overview.reasons, ["database: the server is not running"]);
}

#[test]
fn names_of_others_turn_no_text_and_control_no_terminal() {
    for (text, shown) in [
        ("plain ü 日本 עברית", "plain ü 日本 עברית"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("return\rhere", "return\\u{d}here"),
        ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
        ("a\u{2066}b\u{200f}\u{2028}", "a\\u{2066}b\\u{200f}\\u{2028}"),
    ] {
        assert_eq!(visible(text), shown, "{text:?}");
    }
    assert_eq!(visible_name("two\nlines"), "two\\nlines");
    let long = visible(&"ä".repeat(TEXT_MAX + 5));
    assert_eq!((long.chars().count(), long.ends_with("ä…")), (TEXT_MAX + 1, true));
}
