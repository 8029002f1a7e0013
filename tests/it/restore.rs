//! `tandem restore`: a backup takes the database's place, whole or not at all.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::common::backups::{SLOW, as_superuser, backup, dir, path, replace_sql, rewrite, running, running_with, sql};
use crate::common::project::Project;
use crate::common::readiness::Idle;
use crate::common::refusal::{self, names};
use crate::common::small_disk::on_a_small_disk;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

const ROWS: &str = "SELECT count(*) FROM api_keys";

/// The session that waits, before a swap, until no transaction is open.
const WAITS_FOR_TRANSACTIONS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE query LIKE '%client backend'' AND state <> ''idle''%' AND pid <> pg_backend_pid()";

/// The names of all databases, without the system's.
fn databases(project: &Project) -> Vec<String> {
    let names = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1";
    as_superuser(project, "postgres", names).lines().map(str::to_owned).collect()
}

fn restore(project: &Project, args: &[&str]) -> Value {
    let output = tandem::run(project, &[&["restore", "--yes", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_restore_brings_rows_owner_grants_and_settings_back_and_can_be_undone() {
    // How long a probe takes on a busy machine is not looked at here.
    let (project, tandem) = running_with("postgres.probe_deadline = '30s'");
    backup(&project, &[]);
    as_superuser(
        &project,
        "postgres",
        r#"CREATE ROLE reader; REVOKE ALL ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO reader WITH GRANT OPTION;
           ALTER DATABASE app SET work_mem = '7MB'; ALTER DATABASE app SET search_path = public, "Odd one";
           ALTER DATABASE app SET app.words = 'it''s \ here'; ALTER ROLE reader IN DATABASE app SET statement_timeout = '5s';
           ALTER DATABASE app CONNECTION LIMIT 77; COMMENT ON DATABASE app IS 'the one'"#,
    );
    let look = "SELECT pg_get_userbyid(datdba), datacl, datconnlimit, shobj_description(d.oid, 'pg_database'),
                       (SELECT string_agg(setrole::regrole || '=' || setconfig::text, ',' ORDER BY setrole)
                        FROM pg_db_role_setting WHERE setdatabase = d.oid)
                FROM pg_database AS d WHERE datname = 'app'";
    let before = as_superuser(&project, "postgres", look);
    assert!(before.contains("reader") && before.contains("7MB"), "{before}");
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let workers = tandem.workers();

    let answered = tandem.log().contains("readiness is withdrawn");
    let restored = restore(&project, &["latest"]);
    assert_eq!((answered, tandem.log().contains("readiness is withdrawn")), (false, false), "{}", tandem.log());
    assert_eq!((restored["rows"].as_u64(), restored["tables"].as_u64()), (Some(2010), Some(10)));
    let kept = restored["kept"].as_str().unwrap();
    assert!(kept.starts_with("app_before_restore_20"), "{kept}");
    assert_eq!(sql(&project, ROWS), "2000");
    assert_eq!(as_superuser(&project, kept, ROWS), "3");
    assert_eq!(as_superuser(&project, "postgres", look), before);
    assert!(tandem.workers().iter().all(|pid| !workers.contains(pid)), "the workers were replaced");
    assert_eq!(tandem.get("/").unwrap().0, 200);

    let undone = restore(&project, &["--undo"]);
    assert_eq!(undone["back"], kept);
    assert_eq!(sql(&project, ROWS), "3");
    assert_eq!(databases(&project).len(), 2);
    restore(&project, &["--drop-kept"]);
    assert_eq!(databases(&project), ["app"]);
    refusal::run(&project, &["restore", "--undo", "--yes"]).expect(1, &["nothing to put back"]);
    // What a restore asks for is answered before it lets go of its sessions.
    assert!(!tandem.log().contains("connection to client lost"), "{}", tandem.log());
}

#[test]
fn every_format_is_restored_by_name_and_by_path_without_a_server() {
    let (project, mut tandem) = running();
    let kinds = [("plain", "zstd"), ("custom", "gzip"), ("directory", "zstd")];
    let files = kinds.map(|(format, compress)| {
        let manifest = backup(&project, &["--format", format, "--compress", compress]);
        manifest["file"].as_str().unwrap().to_owned()
    });
    assert_eq!(tandem.stop(), 0);
    let elsewhere = project.dir().join("elsewhere");
    fs::rename(dir(&project), &elsewhere).unwrap();
    for file in &files {
        let path = elsewhere.join(file);
        let restored = restore(&project, &[path.to_str().unwrap()]);
        assert_eq!(restored["rows"], 2010, "{file}");
    }
    fs::rename(&elsewhere, dir(&project)).unwrap();
    let stem = files[0].split('.').next().unwrap();
    refusal::run(&project, &["restore", stem, "--yes"])
        .expect(0, &["app holds app_backup_20", "2010 rows in 10 tables"]);
    refusal::run(&project, &["restore", "nothing", "--yes"]).expect(64, &["there is no backup nothing"]);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_backup_that_is_not_for_here_is_refused_and_nothing_changes() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let table: [(&str, Value, i32, &str); 3] = [
        ("database", "other".into(), 64, "it is a backup of database other, and this would replace app"),
        ("server_version", "17.2".into(), 65, "it is of PostgreSQL 17.2, and this is PostgreSQL 16"),
        ("schema_version", "005_later".into(), 65, "its schema is at 005_later, which this tandem does not know"),
    ];
    for (key, value, code, words) in table {
        rewrite(&project, &manifest, |it| match key {
            "schema_version" => it["census"][key] = value,
            _ => it[key] = value,
        });
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(code, &[words, "Nothing was changed."]);
    }
    rewrite(&project, &manifest, |it| it["database"] = "other".into());
    let path = dir(&project).join(manifest["file"].as_str().unwrap());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    let cut = ["restore", "latest", "--yes", "--other-database"];
    refusal::run(&project, &cut).expect(1, &["is cut short", "Nothing was changed."]);
    fs::write(&path, &whole).unwrap();
    let unasked = ["restore", "latest", "--other-database"];
    refusal::run(&project, &unasked).expect(64, &["will be replaced", "--yes", "Nothing was changed."]);
    assert_eq!((sql(&project, ROWS).as_str(), databases(&project).len()), ("3", 1));
    refusal::run(&project, &cut).expect(0, &["2010 rows"]);
}

#[test]
fn a_restore_that_fails_leaves_the_live_database_as_it_was() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let path = path(&project, &manifest);
    let whole = fs::read(&path).unwrap();
    // SQL that fails, and an end that is missing; each with a digest that is right.
    type Change = fn(String) -> String;
    let changes: [(Change, &str); 2] = [
        (|text| text.replacen("ADD CONSTRAINT", "ADD CONSTRAIN", 1), "syntax error"),
        (|text| text.replace("-- PostgreSQL database dump complete", "-- "), "cut short"),
    ];
    for (change, words) in changes {
        replace_sql(&project, &manifest, change);
        let refused = refusal::run(&project, &["restore", "latest", "--yes"]);
        refused.expect(1, &[words, "it was not restored, and database app is as it was"]);
        assert_eq!((sql(&project, ROWS).as_str(), databases(&project).len()), ("3", 1));
        fs::write(&path, &whole).unwrap();
    }
    rewrite(&project, &manifest, |it| it["census"]["rows"]["public.api_keys"] = 1999.into());
    let refused = refusal::run(&project, &["restore", "latest", "--yes"]);
    refused.expect(1, &["table public.api_keys has 2000 rows, not 1999", "is as it was"]);
    assert_eq!((sql(&project, ROWS).as_str(), databases(&project).len()), ("3", 1));
}

#[test]
fn killed_in_the_middle_a_restore_changes_nothing_and_the_next_one_sweeps() {
    let (project, _tandem) = running();
    sql(&project, SLOW);
    backup(&project, &[]);
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &["restore", "latest", "--yes"]);
    let psql = || killed.descendants().into_iter().find(|process| process.name == "psql");
    wait_for("psql", || psql().is_some());
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    assert_eq!(sql(&project, ROWS), "3");
    assert!(databases(&project).iter().any(|name| name.starts_with("app_restoring_")), "{:?}", databases(&project));
    let restored = refusal::run(&project, &["restore", "latest", "--yes"]);
    restored.expect(0, &["which an interrupted restore left", "2011 rows"]);
    assert_eq!(databases(&project).len(), 2);
}

#[test]
fn a_database_that_is_only_called_like_a_restores_own_is_left_alone() {
    let (project, _tandem) = running();
    backup(&project, &[]);
    for name in ["app_restoring_notes", "app_before_restore_archive"] {
        as_superuser(&project, "postgres", &format!("CREATE DATABASE {name} OWNER app"));
    }
    restore(&project, &["latest"]);
    restore(&project, &["--drop-kept"]);
    assert_eq!(databases(&project), ["app", "app_before_restore_archive", "app_restoring_notes"]);
}

#[test]
fn latest_passes_over_what_is_incomplete_or_bad() {
    let (project, _tandem) = running();
    let good = backup(&project, &[]);
    let bad = backup(&project, &[]);
    fs::write(path(&project, &bad), "").unwrap();
    refusal::run(&project, &["backup", "verify"]).expect(1, &["is empty"]);
    let incomplete = backup(&project, &[]);
    let stem = incomplete["file"].as_str().unwrap().split('.').next().unwrap();
    fs::remove_file(dir(&project).join(format!("{stem}.manifest.json"))).unwrap();
    let restored = refusal::run(&project, &["restore", "latest", "--yes", "--older"]);
    restored.expect(0, &["is incomplete: passed over", "is bad: passed over", good["file"].as_str().unwrap()]);
}

#[test]
fn a_server_that_hangs_is_told_within_its_limit() {
    let (project, tandem) = running();
    let postmaster = tandem.postmaster(&project);
    let stop = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), signal).unwrap();
    stop(Signal::SIGSTOP);
    let refused = refusal::run(&project, &["backup"]);
    stop(Signal::SIGCONT);
    refused.expect(75, &["no answer within 20s"]);
    assert!(!names(&dir(&project)).iter().any(|name| name.contains("backup_20")), "{:?}", names(&dir(&project)));
}

