//! Bad input of `tandem restore --table`: names, tables that are not there or are there already, many tables, large values and
//! objects, a full disk, a kill in the middle.

use crate::common::backups::{as_superuser, backup, rewrite, running, running_with, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::small_disk::on_a_small_disk;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;

/// Its rows are checked a quarter of a second each, by whoever loads them.
const SLOW: &str =
    "CREATE TABLE slow (n int CHECK (pg_sleep(0.25)::text = '')); INSERT INTO slow SELECT generate_series(1, 8)";

fn restore(project: &Project, args: &[&str]) -> Refusal {
    refusal::run(project, &[&["restore", "latest"], args].concat())
}

fn left_over(project: &Project) -> String {
    let names = "SELECT string_agg(name, ' ') FROM (
        SELECT datname::text AS name FROM pg_database WHERE datname LIKE 'app\\_%'
        UNION ALL SELECT rolname FROM pg_roles WHERE rolname LIKE 'tandem\\_%') AS left_over";
    as_superuser(project, "postgres", names)
}

#[test]
fn names_with_quotes_are_names() {
    let (project, _tandem) = running();
    sql(&project, "CREATE SCHEMA \"it's\"; CREATE TABLE \"it's\".\"a.b $x$ \"\"c\"\"\" AS SELECT 1 AS \"from\"");
    backup(&project, &[]);
    restore(&project, &["--table", "\"odd \"\" name\"", "--into", "\"Odd copy\""])
        .expect(0, &["public.odd \" name as public.Odd copy: 5 rows"]);
    assert_eq!(sql(&project, "SELECT sum(length(body)) FROM \"Odd copy\""), "15");
    // As it is typed, where that is no SQL.
    restore(&project, &["--table", "odd \" name", "--into", "plain"]).expect(0, &["as public.plain: 5 rows"]);
    let odd = "\"it's\".\"a.b $x$ \"\"c\"\"\"";
    restore(&project, &["--table", odd, "--into", "public.\"* %\""]).expect(0, &["as public.* %: 1 rows"]);
    assert_eq!(sql(&project, "SELECT \"from\" FROM \"* %\""), "1");
    sql(&project, &format!("DROP TABLE {odd}"));
    restore(&project, &["--table", odd]).expect(0, &["1 rows in 1 tables"]);
    assert_eq!(sql(&project, &format!("SELECT \"from\" FROM {odd}")), "1");
}

#[test]
fn what_cannot_be_restored_beside_is_refused_with_the_next_step() {
    let (project, _tandem) = running();
    sql(
        &project,
        "CREATE VIEW totals AS SELECT count(*) FROM api_keys; CREATE SCHEMA one; CREATE SCHEMA two;
         CREATE TABLE one.same (id int); CREATE TABLE two.same (id int); CREATE INDEX named ON one.same (id)",
    );
    let manifest = backup(&project, &[]);
    let table: [(&[&str], i32, &[&str]); 10] = [
        (
            &["--table", "api_key"],
            64,
            &["the backup holds no table api_key: did you mean public.api_keys?", "Nothing was changed"],
        ),
        (&["--table", "nothing_like_it"], 64, &["the backup holds no table nothing_like_it. Nothing was changed"]),
        (&["--table", "same"], 64, &["same may be one.same or two.same: say which"]),
        (&["--table", "totals"], 64, &["totals is a view: only tables have rows of their own"]),
        (&["--schema", "tow"], 64, &["no table in a schema tow: did you mean two?"]),
        (&["--table", "api_keys"], 64, &["database app has public.api_keys already", "--into NAME", "--database NAME"]),
        (
            &["--table", "api_keys", "--into", "alembic_version"],
            64,
            &["database app has public.alembic_version already"],
        ),
        (&["--table", "api_keys", "--into", "one.named"], 64, &["database app has one.named already"]),
        (
            &["--table", "api_keys", "--into", "three.x"],
            64,
            &["database app has no schema three: CREATE SCHEMA makes it"],
        ),
        (&["--table", "api_keys", "--into", "a", "--into", "b"], 64, &["--into gives a name to each --table"]),
    ];
    for (args, code, words) in table {
        restore(&project, args).expect(code, words);
    }
    restore(&project, &["--table", "api_keys", "--undo"]).expect(64, &["cannot be used with"]);
    // What the table needs is no longer there, and the manifest says otherwise than the dump.
    sql(&project, "CREATE TYPE mood AS ENUM ('good'); CREATE TABLE moods AS SELECT 'good'::mood AS mood");
    let moods = backup(&project, &[]);
    sql(&project, "DROP TABLE moods; DROP TYPE mood");
    restore(&project, &["--table", "moods"]).expect(
        1,
        &["nothing of it was restored, and database app is as it was", "does not exist", "--schema NAME restores all"],
    );
    rewrite(&project, &moods, |it| it["census"]["rows"]["public.api_keys"] = 1999.into());
    restore(&project, &["--table", "api_keys", "--into", "copy"])
        .expect(1, &["table public.api_keys has 2000 rows, not 1999", "database app is as it was"]);
    assert_eq!(sql(&project, "SELECT to_regclass('copy') IS NULL AND to_regclass('moods') IS NULL"), "t");
    assert_eq!(left_over(&project), "");
    let older = manifest["file"].as_str().unwrap();
    refusal::run(&project, &["restore", older, "--table", "api_keys", "--into", "copy"]).expect(0, &["2000 rows"]);
}

