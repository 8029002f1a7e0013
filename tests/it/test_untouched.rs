//! A database that a test changed is never handed out again, whatever the change was and whatever the statistics say.

use crate::common::harness::Suite;
use crate::common::refusal::Refusal;

/// Functions for scripts that ask for databases; `again SQL` says whether a database is handed out again after that.
const SHELL: &str = "set -eu
new() { \"$TANDEM\" database new; }
give() { \"$TANDEM\" database drop \"$@\"; }
sql() { psql -XAtq -v ON_ERROR_STOP=1 \"$1\" -c \"$2\"; }
again() {
    url=$(new) seen=
    psql -XAtq -v ON_ERROR_STOP=1 \"$url\" >/dev/null
    give $url
    for _ in 1 2 3 4 5 6; do seen=\"$seen $(new)\"; done
    case \"$seen \" in *\"/${url##*/} \"*) echo again;; *) echo never;; esac
}
";

fn run(suite: &Suite, options: &[&str], script: &str) -> Refusal {
    suite.run(options, &format!("TANDEM={}\n{SHELL}{script}", env!("CARGO_BIN_EXE_tandem")))
}

const ROWS: &str = "psql -Xqc 'CREATE TABLE rows (id serial, word text); INSERT INTO rows (word) VALUES (1), (2)'";

/// Each of `touches` happens in a database of its own, with a pool of one: what comes back clean is given next, once the
/// clone that was made meanwhile is out.
fn expect(options: &[&str], touches: &[(&str, &str)]) {
    let suite = Suite::bare();
    let scripts = touches.iter().map(|(touch, _)| format!("again <<'END'\n{touch}\nEND\n"));
    let options = [&["--migrations", ROWS, "--set", "test.pool=1"], options].concat();
    let run = run(&suite, &options, &scripts.collect::<String>());
    let said: Vec<&str> = run.said.lines().filter(|line| ["again", "never"].contains(line)).collect();
    let seen: Vec<_> = touches.iter().zip(&said).map(|((touch, _), said)| (*touch, *said)).collect();
    assert_eq!(seen, touches, "{}", run.said);
    run.expect(0, &[]);
}

#[test]
fn rows_and_what_is_no_row_count() {
    expect(
        &[],
        &[
            // The catalogs too: whoever only reads leaves no trace in a page.
            ("SELECT count(*) FROM rows; SELECT * FROM pg_stats; \\d+ rows", "again"),
            ("INSERT INTO rows DEFAULT VALUES", "never"),
            ("SELECT lo_create(4711)", "never"),
            ("BEGIN; SELECT nextval('rows_id_seq'); ROLLBACK", "never"),
            ("SELECT setval('rows_id_seq', 2)", "never"),
            ("CREATE UNLOGGED TABLE u (x int)", "never"),
            ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "never"),
            ("CREATE PUBLICATION p", "never"),
        ],
    );
}

#[test]
fn the_row_of_the_database_counts() {
    expect(
        &[],
        &[
            ("ALTER DATABASE :DBNAME CONNECTION LIMIT 5", "never"),
            ("COMMENT ON DATABASE :DBNAME IS 'changed'", "never"),
            ("GRANT CONNECT ON DATABASE :DBNAME TO PUBLIC", "never"),
            ("ALTER DATABASE :DBNAME SET work_mem = '1MB'", "never"),
            ("\\set db :DBNAME\n\\c postgres\nALTER DATABASE :db ALLOW_CONNECTIONS false", "never"),
            ("ALTER DATABASE :DBNAME IS_TEMPLATE true", "never"),
        ],
    );
}

#[test]
fn statistics_that_say_nothing_hide_nothing() {
    expect(
        &[],
        &[
            ("SET track_counts = off; UPDATE rows SET word = 3", "never"),
            ("DELETE FROM rows;\nSELECT pg_stat_reset();", "never"),
            ("SELECT pg_stat_reset()", "never"),
        ],
    );
    expect(
        &["--set", "test.settings.track_counts=off"],
        &[("SELECT * FROM rows", "again"), ("CREATE TABLE t (x int)", "never"), ("TRUNCATE rows", "never")],
    );
}

#[test]
fn unlogged_tables_of_the_migrations_count() {
    let suite = Suite::bare();
    let options = ["--migrations", "psql -Xqc 'CREATE UNLOGGED TABLE u (x int)'", "--set", "test.pool=1"];
    let script = "echo 'SET track_counts = off; INSERT INTO u VALUES (1)' | again; sql $(new) 'SELECT count(*) FROM u'";
    run(&suite, &options, script).expect(0, &["never\n0\n"]);
}

#[test]
fn the_shared_database_is_another_one_once_a_test_has_written_to_it() {
    let suite = Suite::bare();
    let script = "shared() { \"$TANDEM\" database new --shared; }
        one=$(shared); [ $one = $(shared) ]
        echo 'SET default_transaction_read_only = off; INSERT INTO rows DEFAULT VALUES' | psql -Xq $one; give $one
        two=$(shared); [ $two != $one ]; sql $two 'SELECT count(*) FROM rows'
        sql \"$DATABASE_URL\" \"ALTER DATABASE ${two##*/} RESET default_transaction_read_only\"; give $two
        three=$(shared); [ $three != $two ]; [ $three = $(shared) ]
        sql $three 'DELETE FROM rows' || echo refused";
    run(&suite, &["--migrations", ROWS], script).expect(0, &["2\n", "refused"]);
}

#[test]
fn a_server_that_was_killed_has_forgotten_its_counts_and_hides_no_change() {
    let suite = Suite::bare();
    let script = "url=$(new); sql $url 'INSERT INTO rows DEFAULT VALUES'
        kill -KILL $(sql $url 'SELECT pg_backend_pid()') 2>/dev/null || sql $url \"SELECT pg_read_file('postmaster.pid')\" | head -1 | xargs kill -KILL
        until sql \"$DATABASE_URL\" 'SELECT 1' >/dev/null 2>&1; do :; done
        give $url; seen=
        for _ in 1 2 3 4 5 6; do seen=\"$seen $(new)\"; done
        case \"$seen \" in *\"/${url##*/} \"*) echo again;; *) echo never;; esac";
    run(&suite, &["--migrations", ROWS, "--set", "test.pool=1"], script).expect(0, &["never"]);
}

#[test]
fn what_outlives_its_session_ends_with_its_database() {
    let suite = Suite::bare();
    // A later test would wait for the lock of the same name, and for the row of its own role.
    let script = "export PGOPTIONS='-c lock_timeout=20s'
        for round in 1 2 3; do
            echo \"BEGIN; CREATE TABLE t (x int); ALTER ROLE CURRENT_USER SET work_mem = '1MB'; PREPARE TRANSACTION 'g'\" | again
            echo \"SELECT pg_create_logical_replication_slot('s', 'pgoutput')\" | again
            echo \"CREATE SUBSCRIPTION s CONNECTION 'dbname=none' PUBLICATION p WITH (connect = false)\" | again
        done
        tries=0
        while [ \"$(sql \"$DATABASE_URL\" 'SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_subscription)')\" != 0 ]; do
            tries=$((tries + 1)); [ $tries -lt 300 ]
        done
        echo clean";
    let run = run(&suite, &["--set", "test.settings.wal_level=logical", "--set", "test.pool=1"], script);
    run.expect(0, &["clean"]);
    assert_eq!(run.said.matches("never").count(), 9, "{}", run.said);
}

#[test]
fn the_next_test_may_use_the_same_names_at_once_and_beside_a_kept_database_too() {
    let suite = Suite::bare();
    let script = "prepare() {
            # The slot first: making one waits for the end of all transactions, prepared ones too.
            sql $1 \"SELECT pg_create_logical_replication_slot('s', 'pgoutput')\" >/dev/null
            echo \"BEGIN; CREATE TABLE t (x int); PREPARE TRANSACTION 'g';\" | psql -Xq -v ON_ERROR_STOP=1 $1
        }
        for round in 1 2 3 4; do url=$(new); prepare $url; give $url; done
        url=$(new); prepare $url; give --failed $url >/dev/null
        url=$(new); prepare $url; echo done";
    run(&suite, &["--set", "test.settings.wal_level=logical"], script).expect(0, &["done"]);
}

#[test]
fn the_shared_database_is_replaced_whatever_was_changed_in_it() {
    let suite = Suite::bare();
    let touches = [
        ("SELECT count(*) FROM rows; SELECT * FROM pg_stats", "again"),
        ("INSERT INTO rows DEFAULT VALUES", "never"),
        // No row is counted for these.
        ("SELECT setval('rows_id_seq', 2)", "never"),
        ("CREATE TABLE empty (); SELECT pg_stat_reset()", "never"),
        ("ALTER DATABASE :database SET search_path = nowhere", "never"),
        ("SELECT 1", "again"),
    ];
    let scripts = touches.iter().map(|(touch, _)| {
        format!(
            "url=$(shared); name=${{url##*/}}; export PGOPTIONS='-c default_transaction_read_only=off'\n\
             psql -XAtq -v ON_ERROR_STOP=1 -v database=\"${{name%%\\?*}}\" \"$url\" >/dev/null <<'END'\n{touch}\nEND\n\
             unset PGOPTIONS; if [ \"$(shared)\" = \"$url\" ]; then echo again; else echo never; fi\n"
        )
    });
    let script = format!("shared() {{ \"$TANDEM\" database new --shared; }}\n{}", scripts.collect::<String>());
    let run = run(&suite, &["--migrations", ROWS, "--set", "test.superuser=true"], &script);
    let said: Vec<&str> = run.said.lines().filter(|line| ["again", "never"].contains(line)).collect();
    let seen: Vec<_> = touches.iter().zip(&said).map(|((touch, _), said)| (*touch, *said)).collect();
    assert_eq!(seen, touches, "{}", run.said);
    run.expect(0, &[]);
}
