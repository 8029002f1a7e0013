//! `config/monitoring/` and the tools that people have: a real Prometheus, promtool, postgres_exporter, the dashboard 9628.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::backups::{as_superuser, sql};
use crate::common::control;
use crate::common::ports::free_port;
use crate::common::project::{Project, root};
use crate::common::scraped::{Scraped, scrape};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};

const LINES: &str =
    "workers.count = 1\nmigrations.run = 'none'\npool.size = 1\npool.overflow = 1\nmetrics.interval = '1s'";

/// The queries of the dashboard's panels, its variables in the place of `$instance`, `$datname`, `$mode` and `$release`.
const DASHBOARD_9628: &[&str] = &[
    "pg_static{release=\"$release\", instance=\"$instance\"}",
    "pg_postmaster_start_time_seconds{release=\"$release\", instance=\"$instance\"} * 1000",
    "SUM(pg_stat_database_tup_fetched{datname=~\"$datname\", instance=~\"$instance\"})",
    "SUM(pg_stat_database_tup_inserted{release=\"$release\", datname=~\"$datname\", instance=~\"$instance\"})",
    "SUM(pg_stat_database_tup_updated{datname=~\"$datname\", instance=~\"$instance\"})",
    "pg_settings_max_connections{release=\"$release\", instance=\"$instance\"}",
    "avg(rate(process_cpu_seconds_total{release=\"$release\", instance=\"$instance\"}[5m]) * 1000)",
    "avg(rate(process_resident_memory_bytes{release=\"$release\", instance=\"$instance\"}[5m]))",
    "avg(rate(process_virtual_memory_bytes{release=\"$release\", instance=\"$instance\"}[5m]))",
    "process_open_fds{release=\"$release\", instance=\"$instance\"}",
    "pg_settings_shared_buffers_bytes{instance=\"$instance\"}",
    "pg_settings_effective_cache_size_bytes{instance=\"$instance\"}",
    "pg_settings_maintenance_work_mem_bytes{instance=\"$instance\"}",
    "pg_settings_work_mem_bytes{instance=\"$instance\"}",
    "pg_settings_max_wal_size_bytes{instance=\"$instance\"}",
    "pg_settings_random_page_cost{instance=\"$instance\"}",
    "pg_settings_seq_page_cost",
    "pg_settings_max_worker_processes{instance=\"$instance\"}",
    "pg_settings_max_parallel_workers{instance=\"$instance\"}",
    "pg_stat_activity_count{datname=~\"$datname\", instance=~\"$instance\", state=\"active\"}",
    "irate(pg_stat_database_xact_commit{instance=\"$instance\", datname=~\"$datname\"}[5m])",
    "irate(pg_stat_database_xact_rollback{instance=\"$instance\", datname=~\"$datname\"}[5m])",
    "pg_stat_database_tup_updated{datname=~\"$datname\", instance=~\"$instance\"} != 0",
    "pg_stat_database_tup_fetched{datname=~\"$datname\", instance=~\"$instance\"} != 0",
    "pg_stat_database_tup_inserted{datname=~\"$datname\", instance=~\"$instance\"} != 0",
    "pg_stat_database_tup_deleted{datname=~\"$datname\", instance=~\"$instance\"} != 0",
    "pg_stat_database_tup_returned{datname=~\"$datname\", instance=~\"$instance\"} != 0",
    "pg_locks_count{datname=~\"$datname\", instance=~\"$instance\", mode=~\"$mode\"} != 0",
    "pg_stat_activity_count{datname=~\"$datname\", instance=~\"$instance\", state=~\"idle|idle in transaction|idle in transaction (aborted)\"}",
    "pg_stat_database_blks_hit{instance=\"$instance\", datname=~\"$datname\"} / \
     (pg_stat_database_blks_read{instance=\"$instance\", datname=~\"$datname\"} + \
     pg_stat_database_blks_hit{instance=\"$instance\", datname=~\"$datname\"})",
    "irate(pg_stat_bgwriter_buffers_backend{instance=\"$instance\"}[5m])",
    "irate(pg_stat_bgwriter_buffers_alloc{instance=\"$instance\"}[5m])",
    "irate(pg_stat_bgwriter_buffers_backend_fsync{instance=\"$instance\"}[5m])",
    "irate(pg_stat_bgwriter_buffers_checkpoint{instance=\"$instance\"}[5m])",
    "irate(pg_stat_bgwriter_buffers_clean{instance=\"$instance\"}[5m])",
    "irate(pg_stat_database_conflicts{instance=\"$instance\", datname=~\"$datname\"}[5m])",
    "irate(pg_stat_database_deadlocks{instance=\"$instance\", datname=~\"$datname\"}[5m])",
    "irate(pg_stat_database_temp_bytes{instance=\"$instance\", datname=~\"$datname\"}[5m])",
    "irate(pg_stat_bgwriter_checkpoint_write_time{instance=\"$instance\"}[5m])",
    "irate(pg_stat_bgwriter_checkpoint_sync_time{instance=\"$instance\"}[5m])",
    // What its variables are made from.
    "pg_exporter_last_scrape_duration_seconds",
    "pg_up{release=\"$release\"}",
];

