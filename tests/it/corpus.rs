//! PostgreSQL's regression suite, run into a database that is then backed up, verified, restored and backed up again: whatever a
//! schema may hold, a sound backup is verified, and what comes back has the same digests.
//!
//! `.ci/regression-suite` fetches the suite.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::backups::{as_superuser, backup};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::tandem::{Tandem, pause};

/// Tests of the suite that make nothing which a dump could hold, or something outside of the database.
const NOT_OF_A_SCHEMA: &[&str] = &[
    "tablespace",
    "database",
    "subscription",
    "create_role",
    "password",
    "roleattributes",
    "infinite_recurse",
    "random",
    "stats",
    "select_parallel",
    "write_parallel",
    "vacuum_parallel",
    "maintain_every",
    "explain",
    "memoize",
    "tuplesort",
    "join",
    "join_hash",
    "incremental_sort",
    "partition_join",
    "partition_aggregate",
    "partition_prune",
    "aggregates",
    "groupingsets",
    "psql",
    "psql_crosstab",
    "lock",
    "guc",
    "euc_kr",
    "prepared_xacts",
    "sanity_check",
    "opr_sanity",
    "type_sanity",
    "misc_sanity",
    "oidjoins",
    "xmlmap",
];
/// What pg_dump and psql alone do not bring back either, when nothing is dropped: rows that PostgreSQL takes only as it makes
/// them, options that a validator refuses by now, a language of another name that needs an extension, names that partitions get
/// anew, functions that want another caller or search path.
const CANNOT_COME_BACK: &str = "
    DROP TABLE sro_ptab, sro_tab CASCADE;
    DROP TABLE vaccluster CASCADE;
    DROP TABLE cmdata2 CASCADE;
    DROP TABLE fkpart6.fk CASCADE;
    DROP MATERIALIZED VIEW mvtest_mv CASCADE;
    DROP MATERIALIZED VIEW mvtest_mv_foo CASCADE;
    DROP MATERIALIZED VIEW mvtest_mv_v CASCADE;
    DO $$DECLARE one text; BEGIN
        FOR one IN SELECT format('LANGUAGE %I', lanname) FROM pg_language WHERE lanname ~ '^alt_lang' UNION ALL
                   SELECT format('FOREIGN DATA WRAPPER %I', fdwname) FROM pg_foreign_data_wrapper WHERE fdwoptions IS NOT NULL UNION ALL
                   SELECT DISTINCT format('TABLE %s', oid::regclass) FROM pg_class JOIN pg_attribute ON attrelid = oid
                   WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
                     AND atttypid::regtype::text IN ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list')
        LOOP EXECUTE 'DROP ' || one || ' CASCADE'; END LOOP; END$$;
    DO $$DECLARE one text; BEGIN
        FOR one IN SELECT quote_ident(subname) FROM pg_subscription JOIN pg_database ON subdbid = pg_database.oid
                   WHERE datname = current_database()
        LOOP EXECUTE format('ALTER SUBSCRIPTION %s DISABLE', one); EXECUTE format('ALTER SUBSCRIPTION %s SET (slot_name = NONE)', one);
             EXECUTE format('DROP SUBSCRIPTION %s', one); END LOOP; END$$";
/// The same of the extensions' tests.
const CANNOT_COME_BACK_OF_EXTENSIONS: &str = "DROP TABLE bttest_a, bttest_b, bttest_multi CASCADE";
/// Longest that one file of the suite may run.
const FILE_LIMIT: Duration = Duration::from_secs(60);

fn suite() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("regression-suite");
    if !dir.exists() {
        skip("PostgreSQL's regression suite is not here: .ci/regression-suite fetches it");
        return None;
    }
    Some(dir)
}

/// A running project with an empty database.
fn running() -> (Project, Tandem, Psql) {
    let lines = "workers.count = 1\nmigrations.run = 'none'\nbackup.verify = 'content'\nbackup.schedule = 'never'\n\
                 postgres.settings.synchronous_commit = 'off'\npostgres.settings.log_min_messages = 'fatal'\n\
                 postgres.settings.log_min_error_statement = 'fatal'\nbackup.retention_count = 100";
    let project = Project::app_with("plain:app", lines);
    let tandem = Tandem::up(&project);
    let programs = fs::read_link(format!("/proc/{}/exe", tandem.postmaster(&project))).unwrap();
    let psql = Psql {
        program: programs.with_file_name("psql"),
        socket: project.state().join("run/postgres"),
        port: project.postgres,
    };
    (project, tandem, psql)
}

/// The superuser's psql, which goes on after an error as the suite expects.
struct Psql {
    program: PathBuf,
    socket: PathBuf,
    port: u16,
}

impl Psql {
    fn run(&self, sql: &[u8], dir: &Path, files: &Path) {
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut psql = Command::new(&self.program);
        psql.args(["-Xq", "-U", "postgres", "-d", "app", "-h"]).arg(&self.socket).args(["-p", &self.port.to_string()]);
        psql.env("PG_ABS_SRCDIR", files)
            .env("PG_ABS_BUILDDIR", files)
            .env("PG_LIBDIR", "/nowhere")
            .env("PG_DLSUFFIX", ".so");
        psql.env("PGTZ", "PST8PDT").env("PGDATESTYLE", "Postgres, MDY").env("PGOPTIONS", "-c statement_timeout=20s");
        psql.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = psql.spawn().unwrap();
        // Some files end it before their own end.
        let _ = child.stdin.take().unwrap().write_all(sql);
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < FILE_LIMIT, "{}", String::from_utf8_lossy(&sql[..sql.len().min(2000)]));
            pause();
        }
    }
}

