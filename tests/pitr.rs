//! Point-in-time recovery: whatever was archived comes back, to any moment, and nothing that was confirmed is lost.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use std::path::PathBuf;

use common::project::Project;
use common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A project whose WAL is archived, with more lines of configuration.
fn project(lines: &str) -> Project {
    let own =
        "workers.count = 1\nmigrations.run = 'none'\nbackup.pitr.enabled = true\npostgres.shared_buffers = '32MB'";
    Project::app_with("plain:app", &format!("{own}\n{lines}"))
}

/// Run a command of the binary, which must succeed; what it printed.
fn succeed(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Run a command of the binary, which must fail; what it said.
fn fail(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Run SQL as the application's role; rows alone, `|` between columns.
fn sql(project: &Project, text: &str) -> String {
    succeed(project, &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text])
}

fn archive(project: &Project) -> PathBuf {
    project.state().join("pitr")
}

fn pitr(tandem: &Tandem) -> Value {
    tandem.health()["backups"]["pitr"].clone()
}

#[test]
fn a_base_backup_is_verified_listed_and_the_oldest_goes_with_its_wal() {
    let project = project("backup.pitr.base_backups = 1");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t AS SELECT generate_series(1, 10000) AS n");
    let first: Value = serde_json::from_str(&succeed(&project, &["backup", "base", "--json"])).unwrap();
    assert!(first["size"].as_u64().unwrap() > 20 << 20, "{first:#}");
    let dir = archive(&project).join("base").join(first["name"].as_str().unwrap());
    for file in ["base.json", "base.tar.zst"] {
        assert!(dir.join(file).exists(), "{file}");
    }
    let wal = archive(&project).join("wal/0000000100000000");
    let oldest = || std::fs::read_dir(&wal).unwrap().map(|entry| entry.unwrap().file_name()).min().unwrap();
    assert!(oldest().to_str().unwrap().starts_with("00000001000000000000000"), "{:?}", oldest());
    // Names are of seconds.
    wait_for("another second", || {
        let name = format!("base_{}", humantime::format_rfc3339_seconds(std::time::SystemTime::now()));
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        digits(&name) > digits(first["name"].as_str().unwrap())
    });
    let before = oldest();
    let said = succeed(&project, &["backup", "base"]);
    assert!(said.contains("verified") && said.contains("removed base_"), "{said}");
    assert!(!dir.exists() && oldest() > before, "{:?}", oldest());
    let list: Value = serde_json::from_str(&succeed(&project, &["backup", "bases", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert!(succeed(&project, &["backup", "bases"]).contains("base_"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(fail(&project, &["backup", "base"]).contains("no server runs"));
}

/// Insert a row and return a time after it, and before whatever follows.
fn insert(project: &Project, number: u32) -> String {
    sql(project, &format!("INSERT INTO t VALUES ({number})"));
    sql(project, "SELECT clock_timestamp()")
}

fn rows(project: &Project) -> String {
    sql(project, "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
}

#[test]
fn a_restore_has_exactly_what_was_committed_by_then_and_so_has_one_on_the_new_timeline() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    let two = insert(&project, 2);
    insert(&project, 3);
    let refused = fail(&project, &["restore", "--at", &two, "--yes"]);
    assert!(refused.contains("tandem stop") && refused.contains("`tandem up`"), "{refused}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let refused = fail(&project, &["restore", "--at", &two]);
    assert!(refused.contains("--yes"), "nobody can be asked: {refused}");
    let restored: Value =
        serde_json::from_str(&succeed(&project, &["restore", "--at", &two, "--yes", "--json"])).unwrap();
    assert_eq!(restored["timeline"], 2, "{restored:#}");
    let kept = PathBuf::from(restored["kept"].as_str().unwrap());
    assert!(
        kept.file_name().unwrap().to_str().unwrap().starts_with("16_before_restore_")
            && kept.join("PG_VERSION").exists()
    );
    assert!(tandem::left_in(project.dir()).is_empty());

    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2");
    let four = insert(&project, 4);
    insert(&project, 5);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let refused = fail(&project, &["restore", "--at", "2020-01-01 00:00:00+00", "--yes"]);
    assert!(refused.contains("before the end of the oldest base backup"), "{refused}");
    let refused = fail(&project, &["restore", "--at", "2120-01-01 00:00:00+00", "--yes"]);
    assert!(refused.contains("the WAL ends before") && refused.contains("--to-end"), "{refused}");
    assert!(!project.data().join("recovery.signal").exists(), "a failure leaves the old data as it was");

    let restored: Value =
        serde_json::from_str(&succeed(&project, &["restore", "--at", &four, "--yes", "--json"])).unwrap();
    assert_eq!((&restored["followed_timeline"], &restored["timeline"]), (&2.into(), &3.into()), "{restored:#}");
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,4");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The way that was left is still there for who asks for it.
    succeed(&project, &["restore", "--to-end", "--timeline", "1", "--yes"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2,3");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restore_ends_at_a_position_or_with_the_last_that_a_crash_left() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n integer)");
    succeed(&project, &["backup", "base"]);
    insert(&project, 1);
    let lsn = sql(&project, "SELECT pg_current_wal_insert_lsn()");
    insert(&project, 2);
    // Killed both, nobody archives what was written last, and nobody starts the server again.
    let postmaster = tandem.postmaster(&project);
    tandem.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    tandem.signal(Signal::SIGKILL);
    drop(tandem);

    let beyond = fail(&project, &["restore", "--to-lsn", "FF/0", "--yes"]);
    assert!(beyond.contains("ends at"), "{beyond}");
    succeed(&project, &["restore", "--to-end", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1,2", "the last was never archived");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    succeed(&project, &["restore", "--to-lsn", &lsn, "--timeline", "1", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The whole data directory may be gone.
    std::fs::remove_dir_all(project.data()).unwrap();
    succeed(&project, &["restore", "--to-end", "--yes"]);
    tandem = Tandem::up(&project);
    assert_eq!(rows(&project), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