/// A program that runs beside the test, ended with it.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Start a program of Debian's; `None`, noted, where it is not installed.
fn beside(program: &str, args: &[String], variables: &[(&str, String)]) -> Option<Beside> {
    #[expect(clippy::disallowed_methods, reason = "a test runs what users run")]
    let mut command = Command::new(program);
    let command = command.args(args).envs(variables.iter().cloned()).stdin(Stdio::null());
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if started.is_err() {
        skip(&format!("{program} is not installed"));
    }
    started.ok().map(Beside)
}

/// A real Prometheus that scrapes the health port each second, with the rules of `config/monitoring/`.
struct Prometheus {
    port: u16,
    instance: String,
    _process: Beside,
}

impl Prometheus {
    fn start(project: &Project) -> Option<Self> {
        let (port, instance) = (free_port(), format!("127.0.0.1:{}", project.health));
        let rules = root().join("config/monitoring/alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs: [{{job_name: tandem, static_configs: [{{targets: ['{instance}']}}]}}]\n",
            rules.display()
        );
        let (file, data) = (project.dir().join("prometheus.yml"), project.dir().join("prometheus"));
        fs::write(&file, text).unwrap();
        let args = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", data.display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let process = beside("prometheus", &args, &[])?;
        let prometheus = Self { port, instance, _process: process };
        wait_for("a scrape", || prometheus.query("up{job=\"tandem\"} == 1").is_some_and(|found| !found.is_empty()));
        Some(prometheus)
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let (_, body) = tandem::get(self.port, path)?;
        serde_json::from_str(&body).ok()
    }

    /// What an instant query finds; `None` while Prometheus does not answer.
    fn query(&self, query: &str) -> Option<Vec<Value>> {
        let encoded = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.ask(&format!("/api/v1/query?query={encoded}"))?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        Some(answer["data"]["result"].as_array()?.clone())
    }

    /// The alerts that are pending or firing.
    fn alerts(&self) -> BTreeSet<String> {
        let answer = self.ask("/api/v1/alerts").unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().into_iter().flatten();
        alerts.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect()
    }

    fn wait_for_alerts(&self, names: &[&str]) {
        wait_for(&format!("the alerts {names:?}"), || {
            let alerts = self.alerts();
            names.iter().all(|name| alerts.contains(*name))
        });
    }
}

#[test]
fn the_dashboard_that_most_people_have_works_unchanged() {
    let project = Project::app_with("plain:app", LINES);
    let _tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)");
    sql(&project, "UPDATE t SET a = -a WHERE a < 50; DELETE FROM t WHERE a = 60; SELECT * FROM t WHERE a = 70");
    let Some(prometheus) = Prometheus::start(&project) else { return };
    let variables =
        [("$instance", prometheus.instance.as_str()), ("$datname", "app"), ("$mode", ".*lock"), ("$release", "")];
    let filled =
        |query: &str| variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    let mut left: Vec<String> = DASHBOARD_9628.iter().map(|query| filled(query)).collect();
    wait_for("an answer to every query", || {
        left.retain(|query| prometheus.query(query).is_none_or(|found| found.is_empty()));
        left.is_empty()
    });
    // Our own dashboard's, too.
    let own: Value = serde_json::from_slice(&fs::read(root().join("config/monitoring/grafana.json")).unwrap()).unwrap();
    let panels = own["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let mut count = 0;
    for query in queries.map(|target| target["expr"].as_str().unwrap().to_owned()) {
        // It panics where Prometheus does not understand it.
        let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$datname", ".*");
        prometheus.query(&query);
        count += 1;
    }
    assert!(count > 40, "only {count} queries were seen");
}

