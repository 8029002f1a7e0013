//! Part of an earlier moment, brought in while the application serves.

use crate::common::pitr::{rows, sql, succeed, superuser, with_base};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// What a restore has left beside the data, or of databases.
fn left(project: &Project) -> (Vec<String>, String) {
    let beside = project.data().parent().unwrap().to_owned();
    let names = refusal::names(&beside).into_iter().filter(|name| name.starts_with(".restoring")).collect();
    let databases = "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'app\\_restoring%'";
    (names, superuser(project, databases))
}

fn nothing() -> (Vec<String>, String) {
    (Vec::new(), String::new())
}

#[test]
fn a_table_as_it_was_comes_back_while_the_application_serves() {
    let (project, mut tandem) = with_base("t (n integer)");
    sql(&project, "CREATE TABLE others (n integer UNIQUE); ALTER TABLE t ADD FOREIGN KEY (n) REFERENCES others (n)");
    sql(&project, "INSERT INTO others VALUES (1), (2), (3); INSERT INTO t VALUES (1)");
    succeed(&project, &["backup", "mark", "one"]);
    let transaction = sql(&project, "INSERT INTO t VALUES (2) RETURNING pg_current_xact_id()");
    let then = sql(&project, "SELECT clock_timestamp()");
    sql(&project, "INSERT INTO t VALUES (3); CREATE TABLE later (n integer)");

    let restore = |args: &[&str]| -> Value {
        serde_json::from_str(&succeed(&project, &[&["restore", "--json"], args].concat())).unwrap()
    };
    let restored = restore(&["--at-mark", "one", "--table", "t", "--into", "t_mark"]);
    assert_eq!(restored["tables"], json!([{ "table": "public.t", "into": "public.t_mark", "rows": 1 }]));
    assert!(restored["backup"].as_str().unwrap().contains(" recovered to "), "{restored:#}");
    assert_eq!(restored["foreign_keys_left_out"][0]["references"], "public.others");
    restore(&["--to-xid", &transaction, "--table", "t", "--into", "t_transaction"]);
    restore(&["--at", &then, "--database", "was"]);
    let all = |table: &str| sql(&project, &format!("SELECT string_agg(n::text, ',' ORDER BY n) FROM {table}"));
    assert_eq!((all("t_mark"), all("t_transaction"), rows(&project)), ("1".into(), "1,2".into(), "1,2,3".into()));
    let was = succeed(
        &project,
        &["psql", "-XAtq", "-d", "was", "-c", "SELECT count(*), to_regclass('later') IS NULL FROM t"],
    );
    assert_eq!(was, "2|t");
    assert_eq!((left(&project), tandem.get("/").unwrap().0), (nothing(), 200));

    refusal::run(&project, &["restore", "--at-mark", "one", "--table", "later"])
        .expect(64, &["at that moment: the backup holds no table later", "Nothing was changed"]);
    refusal::run(&project, &["restore", "--at-mark", "one", "--table", "t"])
        .expect(64, &["database app has public.t already", "--into NAME"]);
    refusal::run(&project, &["restore", "--at", "2020-01-01 00:00:00+00", "--table", "t", "--into", "x"])
        .expect(1, &["before the end of the oldest base backup"]);
    assert_eq!(left(&project), nothing());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn told_to_end_it_leaves_nothing() {
    let (project, mut tandem) = with_base("t (n integer)");
    sql(&project, "INSERT INTO t VALUES (1)");
    succeed(&project, &["backup", "mark", "one"]);
    let beside = project.data().parent().unwrap().to_owned();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let args = ["restore", "--at-mark", "one", "--table", "t", "--into", "t_was"];
        let mut told = Tandem::start_in(project.dir(), tandem::command(&project), &args);
        wait_for("the recovered server", || {
            left(&project).0.iter().any(|name| beside.join(name).join("postmaster.pid").exists())
        });
        told.signal(signal);
        assert_eq!(told.wait_code(), 1, "{}", told.log());
        assert!(told.log().contains("either nothing of it is in database app, or all of it"), "{}", told.log());
        assert_eq!((left(&project).0, rows(&project)), (Vec::new(), "1".into()), "{signal}");
        wait_for("the end of its server", || {
            !tandem::left_in(project.dir()).iter().any(|it| it.args.contains(".restoring"))
        });
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn killed_while_it_recovers_it_leaves_the_live_data_as_it_was_and_the_next_one_sweeps() {
    let (project, mut tandem) = with_base("t (n integer)");
    sql(&project, "INSERT INTO t VALUES (1)");
    succeed(&project, &["backup", "mark", "one"]);
    let args = ["restore", "--at-mark", "one", "--table", "t", "--into", "t_was"];
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &args);
    let beside = project.data().parent().unwrap().to_owned();
    wait_for("the recovered server", || {
        left(&project).0.iter().any(|name| beside.join(name).join("postmaster.pid").exists())
    });
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    assert_eq!((rows(&project), sql(&project, "SELECT to_regclass('t_was') IS NULL")), ("1".into(), "t".into()));
    refusal::run(&project, &args)
        .expect(0, &["which an interrupted restore left behind", "public.t as public.t_was: 1 rows"]);
    assert_eq!(left(&project), nothing());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