#[test]
fn a_swap_whose_commit_outlives_its_limit_is_looked_at_before_it_is_told() {
    let (project, _tandem) = running();
    backup(&project, &[]);
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let swap = |args: &[&str]| {
        // The swap waits for its end.
        let running = Idle::open(&project);
        let swapping = Tandem::start_in(project.dir(), tandem::command(&project), args);
        wait_for("the wait for transactions", || as_superuser(&project, "postgres", WAITS_FOR_TRANSACTIONS) != "0");
        // From now on a commit waits for a standby that nobody is, and is one all the same when its session is ended.
        set(&project, "SET synchronous_standby_names = 'nobody'");
        as_superuser(&project, "postgres", &format!("SELECT pg_terminate_backend({})", running.backend));
        swapping
    };
    for args in [&["restore", "latest", "--yes"][..], &["restore", "--undo", "--yes"]] {
        let mut swapping = swap(args);
        assert_eq!(swapping.wait_code(), 0, "{}", swapping.log());
        assert!(swapping.log().contains("the databases are swapped, though: "), "{}", swapping.log());
        set(&project, "RESET synchronous_standby_names");
        let there = if args.contains(&"latest") { "2000" } else { "3" };
        assert_eq!((sql(&project, ROWS).as_str(), databases(&project).len()), (there, 2));
    }
}

