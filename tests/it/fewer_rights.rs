//! Root as a container of Docker's has it: without CAP_SYS_PTRACE, so that `/proc` shows nothing of other users' processes.
//! An ordinary user has the right for its own processes, and starts none as another user: for it nothing differs.

use std::process::Command;

use crate::common::plain::Plain;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, lives, wait_for};
use crate::identity::{open_project, uid};
use ::tandem::process::identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// `tandem` without that right.
pub fn without_ptrace(project: &Project) -> Command {
    let mut command = tandem::command_as("setpriv", project.dir());
    command.args(["--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", env!("CARGO_BIN_EXE_tandem")]);
    command
}

/// Whether process `pid` has the right (proc_pid_status(5), CAP_SYS_PTRACE is bit 19).
fn may_trace(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    u64::from_str_radix(set, 16).unwrap() & (1 << 19) != 0
}

#[test]
fn a_busy_backend_that_outlives_its_postmaster_is_found() {
    if !identity::is_root() {
        return;
    }
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    let mut tandem = Tandem::start_as(&project, without_ptrace(&project));
    tandem.wait_ready();
    assert!(!may_trace(tandem.pid()));
    let busy = "DO $$ BEGIN LOOP END LOOP; END $$";
    let mut client = tandem::command(&project).args(["psql", "-Xqc", busy]).spawn().unwrap();
    let active = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
    let mut backend = 0;
    wait_for("the busy backend", || {
        let output = tandem::run(&project, &["psql", "-AtXc", active]);
        backend = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
        backend != 0
    });
    let postmaster = tandem.postmaster(&project);
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    wait_for("the end of the backend", || !lives(backend));
    wait_for("another postmaster, and readiness", || {
        let file = std::fs::read_to_string(project.data().join("postmaster.pid")).unwrap_or_default();
        let now = file.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
        now.is_some_and(|now| now != postmaster) && tandem.ready() == Some(true)
    });
    let _ = client.kill();
    let _ = client.wait();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem.log().contains("killing a backend that outlived its postmaster"), "{}", tandem.log());
}

#[tokio::test]
async fn a_server_of_an_earlier_run_is_found_and_gets_the_grace_that_was_configured() {
    if !identity::is_root() {
        return;
    }
    let project =
        Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1\nstop.postgres_grace = '33s'");
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let mut left = Plain::start(&project, &[]).await;
    let mut tandem = Tandem::start_as(&project, without_ptrace(&project));
    tandem.wait_ready();
    assert!(!left.lives(), "it was stopped");
    assert!(tandem.log().contains("of an earlier run still works in"), "{}", tandem.log());
    assert!(tandem.log().contains("within 33s (stop.postgres_grace)"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn another_server_gets_ready_by_its_answer() {
    if !identity::is_root() {
        return;
    }
    let lines =
        "migrations.run = 'none'\nworkers.ready = '/'\nworkers.command = ['uvicorn', '--fd', '{fd}', 'plain:app']";
    let project = open_project(lines).without("workers.app");
    let mut tandem = Tandem::start_as(&project, without_ptrace(&project));
    tandem.wait_ready();
    assert!(!may_trace(tandem.pid()));
    let worker = tandem.workers()[0];
    let process = tandem.descendants().into_iter().find(|process| process.pid == worker).unwrap();
    assert_ne!(uid(&process), 0, "it runs as another user");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn throwaway_servers_have_ended_before_they_are_copied() {
    if !identity::is_root() {
        return;
    }
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    // Made anew, whatever lies in the cache.
    let run = |args: &[&str]| refusal::said(without_ptrace(&project).args(args).output().unwrap());
    run(&["test", "--rebuild", "--", "true"]).expect(0, &[]);
    project.configure(&format!("cache_dir = '{}'", project.dir().join("cache").display()));
    run(&["migrate", "up", "--set", "migrations.run=seaorm"]).expect(0, &[]);
    run(&["backup"]).expect(0, &[]);
    run(&["backup", "verify", "--all"]).expect(0, &["verified"]);
}
