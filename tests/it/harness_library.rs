//! `tandem::harness`, as tests in Rust use it.

use crate::common::harness::{Suite, wait_gone};
use crate::common::tandem::{lives, wait_for};
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};
use tandem::config::MigrationRun;
use tandem::harness::{Options, Server, database};
use tandem::{process, schema};

async fn number(url: &str, sql: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let number = query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    number
}

async fn run(url: &str, sql: &str) -> Result<(), sea_orm::sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    connection.close().await
}

fn migrated() -> Options {
    Options { directory: Some(std::env::temp_dir()), migrations: Some(MigrationRun::SeaOrm), ..Options::default() }
}

#[tokio::test]
async fn rust_tests_get_databases_of_their_own_from_one_server() {
    let server = Server::start(migrated()).await.unwrap();
    let (one, other) = (server.database().await.unwrap(), server.database().await.unwrap());
    run(one.url(), "CREATE TABLE mine (x int)").await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let known = i64::try_from(schema::tables().len()).unwrap();
    assert_eq!((number(one.url(), tables).await, number(other.url(), tables).await), (known + 1, known));
    let shared = server.shared_database().await.unwrap();
    assert!(run(shared.url(), "DELETE FROM api_keys").await.unwrap_err().to_string().contains("read-only"));
    let name = one.name().to_owned();
    drop(one);
    let gone = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    // It is dropped when there is nothing else to do.
    while number(other.url(), &gone).await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_database_of_a_test_that_panics_is_kept() {
    let server = Server::start(migrated()).await.unwrap();
    let database = server.database().await.unwrap();
    let url = database.url().to_owned();
    let panicked = std::thread::spawn(move || {
        let _database = database;
        panic!("a test that fails");
    });
    assert!(panicked.join().is_err());
    assert_eq!(server.census().kept, std::slice::from_ref(&url));
    assert_eq!(number(&url, "SELECT 1::bigint").await, 1);
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing() {
    let server = Server::start(migrated()).await.unwrap();
    let place = server.socket_dir().ancestors().nth(2).unwrap().to_owned();
    let pid = crate::common::harness::postmaster(&place);
    assert!(place.exists() && lives(pid));
    drop(server);
    wait_for("the end of the server", || !lives(pid));
    wait_gone(&place);
}

/// The runtime of each `#[tokio::test]` ends with its test; the server must not mind.
#[test]
fn one_server_serves_many_runtimes_and_threads() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = std::sync::Arc::new(runtime().block_on(Server::start(migrated())).unwrap());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let server = server.clone();
            std::thread::spawn(move || {
                for _ in 0..5 {
                    runtime().block_on(async {
                        let database = server.database().await.unwrap();
                        run(database.url(), "INSERT INTO cache_stats DEFAULT VALUES").await.ok();
                        assert_eq!(number(database.url(), "SELECT count(*) FROM api_keys").await, 0);
                    });
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test]
async fn under_tandem_test_databases_come_from_its_server() {
    // This test runs itself again, under `tandem test`.
    if option_of_environment("TANDEM_TEST_SOCKET").is_some() {
        let database = database().await.unwrap();
        let port = option_of_environment("PGPORT").unwrap();
        assert!(database.url().contains(&format!(":{port}/")), "{}", database.url());
        run(database.url(), "CREATE TABLE mine (x int)").await.unwrap();
        return;
    }
    let own = std::env::current_exe().unwrap();
    let script = format!(
        "exec {} harness_library::under_tandem_test_databases_come_from_its_server --exact --nocapture",
        own.display()
    );
    Suite::bare().run(&[], &script).expect(0, &["1 passed"]);
}

#[expect(clippy::disallowed_methods, reason = "what this process was started with")]
fn option_of_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[tokio::test]
async fn what_keeps_a_server_from_starting_is_said() {
    let options = Options { seeds: vec!["missing.sql".into()], ..migrated() };
    assert!(Server::start(options).await.unwrap_err().to_string().contains("missing.sql"));
    let command = MigrationRun::Command(vec!["false".into()]);
    let options = Options { migrations: Some(command), ..migrated() };
    let error = format!("{:#}", Server::start(options).await.unwrap_err());
    assert!(error.contains("`false` ended with exit status 1"), "{error}");
    // Nothing of this is fatal for the process.
    assert!(process::identity::current().is_some());
}
