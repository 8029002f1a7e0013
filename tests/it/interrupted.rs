//! A command that is interrupted before it has done what it was called for does not succeed: a script goes on after a success.

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, left_in, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LINES: &str = "workers.count = 1\nstop.postgres_grace = '1s'\nmigrations.run = ";

fn said(tandem: &mut Tandem, project: &Project) {
    assert_eq!(tandem.wait_code(), 1, "{}", tandem.log());
    assert!(tandem.log().contains("stopped before it was done"), "{}", tandem.log());
    assert!(left_in(project.dir()).is_empty(), "{}", tandem.log());
}

#[test]
fn a_migration_that_a_signal_breaks_off_is_no_success() {
    let script = "['/bin/sh', '-c', 'echo it migrates >&2; exec sleep 7654323']";
    let project = Project::app_with("plain:app", &format!("{LINES}{script}"));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut migrate = Tandem::start_with(&project, tandem::command(&project), &["migrate", "up"]);
        wait_for("the migration", || {
            migrate.descendants().iter().any(|process| process.args == "sleep 7654323") || migrate.ended()
        });
        migrate.signal(signal);
        said(&mut migrate, &project);
    }
    // One that is done is one.
    project.reconfigure(|text| text.replace("exec sleep 7654323", "exit 0"));
    let done = tandem::run(&project, &["migrate", "up"]);
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn nor_is_a_backup_whose_server_never_came() {
    let project = Project::app_with("plain:app", &format!("{LINES}'none'"));
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut backup = Tandem::start_with(&project, tandem::command(&project), &["backup"]);
    let server = || backup.descendants().into_iter().find(|process| process.args.contains("bin/postgres -D"));
    wait_for("its server", || server().is_some());
    kill(Pid::from_raw(server().unwrap().pid), Signal::SIGSTOP).unwrap();
    backup.signal(Signal::SIGTERM);
    said(&mut backup, &project);
}
