//! The schema room against a real PostgreSQL 16: what FFE's own Alembic makes is the measure.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::alembic::alembic;
use crate::common::server::{TestServer, comparable};
use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, Statement};
use tandem::exit::{Code, code_of};
use tandem::plan::DatabaseUrl;
use tandem::schema::{self, MigrationOutcome, RevisionStatus};
use tokio::time::{Instant, sleep};

const LOCK_LIMIT: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const REVISIONS: [&str; 4] =
    ["001_initial_auth_schema", "002_decision_cache_schema", "003_portfolio_memory_schema", "004_add_indexes"];

/// The application's schema as FFE's own operators dump it, ours left out.
const SCHEMA: [&str; 5] = ["--schema-only", "--no-owner", "--no-privileges", "--exclude-schema", "tandem"];
/// Everything, rows too: what a refusal must not change.
const EVERYTHING: [&str; 1] = ["--inserts"];

async fn up(url: &DatabaseUrl) -> MigrationOutcome {
    schema::up(url, LOCK_LIMIT, LIMIT).await.unwrap()
}

async fn down(url: &DatabaseUrl, steps: usize) -> MigrationOutcome {
    schema::down(url, steps, LOCK_LIMIT, LIMIT).await.unwrap()
}

/// The recorded dump of a database that real Alembic brought to revision number `applied`.
fn recorded_file(applied: usize) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/ffe/schema_00{applied}.sql"))
}

fn recorded(applied: usize) -> String {
    comparable(&std::fs::read_to_string(recorded_file(applied)).unwrap())
}

async fn alembic_version(server: &TestServer, database: &str) -> String {
    server.sql(database, "SELECT version_num FROM public.alembic_version").await
}

/// A database as real Alembic left it at revision number `applied`; 0 is after `downgrade base`.
async fn made_by_alembic(server: &TestServer, name: &str, applied: usize) -> DatabaseUrl {
    let url = server.database(name).await;
    server.sql_file(name, &recorded_file(applied.max(1))).await;
    if applied == 0 {
        server.sql_as_owner(name, "DROP TABLE auth_audit, api_keys").await;
    } else {
        let insert = format!("INSERT INTO alembic_version VALUES ('{}')", REVISIONS[applied - 1]);
        server.sql_as_owner(name, &insert).await;
    }
    url
}

fn migrations(range: std::ops::Range<usize>) -> Vec<String> {
    REVISIONS[range].iter().map(|revision| format!("m{revision}")).collect()
}

/// What `tandem migrate up` must do to `url`'s database: refuse with 65 and change nothing, not even add our schema.
async fn refused(server: &TestServer, url: &DatabaseUrl, because: &str) {
    let before = server.dump(&url.database, &EVERYTHING).await;
    let errors = [
        schema::up(url, LOCK_LIMIT, LIMIT).await.unwrap_err(),
        schema::down(url, 1, LOCK_LIMIT, LIMIT).await.unwrap_err(),
        schema::status(url).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(code_of(&error), Code::Schema, "{error:#}");
        assert!(error.to_string().contains(because), "{error:#}");
    }
    assert_eq!(server.dump(&url.database, &EVERYTHING).await, before);
}

#[tokio::test]
async fn every_step_up_and_down_equals_alembics() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    let outcome = up(&url).await;
    assert_eq!(outcome.applied, migrations(0..4));
    assert_eq!((outcome.adopted, outcome.revision.as_deref()), (None, Some(REVISIONS[3])));
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
    assert_eq!(alembic_version(&server, "ffe").await, REVISIONS[3]);
    assert!(!server.log().contains("ERROR"), "{}", server.log());

    for applied in (0..4).rev() {
        let outcome = down(&url, 1).await;
        assert_eq!(outcome.rolled_back, migrations(applied..applied + 1));
        let revision = applied.checked_sub(1).map(|index| REVISIONS[index]);
        assert_eq!(outcome.revision.as_deref(), revision);
        assert_eq!(alembic_version(&server, "ffe").await, revision.unwrap_or_default());
        if applied > 0 {
            assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(applied), "down to {applied}");
        }
    }
    let tables = server.sql("ffe", "SELECT tablename FROM pg_tables WHERE schemaname = 'public'").await;
    assert_eq!(tables, "alembic_version");

    // Step by step up again, with SeaORM's own stepping.
    let mut options = ConnectOptions::new(url.expose().expose());
    options.set_schema_search_path("tandem,public").sqlx_logging(false).max_connections(1);
    let database = Database::connect(options).await.unwrap();
    for applied in 1..=4 {
        Migrator::up(&database, Some(1)).await.unwrap();
        assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(applied), "up to {applied}");
        assert_eq!(alembic_version(&server, "ffe").await, REVISIONS[applied - 1]);
    }
    database.close().await.unwrap();
    assert_eq!(up(&url).await.applied, Vec::<String>::new());
}