/// Change the server's settings as an operator does.
fn set(project: &Project, what: &str) {
    as_superuser(project, "postgres", &format!("ALTER SYSTEM {what}"));
    as_superuser(project, "postgres", "SELECT pg_reload_conf()");
}

/// A session in the database with a transaction that stays open until this is dropped.
struct Transaction(std::process::Child);

impl Transaction {
    fn open(project: &Project) -> Self {
        let mut psql = tandem::command(project);
        psql.args(["psql", "-XAtq"])
            .env("PGAPPNAME", "open")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = psql.spawn().unwrap();
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"BEGIN; INSERT INTO api_keys (id, name, key_hash, is_active) VALUES (5000, 'x', 'y', true);\n")
            .unwrap();
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = 'app'";
        wait_for("the transaction", || as_superuser(project, "postgres", open) == "1");
        Self(child)
    }

    fn commit(mut self) {
        self.0.stdin.take().unwrap().write_all(b"COMMIT;\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn open_transactions_may_end_before_the_swap_and_only_one_restore_runs() {
    let (project, _tandem) = running();
    backup(&project, &[]);
    sql(&project, "DELETE FROM api_keys WHERE id::int > 3");
    let transaction = Transaction::open(&project);
    let mut first = Tandem::start_in(project.dir(), tandem::command(&project), &["restore", "latest", "--yes"]);
    let filled = "SELECT count(*) FROM pg_database WHERE datname LIKE 'app\\_restoring%' AND datconnlimit = -1";
    wait_for("the new database", || as_superuser(&project, "postgres", filled) == "1");
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(75, &["another restore runs"]);
    transaction.commit();
    assert_eq!(first.wait_code(), 0, "{}", first.log());
    let kept = databases(&project).pop().unwrap();
    assert_eq!(as_superuser(&project, &kept, ROWS), "4", "what was committed is kept");
    assert_eq!(sql(&project, ROWS), "2000");
}

#[test]
fn killed_before_the_swap_a_restore_has_changed_nothing() {
    let (project, _tandem) = running();
    backup(&project, &[]);
    let transaction = Transaction::open(&project);
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &["restore", "latest", "--yes"]);
    // The database is filled, analyzed, and all that is missing is the swap.
    wait_for("the swap", || as_superuser(&project, "postgres", WAITS_FOR_TRANSACTIONS) != "0");
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    transaction.commit();
    assert_eq!(sql(&project, ROWS), "2001");
    refusal::run(&project, &["restore", "latest", "--yes", "--workers", "tell"]).expect(0, &["2010 rows"]);
    assert_eq!((sql(&project, ROWS).as_str(), databases(&project).len()), ("2000", 2));
}

