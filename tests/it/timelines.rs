//! Timelines of a cluster that was restored to a moment: the way to every row that was committed stays known, whatever
//! became of the archive meanwhile, and a restore that leaves rows out says so.

use serde_json::Value;

use crate::common::pitr::{archive, fail, pitr, project, rows, sql, succeed, superuser, with_base};
use crate::common::project::Project;
use crate::common::tandem::{Tandem, wait_for};

/// Insert a row and return a time after it, and before whatever follows.
fn insert(project: &Project, number: u32) -> String {
    sql(project, &format!("INSERT INTO t VALUES ({number})"));
    sql(project, "SELECT clock_timestamp()")
}

fn restore(project: &Project, args: &[&str]) -> Value {
    serde_json::from_str(&succeed(project, &[&["restore", "--yes", "--json"], args].concat())).unwrap()
}

/// Start the cluster, look at the rows of `t`, and stop it.
fn rows_of(project: &Project) -> String {
    let mut tandem = Tandem::up(project);
    let rows = rows(project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    rows
}

/// A cluster that is stopped, on timeline 2, with the row 1.
fn on_timeline_two(lines: &str) -> Project {
    let project = project(lines);
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(restore(&project, &["--to-end"])["timeline"], 2);
    project
}

#[test]
fn a_chain_that_was_given_up_on_a_later_timeline_leads_to_its_last_row_all_the_same() {
    let project = on_timeline_two("backup.pitr.max_backlog = '32MB'\nbackup.pitr.at_limit = 'give_up'");
    // The archive is out of reach from the first moment of the new timeline on.
    let (wal, away) = (archive(&project).join("wal"), archive(&project).join("away"));
    std::fs::rename(&wal, &away).unwrap();
    std::fs::write(&wal, "").unwrap();
    let mut tandem = Tandem::up(&project);
    insert(&project, 2);
    for _ in 0..6 {
        superuser(&project, "SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal()");
    }
    wait_for("the chain to be given up", || pitr(&tandem)["given_up"] == true);
    wait_for("the backlog to go", || pitr(&tandem)["ready_segments"] == 0);
    std::fs::remove_file(&wal).unwrap();
    std::fs::rename(&away, &wal).unwrap();
    insert(&project, 3);
    assert!(succeed(&project, &["backup", "base"]).contains("verified"));
    insert(&project, 4);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(wal.join("00000002.history.zst").exists(), "{:?}", std::fs::read_dir(&wal).unwrap().collect::<Vec<_>>());
    std::fs::remove_dir_all(project.data()).unwrap();
    assert_eq!(restore(&project, &["--to-end"])["timeline"], 3);
    assert_eq!(rows_of(&project), "1,2,3,4");
}

#[test]
fn an_archive_that_begins_on_a_later_timeline_knows_the_way() {
    let project = on_timeline_two("");
    assert_eq!(rows_of(&project), "1");
    let elsewhere = project.dir().join("elsewhere");
    project.configure(&format!("backup.pitr.dir = '{}'", elsewhere.display()));
    let mut tandem = Tandem::up(&project);
    insert(&project, 2);
    succeed(&project, &["backup", "base"]);
    insert(&project, 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    std::fs::remove_dir_all(project.data()).unwrap();
    assert_eq!(restore(&project, &["--to-end"])["followed_timeline"], 2);
    assert_eq!(rows_of(&project), "1,2,3");
}

#[test]
fn a_moment_before_an_earlier_restore_is_looked_for_on_the_timeline_that_was_live_then() {
    let (project, mut tandem) = with_base("t (n integer)");
    insert(&project, 1);
    let two = insert(&project, 2);
    let three = insert(&project, 3);
    insert(&project, 4);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    restore(&project, &["--at", &two]);
    let mut tandem = Tandem::up(&project);
    let five = insert(&project, 5);
    insert(&project, 6);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The third row was committed on the first timeline, which the second one left before.
    let restored = restore(&project, &["--at", &three]);
    assert_eq!((&restored["followed_timeline"], &restored["timeline"]), (&1.into(), &3.into()), "{restored:#}");
    assert_eq!(rows_of(&project), "1,2,3");
    let restored = restore(&project, &["--at", &five]);
    assert_eq!(restored["followed_timeline"], 2, "{restored:#}");
    assert_eq!(rows_of(&project), "1,2,5");

    // Who names another timeline is told what that leaves out.
    let refused = fail(&project, &["restore", "--at", &three, "--timeline", "2", "--yes"]);
    for words in ["timeline 1 was live", "--accept", "Nothing was changed"] {
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(rows_of(&project), "1,2,5");
    restore(&project, &["--at", &three, "--timeline", "2", "--accept"]);
    assert_eq!(rows_of(&project), "1,2");
}

#[test]
fn a_restore_that_would_leave_out_the_newest_base_backup_asks() {
    let project = on_timeline_two("");
    let mut tandem = Tandem::up(&project);
    insert(&project, 2);
    let made: Value = serde_json::from_str(&succeed(&project, &["backup", "base", "--json"])).unwrap();
    insert(&project, 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let name = made["name"].as_str().unwrap();

    let refused = fail(&project, &["restore", "--to-end", "--timeline", "1", "--yes"]);
    for words in [name, "timeline 2", "--accept", "Nothing was changed"] {
        assert!(refused.contains(words), "{refused}");
    }
    // The history was lost with the data: its base backup leads on all the same, and no other timeline takes its number.
    std::fs::remove_file(archive(&project).join("wal/00000002.history.zst")).unwrap();
    std::fs::remove_dir_all(project.data()).unwrap();
    let refused = fail(&project, &["restore", "--to-end", "--timeline", "1", "--yes"]);
    assert!(refused.contains(name) && refused.contains("--accept"), "{refused}");
    let restored = restore(&project, &["--to-end"]);
    assert_eq!((&restored["base"], &restored["timeline"]), (&name.into(), &3.into()), "{restored:#}");
    assert_eq!(rows_of(&project), "1,2,3");
    let restored = restore(&project, &["--to-end", "--timeline", "1", "--accept"]);
    assert_eq!(restored["timeline"], 4, "{restored:#}");
    assert_eq!(rows_of(&project), "1");
}

#[test]
fn an_old_data_directory_that_was_put_back_is_the_live_one() {
    let (project, mut tandem) = with_base("t (n integer)");
    let one = insert(&project, 1);
    insert(&project, 2);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let restored = restore(&project, &["--at", &one]);
    let mut tandem = Tandem::up(&project);
    insert(&project, 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    std::fs::remove_dir_all(project.data()).unwrap();
    std::fs::rename(restored["kept"].as_str().unwrap(), project.data()).unwrap();
    let mut tandem = Tandem::up(&project);
    let four = insert(&project, 4);
    insert(&project, 5);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let restored = restore(&project, &["--to-end"]);
    assert_eq!((&restored["followed_timeline"], &restored["timeline"]), (&1.into(), &3.into()), "{restored:#}");
    assert_eq!(rows_of(&project), "1,2,4,5");
    // When it was put back nobody has written down.
    let refused = fail(&project, &["restore", "--at", &four, "--yes"]);
    for words in ["timeline 2 or timeline 1", "--timeline 1", "Nothing was changed"] {
        assert!(refused.contains(words), "{refused}");
    }
    restore(&project, &["--at", &four, "--timeline", "1"]);
    assert_eq!(rows_of(&project), "1,2,4");
}

#[test]
fn the_base_backup_that_a_restore_used_outlives_the_ones_after_it() {
    let project = project("backup.pitr.base_backups = 2");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    let base = || -> String {
        let made: Value = serde_json::from_str(&succeed(&project, &["backup", "base", "--json"])).unwrap();
        made["name"].as_str().unwrap().to_owned()
    };
    let bases = || -> Vec<String> {
        let list: Value = serde_json::from_str(&succeed(&project, &["backup", "bases", "--json"])).unwrap();
        list.as_array().unwrap().iter().map(|base| base["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = base();
    insert(&project, 1);
    let one = sql(&project, "SELECT clock_timestamp()");
    insert(&project, 2);
    next_second(&first);
    let abandoned = base();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(restore(&project, &["--at", &one])["base"], first.as_str());

    let mut tandem = Tandem::up(&project);
    let mut made = vec![first.clone(), abandoned.clone()];
    for _ in 0..3 {
        next_second(made.last().unwrap());
        made.push(base());
        assert_eq!(bases(), made, "the way back to the moment before the restore, and to what it left, is there");
    }
    insert(&project, 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(restore(&project, &["--at", &one])["base"], first.as_str());
    assert_eq!(rows_of(&project), "1");
}

/// Names of base backups are of seconds.
fn next_second(last: &str) {
    wait_for("another second", || {
        let now = format!("{}", humantime::format_rfc3339_seconds(std::time::SystemTime::now()));
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        digits(&now) > digits(last)
    });
}

#[test]
fn what_cannot_be_read_in_the_archive_is_told_and_is_not_none() {
    let project = on_timeline_two("backup.pitr.base_backups = 1");
    // Nor is a directory of dumps an empty one because it cannot be read.
    std::fs::write(project.state().join("backups"), "").unwrap();
    let mut tandem = Tandem::up(&project);
    let bases = archive(&project).join("base");
    let torn = bases.join("base_20200102_030405");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("base.json"), "{\"name\": \"base_2020").unwrap();
    let output = crate::common::tandem::run(&project, &["backup", "bases"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("base_20200102_030405") && said.contains("cannot be read"), "{said}");
    tandem.wait_log("base_20200102_030405");
    wait_for("a reason in the health", || tandem.health()["reasons"].to_string().contains("base_20200102_030405"));
    wait_for("the other", || tandem.health()["reasons"].to_string().contains("the directory of backups: read"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // A directory of WAL that cannot be read does not mean that there is no later timeline.
    let wal = archive(&project).join("wal");
    std::fs::rename(&wal, archive(&project).join("away")).unwrap();
    std::fs::write(&wal, "").unwrap();
    let refused = fail(&project, &["restore", "--to-end", "--yes"]);
    assert!(refused.contains(&format!("read {}", wal.display())), "{refused}");
}
