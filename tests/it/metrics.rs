//! `/metrics`: what is counted, what is measured of the database, both texts, and what hostile names and clients do to them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backups::{as_superuser, sql};
use crate::common::control;
use crate::common::project::{Project, root};
use crate::common::scraped::{PROMETHEUS, Scraped, scrape};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};

const BARE: &str =
    "workers.count = 1\nmigrations.run = 'none'\npool.size = 1\npool.overflow = 1\nmetrics.interval = '1s'";

/// One that was measured.
fn up(lines: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", &format!("{BARE}\n{lines}"));
    let tandem = Tandem::up(&project);
    measured(&project);
    (project, tandem)
}

/// Wait for a sample of the database.
fn measured(project: &Project) -> Scraped {
    let mut last = None;
    wait_for("a sample of the database", || {
        let scraped = scrape(project.health, None);
        let is_up = scraped.value("pg_up", &[]) == Some(1.0);
        last = Some(scraped);
        is_up
    });
    last.unwrap()
}

/// Wait until a sample that was begun after this call is there.
fn measured_again(project: &Project) -> Scraped {
    let count = || scrape(project.health, None).value("pg_exporter_scrapes_total", &[]).unwrap_or_default();
    let before = count();
    // The one under way may have begun before. Each fourth asks everything.
    wait_for("other samples", || count() >= before + 5.0);
    measured(project)
}

