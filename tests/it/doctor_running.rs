//! `tandem doctor` beside a Tandem that runs: a healthy project is well, and faults of the server are found.

use std::fs;
use std::process::{Child, Stdio};

use crate::common::backups::{as_superuser, backup, sql};
use crate::common::doctor::doctor;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};

const LINES: &str = "workers.count = 1\nbackup.schedule = 'never'";

/// A psql of the superuser that goes on in the background.
fn psql(project: &Project, script: &str) -> Session {
    let mut command = tandem::command(project);
    command.args(["psql", "--superuser", "-Xq", "-d", "app", "-c", script]);
    Session(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn superuser(project: &Project, text: &str) -> String {
    as_superuser(project, "app", text)
}

#[test]
fn a_healthy_project_is_well_while_it_runs_and_while_it_does_not() {
    let project = Project::app_with("plain:app", LINES);
    let mut tandem = Tandem::up(&project);
    backup(&project, &[]);
    let report = doctor(&project, &[]);
    report.expect_well();
    for (name, words) in [
        ("tandem", "is serving"),
        ("database", "gets in, with its password"),
        ("connections", "connections are in use"),
        ("data-directory", "in production"),
        ("uvicorn", "uvicorn "),
        ("backups", "the newest backup is"),
        ("passwords", "made the password"),
    ] {
        report.expect(name, "ok", &[words]);
    }
    assert!(report.all["took_ms"].is_u64() && report.all["verdict"].is_string(), "{:#}", report.all);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let before = fs::read_dir(project.state()).unwrap().count();
    let stopped = doctor(&project, &["--deep"]);
    stopped.expect_well();
    stopped.expect("checksums", "ok", &["every page of the cluster has the right checksum"]);
    stopped.expect("data-directory", "ok", &["shut down"]);
    assert!(stopped.check("database")["not_looked"].as_str().unwrap().contains("no server runs"), "{:#}", stopped.all);
    assert_eq!(fs::read_dir(project.state()).unwrap().count(), before, "it wrote nothing");
}

#[test]
fn sessions_that_hold_others_up_are_found() {
    let project = Project::app_with("plain:app", LINES);
    let _tandem = Tandem::up(&project);
    superuser(&project, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    let _idle = psql(&project, "BEGIN; SELECT * FROM t; SELECT pg_sleep(1000)");
    let waiting = |count: &str| {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        superuser(&project, text) == count
    };
    let open = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1000)'";
    wait_for("an open transaction", || superuser(&project, open) == "1");
    let _ddl = psql(&project, "ALTER TABLE t ADD COLUMN m int");
    wait_for("the ALTER TABLE that waits", || waiting("1"));
    let _reader = psql(&project, "SELECT * FROM t");
    wait_for("the reader behind it", || waiting("2"));
    let report = doctor(&project, &[]);
    report.expect("blocked", "error", &["ALTER TABLE", "1 more wait behind it", "lock_timeout"]);
    assert_eq!(report.code, 70, "{:#}", report.all);
    // It waited for nobody's lock.
    assert!(waiting("2"));
}

#[test]
fn faults_of_the_server_are_found_each_with_its_next_step() {
    let project = Project::app_with("plain:app", LINES);
    let tandem = Tandem::up(&project);
    superuser(&project, "CREATE TABLE t (n int); INSERT INTO t VALUES (1), (1)");
    let options = [
        "psql",
        "--superuser",
        "-Xq",
        "-d",
        "app",
        "-c",
        r#"CREATE UNIQUE INDEX CONCURRENTLY U&"twice\001b[2J\000a" ON t (n)"#,
    ];
    assert!(!tandem::run(&project, &options).status.success());
    superuser(&project, "ALTER ROLE app SUPERUSER");
    superuser(&project, "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'app'");
    for setting in ["autovacuum = off", "full_page_writes = off", "shared_buffers = '17MB'", "listen_addresses = '*'"] {
        superuser(&project, &format!("ALTER SYSTEM SET {setting}"));
    }
    superuser(&project, "SELECT pg_reload_conf()");
    let hba = project.data().join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("{rules}\nhost all all 0.0.0.0/0 trust\n")).unwrap();
    wait_for("the settings", || superuser(&project, "SHOW full_page_writes") == "off");

    let report = doctor(&project, &[]);
    report.expect("indexes", "warning", &["twice?[2J?", "REINDEX INDEX CONCURRENTLY"]);
    // In a terminal, where a name could do worse.
    let shown = tandem::run(&project, &["doctor"]).stdout;
    assert!(!shown.contains(&0x1b), "{}", String::from_utf8_lossy(&shown));
    report.expect("superuser", "warning", &["NOSUPERUSER"]);
    report.expect("collation", "error", &["database app", "REINDEX DATABASE"]);
    report.expect("settings", "error", &["full_page_writes is off", "autovacuum is off", "shared_buffers"]);
    report.expect("access", "error", &["0.0.0.0/0.0.0.0 trust"]);
    report.expect("data-directory", "warning", &["ALTER SYSTEM has set listen_addresses"]);
    assert_eq!(report.code, 70);

    // The role's password, and the schema.
    superuser(&project, "ALTER ROLE app PASSWORD 'another'");
    doctor(&project, &[]).expect("database", "error", &["does not take the password", "`tandem up` set it anew"]);
    let password = fs::read_to_string(project.state().join("run/password")).unwrap();
    superuser(&project, &format!("ALTER ROLE app PASSWORD '{password}'"));
    superuser(&project, "UPDATE alembic_version SET version_num = '005_later'");
    doctor(&project, &[]).expect("migrations", "error", &["005_later", "a newer version"]);
    superuser(&project, "UPDATE alembic_version SET version_num = '004_add_indexes'");
    let down = tandem::run(&project, &["migrate", "down"]);
    assert!(down.status.success(), "{down:?}");
    doctor(&project, &[]).expect("migrations", "warning", &["1 migration is not applied", "tandem migrate up"]);
    assert_eq!(tandem.ready(), Some(true), "it harmed nothing");
}

#[test]
fn the_revisions_of_alembic_are_read_from_the_projects_files() {
    let project = Project::app_with("plain:app", &format!("{LINES}\nmigrations.run = 'none'"));
    let _tandem = Tandem::up(&project);
    project.write("db/alembic.ini", "[alembic]\nscript_location = alembic\n");
    project.write("db/alembic/versions/a.py", "revision = 'a1'\ndown_revision = None\n");
    let args = ["--set", "migrations.run=[\"alembic\",\"upgrade\",\"head\"]", "--set", "migrations.dir=db"];
    doctor(&project, &args).expect("migrations", "warning", &["no migration is applied"]);
    sql(&project, "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('a1')");
    doctor(&project, &args).expect("migrations", "ok", &[]);
    project.write("db/alembic/versions/b.py", "revision = 'b2'\ndown_revision = 'a1'\n");
    doctor(&project, &args).expect("migrations", "warning", &["is at a1, and the newest revision is b2"]);
    project.write("db/alembic/versions/c.py", "revision = 'c3'\ndown_revision = 'a1'\n");
    doctor(&project, &args).expect("migrations", "error", &["2 heads", "alembic merge heads"]);
    sql(&project, "UPDATE alembic_version SET version_num = 'z9'");
    doctor(&project, &args).expect("migrations", "error", &["z9, which this code does not know"]);
}

#[test]
fn every_table_and_index_is_read_on_demand_and_a_damaged_one_is_named() {
    let project = Project::app_with("plain:app", LINES);
    let mut tandem = Tandem::up(&project);
    superuser(&project, "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5000)");
    let file = superuser(&project, "SELECT pg_relation_filepath('t')");
    let report = doctor(&project, &["--deep"]);
    report.expect("amcheck", "ok", &["tables and indexes were read"]);
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'tandem_doctor'";
    assert_eq!(superuser(&project, left), "0", "what was made for it is gone");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // In the middle of the first page.
    let path = project.data().join(file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[4_000..4_064].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let stopped = doctor(&project, &["--deep"]);
    stopped.expect("checksums", "error", &["restore the last proven backup"]);
    let mut tandem = Tandem::up(&project);
    let read = doctor(&project, &["--deep"]);
    read.expect("amcheck", "error", &["public.t"]);
    doctor(&project, &[]).expect("checksums", "error", &["pages whose checksum is wrong"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
