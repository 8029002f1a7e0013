//! The databases of `tandem test`: handed out, given back, and what a careless test can do to them.

use std::fs;

use crate::common::harness::{Suite, wait_gone};
use crate::common::refusal::said;
use crate::common::tandem::{self, Tandem};

/// Shell functions for scripts that ask for databases.
const SHELL: &str = "set -eu
new() { \"$TANDEM\" database new \"$@\"; }
give() { \"$TANDEM\" database drop \"$@\"; }
sql() { psql -XAtq -v ON_ERROR_STOP=1 \"$1\" -c \"$2\"; }
";

/// Run `script` under `tandem test` with the functions of [`SHELL`].
fn run(suite: &Suite, options: &[&str], script: &str) -> crate::common::refusal::Refusal {
    let script = format!("TANDEM={}\n{SHELL}{script}", env!("CARGO_BIN_EXE_tandem"));
    suite.run(options, &script)
}

const SEAORM: &[&str] = &["--migrations", "seaorm"];

#[test]
fn each_database_is_fresh_and_migrated_and_nobody_elses() {
    let suite = Suite::bare();
    let script = "one=$(new); two=$(new)
        [ $one != $two ]
        sql $one 'TABLE alembic_version'
        sql $one 'CREATE TABLE mine (x int)'
        sql $two \"SELECT count(*) FROM pg_tables WHERE tablename = 'mine'\"
        give $one; give $two
        sql $(new) \"SELECT to_regclass('mine') IS NULL, current_user\"";
    run(&suite, SEAORM, script).expect(0, &["004_add_indexes\n", "0\n", "t|app\n"]);
}

#[test]
fn a_database_that_was_only_read_is_handed_out_again_and_one_that_was_changed_never() {
    let suite = Suite::bare();
    // With a pool of one, what comes back clean is what is given next, once the clone made meanwhile is out.
    let options = ["--migrations", "psql -Xqc 'CREATE TABLE rows (id serial)'", "--set", "test.pool=1"];
    let touches =
        ["SELECT count(*) FROM rows", "SELECT nextval('rows_id_seq')", "CREATE TEMP TABLE t (x int)", "TRUNCATE rows"];
    for (touch, again) in touches.into_iter().zip([true, false, false, false]) {
        let script = format!(
            "url=$(new --json); name=${{url#*name\\\":\\\"}}; name=${{name%%\\\"*}}
             sql $(echo $url | sed 's/.*\"url\":\"//; s/\".*//') \"{touch}\"
             give $name
             seen=''
             for _ in 1 2 3 4 5 6; do seen=\"$seen $(new)\"; done
             case \"$seen \" in *\"/$name \"*) echo again;; *) echo never;; esac"
        );
        run(&suite, &options, &script).expect(0, &[if again { "again" } else { "never" }]);
    }
}

#[test]
fn read_only_tests_share_one_database_that_refuses_to_be_written() {
    let suite = Suite::bare();
    let script = "one=$(new --shared); two=$(new --shared); [ $one = $two ]
        sql $one 'SELECT count(*) FROM api_keys'
        give $one
        sql $two 'DELETE FROM api_keys' || echo refused";
    run(&suite, SEAORM, script).expect(0, &["0\n", "read-only transaction", "refused"]);
}

#[test]
fn databases_of_failed_tests_are_kept_up_to_the_limit() {
    let suite = Suite::bare();
    let script = "for number in 1 2 3; do url=$(new); sql $url \"CREATE TABLE t AS SELECT $number AS x\"; give --failed $url >kept$number; done
        sql $(sed 's/kept: //' kept1) 'TABLE t'; sql $(sed 's/kept: //' kept2) 'TABLE t'; cat kept3; exit 1";
    let run = run(&suite, &["--set", "test.keep_failed=2"], script);
    run.expect(1, &["1\n2\n", "2 databases of failed tests were kept", "--keep"]);
    assert!(suite.read("kept1").contains("kept: postgresql://") && suite.read("kept3").is_empty());
}

#[test]
fn what_is_asked_outside_or_wrongly_says_what_to_do() {
    let suite = Suite::bare();
    let outside = said(tandem::command_in(suite.dir()).args(["database", "new"]).output().unwrap());
    outside.expect(1, &["no test harness", "tandem test -- CMD"]);
    let gone = tandem::command_in(suite.dir())
        .env("TANDEM_TEST_SOCKET", suite.path("none"))
        .args(["database", "new"])
        .output();
    said(gone.unwrap()).expect(1, &["no test harness answers", "over?"]);
    run(&suite, &[], "give template1 || echo $?; give test_999 || echo $?")
        .expect(0, &["template1 is not handed out", "1\n"]);
}

#[test]
fn a_test_that_drops_its_own_database_harms_nobody() {
    let suite = Suite::bare();
    let script = "url=$(new); sql \"$DATABASE_URL\" \"DROP DATABASE ${url##*/}\"; give $url
        psql -XAtq postgres -c \"DROP DATABASE $PGDATABASE\"
        sql $(new) 'SELECT 42'";
    run(&suite, &[], script).expect(0, &["42\n"]);
}

#[test]
fn a_test_that_leaks_connections_does_not_starve_the_next() {
    let suite = Suite::bare();
    // Each leaves ten connections open in a session that outlives it; the server takes thirty. One that is refused is
    // followed by another.
    let script = "for round in 1 2 3 4 5 6; do url=$(new)
          until [ $(sql $url \"SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(1000)' AND datname = current_database()\") -ge 10 ]; do
            (psql -XAtq $url -c 'SELECT pg_sleep(1000)' >/dev/null 2>&1 &)
          done
          give $url
        done; echo survived";
    run(&suite, &["--set", "test.max_connections=30"], script).expect(0, &["survived"]);
}

#[test]
fn the_template_cannot_be_changed() {
    let suite = Suite::bare();
    let script = "sql \"${DATABASE_URL%/*}/tandem_template\" 'CREATE TABLE t (x int)' || echo refused
        psql -XAtqc 'DROP DATABASE tandem_template' || echo refused
        sql $(new) \"SELECT to_regclass('t') IS NULL\"";
    run(&suite, &[], script).expect(0, &["not currently accepting", "refused\n", "cannot drop a template", "t\n"]);
    let run = run(&suite, &["--set", "test.superuser=false"], script);
    run.expect(0, &["not currently accepting", "refused\n", "must be owner", "t\n"]);
}

#[test]
fn a_suite_that_uses_up_all_connections_is_told_so_and_the_pool_waits() {
    let suite = Suite::bare();
    // One more is left open for as long as one more is let in.
    let script =
        "while psql -XAtqc 'SELECT 1' 2>full; do (psql -XAtqc 'SELECT pg_sleep(1000)' >/dev/null 2>&1 &) ; done
        cat full
        new >/dev/null && echo made
        exit 1";
    let run = run(&suite, &["--set", "test.max_connections=12"], script);
    run.expect(1, &["made", "used all 12 connections", "raise test.max_connections"]);
}

#[test]
fn seeds_are_applied_to_the_template_once() {
    let suite = Suite::with("migrations.run = 'none'\ntest.seed = ['rows.sql', 'data.more:fill']");
    // The cache outlives this test.
    let unique = format!("-- {}\n", rand::random::<u64>());
    let write = |rows: &str| suite.write("rows.sql", &format!("{unique}CREATE TABLE seeded (x int); {rows}"));
    write("INSERT INTO seeded VALUES (1);");
    suite.write(
        "data/more.py",
        "import os, psycopg2\n\ndef fill(url):\n    open('calls', 'a').write('x')\n    assert url == os.environ['DATABASE_URL']\n    \
         with psycopg2.connect(url) as connection:\n        connection.cursor().execute('INSERT INTO seeded VALUES (2)')\n",
    );
    let script = "sql \"$DATABASE_URL\" 'SELECT sum(x) FROM seeded'; sql $(new) 'SELECT sum(x) FROM seeded'";
    run(&suite, &[], script).expect(0, &["3\n3\n"]);
    run(&suite, &[], script).expect(0, &["3\n3\n"]);
    assert_eq!(suite.read("calls"), "x", "the second run found the template");
    write("INSERT INTO seeded VALUES (10);");
    run(&suite, &[], script).expect(0, &["12\n12\n"]);
    run(&suite, &["--rebuild"], script).expect(0, &["12\n12\n"]);
    assert_eq!(suite.read("calls"), "xxx");

    write("INSERT INTO nowhere VALUES (1);");
    run(&suite, &[], "true").expect(1, &["test.seed: rows.sql", "nowhere"]);
}

#[test]
fn a_template_follows_the_content_of_its_migrations() {
    let suite = Suite::bare();
    suite.write("migrations/1.sql", &format!("-- {}\nCREATE TABLE one (x int)", rand::random::<u64>()));
    let options = ["--migrations", "sh -c 'echo x >>runs; cat migrations/*.sql | psql -Xq -v ON_ERROR_STOP=1'"];
    let tables = "sql \"$DATABASE_URL\" \"SELECT string_agg(tablename, ',' ORDER BY 1) FROM pg_tables WHERE schemaname = 'public'\"";
    let tables = tables.replace("ORDER BY 1", "ORDER BY tablename");
    for _ in 0..2 {
        run(&suite, &options, &tables).expect(0, &["one\n"]);
        assert_eq!(suite.read("runs"), "x");
    }
    suite.write("migrations/2.sql", "; CREATE TABLE two (x int)");
    run(&suite, &options, &tables).expect(0, &["one,two\n"]);
    suite.write("migrations/3.sql", "; CREATE TABLE one (x int)");
    run(&suite, &options, &tables).expect(1, &["migrations: `sh -c", "already exists"]);
    fs::remove_file(suite.path("migrations/3.sql")).unwrap();
    run(&suite, &options, &tables).expect(0, &["one,two\n"]);
}

#[test]
fn a_template_whose_making_is_interrupted_is_made_anew() {
    let suite = Suite::bare();
    suite.write("migrations/1.sql", &format!("-- {}\nCREATE TABLE one (x int)", rand::random::<u64>()));
    let command = "sh -c 'psql -Xqf migrations/1.sql; touch half; while [ -e wait ]; do sleep 0.02; done'";
    suite.write("wait", "");
    let args = ["test", "--migrations", command, "--", "psql", "-XAtc", "SELECT count(*) FROM one"];
    let mut killed = Tandem::start_in(suite.dir(), tandem::command_in(suite.dir()), &args);
    tandem::wait_for("the migration", || suite.path("half").exists());
    let postmaster = killed.descendants().into_iter().find(|process| process.name == "postgres").unwrap();
    let place = fs::read_link(format!("/proc/{}/cwd", postmaster.pid)).unwrap().ancestors().nth(2).unwrap().to_owned();
    killed.signal(nix::sys::signal::Signal::SIGKILL);
    killed.wait_exit();
    wait_gone(&place);
    fs::remove_file(suite.path("wait")).unwrap();
    let mut again = Tandem::start_in(suite.dir(), tandem::command_in(suite.dir()), &args);
    assert_eq!(again.wait_code(), 0, "{}", again.log());
    assert_eq!(again.log(), "0\n");
}

#[test]
fn a_damaged_template_is_made_anew() {
    let suite = Suite::with("migrations.run = 'none'");
    let cache = suite.path("cache");
    let set = format!("cache_dir={}", cache.display());
    let source = common_binaries();
    let options = ["--set", &set, "--set", &source, "--set", "test.spare=false"];
    run(&suite, &options, "true").expect(0, &[]);
    let images: Vec<_> = fs::read_dir(cache.join("test")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let images: Vec<_> = images.into_iter().filter(|path| path.extension().is_some_and(|end| end == "tar")).collect();
    assert_eq!(images.len(), 2, "an empty cluster and the template: {images:?}");
    for damage in [&b""[..], b"not an archive"] {
        for image in &images {
            fs::write(image, damage).unwrap();
        }
        run(&suite, &options, "sql $(new) 'SELECT 42'").expect(0, &["is made anew", "42\n"]);
    }
    // Sound as an archive, and no cluster: the server says so.
    for image in &images {
        let mut bytes = fs::read(image).unwrap();
        let name = b"global/pg_control";
        let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
        bytes[at + 512..at + 1024].fill(0);
        fs::write(image, bytes).unwrap();
    }
    run(&suite, &options, "sql $(new) 'SELECT 42'").expect(0, &["is made anew", "42\n"]);
}

/// The PostgreSQL of the usual cache, for a run with a cache of its own.
fn common_binaries() -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bin = runtime.block_on(crate::common::server::binaries());
    format!("postgres.source={}", bin.display())
}