/// A program of Debian's, run to its end with `input`: its exit code and what it said.
fn run(program: &str, args: &[&str], input: &str) -> Option<(i32, String)> {
    #[expect(clippy::disallowed_methods, reason = "a test runs what users run")]
    let command = Command::new(program)
        .args(args)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = command else {
        skip(&format!("{program} is not installed"));
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Some((output.status.code().unwrap_or(-1), said))
}

#[test]
fn both_texts_say_the_same_and_are_what_prometheus_reads() {
    let (project, _tandem) = up("backup.schedule = '0 3 * * *'\nbackup.pitr.enabled = true");
    let (older, open) = (measured_again(&project), scrape(project.health, Some(PROMETHEUS)));
    assert_eq!(older.content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(open.content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for accept in ["text/plain", "*/*", "text/html"] {
        assert_eq!(scrape(project.health, Some(accept)).content_type, older.content_type, "{accept}");
    }
    assert_eq!(older.names(), open.names());
    // What PostgreSQL counts has no `_total`: OpenMetrics knows no such counter.
    assert_eq!(older.types["pg_stat_database_xact_commit"], "counter");
    assert_eq!(open.types["pg_stat_database_xact_commit"], "unknown");
    assert_eq!((&*older.types["tandem_rolls_total"], &*open.types["tandem_rolls"]), ("counter", "counter"));
    let Some((code, said)) = run("promtool", &["check", "metrics"], &older.text) else { return };
    // 3: nothing is wrong, but something could be named better. Those names are postgres_exporter's, or older than this test.
    assert!(matches!(code, 0 | 3), "{said}");
    let known = ["tandem_backup_count ", "tandem_tls_certificate_days_left ", "tandem_postgres_certificate_days_left "];
    let own: Vec<_> = said.lines().filter(|line| !line.starts_with("pg_")).collect();
    let own: Vec<_> = own.into_iter().filter(|line| !known.iter().any(|known| line.starts_with(known))).collect();
    assert!(own.is_empty(), "{own:?}");
}

#[test]
fn what_happens_is_counted_for_as_long_as_tandem_runs() {
    let (project, tandem) = up("");
    let value = |name: &str, labels: &[(&str, &str)]| scrape(project.health, None).value(name, labels);
    assert_eq!(value("tandem_rolls_total", &[("outcome", "done")]), Some(0.0), "before anything has happened");
    assert!(value("tandem_boot_step_duration_seconds", &[("step", "postgres")]).unwrap() > 0.0);
    assert!(value("tandem_boot_duration_seconds", &[]).unwrap() > 0.0);
    assert_eq!(value("tandem_phase", &[("phase", "serving")]), Some(1.0));
    assert_eq!(value("tandem_connection_budget", &[("part", "workers")]), Some(2.0));

    for _ in 0..20 {
        tandem.get("/").unwrap();
    }
    let requests = || value("tandem_worker_requests_total", &[("slot", "0")]);
    wait_for("the requests", || requests().is_some_and(|count| count >= 20.0));
    wait_for("memory", || value("tandem_worker_memory_bytes", &[("slot", "0")]).is_some_and(|bytes| bytes > 5e6));
    assert!(value("tandem_service_memory_bytes", &[("service", "postgres")]).unwrap() > 5e6);

    kill(Pid::from_raw(tandem.workers()[0]), Signal::SIGKILL).unwrap();
    let restarts = |reason| value("tandem_service_restarts_total", &[("service", "worker-0"), ("reason", reason)]);
    wait_for("the restart", || restarts("signal") == Some(1.0));
    wait_for("the new worker", || tandem.health()["status"] == "healthy");
    assert!(requests().unwrap() >= 20.0, "the requests of the one that was killed count");
    tandem.get("/exit?code=7");
    wait_for("another restart", || restarts("exit") == Some(1.0));
    wait_for("the next worker", || tandem.health()["status"] == "healthy");

    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(value("tandem_rolls_total", &[("outcome", "done")]), Some(1.0));
    assert_eq!(value("tandem_worker_replacements_total", &[("reason", "reload")]), Some(1.0));
    assert_eq!(value("tandem_worker_drains_begun_total", &[]), Some(1.0));
    wait_for("the end of the drain", || value("tandem_worker_drains_ended_total", &[]) == Some(1.0));
    control::run(&project, &["restart", "worker-0"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(value("tandem_worker_replacements_total", &[("reason", "restart")]), Some(1.0));
}

#[test]
fn a_worker_whose_loop_is_blocked_shows_how_late_it_was() {
    let (project, tandem) = up("workers.watchdog = '3s'");
    let lag = || scrape(project.health, None).value("tandem_worker_loop_lag_seconds", &[("slot", "0")]);
    wait_for("a report", || lag().is_some_and(|lag| lag < 0.5));
    let app = tandem.app();
    let blocking = std::thread::spawn(move || tandem::get(app, "/block?seconds=1.5"));
    wait_for("the lag", || lag().is_some_and(|lag| lag > 1.0 && lag < 20.0));
    blocking.join().unwrap();
    assert!(tandem.health()["workers"][0]["loop_lag_ms"].is_u64());
    wait_for("the next report", || lag().is_some_and(|lag| lag < 0.5));
}

#[test]
fn scrapes_ask_the_database_nothing_and_one_session_takes_the_samples() {
    let (project, tandem) = up("postgres.probe_interval = '1m'");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN READ ONLY; SET LOCAL search_path%' AND pid <> pg_backend_pid()";
    assert_eq!(as_superuser(&project, "app", sessions), "1");
    project.reconfigure(|text| text.replace("metrics.interval = '1s'", "metrics.interval = '1h'"));
    control::run(&project, &["reload"]).expect(0, &[]);
    let count = || scrape(project.health, None).value("pg_exporter_scrapes_total", &[]).unwrap();
    let mut before = count();
    wait_for("a while without a sample", || {
        std::thread::park_timeout(Duration::from_millis(1500));
        let now = count();
        std::mem::replace(&mut before, now) == now
    });
    let transactions = || -> u64 {
        let asked = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'app'";
        as_superuser(&project, "postgres", asked).parse().unwrap()
    };
    let began = transactions();
    for _ in 0..100 {
        scrape(project.health, Some(PROMETHEUS));
    }
    // The probe and a worker may have asked something meanwhile.
    assert!(transactions() - began < 20, "{} transactions for 100 scrapes", transactions() - began);
    drop(tandem);
}

#[test]
fn two_thousand_tables_and_hostile_names_make_a_bounded_text() {
    let (project, _tandem) = up("metrics.tables = 50");
    let create = "DO $$ BEGIN FOR n IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (a int)', n); END LOOP; END $$";
    sql(&project, create);
    let longest = "ü".repeat(31);
    let hostile = ["<script>alert(1)</script>", "a\"b\\\nc\u{202e}", &longest];
    for name in hostile {
        let table = format!("\"{}\"", name.replace('"', "\"\""));
        sql(&project, &format!("CREATE TABLE {table} AS SELECT repeat('x', 100) FROM generate_series(1, 9000)"));
        sql(&project, &format!("VACUUM {table}"));
    }
    let scraped = measured_again(&project);
    let tables: BTreeSet<_> =
        scraped.all("pg_stat_user_tables_n_live_tup", &[]).into_iter().map(|it| &it.labels["relname"]).collect();
    assert_eq!(tables.len(), 50);
    for name in hostile {
        assert!(tables.contains(&name.to_owned()), "{name:?} is large: {tables:?}");
        assert!(scraped.value("pg_stat_user_tables_table_size_bytes", &[("relname", name)]).unwrap() > 900_000.0);
    }
    assert!(scraped.value("tandem_metrics_tables_left_out", &[]).unwrap() >= 1953.0);
    assert!(scraped.text.len() < 1 << 20, "{} bytes", scraped.text.len());
    let open = scrape(project.health, Some(PROMETHEUS));
    assert!(open.text.contains("relname=\"a\\\"b\\\\\\nc\u{202e}\""));
}

#[test]
fn a_thousand_clients_that_read_nothing_hold_up_nobody_and_take_no_memory() {
    // How long a probe takes on a busy machine is not looked at here.
    let (project, tandem) = up("postgres.probe_deadline = '30s'");
    let memory = || procfs::process::Process::new(tandem.pid()).unwrap().status().unwrap().vmrss.unwrap();
    let before = memory();
    let mut clients = Vec::new();
    for _ in 0..1000 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", project.health)) else { continue };
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3).as_slice());
        clients.push(stream);
    }
    assert!(clients.len() > 500, "{}", clients.len());
    let (code, said) = tandem::get(project.health, "/ready").unwrap();
    assert_eq!(code, 200, "{said}\n{}", tandem.log());
    assert_eq!(scrape(project.health, None).value("pg_up", &[]), Some(1.0));
    // 128 connections at once: the oldest made room.
    let mut first = &clients[0];
    first.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest);
    assert!(memory() < before + 60_000, "{before} kB before, {} kB now", memory());
    drop(clients);
}

#[test]
fn a_database_elsewhere_is_measured_with_the_rights_that_there_are() {
    let (server, _running) = up("");
    sql(&server, "CREATE TABLE mine (a int)");
    as_superuser(&server, "app", "REVOKE pg_read_all_stats FROM app");
    let url = String::from_utf8(tandem::run(&server, &["url"]).stdout).unwrap();
    let lines = format!("{BARE}\npostgres.mode = 'attach'\npostgres.url = '{}'", url.trim());
    let project = Project::app_with("plain:app", &lines).without("postgres.port");
    let mut tandem = Tandem::up(&project);
    let scraped = measured(&project);
    assert!(scraped.value("pg_stat_database_numbackends", &[("datname", "app")]).is_some());
    assert!(!scraped.all("pg_stat_user_tables_seq_scan", &[("relname", "mine")]).is_empty());
    let left_out = |view: &str, why: &str| {
        scraped.value("tandem_metrics_views_left_out", &[("view", view), ("why", why)]) == Some(1.0)
    };
    assert!(left_out("pg_wal", "the role lacks pg_monitor"), "{}", scraped.text);
    assert!(left_out("what sessions of other roles do", "the role lacks pg_read_all_stats"), "{}", scraped.text);
    tandem.wait_log("pg_wal is left out of /metrics: the role lacks pg_monitor");
    assert!(scraped.value("pg_wal_segments", &[]).is_none());
    // A server that goes: no old number is shown.
    drop(server_stopped(_running));
    wait_for("a sample that says no", || scrape(project.health, None).value("pg_up", &[]) == Some(0.0));
    let scraped = scrape(project.health, None);
    assert!(scraped.all("pg_stat_database_numbackends", &[]).is_empty(), "{}", scraped.text);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

fn server_stopped(mut tandem: Tandem) -> Tandem {
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    tandem
}
