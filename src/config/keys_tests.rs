//! That every key is documented as it is, and that slips are understood.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::problem::Problems;
use super::super::{file, value, values};
use super::Effect::{Live, Restart, Roll};
use super::*;

/// The shipped file with every commented key uncommented.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        line == "[[process]]"
            || line
                .split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'))
    };
    text.lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_shipped_file_names_every_key_with_its_default() {
    let shipped = include_str!("../../config/tandem.toml");
    let text = uncommented(shipped);
    let mut problems = Problems::default();
    let read = file::read(&text, Path::new("config/tandem.toml"), Path::new("/"), &mut problems).unwrap();
    problems.into_result().unwrap();
    let processes = read.processes.iter().flat_map(|process| &process.entries);
    let written: BTreeMap<_, _> =
        read.entries.iter().chain(processes).map(|entry| (entry.key.as_str(), &entry.raw)).collect();
    for key in all().chain(PROCESS_KEYS) {
        if key.name == "process.env" {
            assert!(written.keys().any(|name| name.starts_with("process.env.")), "process.env is missing");
            continue;
        }
        if key.kind.is_table() {
            assert!(shipped.contains(&format!("[{}]", key.name)), "{} is missing", key.name);
            continue;
        }
        let raw = written.get(key.name).unwrap_or_else(|| panic!("{} is missing", key.name));
        let typed = value::read(key.kind, raw).unwrap_or_else(|error| panic!("{}: {error:?}", key.name));
        // What the reference backend sets has its default in the comment behind it.
        let set = shipped.lines().any(|line| line.starts_with(&format!("{} = ", key.name.rsplit('.').next().unwrap())));
        if let (Default::Value(_), false) = (key.default, set) {
            assert_eq!(&typed, &values::default(key), "{}", key.name);
        }
    }
}

#[test]
fn what_reaches_a_worker_as_it_starts_asks_for_a_roll() {
    let of = |effect| {
        let keys = all().filter(|key| key.effect == effect).map(|key| key.name);
        keys.collect::<Vec<_>>().join("\n")
    };
    expect_test::expect![[r#"
        postgres.tls_cert
        postgres.tls_key
        postgres.tls_ca
        postgres.tls_names
        workers.count
        workers.ready_limit
        workers.restart_intensity
        workers.restart_period
        workers.backoff_first
        workers.backoff_max
        workers.surge
        workers.max_requests
        workers.max_requests_jitter
        workers.max_memory
        workers.memory_kind
        workers.max_age
        health.workers_min
        metrics.interval
        metrics.tables
        stop.drain_delay
        stop.postgres_grace
        stop.platform_grace
        hooks.after_ready
        hooks.after_ready_on
        hooks.before_stop
        hooks.worker_exit
        hooks.limit
        hooks.on_failure
        backup.dir
        backup.format
        backup.compress
        backup.limit
        backup.nice
        backup.rate
        backup.destinations
        backup.retry_limit
        backup.encrypt_to
        backup.identity_file
        backup.credentials_file
        backup.schedule
        backup.time_zone
        backup.jitter
        backup.catch_up
        backup.retry_after
        backup.on_failure
        backup.verify
        backup.retention_days
        backup.retention_count
        backup.keep_daily
        backup.keep_weekly
        backup.keep_monthly
        backup.keep_yearly
        backup.pitr.copy
        backup.pitr.behind_max
        disk.warn_free
        disk.stop_free"#]]
    .assert_eq(&of(Live));
    expect_test::expect![[r#"
        postgres.password
        postgres.password_file
        workers.app
        workers.app_dir
        workers.dir
        workers.tls_cert
        workers.tls_key
        workers.tls_ca
        workers.tls_client
        workers.uvicorn
        workers.url_scheme
        workers.env
        workers.preimport
        workers.drop_env
        workers.no_new_privs
        workers.access_log
        workers.event_loop
        workers.run_as
        workers.factory
        workers.lifespan
        workers.interface
        workers.check
        workers.watchdog
        workers.drain
        workers.drain_busy
        workers.drain_streams
        workers.preload
        workers.command
        workers.ready
        workers.socket
        pool.size
        pool.overflow
        pool.recycle
        pool.timeout
        stop.grace
        stop.idle_drain"#]]
    .assert_eq(&of(Roll));
    // All others are built in at the start: listeners, PostgreSQL, what runs once.
    let others: BTreeMap<_, _> =
        all().filter(|key| key.effect == Restart).map(|key| (key.name.split('.').next(), ())).collect();
    let sections: Vec<_> = others.into_keys().flatten().collect();
    expect_test::expect!["backup cache_dir health log migrations name postgres python restore state_dir test workers"]
        .assert_eq(&sections.join(" "));
}

#[test]
fn suggestions_are_close_or_missing() {
    let cases = [
        ("workers.cuont", Some("workers.count")),
        ("worker.count", Some("workers.count")),
        ("count", Some("workers.count")),
        ("health.grace", Some("stop.grace")),
        ("postgres.max_connection", Some("postgres.max_connections")),
        ("nmae", Some("name")),
        ("workers.colour", None),
        ("zebra", None),
        ("workers.port", Some("workers.listen")),
        ("workers.host", Some("workers.listen")),
        ("health.port", Some("health.listen")),
    ];
    for (written, meant) in cases {
        assert_eq!(closest(written), meant, "{written}");
    }
    assert_eq!(variable("postgres.max_connections"), "TANDEM_POSTGRES__MAX_CONNECTIONS");
}
