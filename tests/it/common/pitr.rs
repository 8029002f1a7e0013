//! A project whose WAL is archived, as tests look at it.

use std::path::PathBuf;

use serde_json::Value;

use super::project::Project;
use super::tandem::{self, Tandem};

/// A project whose WAL is archived, with more lines of configuration.
pub fn project(lines: &str) -> Project {
    let own = "workers.count = 1\nmigrations.run = 'none'\nbackup.pitr.enabled = true\npostgres.shared_buffers = '32MB'\n\
         backup.schedule = 'never'";
    Project::app_with("plain:app", &format!("{own}\n{lines}"))
}

/// Such a project that runs, with an empty table of these columns in its only base backup.
pub fn with_base(table: &str) -> (Project, Tandem) {
    let project = project("");
    let tandem = Tandem::up(&project);
    sql(&project, &format!("CREATE TABLE {table}"));
    succeed(&project, &["backup", "base"]);
    (project, tandem)
}

/// Run a command of the binary, which must succeed; what it printed.
pub fn succeed(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Run a command of the binary, which must fail; what it said.
pub fn fail(project: &Project, args: &[&str]) -> String {
    let output = tandem::run(project, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Run SQL as the application's role; rows alone, `|` between columns.
pub fn sql(project: &Project, text: &str) -> String {
    succeed(project, &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text])
}

pub fn archive(project: &Project) -> PathBuf {
    project.state().join("pitr")
}

pub fn pitr(tandem: &Tandem) -> Value {
    tandem.health()["backups"]["pitr"].clone()
}

/// What the table `t` holds.
pub fn rows(project: &Project) -> String {
    sql(project, "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t")
}

/// Run SQL as the superuser, over the unix socket.
pub fn superuser(project: &Project, text: &str) -> String {
    let socket = project.state().join("run/postgres").display().to_string();
    succeed(project, &["psql", "-XAtq", "-h", &socket, "-U", "postgres", "-d", "postgres", "-c", text])
}
