//! Point-in-time recovery: whatever was archived comes back, to any moment, and nothing that was confirmed is lost.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod common;

use std::path::PathBuf;

use common::project::Project;
use common::tandem::{self, Tandem, wait_for};
use serde_json::Value;

/// A project whose WAL is archived, with more lines of configuration.
fn project(lines: &str) -> Project {
    let own = "workers.count = 1\nmigrations.run = 'none'\nbackup.pitr.enabled = true\npostgres.shared_buffers = '32MB'";
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
