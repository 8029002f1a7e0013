//! It stops well: a signal during each step of the boot.

use std::fs;

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;

const LINES: &str = "workers.count = 2\nstop.grace = '5s'";

/// Start, send SIGTERM as soon as `reached`, and see that it ends cleanly and that the next start works.
fn stop_when(
    project: &Project,
    what: &str,
    prepare: impl Fn(&mut std::process::Command),
    reached: impl Fn(&Tandem) -> bool,
) {
    let mut command = tandem::command(project);
    prepare(&mut command);
    let mut tandem = Tandem::start_as(project, command);
    wait_for(what, || {
        assert!(tandem::lives(tandem.pid()), "ended before {what}:\n{}", tandem.log());
        reached(&tandem)
    });
    tandem.signal(Signal::SIGTERM);
    assert_eq!(tandem.wait_code(), 0, "stopped at {what}:\n{}", tandem.log());
    assert_eq!(tandem::left_in(project.dir()).len(), 0, "stopped at {what}: {:#?}", tandem::left_in(project.dir()));
    let postgres = project.state().join("postgres");
    let half_made = fs::read_dir(postgres).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let half_made: Vec<_> = half_made.filter(|name| name.to_string_lossy().starts_with(".staging")).collect();
    assert!(half_made.is_empty(), "stopped at {what}: {half_made:?}");
    assert!(!project.data().join("postmaster.pid").exists(), "stopped at {what}:\n{}", tandem.log());

    let mut tandem = Tandem::up(project);
    assert!(!tandem.log().contains("not properly shut down"), "after a stop at {what}:\n{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Whether `/health` says that this is the phase.
fn in_phase(project: &Project, phase: &str) -> bool {
    tandem::get(project.health, "/health").is_some_and(|(_, body)| body.contains(&format!("\"{phase}\"")))
}

#[test]
fn a_stop_while_the_python_environment_is_made() {
    let project = Project::app_with("plain:app", LINES);
    let venv = project.dir().join("venv");
    let own = |command: &mut std::process::Command| {
        command.env("TANDEM_PYTHON__VENV", &venv);
    };
    stop_when(&project, "the install", own, |tandem| {
        in_phase(&project, "installing") && tandem.descendants().iter().any(|process| process.args.contains("venv"))
    });
}

#[test]
fn a_stop_while_the_cluster_is_made() {
    let project = Project::app_with("plain:app", LINES);
    stop_when(&project, "initdb", |_| (), |tandem| tandem.descendants().iter().any(|process| process.name == "initdb"));
}

#[test]
fn a_stop_while_the_server_starts() {
    let project = Project::app_with("plain:app", LINES);
    let file = project.data().join("postmaster.pid");
    stop_when(&project, "the postmaster", |_| (), |_| file.exists());
}

#[test]
fn a_stop_while_the_database_is_made() {
    let project = Project::app_with("plain:app", LINES);
    let file = project.data().join("postmaster.pid");
    stop_when(&project, "provisioning", |_| (), |_| fs::read_to_string(&file).is_ok_and(|text| text.contains("ready")));
}

#[test]
fn a_stop_while_migrations_run() {
    let project = Project::app_with("plain:app", LINES);
    stop_when(&project, "migrations", |_| (), |_| in_phase(&project, "migrating"));
}

#[test]
fn a_stop_while_a_migration_command_runs() {
    let project = Project::app_with("plain:app", LINES);
    let hold = |command: &mut std::process::Command| {
        command.env("TANDEM_MIGRATIONS__RUN", "['sleep', '3600']");
    };
    stop_when(&project, "the migration command", hold, |tandem| {
        tandem.descendants().iter().any(|process| process.args.contains("3600"))
    });
}

#[test]
fn a_stop_while_workers_import_the_application() {
    let project = Project::app_with("slow_import:app", LINES);
    stop_when(&project, "the import", |_| (), |_| in_phase(&project, "starting-workers"));
}
