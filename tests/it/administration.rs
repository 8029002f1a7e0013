//! What an operator does as PostgreSQL's superuser, and what the application's role may see: the guide's SQL, `tandem psql
//! --superuser`, `tandem settings`, statistics after a restore.

use std::fs;

use crate::common::backups::{as_superuser, sql};
use crate::common::project::{Project, root};
use crate::common::refusal::{self, Refusal};
use crate::common::server::TestServer;
use crate::common::tandem::{self, Tandem, wait_for};

/// The statements of the guide, word for word.
const GUIDE: [&str; 8] = [
    "SELECT 1",
    "SELECT * FROM alembic_version;",
    "SELECT datname, count(*) as connections FROM pg_stat_activity GROUP BY datname;",
    "SELECT pg_size_pretty(pg_database_size('ffe'));",
    "SELECT state, count(*) FROM pg_stat_activity WHERE datname='ffe' GROUP BY state;",
    "SELECT query, calls, mean_exec_time, max_exec_time FROM pg_stat_statements \
     ORDER BY max_exec_time DESC LIMIT 10;",
    "SELECT schemaname, tablename, pg_size_pretty(pg_total_relation_size(schemaname||'.'||tablename)) as size \
     FROM pg_tables \
     ORDER BY pg_total_relation_size(schemaname||'.'||tablename) DESC LIMIT 10;",
    "SELECT pid, usename, application_name, state FROM pg_stat_activity;",
];
/// Those that a superuser runs.
const GUIDE_OF_SUPERUSER: [&str; 2] =
    ["ALTER SYSTEM SET log_min_duration_statement = 1000;", "SELECT pg_reload_conf();"];

fn plain(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\nmigrations.run = 'none'\n{lines}"))
}

fn settings(project: &Project, args: &[&str]) -> Refusal {
    refusal::run(project, &[&["settings"], args].concat())
}

/// The value that a new session gets.
fn value(project: &Project, name: &str) -> String {
    sql(project, &format!("SHOW {name}"))
}

