//! `tandem stats`: what PostgreSQL knows about itself, as tables for people and for programs.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ::tandem::stats::Topic;
use serde_json::Value;

use crate::common::backups::{as_superuser, running, sql};
use crate::common::project::{Project, python};
use crate::common::refusal;
use crate::common::server::TestServer;
use crate::common::tandem::{self, Tandem, wait_for};

fn json(project: &Project, args: &[&str]) -> Value {
    let output = tandem::run(project, &[&["stats", "--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(project: &Project, args: &[&str]) -> String {
    let said = refusal::run(project, &[&["stats"], args].concat());
    assert_eq!(said.code, 0, "{args:?}: {}", said.said);
    said.said
}

/// The names in one column of an answer.
fn column<'a>(answer: &'a Value, name: &str) -> Vec<&'a Value> {
    answer["rows"].as_array().unwrap().iter().map(|row| &row[name]).collect()
}

/// A psql that runs `sql` for as long as the test wants.
fn busy(project: &Project, sql: &str) -> Child {
    let psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql];
    tandem::command(project).args(psql).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn every_topic_has_an_answer_and_the_guides_rows_come_first() {
    let (project, mut tandem) = running();
    sql(&project, "CREATE INDEX twice ON api_keys (name); CREATE INDEX again ON api_keys (name); ANALYZE");
    for topic in Topic::ALL {
        let answer = json(&project, &[topic.name()]);
        assert_eq!(answer["topic"], topic.name(), "{answer}");
        assert!(answer["columns"].as_array().is_some_and(|columns| !columns.is_empty()), "{answer}");
    }
    let has = |topic: &str, column_name: &str, value: &str| {
        let answer = json(&project, &[topic]);
        assert!(column(&answer, column_name).iter().any(|cell| *cell == value), "{topic}: {answer}");
        answer
    };
    has("database-size", "database", "app");
    let tables = has("table-size", "table", "public.api_keys");
    assert!(tables["rows"][0]["total_bytes"].as_i64().unwrap() > 100_000, "{tables}");
    has("total_table_size", "table", "public.\"odd \"\" name\"");
    has("duplicate-indexes", "indexes", "public.twice, public.again");
    has("unused-indexes", "index", "public.twice");
    has("settings", "name", "shared_preload_libraries");
    has("extensions", "name", "pg_stat_statements");
    has("freeze", "name", "app");

    // The superuser sees every session, and which process a worker's is.
    let name = tandem.get("/env?name=PGAPPNAME").unwrap().1;
    let held = busy(&project, &format!("SET application_name = '{name}'; SELECT pg_sleep(600)"));
    let worker = tandem.workers()[0].to_string();
    wait_for("the worker's session", || {
        let answer = json(&project, &["connections"]);
        let rows = answer["rows"].as_array().unwrap();
        rows.iter().any(|row| row["application"] == name && row["process"] == worker && row["active"] == 1)
    });
    end(held);

    let shown = text(&project, &[]);
    let places: Vec<_> = ["Databases:", "Connections by", "Largest tables:", "Statements by their longest run"]
        .map(|title| shown.find(title).unwrap_or_else(|| panic!("{title}:\n{shown}")))
        .to_vec();
    assert!(places.is_sorted(), "{shown}");
    assert!(shown.contains("connections are open (max_connections)") && shown.contains("public.api_keys"), "{shown}");
    assert!(json(&project, &[]).as_array().unwrap().len() == 4);
    let first = text(&project, &["table-size", "-n", "1"]);
    assert!(first.contains("the first 1, there are more"), "{first}");
    refusal::run(&project, &["stats", "nonsense"]).expect(64, &["nonsense", "table-size"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["stats"]).expect(1, &["the database is stopped", "tandem up"]);
}

#[test]
fn a_name_moves_nothing_on_a_terminal_and_is_whole_for_a_program() {
    let (project, mut tandem) = running();
    let long = "x".repeat(63);
    let names =
        ["<script>alert(1)</script>", "two\nlines\r\u{1b}[2J", "\u{202e}txt.exe\u{2066}", "wide\u{9b}31m", &long];
    for name in names {
        sql(&project, &format!("CREATE TABLE \"{name}\" AS SELECT g FROM generate_series(1, 20000) AS g"));
    }
    let held = names.map(|name| busy(&project, &format!("SET application_name = '{name}'; SELECT pg_sleep(600)")));
    let look = || {
        for topic in ["table-size", "connections", "long-running-queries", "seq-scans", "slow-queries"] {
            let shown = text(&project, &[topic]);
            assert!(!shown.contains(|letter: char| letter.is_control() && letter != '\n'), "{topic}: {shown:?}");
            assert!(!shown.contains(['\u{202e}', '\u{2066}']), "{topic}: {shown:?}");
            let output = tandem::run(&project, &["stats", topic, "--json"]);
            let json = String::from_utf8(output.stdout).unwrap();
            assert!(!json.contains(['\u{202e}', '\u{2066}', '\u{9b}', '\u{1b}']), "{topic}: {json:?}");
        }
        let shown = text(&project, &["table-size"]);
        assert!(
            shown.contains(r#"public."two\nlines\r\u{1b}[2J""#) && shown.contains("<script>alert(1)</script>"),
            "{shown}"
        );
        let answer = json(&project, &["table-size"]);
        for name in names {
            let quoted = if name == long { format!("public.{name}") } else { format!("public.\"{name}\"") };
            assert!(column(&answer, "table").iter().any(|cell| **cell == quoted), "{quoted:?}: {answer}");
        }
    };
    wait_for("the sessions", || {
        json(&project, &["long-running-queries"])["rows"].as_array().unwrap().len() >= names.len()
    });
    look();
    held.into_iter().for_each(end);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_sees_what_it_may_and_is_told_what_is_missing() {
    let server = TestServer::start().await;
    let url = server.database("shop").await;
    server.sql("shop", "CREATE TABLE secret (id serial PRIMARY KEY, body text); INSERT INTO secret (body) SELECT 'x' FROM generate_series(1, 1000); ANALYZE").await;
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let run = |args: &[&str]| {
        let url = url.expose().expose().to_owned();
        refusal::said(tandem::command(&project).env("DATABASE_URL", url).args(args).output().unwrap())
    };
    for topic in Topic::ALL {
        run(&["stats", topic.name()]).expect(0, &[topic.title()]);
    }
    run(&["stats", "connections"]).expect(0, &["GRANT pg_read_all_stats TO \"ffe_user\""]);
    run(&["stats", "slow-queries"]).expect(0, &["CREATE EXTENSION pg_stat_statements"]);
    run(&["stats", "bloat"])
        .expect(0, &["1 tables of schema public", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ffe_user"]);
    run(&["stats", "sequences"]).expect(0, &["GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO ffe_user"]);
    run(&["stats", "settings"]).expect(0, &["GRANT pg_read_all_settings TO ffe_user"]);
    server.sql("shop", "GRANT pg_read_all_stats, pg_read_all_settings TO ffe_user").await;
    server.sql("shop", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ffe_user; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO ffe_user").await;
    for topic in ["connections", "bloat", "sequences", "settings"] {
        let said = run(&["stats", topic]);
        assert!(said.code == 0 && !said.said.contains("GRANT"), "{topic}: {}", said.said);
    }
}

/// Opens sessions until the server takes no more, says so, and waits for the end of its input.
const CROWD: &str = "
import os, sys, psycopg2
open_ = []
try:
    while len(open_) < 500:
        open_.append(psycopg2.connect(os.environ['DATABASE_URL'], application_name='crowd %d' % (len(open_) % 150)))
except psycopg2.OperationalError as error:
    print('refused', error, flush=True)
print('open', len(open_), flush=True)
sys.stdin.read()
";

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_tables_and_500_sessions_are_a_bounded_answer() {
    let python = python().await;
    let project = Project::app_with(
        "plain:app",
        "workers.count = 1\npool.size = 1\npool.overflow = 0\nmigrations.run = 'none'\npostgres.max_connections = 500",
    );
    let mut tandem = Tandem::up(&project);
    let make = "DO $$ BEGIN FOR n IN 1..2000 LOOP
                    EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY, body text)', n); END LOOP; END $$";
    sql(&project, make);
    sql(&project, "INSERT INTO t7 (body) SELECT 'x' FROM generate_series(1, 10000); ANALYZE");
    let url = refusal::run(&project, &["url"]).said.trim().to_owned();
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests with")]
    let mut crowd = std::process::Command::new(python)
        .args(["-c", CROWD])
        .env("DATABASE_URL", url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = std::io::BufReader::new(crowd.stdout.take().unwrap());
    while !said.contains("open ") {
        std::io::BufRead::read_line(&mut lines, &mut said).unwrap();
    }
    assert!(said.contains("refused"), "no other session of an ordinary role gets in: {said}");
    for topic in Topic::ALL {
        let output = tandem::run(&project, &["stats", topic.name(), "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() < 150_000, "{}: {} bytes", topic.name(), output.stdout.len());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer["rows"].as_array().unwrap().len() <= 100, "{answer}");
    }
    assert_eq!(json(&project, &["table-size"])["truncated"], true);
    assert_eq!(json(&project, &["connections"])["truncated"], true);
    drop(crowd.stdin.take());
    crowd.wait().unwrap();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_locked_table_holds_up_no_look_and_who_holds_it_is_named() {
    let (project, mut tandem) = running();
    let lock =
        "SET application_name = 'holder'; BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = busy(&project, lock);
    let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'api_keys'::regclass";
    wait_for("the lock", || as_superuser(&project, "app", held) == "1");
    let waiter = busy(&project, "SET application_name = 'waiter'; SELECT count(*) FROM api_keys");
    wait_for("the wait", || {
        let answer = json(&project, &["blocking"]);
        let rows = answer["rows"].as_array().unwrap();
        rows.iter().any(|row| {
            row["blocked_application"] == "waiter"
                && row["blocking_application"] == "holder"
                && row["blocking_query"].as_str().is_some_and(|query| query.contains("LOCK TABLE api_keys"))
        })
    });
    let locks = json(&project, &["locks"]);
    let of_holder =
        |row: &Value| row["application"] == "holder" && row["on"] == "public.api_keys" && row["granted"] == true;
    assert!(locks["rows"].as_array().unwrap().iter().any(of_holder), "{locks}");
    for topic in ["table-size", "index-size", "unused-indexes", "seq-scans", "total-index-size", "duplicate-indexes"] {
        let began = Instant::now();
        text(&project, &[topic]);
        assert!(began.elapsed() < Duration::from_secs(5), "{topic}: {:?}", began.elapsed());
    }
    let shown = text(&project, &["table-size"]);
    assert!(shown.contains("a table is locked") && shown.contains("public.api_keys"), "{shown}");
    end(holder);
    end(waiter);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn no_password_that_somebody_typed_is_shown() {
    let (project, mut tandem) = running();
    as_superuser(&project, "app", "CREATE ROLE somebody PASSWORD 'correct horse battery'");
    as_superuser(&project, "app", "ALTER ROLE somebody PASSWORD 'correct horse battery'");
    let shown = text(&project, &["calls"]) + &text(&project, &["slow-queries", "--json"]);
    assert!(shown.contains("ALTER ROLE somebody PASSWORD '********'"), "{shown}");
    assert!(!shown.contains("battery"), "{shown}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