#[tokio::test]
async fn each_revision_makes_the_tables_it_declares() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    up(&url).await;
    let tables = "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.sql("ffe", tables).await, schema::tables().join(","));
    assert_eq!(schema::tables().len(), 8);
    let mut expected = schema::tables();
    for revision in migration::REVISIONS.iter().rev() {
        down(&url, 1).await;
        expected.retain(|table| !revision.creates.contains(table));
        expected.extend(revision.drops);
        expected.sort_unstable();
        assert_eq!(server.sql("ffe", tables).await, expected.join(","), "under {}", revision.migration.name());
    }
    // Nothing of an unqualified migration has strayed into our schema.
    assert_eq!(server.sql("ffe", &tables.replace("public", "tandem")).await, "seaql_migrations");
}

#[tokio::test]
async fn a_current_database_is_left_alone_without_waiting_for_the_lock() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    up(&url).await;
    let before = server.dump("ffe", &EVERYTHING).await;
    let mut holder = Holder::take(&url).await;
    let mut fastest = LIMIT;
    for _ in 0..5 {
        let outcome = up(&url).await;
        assert_eq!(
            outcome,
            MigrationOutcome {
                revision: Some(schema::head()),
                duration: outcome.duration,
                ..MigrationOutcome::default()
            }
        );
        fastest = fastest.min(outcome.duration);
    }
    holder.release().await;
    println!("second up: {fastest:?}");
    assert_eq!(server.dump("ffe", &EVERYTHING).await, before);
}

#[tokio::test]
async fn a_database_that_alembic_made_is_adopted_from_every_revision() {
    let server = TestServer::start().await;
    for applied in 0..=4 {
        let name = format!("ffe{applied}");
        let url = made_by_alembic(&server, &name, applied).await;
        assert_eq!(schema::status(&url).await.unwrap(), statuses(applied));
        let outcome = up(&url).await;
        assert_eq!(outcome.adopted.as_deref(), applied.checked_sub(1).map(|index| REVISIONS[index]));
        assert_eq!(outcome.applied, migrations(applied..4));
        assert_eq!(server.dump(&name, &SCHEMA).await, recorded(4), "adopted at {applied}");
        assert_eq!(up(&url).await.adopted, None);
        assert_eq!(down(&url, 4).await.rolled_back.len(), 4);
    }
}

#[tokio::test]
async fn bookkeeping_follows_alembic_version() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    up(&url).await;
    // As after `alembic upgrade` and after `alembic downgrade`.
    for stale in ["DELETE FROM tandem.seaql_migrations WHERE version > 'm002'", "DELETE FROM tandem.seaql_migrations"] {
        server.sql_as_owner("ffe", stale).await;
        let outcome = up(&url).await;
        assert_eq!((outcome.adopted.as_deref(), outcome.applied.len()), (Some(REVISIONS[3]), 0));
    }
    down(&url, 2).await;
    let ahead =
        "INSERT INTO tandem.seaql_migrations VALUES ('m003_portfolio_memory_schema', 0), ('m004_add_indexes', 0)";
    server.sql_as_owner("ffe", ahead).await;
    assert_eq!(schema::status(&url).await.unwrap(), statuses(2));
    assert_eq!(up(&url).await.applied, migrations(2..4));
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_untouched() {
    let server = TestServer::start().await;
    let url = made_by_alembic(&server, "future", 4).await;
    server.sql("future", "UPDATE alembic_version SET version_num = '005_later'").await;
    refused(&server, &url, "005_later").await;

    let url = made_by_alembic(&server, "heads", 4).await;
    server.sql("heads", "INSERT INTO alembic_version VALUES ('003_portfolio_memory_schema')").await;
    refused(&server, &url, "2 revisions at once").await;

    let url = made_by_alembic(&server, "unstamped", 2).await;
    server.sql("unstamped", "DROP TABLE alembic_version").await;
    refused(&server, &url, "public already has api_keys").await;

    let url = made_by_alembic(&server, "missing", 3).await;
    server.sql("missing", "DROP TABLE trade_outcomes").await;
    refused(&server, &url, "public has no trade_outcomes").await;

    let url = server.database("recorded").await;
    up(&url).await;
    server.sql("recorded", "INSERT INTO tandem.seaql_migrations VALUES ('m005_later', 0)").await;
    refused(&server, &url, "m005_later").await;
}