#[test]
fn one_of_five_thousand_tables_is_restored() {
    let (project, _tandem) = running();
    for part in 0..5 {
        let make = "DO $$ BEGIN FOR n IN FIRST..LAST LOOP EXECUTE 'CREATE TABLE t_' || n || ' AS SELECT ' || n || ' AS n'; END LOOP; END $$";
        sql(
            &project,
            &make.replace("FIRST", &(part * 1000 + 1).to_string()).replace("LAST", &((part + 1) * 1000).to_string()),
        );
    }
    backup(&project, &["--compress", "none"]);
    restore(&project, &["--table", "t_4321", "--into", "copy"]).expect(0, &["public.t_4321 as public.copy: 1 rows"]);
    assert_eq!(sql(&project, "SELECT n FROM copy"), "4321");
    restore(&project, &["--table", "t_5001"]).expect(64, &["no table t_5001: did you mean public.t_"]);
    assert_eq!(left_over(&project), "");
}

#[test]
fn large_values_come_back_and_large_objects_that_do_not_are_told() {
    let (project, _tandem) = running();
    // 300 MB would go the same way, and take the machine's time.
    sql(
        &project,
        "CREATE TABLE files (id int, body bytea, picture oid);
         INSERT INTO files SELECT n, decode(string_agg(md5(n || ' ' || m), ''), 'hex'), lo_from_bytea(0, 'picture')
         FROM generate_series(1, 2) AS n, generate_series(1, 1000000) AS m GROUP BY n",
    );
    let digest = |table: &str| {
        sql(&project, &format!("SELECT string_agg(md5(body) || length(body), ' ' ORDER BY id) FROM {table}"))
    };
    backup(&project, &[]);
    sql(&project, "SELECT lo_unlink(picture) FROM files WHERE id = 1");
    restore(&project, &["--table", "files", "--into", "files_copy"]).expect(
        0,
        &[
            "refer to 2 large objects of the backup, which were not restored",
            "app has none of that number for 1 of them",
            "`--database NAME`",
        ],
    );
    assert_eq!(digest("files_copy"), digest("files"));
    assert!(digest("files").contains("16000000"));
}

#[test]
fn killed_in_the_middle_it_leaves_nothing_under_a_final_name_and_the_next_one_sweeps() {
    let (project, _tandem) = running();
    sql(&project, SLOW);
    backup(&project, &[]);
    for database in ["app_restoring%", "app"] {
        let args = ["restore", "latest", "--table", "slow", "--into", "slow_copy"];
        let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &args);
        let loads = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%slow%FROM stdin%' AND state = 'active' AND datname LIKE '{database}'"
        );
        wait_for("the load", || as_superuser(&project, "postgres", &loads) != "0");
        killed.signal(Signal::SIGKILL);
        killed.wait_exit();
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem-backup'";
        wait_for("the end of its sessions", || as_superuser(&project, "postgres", sessions) == "0");
        assert_eq!(sql(&project, "SELECT to_regclass('slow_copy') IS NULL, (SELECT count(*) FROM slow)"), "t|8");
        assert!(left_over(&project).contains("app_restoring_"), "{}", left_over(&project));
    }
    restore(&project, &["--table", "slow", "--into", "slow_copy"])
        .expect(0, &["which an interrupted restore left", "public.slow as public.slow_copy: 8 rows"]);
    assert_eq!(left_over(&project), "");
}

#[test]
fn a_disk_that_fills_ends_it_while_the_application_serves() {
    let (project, mut tandem) = running_with("disk.stop_free = '70MB'\npostgres.settings.max_wal_size = '48MB'");
    // Few rows of many, and most of the bytes: what they take is not known before.
    sql(
        &project,
        "CREATE TABLE much AS SELECT n, decode(string_agg(md5(n || ' ' || m), ''), 'hex') AS body
         FROM generate_series(1, 4) AS n, generate_series(1, 1000000) AS m GROUP BY n;
         CREATE TABLE many AS SELECT generate_series(1, 400000) AS n",
    );
    backup(&project, &[]);
    assert_eq!(tandem.stop(), 0);
    let serve = "\"$1\" up --detach >\"$0\"/up.log 2>&1
        dd if=/dev/zero of=\"$small\"/filler bs=1M 2>/dev/null || true; truncate -s -140M \"$small\"/filler
        set +e; \"$@\"; code=$?
        \"$1\" psql -XAtqc \"INSERT INTO many VALUES (0); SELECT count(*) FROM many\" >\"$0\"/counted
        \"$1\" psql -XAtqc \"SELECT to_regclass('copy') IS NULL\" >>\"$0\"/counted
        \"$1\" stop >/dev/null 2>&1 || true; set -e";
    let args = ["restore", "latest", "--table", "much", "--into", "copy"];
    let Some(refused) = on_a_small_disk(&project, "900m", serve, &args) else { return };
    refused.expect(73, &["the restore was ended, and what it had written is removed", "database app is as it was"]);
    let counted = std::fs::read_to_string(project.dir().join("counted")).unwrap();
    assert_eq!(counted, "400001\nt\n", "{}", refused.said);
}