#[test]
fn what_the_server_still_makes_for_a_killed_restore_keeps_others_waiting() {
    let (project, _tandem) = running();
    backup(&project, &[]);
    // Nothing is cloned from a database that is being renamed.
    let mut renaming = tandem::command(&project);
    let socket = project.state().join("run/postgres");
    renaming.args(["psql", "-XAtq", "-U", "postgres", "-d", "postgres", "-h"]).arg(socket).stdin(Stdio::piped());
    let mut renaming = renaming.spawn().unwrap();
    renaming.stdin.as_mut().unwrap().write_all(b"BEGIN; ALTER DATABASE template0 RENAME TO other;\n").unwrap();
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &["restore", "latest", "--yes"]);
    let making =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE%' AND wait_event_type = 'Lock'";
    wait_for("the new database", || as_superuser(&project, "postgres", making) != "0");
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(75, &["another restore runs"]);
    // Its transaction ends with it.
    drop(renaming.stdin.take());
    assert!(renaming.wait().unwrap().success());
    let mut restored = None;
    wait_for("the end of the killed one", || {
        let run = refusal::run(&project, &["restore", "latest", "--yes"]);
        let waits = run.code == 75;
        restored = Some(run);
        !waits
    });
    restored.unwrap().expect(0, &["which an interrupted restore left", "2010 rows"]);
    assert_eq!(databases(&project).len(), 2);
}

#[test]
fn a_disk_too_full_for_a_restore_leaves_the_live_database_as_it_was() {
    let (project, mut tandem) = running();
    sql(&project, "CREATE TABLE much AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000000) AS n");
    backup(&project, &[]);
    sql(&project, "DROP TABLE much; DELETE FROM api_keys WHERE id::int > 3");
    assert_eq!(tandem.stop(), 0);
    let fill =
        "dd if=/dev/zero of=\"$small\"/filler bs=1M count=1000 2>/dev/null || true; truncate -s -60M \"$small\"/filler
        set +e; \"$@\"; code=$?";
    let Some(refused) = on_a_small_disk(&project, "900m", fill, &["restore", "latest", "--yes"]) else { return };
    refused.expect(73, &["no restore is begun", "MB are missing", "nothing was changed"]);
    let _tandem = Tandem::up(&project);
    assert_eq!(sql(&project, ROWS), "3");
}

#[test]
fn names_with_spaces_and_quotes_are_restored() {
    let name = "it's = 50 % \\\"big\\\"";
    let project = Project::app_with("plain:app", &format!("workers.count = 1\npostgres.database = \"{name}\""));
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    backup(&project, &[]);
    let restored = restore(&project, &["latest"]);
    assert_eq!(restored["database"], "it's = 50 % \"big\"");
    assert_eq!(restored["rows"], 5);
}