#[test]
fn alerts_are_raised_by_what_they_are_about() {
    let lines = format!(
        "{LINES}\nworkers.restart_intensity = 100\nworkers.backoff_max = '100ms'\nbackup.schedule = '* * * * * *'\n\
         backup.dir = '/proc/no/such'\ndisk.warn_free = '100%'\npostgres.probe_interval = '200ms'\n\
         postgres.probe_deadline = '500ms'\npostgres.hang_limit = 'never'\nworkers.watchdog = '20s'"
    );
    let project = Project::app_with("mine:app", &lines).without("workers.app_dir");
    let app = fs::read_to_string(root().join("tests/fixtures/apps/plain.py")).unwrap();
    project.write("mine.py", &app);
    let mut tandem = Tandem::up(&project);
    let Some(prometheus) = Prometheus::start(&project) else { return };
    prometheus.wait_for_alerts(&["TandemBackupFailed", "TandemBackupMissing", "TandemDegraded", "TandemDiskLow"]);
    let port = tandem.app();
    let blocking = std::thread::spawn(move || tandem::get(port, "/block?seconds=4"));
    prometheus.wait_for_alerts(&["TandemWorkerLoopLag"]);
    blocking.join().unwrap();
    for _ in 0..6 {
        wait_for("a worker", || !tandem.workers().is_empty());
        let pid = tandem.workers()[0];
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait_for("its end", || !tandem.workers().contains(&pid));
    }
    prometheus.wait_for_alerts(&["TandemServiceRestarts"]);
    wait_for("a worker", || !tandem.workers().is_empty());
    hold_up_sessions(&project, || prometheus.wait_for_alerts(&["TandemSessionsBlocked"]));
    lock_each_other_out(&project);
    prometheus.wait_for_alerts(&["TandemDeadlocks"]);
    project.write("mine.py", &format!("import time\ntime.sleep(3)\n{app}"));
    control::run(&project, &["scale", "2"]).expect(0, &[]);
    prometheus.wait_for_alerts(&["TandemWorkersMissing"]);
    project.write("mine.py", "raise OSError('broken')\n");
    control::run(&project, &["reload"]).expect(1, &[]);
    prometheus.wait_for_alerts(&["TandemRollAborted"]);
    control::run(&project, &["deploy"]).expect(1, &[]);
    prometheus.wait_for_alerts(&["TandemDeploymentFailed"]);
    let postmaster = Pid::from_raw(tandem.postmaster(&project));
    kill(postmaster, Signal::SIGSTOP).unwrap();
    prometheus.wait_for_alerts(&["TandemDatabaseUnavailable", "TandemNotReady"]);
    kill(postmaster, Signal::SIGCONT).unwrap();
    wait_for("the end of that alert", || !prometheus.alerts().contains("TandemDatabaseUnavailable"));
    tandem.stop();
    prometheus.wait_for_alerts(&["TandemDown"]);
}

/// Seven sessions wait for a lock while `meanwhile` goes on.
fn hold_up_sessions(project: &Project, meanwhile: impl FnOnce()) {
    sql(project, "CREATE TABLE held (a int)");
    let holds = "BEGIN; LOCK TABLE held; SELECT pg_sleep(600)";
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| tandem::run(project, &["psql", "-c", holds]));
        let is_held = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND granted";
        wait_for("the lock", || as_superuser(project, "app", is_held) != "0");
        let waiting: Vec<_> = (0..7)
            .map(|_| scope.spawn(|| tandem::run(project, &["psql", "-c", "INSERT INTO held VALUES (1)"])))
            .collect();
        meanwhile();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE held%'";
        as_superuser(project, "app", end);
        holder.join().unwrap();
        for one in waiting {
            assert!(one.join().unwrap().status.success());
        }
    });
}

/// Two transactions wait for each other; PostgreSQL ends one of them.
fn lock_each_other_out(project: &Project) {
    sql(project, "CREATE TABLE one (a int); CREATE TABLE other (a int)");
    let crossing =
        |first: &str, then: &str| format!("BEGIN; LOCK TABLE {first}; SELECT pg_sleep(1); LOCK TABLE {then}; COMMIT");
    std::thread::scope(|scope| {
        let both = [crossing("one", "other"), crossing("other", "one")];
        let both = both.map(|text| {
            scope.spawn(move || tandem::run(project, &["psql", "-v", "ON_ERROR_STOP=1", "-c", &text]).status.success())
        });
        let ended = both.map(|one| one.join().unwrap());
        assert!(ended.contains(&false) && ended.contains(&true), "{ended:?}");
    });
}

#[test]
fn promtool_takes_the_rules_and_each_alert_is_provoked() {
    let dir = root().join("config/monitoring");
    let rules = fs::read_to_string(dir.join("alerts.yml")).unwrap();
    let tests = fs::read_to_string(dir.join("alerts_test.yml")).unwrap();
    let names: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in &names {
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} is not tested");
    }
    for args in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        #[expect(clippy::disallowed_methods, reason = "a test runs what users run")]
        let output = Command::new("promtool").args(args).current_dir(&dir).output();
        let Ok(output) = output else { return skip("promtool is not installed") };
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

/// The names of metrics in `text`.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let is_name = |word: &&str| word.starts_with("tandem_") || word.starts_with("pg_") || word.starts_with("process_");
    words.filter(is_name).collect()
}