#[test]
fn every_statement_of_the_guide_is_answered() {
    let project = Project::backend_with("workers.count = 1\npostgres.user = 'ffe_user'\npostgres.database = 'ffe'");
    let mut tandem = Tandem::up(&project);
    // As the superuser's or another role's: until now the application's role saw none of it.
    as_superuser(&project, "ffe", "SELECT pg_sleep(0.6)");
    for statement in GUIDE {
        let said = refusal::run(&project, &["psql", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        said.expect(0, &[]);
        assert!(!said.said.contains("insufficient privilege"), "{statement}: {}", said.said);
    }
    refusal::run(&project, &["psql", "-c", r"\dt"]).expect(0, &["alembic_version", "trade_outcomes"]);
    let slow = refusal::run(&project, &["psql", "-c", GUIDE[5]]);
    slow.expect(0, &["pg_sleep", "mean_exec_time"]);
    for statement in GUIDE_OF_SUPERUSER {
        refusal::run(&project, &["psql", "-c", statement]).expect(1, &["permission denied"]);
        refusal::run(&project, &["psql", "--superuser", "-v", "ON_ERROR_STOP=1", "-c", statement]).expect(0, &[]);
    }
    wait_for("the setting", || value(&project, "log_min_duration_statement") == "1s");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_superusers_session_is_in_the_log_without_what_was_typed() {
    let project = plain("");
    let mut tandem = Tandem::up(&project);
    let said = refusal::run(&project, &["psql", "--superuser", "-XAtc", "SELECT 'typed ' || current_user"]);
    said.expect(0, &["typed postgres"]);
    tandem.wait_log("opens a superuser's session (tandem psql --superuser)");
    tandem.wait_log("disconnection: session time");
    let log = tandem.log();
    let line = log.lines().find(|line| line.contains("audit: ")).unwrap();
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::current()).unwrap().unwrap().name;
    assert!(line.contains(&format!("audit: {own} (process ")) && line.contains("WARN"), "{line}");
    assert!(!log.contains("typed "), "{log}");
    // What only asks psql is none.
    refusal::run(&project, &["psql", "--superuser", "--version"]).expect(0, &["psql (PostgreSQL)"]);
    refusal::run(&project, &["psql", "-XAtc", "SELECT 1"]).expect(0, &[]);
    assert_eq!(tandem.log().matches("audit: ").count(), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["psql", "--superuser", "-c", "SELECT 1"]).expect(1, &["the database is stopped"]);
}

#[test]
fn a_key_decides_whether_the_applications_role_sees_what_others_do() {
    let project = plain("");
    let may = "SELECT pg_has_role('app', 'pg_read_all_stats', 'MEMBER')";
    for (lines, sees) in [("", "t"), ("postgres.read_all_stats = false\n", "f"), ("", "t")] {
        project.reconfigure(|text| format!("{lines}{}", text.replace("postgres.read_all_stats = false\n", "")));
        let mut tandem = Tandem::up(&project);
        assert_eq!(sql(&project, may), sees, "{lines}");
        as_superuser(&project, "app", "SELECT 'of the superuser'");
        let hidden = sql(&project, "SELECT bool_or(query = '<insufficient privilege>') FROM pg_stat_statements");
        assert_eq!(hidden, if sees == "t" { "f" } else { "t" }, "{lines}");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn statements_are_counted_after_a_restore_of_a_foreign_dump_and_without_a_public_schema() {
    let project =
        Project::app_with("plain:app", "workers.count = 1\npostgres.user = 'ffe_user'\npostgres.database = 'ffe'");
    let mut tandem = Tandem::up(&project);
    let count = || sql(&project, "SELECT count(*) > 0 FROM pg_stat_statements");
    assert_eq!(count(), "t");
    let dump = root().join("tests/fixtures/ffe/ffe_backup_clean.sql.gz");
    let import = refusal::run(&project, &["backup", "import", dump.to_str().unwrap(), "--json"]);
    import.expect(0, &[]);
    let name = refusal::names(&project.state().join("backups"));
    let name = name.iter().find(|name| name.ends_with(".sql.gz")).unwrap().trim_end_matches(".sql.gz").to_owned();
    refusal::run(&project, &["restore", &name, "--yes"]).expect(0, &["rows"]);
    assert_eq!(count(), "t", "the dump holds no pg_stat_statements");
    refusal::run(&project, &["stats", "calls"]).expect(0, &["FROM pg_stat_statements"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // A database of the operator's making: the boot makes do.
    let mut tandem = Tandem::up(&project);
    as_superuser(&project, "ffe", "DROP EXTENSION pg_stat_statements; ALTER SCHEMA public RENAME TO shop");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project.reconfigure(|text| text.replace("migrations.run = 'seaorm'", "migrations.run = 'none'"));
    let mut tandem = Tandem::up(&project);
    as_superuser(
        &project,
        "ffe",
        "ALTER SCHEMA shop RENAME TO public; CREATE VIEW pg_stat_statements AS SELECT 1 AS mine",
    );
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains("statements are not counted"), "{}", tandem.log());
    refusal::run(&project, &["stats", "calls"]).expect(0, &["CREATE EXTENSION pg_stat_statements"]);
    as_superuser(&project, "ffe", "DROP VIEW pg_stat_statements");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut tandem = Tandem::up(&project);
    assert_eq!(count(), "t");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_setting_is_shown_changed_applied_and_taken_back() {
    let project = plain("postgres.settings.work_mem = '8MB'");
    let mut tandem = Tandem::up(&project);
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());
    settings(&project, &["get", "work_mem"]).expect(0, &["work_mem = 8MB", "postgresql.conf:", "after a reload"]);
    let shown = refusal::run(&project, &["settings", "get", "Work_Mem", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.said).unwrap();
    assert_eq!(
        (&shown["name"], &shown["value"], &shown["needs_restart"]),
        (&"work_mem".into(), &"8MB".into(), &false.into())
    );
    settings(&project, &["get"]).expect(0, &["work_mem", "shared_preload_libraries"]);

    // Written is not applied.
    settings(&project, &["set", "work_mem", "16MB"])
        .expect(0, &["it does not hold yet", "--apply", "in [postgres.settings]"]);
    assert_eq!(value(&project, "work_mem"), "8MB");
    settings(&project, &["set", "work_mem", "12MB", "--apply"]).expect(0, &["work_mem is 12MB now"]);
    assert_eq!(value(&project, "work_mem"), "12MB");
    tandem.wait_log("sets PostgreSQL's work_mem (tandem settings)");
    settings(&project, &["get", "work_mem"]).expect(0, &["postgresql.auto.conf:"]);

    // What needs a restart: the server gets it, the workers stay.
    settings(&project, &["set", "max_locks_per_transaction", "128"])
        .expect(0, &["restarts PostgreSQL; the workers stay"]);
    assert_eq!(value(&project, "max_locks_per_transaction"), "64");
    let other = settings(&project, &["reset", "work_mem", "--apply"]);
    other.expect(0, &["work_mem is 8MB now"]);
    settings(&project, &["set", "max_locks_per_transaction", "128", "--apply"]).expect(0, &["is 128 now"]);
    assert_eq!(value(&project, "max_locks_per_transaction"), "128");
    assert_ne!(tandem.postmaster(&project), postmaster);
    assert_eq!(tandem.workers(), workers, "{}", tandem.log());

    // It lasts, and is taken back where no Tandem runs too.
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    settings(&project, &["set", "work_mem", "32MB"]).expect(0, &["it holds from the next start on"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(
        (value(&project, "work_mem"), value(&project, "max_locks_per_transaction")),
        ("32MB".into(), "128".into())
    );
    assert!(tandem.log().contains("`tandem settings reset work_mem`"), "{}", tandem.log());
    settings(&project, &["reset", "work_mem", "--apply"]).expect(0, &["work_mem is 8MB now"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_value_with_which_the_server_would_not_start_is_refused() {
    let project = plain("");
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    let auto = || fs::read_to_string(project.data().join("postgresql.auto.conf")).unwrap();
    let before = auto();
    for (name, value, words) in [
        // Not until the next start would the server see what is wrong with these.
        ("wal_level", "minimal", "would not start with wal_level"),
        ("max_wal_size", "2MB", "max_wal_size"),
        ("huge_pages", "on", "huge pages"),
        ("max_locks_per_transaction", "100000000", "would not start with max_locks_per_transaction"),
        ("superuser_reserved_connections", "1000", "superuser_reserved_connections"),
        // What it refuses at once.
        ("work_mem", "8 bananas", "work_mem"),
        ("work_mem", "1kB", "work_mem"),
        ("jit", "perhaps", "jit"),
    ] {
        let said = settings(&project, &["set", name, value, "--apply"]);
        assert!(said.code != 0 && said.said.contains(words), "{name} = {value}: {}", said.said);
    }
    settings(&project, &["set", "work_memm", "8MB"])
        .expect(64, &["no setting work_memm", "work_mem is probably meant"]);
    settings(&project, &["set", "block_size", "4096"]).expect(64, &["cannot be set"]);
    for (name, instead) in [
        ("max_connections", "postgres.max_connections"),
        ("shared_buffers", "postgres.shared_buffers"),
        ("port", "postgres.port"),
        ("Listen_Addresses", "postgres.listen"),
        ("fsync", "corrupts the cluster"),
        ("ssl", "postgres.tls"),
        ("shared_preload_libraries", "[postgres.settings]"),
        ("logging_collector", "[postgres.settings]"),
    ] {
        settings(&project, &["set", name, "on"]).expect(64, &[instead]);
    }
    assert_eq!((auto(), tandem.postmaster(&project)), (before.clone(), postmaster));

    // What only a start shows is taken back, and the server runs again.
    let said = settings(&project, &["set", "unix_socket_group", "no-such-group", "--apply"]);
    said.expect(1, &["unix_socket_group was taken back", "runs with the settings from before"]);
    assert_eq!(auto(), before);
    tandem.wait_ready();
    assert_eq!(value(&project, "unix_socket_group"), "");
    let left = refusal::names(project.data().parent().unwrap());
    assert!(!left.iter().any(|name| name.starts_with(".staging")), "{left:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_a_server_elsewhere_are_shown_and_not_changed() {
    let server = TestServer::start().await;
    let url = server.database("shop").await;
    let project = plain("");
    let run = |args: &[&str]| {
        refusal::said(tandem::command(&project).env("DATABASE_URL", url.expose().expose()).args(args).output().unwrap())
    };
    run(&["settings", "get", "work_mem"]).expect(0, &["work_mem = "]);
    run(&["settings", "set", "work_mem", "8MB"]).expect(64, &["run by somebody else"]);
    run(&["psql", "--superuser"]).expect(64, &["run by somebody else"]);
}

#[test]
fn slow_statements_are_in_the_log_where_a_key_says_so() {
    let project = plain("postgres.slow_query = '100ms'");
    let mut tandem = Tandem::up(&project);
    assert_eq!(value(&project, "log_min_duration_statement"), "100ms");
    sql(&project, "SELECT pg_sleep(0.2), 'it is slow'");
    tandem.wait_log("duration: ");
    assert!(tandem.log().contains("it is slow"), "{}", tandem.log());
    settings(&project, &["set", "log_min_duration_statement", "2s", "--apply"]).expect(0, &["is 2s now"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project.configure("postgres.settings.log_min_duration_statement = '1s'");
    refusal::run(&project, &["check"]).expect(78, &["postgres.slow_query", "log_min_duration_statement", "keep one"]);
}
