//! Backups, restores and migrations of databases that are called, placed and limited in unusual ways.

use crate::common::backups::{backup, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::server::{APP_ROLE, TestServer};
use crate::common::tandem::{self, LIMIT, Tandem};

const NOTE: &str = "CREATE TABLE note (id int PRIMARY KEY); INSERT INTO note VALUES (1), (2)";
const LOST: &str = "DELETE FROM note WHERE id = 2";
const COUNT: &str = "SELECT count(*) FROM note";

fn run_at(project: &Project, url: &str, args: &[&str]) -> Refusal {
    refusal::said(tandem::command(project).env("DATABASE_URL", url).args(args).output().unwrap())
}

/// Take a backup, lose a row, have it back, prove the backup, and go back to what was before.
fn goes_round(project: &Project) {
    backup(project, &[]);
    sql(project, LOST);
    refusal::run(project, &["restore", "latest", "--yes"]).expect(0, &["rows"]);
    assert_eq!(sql(project, COUNT), "2");
    refusal::run(project, &["backup", "verify", "--all"]).expect(0, &["verified"]);
    refusal::run(project, &["restore", "--undo", "--yes"]).expect(0, &[]);
    assert_eq!(sql(project, COUNT), "1");
}

#[test]
fn a_database_called_postgres_is_restored() {
    let owner = Project::app_with(
        "plain:app",
        "workers.count = 1\nmigrations.run = 'none'\npostgres.user = 'postgres'\npostgres.database = 'postgres'",
    );
    let mut server = Tandem::up(&owner);
    sql(&owner, NOTE);
    goes_round(&owner);

    // As managed services offer it: the one database they make has that name.
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    let attached = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    run_at(&attached, &url, &["backup"]).expect(0, &[]);
    run_at(&attached, &url, &["psql", "-c", "TRUNCATE note"]).expect(0, &[]);
    run_at(&attached, &url, &["restore", "latest", "--yes"]).expect(0, &["postgres holds"]);
    run_at(&attached, &url, &["psql", "-Atc", "SELECT 'rows: ' || count(*) FROM note"]).expect(0, &["rows: 1"]);
    assert_eq!(server.stop(), 0, "{}", server.log());
}

#[test]
fn a_database_called_postgres_belongs_to_the_application() {
    let project = Project::app_with("plain:app", "workers.count = 1\npostgres.database = 'postgres'");
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains("applied migration"), "{}", tandem.log());
    sql(&project, NOTE);
    goes_round(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_comma_in_the_path_parts_no_address() {
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let state = project.dir().join("com,ma 100%");
    // Only the bases that are asked for: two at once refuse each other.
    let lines = "backup.pitr.enabled = true\nbackup.schedule = 'never'";
    project.configure(&format!("state_dir = '{}'\n{lines}", state.display()));
    let mut tandem = Tandem::up(&project);
    sql(&project, NOTE);
    goes_round(&project);
    refusal::run(&project, &["backup", "base"]).expect(0, &[]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn limits_that_are_meant_for_the_application_do_not_stop_ours() {
    let project = Project::app_with(
        "plain:app",
        "workers.count = 1\npostgres.settings.statement_timeout = '15ms'\npostgres.settings.lock_timeout = '15ms'\n\
         postgres.settings.idle_in_transaction_session_timeout = '100ms'\n\
         postgres.settings.default_transaction_read_only = 'on'",
    );
    // No worker can write, so it does not stay ready.
    let mut tandem = Tandem::start(&project);
    tandem.wait_log("is not ready: default_transaction_read_only is on");
    sql(&project, &format!("SET transaction_read_only = off; SET statement_timeout = 0; {NOTE}"));
    backup(&project, &[]);
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["rows"]);
    refusal::run(&project, &["migrate", "down"]).expect(0, &["took back"]);
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// The same limits on a server elsewhere, where they belong to the role and to the database.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_role_and_a_database_elsewhere_do_not_stop_ours() {
    let server = TestServer::start().await;
    let url = server.database("limited").await.expose().expose().to_owned();
    for statement in [
        format!("ALTER ROLE {APP_ROLE} SET statement_timeout = '2ms'"),
        format!("ALTER ROLE {APP_ROLE} SET search_path = nowhere"),
        "ALTER DATABASE limited SET default_transaction_read_only = on".to_owned(),
        "ALTER DATABASE limited SET idle_session_timeout = '1s'".to_owned(),
    ] {
        server.sql("postgres", &statement).await;
    }
    let project = Project::app_with("plain:app", "workers.count = 1");
    run_at(&project, &url, &["migrate", "up"]).expect(0, &["applied m004_add_indexes"]);
    run_at(&project, &url, &["migrate", "status"]).expect(0, &["applied  004"]);

    // While one session of a migration waits, the one that holds its lock is idle: for longer than the limit.
    let hold = "BEGIN READ WRITE; LOCK TABLE api_keys; DO $$ BEGIN WHILE NOT EXISTS (
                    SELECT FROM pg_stat_activity WHERE application_name = 'tandem-migrate' AND state = 'idle'
                                                 AND clock_timestamp() - state_change > '1500 ms')
                LOOP PERFORM pg_stat_clear_snapshot(), pg_sleep(0.05); END LOOP; END $$; COMMIT";
    let held = "SELECT count(*) FROM pg_locks WHERE relation = 'api_keys'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    let down = async {
        let is_held = async { while server.sql("limited", held).await != "1" {} };
        tokio::time::timeout(LIMIT, is_held).await.unwrap();
        tokio::task::block_in_place(|| {
            run_at(&project, &url, &["migrate", "down", "2"]).expect(0, &["took back m003"])
        });
    };
    tokio::join!(server.sql("limited", hold), down);
    run_at(&project, &url, &["backup"]).expect(0, &[]);
}

#[tokio::test]
async fn what_a_role_may_not_do_is_said_once_with_what_lets_it() {
    let server = TestServer::start().await;
    let url = server.database("closed").await;
    server.sql("closed", "CREATE ROLE ro LOGIN PASSWORD 'ro'; GRANT CREATE ON SCHEMA public TO ro").await;
    let project = Project::app_with("plain:app", "workers.count = 1");
    let url = format!("postgresql://ro:ro@127.0.0.1:{}/closed", url.port);
    let refused = run_at(&project, &url, &["migrate", "up", "--log-format", "text"]);
    let told = "role ro may not create a schema in database closed: GRANT CREATE ON DATABASE \"closed\" TO \"ro\"";
    refused.expect(78, &[told, "permission denied for database closed (SQLSTATE 42501)"]);
    assert_eq!(refused.said.matches("permission denied").count(), 1, "{}", refused.said);
    assert!(!refused.said.contains("at line") && !refused.said.contains("Execution Error"), "{}", refused.said);
    server.sql("closed", "GRANT CREATE ON DATABASE closed TO ro; REVOKE ALL ON SCHEMA public FROM ro").await;
    run_at(&project, &url, &["migrate", "up"]).expect(78, &["role ro may not migrate database closed"]);
    // Another error of the server's, by another way: a role that is not there.
    let nobody = url.replace("ro:ro", "nobody:x");
    let refused = run_at(&project, &nobody, &["migrate", "status"]);
    assert_eq!(refused.said.matches("password authentication failed").count(), 1, "{}", refused.said);
}