#[test]
fn what_rules_and_dashboard_ask_for_is_there() {
    let lines =
        format!("{LINES}\nbackup.schedule = '* * * * * *'\nbackup.pitr.enabled = true\nbackup.verify = 'always'");
    let project = Project::app_with("plain:app", &lines);
    let copies = project.dir().join("copies");
    fs::create_dir(&copies).unwrap();
    project.configure(&format!("backup.destinations = ['file://{}']", copies.display()));
    let tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (a int)");
    wait_for("a backup", || tandem.health()["backups"]["last"]["ok"] == true);
    wait_for("a base backup", || tandem.health()["backups"]["pitr"]["last_base"].is_string());
    wait_for("archived WAL", || tandem.health()["backups"]["pitr"]["last_archived"].is_string());
    let read = |name: &str| fs::read_to_string(root().join("config/monitoring").join(name)).unwrap();
    let (rules, dashboard) = (read("alerts.yml"), read("grafana.json"));
    // Of what only some have: a certificate, slots of replication.
    let absent = [
        "tandem_tls_certificate_days_left",
        "tandem_postgres_certificate_days_left",
        "pg_replication_slots_pg_wal_lsn_diff",
    ];
    let rules: String = rules.lines().filter(|line| line.trim().starts_with("expr: ")).collect::<Vec<_>>().join("\n");
    let mut wanted: BTreeSet<_> = metric_names(&rules).into_iter().chain(metric_names(&dashboard)).collect();
    absent.iter().for_each(|name| assert!(wanted.remove(name)));
    wait_for("all of them", || {
        let scraped = scrape(project.health, None);
        wanted.retain(|name| scraped.all(name, &[]).is_empty());
        std::thread::park_timeout(Duration::from_millis(200));
        wanted.is_empty()
    });
    let scraped = scrape(project.health, None);
    assert_eq!(scraped.all("tandem_backup_copies_total", &[("outcome", "done")]).len(), 1, "{}", scraped.text);
}

#[test]
fn names_labels_and_types_are_postgres_exporters() {
    let project = Project::app_with("plain:app", LINES);
    let _tandem = Tandem::up(&project);
    let socket = project.state().join("run/postgres");
    let name = format!("host={} port={} user=postgres dbname=app sslmode=disable", socket.display(), project.postgres);
    let listen = free_port();
    let args = [format!("--web.listen-address=127.0.0.1:{listen}")];
    let Some(_exporter) = beside("prometheus-postgres-exporter", &args, &[("DATA_SOURCE_NAME", name)]) else { return };
    let mut theirs = None;
    wait_for("the exporter", || {
        theirs = tandem::get(listen, "/metrics").filter(|(_, text)| text.contains("\npg_up 1\n"));
        theirs.is_some()
    });
    let theirs = Scraped::read(
        "text/plain".into(),
        theirs
            .unwrap()
            .1
            .lines()
            .filter(|line| line.contains("pg_"))
            .fold(String::new(), |text, line| text + line + "\n"),
    );
    wait_for("a sample", || scrape(project.health, None).value("pg_up", &[]) == Some(1.0));
    let ours = scrape(project.health, None);
    let labels = |scraped: &Scraped| -> BTreeMap<String, BTreeSet<String>> {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for sample in &scraped.samples {
            found.entry(sample.name.clone()).or_default().extend(sample.labels.keys().cloned());
        }
        found
    };
    let (their_labels, our_labels) = (labels(&theirs), labels(&ours));
    let is_left_out = |name: &str| {
        // Of the exporter itself; and what its own session, like ours, would have set.
        name.starts_with("pg_exporter_") || name.starts_with("pg_scrape_collector_") || SESSION.contains(&name)
    };
    let mut missing = Vec::new();
    // What the server does not know is not a number there, and left out here.
    let is_known = |name: &str| theirs.all(name, &[]).iter().any(|sample| !sample.value.is_nan());
    for (name, labels) in their_labels.iter().filter(|(name, _)| !is_left_out(name) && is_known(name)) {
        match our_labels.get(name) {
            None => missing.push(name.clone()),
            Some(found) => assert_eq!(found, labels, "the labels of {name}"),
        }
        if let Some(kind) = ours.types.get(name) {
            assert_eq!(kind, &theirs.types[name], "the type of {name}");
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(their_labels.len() > 300, "only {} were seen", their_labels.len());
}

/// Settings that a session sets for itself.
const SESSION: &[&str] = &[
    "pg_settings_statement_timeout_seconds",
    "pg_settings_lock_timeout_seconds",
    "pg_settings_idle_in_transaction_session_timeout_seconds",
    "pg_settings_idle_session_timeout_seconds",
    "pg_settings_default_transaction_read_only",
    "pg_settings_transaction_read_only",
];
