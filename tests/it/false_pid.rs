//! An application that a template has imported names other processes as its workers.

use crate::common::project::Project;
use crate::common::tandem::{Tandem, lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
fn a_process_that_is_no_forked_worker_is_not_adopted_and_lives() {
    use std::os::unix::process::CommandExt;
    let project =
        Project::app_with("false_pid:app", "migrations.run = 'none'\nworkers.count = 1\nworkers.preload = true");
    project.configure(&format!("workers.env.VICTIM_DIR = '{}'", project.dir().display()));
    // A stranger that leads a process group; a child of Tandem's that is waited for; the first process of the machine.
    let mut stranger = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let victim = stranger.id().cast_signed();
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    for (pid, why) in
        [(victim, "is no child of Tandem's"), (postmaster, "is a child already"), (1, "is no child of Tandem's")]
    {
        project.write("victim", &pid.to_string());
        let before = tandem.workers()[0];
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        tandem.wait_log(&format!("fork off the template: process {pid} {why}"));
        wait_for("a worker that was spawned instead", || tandem.workers().first().is_some_and(|&now| now != before));
        assert_eq!(tandem.get("/").unwrap().0, 200);
        assert!(lives(pid), "{pid}: {}", tandem.log());
    }
    assert_eq!(tandem.postmaster(&project), postmaster);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(stranger.try_wait().unwrap().is_none(), "it lives: {}", tandem.log());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