#[tokio::test]
async fn looking_changes_nothing_and_too_many_steps_down_are_refused() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    let before = server.dump("ffe", &EVERYTHING).await;
    assert_eq!(schema::status(&url).await.unwrap(), statuses(0));
    let error = schema::down(&url, 1, LOCK_LIMIT, LIMIT).await.unwrap_err();
    assert_eq!(code_of(&error), Code::Usage, "{error:#}");
    assert_eq!(server.dump("ffe", &EVERYTHING).await, before);
}

#[tokio::test]
async fn four_at_once_on_an_empty_database_all_succeed() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    let (one, two, three, four) = tokio::join!(up(&url), up(&url), up(&url), up(&url));
    let mut applied: Vec<usize> = [one, two, three, four].iter().map(|outcome| outcome.applied.len()).collect();
    applied.sort_unstable();
    assert_eq!(applied, [0, 0, 0, 4]);
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
}

#[tokio::test]
async fn the_lock_is_waited_for_within_its_limit() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    let mut holder = Holder::take(&url).await;
    let error = schema::up(&url, Duration::from_millis(100), LIMIT).await.unwrap_err();
    assert_eq!(code_of(&error), Code::Temporary, "{error:#}");
    assert!(error.to_string().contains("holder-of-the-lock"), "{error:#}");
    assert!(error.to_string().contains(&holder.pid.to_string()), "{error:#}");

    // Released while somebody waits: the waiter goes on.
    let released = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem-migrate'";
        until(&server, waiting, "1").await;
        holder.release().await;
    };
    let (outcome, ()) = tokio::join!(up(&url), released);
    assert_eq!(outcome.applied.len(), 4);
}

#[tokio::test]
async fn a_migration_that_fails_is_named_and_rolled_back() {
    let server = TestServer::start().await;
    let url = made_by_alembic(&server, "ffe", 3).await;
    server.sql_as_owner("ffe", "CREATE INDEX ix_trade_outcomes_perf ON trade_outcomes (is_win)").await;
    let before = server.dump("ffe", &SCHEMA).await;
    let error = schema::up(&url, LOCK_LIMIT, LIMIT).await.unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("apply migration m004_add_indexes") && message.contains("already exists"), "{message}");
    assert_eq!(server.dump("ffe", &SCHEMA).await, before);
    assert_eq!(alembic_version(&server, "ffe").await, REVISIONS[2]);

    server.sql_as_owner("ffe", "DROP INDEX ix_trade_outcomes_perf").await;
    assert_eq!(up(&url).await.applied, migrations(3..4));
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
}

