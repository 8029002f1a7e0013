//! `tandem doctor`: what takes room and need not is shown, removed when asked for, and nothing else is touched.

use std::fs;

use crate::common::backups::{as_superuser, backup, dir, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::tandem::{self, Tandem, wait_for};

const LINES: &str = "workers.count = 1\nmigrations.run = 'none'\nbackup.schedule = 'never'\ndisk.warn_free = '1MB'";
const LEFT: &str = "app_restoring_20260102_150405";

/// A project whose disk and server hold one leftover of each kind.
fn with_leftovers() -> (Project, Tandem) {
    let project = Project::app_with("plain:app", LINES);
    let tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t AS SELECT 1 AS n");
    backup(&project, &[]);
    for name in [".partial-1-x", "app_backup_20260101_000000.globals.sql", "app_backup_20260101_000001.manifest.json"] {
        fs::write(dir(&project).join(name), "left").unwrap();
    }
    let unfinished = project.state().join("postgres/.restoring-20260102_150405-1");
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("tandem.restoring"), "").unwrap();
    let fetched = project.state().join("restoring-from-away/wal");
    fs::create_dir_all(&fetched).unwrap();
    fs::write(fetched.join("000000010000000000000001"), "fetched").unwrap();
    as_superuser(&project, "postgres", &format!("CREATE DATABASE {LEFT}"));
    (project, tandem)
}

fn databases(project: &Project) -> String {
    as_superuser(project, "postgres", "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database")
}

#[test]
fn what_is_left_over_is_shown_and_removed_and_what_is_kept_only_on_demand() {
    let (project, tandem) = with_leftovers();
    let stray = "app_backup_20260101_000002.sql.gz";
    fs::write(dir(&project).join(stray), "no dump").unwrap();
    // What a restore replaced; it drops the leftover of another, which is made again.
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["app_before_restore_20"]);
    as_superuser(&project, "postgres", &format!("CREATE DATABASE {LEFT}"));
    fs::write(dir(&project).join(".partial-1-x"), "left").unwrap();
    let replaced = project.state().join("postgres/16_before_restore_20260102_150405");
    fs::create_dir(&replaced).unwrap();

    let shown: &[&str] = &[
        "disk of the data: ",
        "left over: ",
        ".partial-1-x",
        "app_backup_20260101_000000.globals.sql",
        "app_backup_20260101_000001.manifest.json",
        ".restoring-20260102_150405-1",
        "restoring-from-away",
        "the same restore would go on with it",
        &format!("left over: database {LEFT}"),
        "kept: database app_before_restore_20",
        "16_before_restore_20260102_150405",
        stray,
        "it has no manifest: `tandem backup import",
        "`tandem doctor --fix`",
    ];
    let before = (names(&dir(&project)), databases(&project));
    refusal::run(&project, &["doctor", "--skip", "machine"]).expect(1, shown);
    assert_eq!((names(&dir(&project)), databases(&project)), before, "looking changes nothing");

    // Health and status count what is kept.
    wait_for("the kept database", || tandem.health()["backups"]["kept_databases"] == 1);
    assert!(tandem.health()["backups"]["kept_databases_bytes"].as_u64().unwrap() > 1 << 20);
    refusal::run(&project, &["status"]).expect(0, &["1 database that a restore replaced is kept", "--drop-kept"]);
    let metrics = tandem::get(project.health, "/metrics").unwrap().1;
    assert!(metrics.contains("\ntandem_kept_databases 1\n"), "{metrics}");

    // Nobody is there to confirm.
    let fixed = refusal::run(&project, &["doctor", "--skip", "machine", "--fix"]);
    fixed.expect(1, &["removed: ", &format!("removed: database {LEFT}"), "say --yes", "no backup: "]);
    assert!(databases(&project).starts_with("app app_before_restore_") && !databases(&project).contains(LEFT));
    assert!(replaced.exists() && dir(&project).join(stray).exists());
    let left = names(&dir(&project));
    assert!(!left.iter().any(|name| name.starts_with(".partial") || name.contains("20260101_000000")), "{left:?}");

    fs::remove_file(dir(&project).join(stray)).unwrap();
    refusal::run(&project, &["doctor", "--skip", "machine", "--fix", "--yes"])
        .expect(0, &["removed: database app_before_restore_20"]);
    assert_eq!(databases(&project), "app postgres template0 template1");
    assert!(!replaced.exists());
    refusal::run(&project, &["doctor", "--skip", "machine"])
        .expect(0, &["nothing of Tandem's takes room that it need not"]);
    refusal::run(&project, &["backup", "list"]).expect(0, &["app_backup_20"]);
    assert_eq!(sql(&project, "SELECT n FROM t"), "1");
}

#[test]
fn without_a_server_files_are_looked_at_and_a_server_is_started_only_to_remove_something() {
    let (project, mut tandem) = with_leftovers();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let looked = refusal::run(&project, &["doctor", "--skip", "machine", "--json"]);
    looked.expect(1, &["\"leftover\"", "no server runs", "\"free_bytes\""]);
    assert!(!looked.said.contains(LEFT) && !looked.said.contains("database system is ready"), "{}", looked.said);
    refusal::run(&project, &["doctor", "--skip", "machine", "--fix"])
        .expect(0, &[".restoring-20260102_150405-1", "restoring-from-away", LEFT]);
    assert!(!project.state().join("restoring-from-away").exists());
    assert!(tandem::left_in(project.dir()).is_empty());
    refusal::run(&project, &["doctor", "--skip", "machine"])
        .expect(0, &["no server runs", "nothing of Tandem's takes room"]);
}