/// `sql` without statements that drop something, so that more is there in the end.
fn without_drops(sql: &[u8]) -> Vec<u8> {
    let (mut kept, mut dropping) = (Vec::new(), false);
    for line in sql.split_inclusive(|&byte| byte == b'\n') {
        dropping |= line.get(..5).is_some_and(|begins| begins.eq_ignore_ascii_case(b"drop "));
        if !dropping {
            kept.extend_from_slice(line);
        }
        dropping &= !line.contains(&b';');
    }
    kept
}

/// The files of the suite in its own order.
fn scheduled(suite: &Path) -> Vec<PathBuf> {
    let regress = suite.join("src/test/regress");
    let schedule = fs::read_to_string(regress.join("parallel_schedule")).unwrap();
    let tests = schedule.lines().filter_map(|line| line.strip_prefix("test: ")).flat_map(str::split_whitespace);
    let tests = tests.filter(|test| !NOT_OF_A_SCHEMA.contains(test));
    let files: Vec<PathBuf> =
        tests.map(|test| regress.join(format!("sql/{test}.sql"))).filter(|it| it.exists()).collect();
    assert!(files.len() > 120, "{files:?}");
    files
}

/// Run the suite into the project's database, as it is or without what it drops.
fn load(suite: &Path, project: &Project, psql: &Psql, keep: bool) {
    // The server's user reads and writes there.
    let files = project.dir().join("files");
    for dir in ["data", "results", "sql", "expected"] {
        fs::create_dir_all(files.join(dir)).unwrap();
    }
    for entry in fs::read_dir(suite.join("src/test/regress/data")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), files.join("data").join(entry.file_name())).unwrap();
    }
    for file in scheduled(suite) {
        let sql = fs::read(&file).unwrap();
        let is_setup = file.ends_with("test_setup.sql");
        psql.run(&if keep && !is_setup { without_drops(&sql) } else { sql }, &files, &files);
    }
}

/// What a backup's manifest says of what is in it.
fn contents(manifest: &Value) -> [&Value; 3] {
    ["rows", "contents", "objects"].map(|what| &manifest["census"][what])
}

/// Back up, verify, restore, back up: the same twice.
fn comes_back(project: &Project, mut tandem: Tandem, format: &str, tables: usize) {
    let before = backup(project, &["--format", format]);
    assert!(before["census"]["rows"].as_object().unwrap().len() > tables, "{}", before["census"]["rows"]);
    refusal::run(project, &["backup", "verify"]).expect(0, &["verified"]);
    refusal::run(project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
    let after = backup(project, &["--format", format]);
    for (before, after) in contents(&before).into_iter().zip(contents(&after)) {
        assert!(before.as_object().is_none_or(|all| all.len() > tables / 2), "{before}");
        assert_eq!(before, after);
    }
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn what_the_regression_suite_leaves_comes_back() {
    let Some(suite) = suite() else { return };
    let (project, tandem, psql) = running();
    load(&suite, &project, &psql, false);
    comes_back(&project, tandem, "custom", 300);
}

#[test]
fn what_the_regression_suite_makes_comes_back() {
    let Some(suite) = suite() else { return };
    let (project, tandem, psql) = running();
    load(&suite, &project, &psql, true);
    psql.run(CANNOT_COME_BACK.as_bytes(), project.dir(), project.dir());
    let kinds = "SELECT string_agg(DISTINCT contype::text, '' ORDER BY contype::text) FROM pg_constraint";
    assert_eq!(as_superuser(&project, "app", kinds), "cfptux");
    comes_back(&project, tandem, "plain", 1000);
}

#[test]
fn what_the_tests_of_extensions_make_comes_back() {
    let Some(suite) = suite() else { return };
    let (project, tandem, psql) = running();
    let names = "SELECT string_agg(name, ' ') FROM pg_available_extensions";
    let available = as_superuser(&project, "app", names);
    for name in available.split(' ') {
        let dir = suite.join("contrib").join(name);
        let Ok(files) = fs::read_dir(dir.join("sql")) else { continue };
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        // The file that makes the extension first.
        let makes = |path: &PathBuf| fs::read(path).unwrap().windows(16).any(|part| part == b"CREATE EXTENSION");
        files.sort_by_key(|path| (!makes(path), path.clone()));
        for file in files {
            psql.run(&without_drops(&fs::read(file).unwrap()), &dir, &dir);
        }
    }
    psql.run(CANNOT_COME_BACK_OF_EXTENSIONS.as_bytes(), project.dir(), project.dir());
    let made = as_superuser(&project, "app", "SELECT count(*) > 25 FROM pg_extension");
    assert_eq!(made, "t");
    comes_back(&project, tandem, "plain", 40);
}