#[tokio::test]
async fn a_migration_that_is_stopped_half_way_leaves_no_lock_and_no_half() {
    let server = TestServer::start().await;
    let url = made_by_alembic(&server, "ffe", 3).await;
    let database = schema::connect(&url, "reader").await.unwrap();
    let reader = sea_orm::TransactionTrait::begin(&database).await.unwrap();
    reader.execute_unprepared("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.unwrap();

    let error = schema::up(&url, LOCK_LIMIT, Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(code_of(&error), Code::Temporary, "{error:#}");
    // The statement itself still waits for the reader; its server process notices that nobody wants the answer.
    until(&server, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem-migrate'", "0").await;
    assert_eq!(alembic_version(&server, "ffe").await, REVISIONS[2]);

    reader.rollback().await.unwrap();
    assert_eq!(up(&url).await.applied, migrations(3..4));
    database.close().await.unwrap();
}

#[tokio::test]
async fn what_real_alembic_made_is_adopted_from_every_revision() {
    let server = TestServer::start().await;
    for applied in 1..=4 {
        let name = format!("ffe{applied}");
        let url = server.database(&name).await;
        alembic(&url, &["upgrade", REVISIONS[applied - 1]]).await;
        assert_eq!(server.dump(&name, &SCHEMA).await, recorded(applied), "Alembic at {applied}");
        let outcome = up(&url).await;
        assert_eq!(outcome.adopted.as_deref(), Some(REVISIONS[applied - 1]));
        assert_eq!(outcome.applied, migrations(applied..4));
        assert_eq!(server.dump(&name, &SCHEMA).await, recorded(4), "adopted at {applied}");
    }
}

#[tokio::test]
async fn alembic_and_tandem_take_turns_on_one_database() {
    let server = TestServer::start().await;
    let url = server.database("ffe").await;
    up(&url).await;
    assert!(alembic(&url, &["current"]).await.contains("004_add_indexes (head)"));

    alembic(&url, &["downgrade", REVISIONS[1]]).await;
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(2));
    assert_eq!(schema::status(&url).await.unwrap(), statuses(2));
    let outcome = up(&url).await;
    assert_eq!((outcome.adopted.as_deref(), outcome.applied), (Some(REVISIONS[1]), migrations(2..4)));

    down(&url, 3).await;
    assert!(alembic(&url, &["current"]).await.contains(REVISIONS[0]));
    alembic(&url, &["upgrade", "head"]).await;
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
    let outcome = up(&url).await;
    assert_eq!((outcome.adopted.as_deref(), outcome.applied.len()), (Some(REVISIONS[3]), 0));

    // Down to nothing by the one, up again by the other.
    alembic(&url, &["downgrade", "base"]).await;
    assert_eq!(up(&url).await.applied, migrations(0..4));
    down(&url, 4).await;
    alembic(&url, &["upgrade", "head"]).await;
    assert_eq!(server.dump("ffe", &SCHEMA).await, recorded(4));
}

#[tokio::test]
async fn a_socket_directory_is_a_host() {
    let server = TestServer::start().await;
    let mut url = server.database("ffe").await;
    url.host = server.socket_dir().to_str().unwrap().to_owned();
    assert_eq!(up(&url).await.applied.len(), 4);
}

fn statuses(applied: usize) -> Vec<RevisionStatus> {
    REVISIONS
        .iter()
        .enumerate()
        .map(|(index, revision)| RevisionStatus {
            name: format!("m{revision}"),
            revision: (*revision).to_owned(),
            applied: index < applied,
        })
        .collect()
}

/// Ask the server until it answers `expected`.
async fn until(server: &TestServer, sql: &str, expected: &str) {
    let deadline = Instant::now() + LIMIT;
    while server.sql("postgres", sql).await != expected {
        assert!(Instant::now() < deadline, "{sql} did not become {expected} within {LIMIT:?}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Another program that holds the migration lock.
struct Holder {
    database: Option<sea_orm::DatabaseConnection>,
    pid: i32,
}

impl Holder {
    async fn take(url: &DatabaseUrl) -> Self {
        let database = schema::connect(url, "holder-of-the-lock").await.unwrap();
        let sql = "SELECT pg_backend_pid() AS pid FROM (SELECT pg_advisory_lock($1)) AS taken";
        let statement = Statement::from_sql_and_values(database.get_database_backend(), sql, [schema::LOCK_KEY.into()]);
        let row = database.query_one_raw(statement).await.unwrap().unwrap();
        Self { pid: row.try_get("", "pid").unwrap(), database: Some(database) }
    }

    async fn release(&mut self) {
        if let Some(database) = self.database.take() {
            database.close().await.unwrap();
        }
    }
}
