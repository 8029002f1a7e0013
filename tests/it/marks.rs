//! Moments with a name, and what can be reached.

use crate::common::pitr::{fail, project, rows, sql, succeed, with_base};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{Tandem, wait_for};
use serde_json::{Value, json};

fn moments(project: &Project) -> Value {
    serde_json::from_str(&succeed(project, &["restore", "--list-moments", "--json"])).unwrap()
}

/// The names of the marks of the chain `index`.
fn marks(moments: &Value, index: usize) -> Vec<&str> {
    let marks = moments["chains"][index]["marks"].as_array().unwrap();
    marks.iter().map(|mark| mark["name"].as_str().unwrap()).collect()
}

#[test]
fn a_mark_leads_back_to_what_was_there_and_so_does_one_on_a_timeline_that_was_left() {
    let (project, mut tandem) = with_base("t (n integer)");
    sql(&project, "INSERT INTO t VALUES (1)");
    let mark: Value = serde_json::from_str(&succeed(&project, &["backup", "mark", "one", "--json"])).unwrap();
    assert_eq!((&mark["name"], &mark["timeline"]), (&json!("one"), &json!(1)));
    sql(&project, "INSERT INTO t VALUES (2)");
    wait_for("the mark's WAL in the archive", || marks(&moments(&project), 0) == ["one"]);
    let said = succeed(&project, &["restore", "--list-moments"]);
    for words in ["timeline 1", "base backup base_", "mark one", "the newest that is archived, up to "] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(fail(&project, &["restore", "--at-mark", "one", "--yes"]).contains("tandem stop"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let restored: Value =
        serde_json::from_str(&succeed(&project, &["restore", "--at-mark", "one", "--yes", "--json"])).unwrap();
    assert_eq!((&restored["followed_timeline"], &restored["timeline"]), (&json!(1), &json!(2)), "{restored:#}");
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1");
    sql(&project, "INSERT INTO t VALUES (3)");
    succeed(&project, &["backup", "mark", "two"]);
    sql(&project, "INSERT INTO t VALUES (4)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // Of the timeline that was left, and then of the one that this has left.
    for (name, left) in [("one", "1"), ("two", "1,3")] {
        succeed(&project, &["restore", "--at-mark", name, "--yes"]);
        let mut tandem = Tandem::up(&project);
        assert_eq!(rows(&project), left, "{name}");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
    let moments = moments(&project);
    assert_eq!((marks(&moments, 0), marks(&moments, 1)), (vec!["one"], vec!["two"]), "{moments:#}");
}

#[test]
fn a_mark_that_cannot_be_is_refused() {
    let (project, mut tandem) = with_base("t (n integer)");
    succeed(&project, &["backup", "mark", "one"]);
    refusal::run(&project, &["backup", "mark", "one"])
        .expect(64, &["there is a mark one already, of 20", "on timeline 1: say another name"]);
    for name in ["", "a b", "../one", &"x".repeat(49)] {
        refusal::run(&project, &["backup", "mark", name]).expect(64, &["is no name for a mark"]);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["backup", "mark", "two"]).expect(75, &["no server runs", "`tandem up`"]);
    refusal::run(&project, &["restore", "--at-mark", "onne", "--yes"])
        .expect(64, &["there is no mark onne: the newest are one", "--list-moments", "Nothing was changed"]);
    let off = ["backup", "mark", "two", "--set", "backup.pitr.enabled=false"];
    refusal::run(&project, &off).expect(78, &["backup.pitr.enabled is false"]);
    refusal::run(&project, &["restore", "--at-mark", "one", "--to-end"]).expect(64, &["cannot be used with"]);
    // A mark of an archive that has lost what it begins from.
    std::fs::remove_dir_all(project.state().join("pitr/base")).unwrap();
    std::fs::create_dir(project.state().join("pitr/base")).unwrap();
    refusal::run(&project, &["restore", "--list-moments"])
        .expect(0, &["no moment can be reached", "tandem backup base"]);
    refusal::run(&project, &["restore", "--at-mark", "one", "--yes"]).expect(1, &["there is no base backup"]);
}

#[test]
fn a_restore_to_a_transaction_includes_it() {
    let (project, mut tandem) = with_base("t (n integer)");
    sql(&project, "INSERT INTO t VALUES (1)");
    let transaction = sql(&project, "INSERT INTO t VALUES (2) RETURNING pg_current_xact_id()");
    sql(&project, "INSERT INTO t VALUES (3)");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["restore", "--to-xid", "4000000000", "--yes"])
        .expect(1, &["the WAL ends before transaction 4000000000"]);
    succeed(&project, &["restore", "--to-xid", &transaction, "--yes"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_deployment_and_a_migration_set_a_mark_unless_told_not_to() {
    let project = project("");
    project.reconfigure(|text| text.replace("migrations.run = 'none'", "migrations.run = ['true']"));
    let mut tandem = Tandem::up(&project);
    succeed(&project, &["backup", "base"]);
    succeed(&project, &["deploy"]);
    succeed(&project, &["migrate", "up"]);
    let set = || {
        let mut names = refusal::names(&project.state().join("pitr/marks"));
        names.iter_mut().for_each(|name| name.truncate("before-migrate".len()));
        names
    };
    assert_eq!(set(), ["before-deploy-", "before-migrate"]);
    let newest = refusal::names(&project.state().join("pitr/marks")).pop().unwrap();
    let newest = newest.trim_end_matches(".json");
    wait_for("the mark's WAL in the archive", || marks(&moments(&project), 0).contains(&newest));
    project.reconfigure(|text| format!("{text}\nbackup.pitr.marks = false"));
    succeed(&project, &["reload"]);
    succeed(&project, &["deploy"]);
    succeed(&project, &["migrate", "up"]);
    assert_eq!(set().len(), 2);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
