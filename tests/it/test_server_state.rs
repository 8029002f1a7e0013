//! A throwaway server denies its tests nothing, and what one of them changed of the server the next one does not see.

use crate::common::harness::Suite;
use crate::common::refusal::Refusal;
use crate::common::skip::skip;

const SHELL: &str = "set -eu
new() { \"$TANDEM\" database new \"$@\"; }
give() { \"$TANDEM\" database drop \"$@\"; }
sql() { psql -XAtq -v ON_ERROR_STOP=1 \"$1\" -c \"$2\"; }
server() { sql \"$DATABASE_URL\" \"SELECT md5(string_agg(thing, E'\\n' ORDER BY thing)) FROM (
    SELECT r::text AS thing FROM pg_authid r WHERE rolname NOT LIKE 'tandem_left_%' UNION ALL SELECT m::text FROM pg_auth_members m
    UNION ALL SELECT s::text FROM pg_db_role_setting s UNION ALL SELECT p::text FROM pg_parameter_acl p
    UNION ALL SELECT c::text FROM pg_shdescription c UNION ALL SELECT t::text FROM pg_tablespace t
    UNION ALL SELECT o::text FROM pg_replication_origin o UNION ALL SELECT slot_name FROM pg_replication_slots
    UNION ALL SELECT datname || coalesce(datacl::text, '') FROM pg_database WHERE datname !~ '^test_[0-9]+$'
    UNION ALL SELECT name || setting FROM pg_settings WHERE sourcefile LIKE '%auto.conf') AS all_of_it\"; }
";

fn run(suite: &Suite, options: &[&str], script: &str) -> Refusal {
    suite.run(options, &format!("TANDEM={}\n{SHELL}{script}", env!("CARGO_BIN_EXE_tandem")))
}

#[test]
fn tests_are_denied_nothing_and_migrations_what_a_live_server_denies_them() {
    let suite = Suite::bare();
    let migrations = "psql -Xqc 'CREATE TABLE seen AS SELECT rolsuper FROM pg_roles WHERE rolname = current_user'";
    let script = "sql $(new) \"CREATE ROLE reader; CREATE EXTENSION postgres_fdw; CREATE DATABASE other\"
        echo \"BEGIN; CREATE TABLE t (x int); PREPARE TRANSACTION 'g'; COMMIT PREPARED 'g'\" | psql -Xq -v ON_ERROR_STOP=1 $(new)
        sql $(new) \"SELECT length(pg_read_file('PG_VERSION')) > 0, (SELECT rolsuper FROM seen), current_user\"";
    let script =
        script.replace("CREATE EXTENSION postgres_fdw; CREATE DATABASE other", "CREATE EXTENSION postgres_fdw");
    run(&suite, &["--migrations", migrations], &script).expect(0, &["t|f|app\n"]);
    let options = ["--migrations", migrations, "--set", "test.superuser=false"];
    let script =
        "sql $(new) 'SELECT rolsuper FROM pg_roles WHERE rolname = current_user'; sql $(new) 'CREATE ROLE reader'";
    run(&suite, &options, script).expect(1, &["f\n", "permission denied to create role"]);
}

#[test]
fn what_a_test_changes_of_the_server_is_put_back_before_the_next_one() {
    let suite = Suite::bare();
    // What the run itself makes stays.
    let script = "sql \"$DATABASE_URL\" \"CREATE ROLE old LOGIN PASSWORD 'x' VALID UNTIL '2040-01-01'; COMMENT ON ROLE old IS E'a \\\\\\\\ and \\\\'b';
            ALTER ROLE old SET search_path = 'a', \\\"B c\\\"; GRANT pg_monitor TO old\"
        before=$(server)
        while read -r change; do
            for round in 1 2; do
                url=$(new)
                echo \"$change\" | psql -XAtq -v ON_ERROR_STOP=1 $url >/dev/null || { echo \"failed: $change\"; exit 1; }
                give $url
                [ \"$(server)\" = $before ] || { echo \"stays: $change\"; exit 1; }
            done
        done <changes
        # Once the databases that refer to them are dropped, so are the roles.
        tries=0
        until [ \"$(sql \"$DATABASE_URL\" \"SELECT count(*) FROM pg_roles WHERE rolname LIKE 'tandem_left_%'\")\" = 0 ]; do
            give $(new); tries=$((tries + 1)); [ $tries -lt 300 ]
        done
        sql \"$DATABASE_URL\" \"SELECT rolconfig, pg_has_role('old', 'pg_monitor', 'MEMBER') FROM pg_roles WHERE rolname = 'old'\"
        echo all of them";
    let changes = [
        r#"CREATE ROLE r LOGIN PASSWORD 'x'; ALTER ROLE r SET search_path = 'x', "y Z"; COMMENT ON ROLE r IS 'it''s'; GRANT r TO CURRENT_USER;"#,
        // The database, which is still there, refers to the role.
        "CREATE ROLE r; CREATE TABLE t (x int); ALTER TABLE t OWNER TO r; GRANT ALL ON DATABASE :DBNAME TO r; GRANT CONNECT ON DATABASE app TO r;",
        "ALTER ROLE CURRENT_USER SET search_path = 'elsewhere';",
        "ALTER ROLE CURRENT_USER PASSWORD 'another';",
        "ALTER ROLE CURRENT_USER NOLOGIN NOCREATEDB NOSUPERUSER;",
        "ALTER ROLE old RENAME TO renamed;",
        "DROP ROLE old;",
        "REVOKE pg_monitor FROM old; GRANT pg_read_all_data TO old WITH ADMIN OPTION;",
        "ALTER ROLE ALL SET work_mem = '5MB';",
        "CREATE DATABASE other;",
        "ALTER DATABASE app CONNECTION LIMIT 5; REVOKE CONNECT ON DATABASE app FROM PUBLIC;",
        "ALTER SYSTEM SET work_mem = '7MB';\nSELECT pg_reload_conf();",
        "GRANT SET ON PARAMETER log_min_messages TO PUBLIC;",
        "SET allow_in_place_tablespaces = on;\nCREATE TABLESPACE fast LOCATION '';\nCREATE TABLE t (x int) TABLESPACE fast;",
        "SELECT pg_replication_origin_create('o'); SELECT pg_create_physical_replication_slot('p');",
    ];
    // Each on one line: echo makes lines of them again.
    let changes = changes.map(|change| change.replace('\n', "\\n")).join("\n") + "\n";
    suite.write("changes", &changes);
    run(&suite, &[], script).expect(0, &[r#"{"search_path=a, \"B c\""}|t"#, "all of them"]);
}

#[test]
fn what_came_about_while_several_tests_ran_stays_until_the_last_of_them_is_over() {
    let suite = Suite::bare();
    let there = "SELECT count(*) FROM pg_roles WHERE rolname = 'r'";
    let script = "one=$(new); two=$(new)
        sql $one 'CREATE ROLE r'
        give $one
        sql $two \"THERE\"
        three=$(new)
        give $two
        sql $three \"THERE\"
        sql $three 'CREATE ROLE r'";
    run(&suite, &[], &script.replace("THERE", there)).expect(0, &["1\n0\n"]);
}

#[test]
fn what_is_made_for_several_tests_lives_as_long_as_their_database() {
    let suite = Suite::bare();
    let script = "all=$(new --lasting)
        sql $all 'CREATE ROLE of_all'
        one=$(new); sql $one 'CREATE ROLE of_one'; give $one
        sql $(new) \"SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname LIKE 'of_%'\"
        give $all
        sql $(new) \"SELECT count(*) FROM pg_roles WHERE rolname LIKE 'of_%'\"";
    run(&suite, &[], script).expect(0, &["of_all\n0\n"]);
}

#[test]
fn a_database_or_a_role_that_is_in_use_is_not_taken_away() {
    let suite = Suite::bare();
    // As another worker of the suite makes its own, which has no database of the pool.
    let script = "url=$(new)
        sql $url 'CREATE DATABASE other'; sql $url \"CREATE ROLE r LOGIN PASSWORD 'x'\"
        mkfifo go
        PGPASSWORD=x PGUSER=r psql -XAtq -d other <go >/dev/null & client=$!
        exec 9>go
        until [ \"$(sql \"$DATABASE_URL\" \"SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'\")\" = 1 ]; do :; done
        give $url
        sql \"$DATABASE_URL\" \"SELECT (SELECT count(*) FROM pg_database WHERE datname = 'other'), (SELECT count(*) FROM pg_roles WHERE rolname = 'r')\"
        exec 9>&-
        wait $client
        until [ \"$(sql \"$DATABASE_URL\" \"SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'\")\" = 0 ]; do :; done
        give $(new)
        sql \"$DATABASE_URL\" \"SELECT (SELECT count(*) FROM pg_database WHERE datname = 'other'), (SELECT count(*) FROM pg_roles WHERE rolname = 'r')\"";
    run(&suite, &[], script).expect(0, &["1|1\n0|0\n"]);
}

#[test]
fn a_role_that_a_kept_database_needs_keeps_nothing_but_its_number() {
    let suite = Suite::bare();
    let script = "url=$(new)
        sql $url 'CREATE ROLE r; CREATE TABLE t (x int); ALTER TABLE t OWNER TO r'
        give --failed $url >/dev/null
        sql $(new) 'CREATE ROLE r'
        sql $url \"SELECT tableowner FROM pg_tables WHERE tablename = 't'\"";
    run(&suite, &[], script).expect(0, &["tandem_left_"]);
}

#[test]
fn a_library_that_an_extension_needs_is_named_where_it_is_missing() {
    let suite = Suite::bare();
    let run = run(&suite, &[], "sql $(new) 'CREATE EXTENSION \"uuid-ossp\"'");
    if run.code == 0 {
        return skip("this machine has the library of uuid-ossp");
    }
    run.expect(run.code, &["uuid-ossp.so needs libossp-uuid.so.16", "apt install libossp-uuid16"]);
}
