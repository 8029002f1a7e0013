//! Tandem as the first process of a container: it is everybody's parent in the end.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::common::project::Project;
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, descendants, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

/// `unshare` with a pid namespace of its own; an ordinary user needs a user namespace for it.
fn namespaces() -> Vec<&'static str> {
    let mut args = vec!["--pid", "--fork", "--mount-proc", "--kill-child"];
    if !Uid::effective().is_root() {
        args.splice(0..0, ["--user", "--map-current-user"]);
    }
    args
}

/// Children of `pid` that have ended and were not reaped.
fn zombies_of(pid: i32) -> Vec<i32> {
    let all = procfs::process::all_processes().unwrap().filter_map(Result::ok);
    let stats = all.filter_map(|process| process.stat().ok());
    stats.filter(|stat| stat.ppid == pid && stat.state == 'Z').map(|stat| stat.pid).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
fn as_pid_1_it_reaps_strangers_and_stops_as_asked() {
    let forbidden = !Command::new("unshare").args(namespaces()).arg("true").status().unwrap().success();
    if forbidden {
        return skip("this kernel lets this user have no pid namespace");
    }
    let project = Project::app_with("plain:app", "workers.count = 2");
    let mut command = Command::new("unshare");
    command.args(namespaces()).arg(env!("CARGO_BIN_EXE_tandem")).current_dir(project.dir());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("DATABASE_URL");
    let mut outer = Tandem::start_with(&project, command, &["up", "--log-format", "text"]);
    outer.wait_ready();
    assert!(outer.log().contains("Tandem is process 1 of its container, and its stop may take"), "{}", outer.log());
    let first = descendants(outer.pid()).into_iter().find(|process| process.parent == outer.pid()).unwrap().pid;
    let inside = std::fs::metadata(format!("/proc/{first}/ns/pid")).unwrap().ino();
    assert_ne!(inside, std::fs::metadata("/proc/self/ns/pid").unwrap().ino(), "it is not in a namespace of its own");

    // A process in a session of its own loses its parent to a SIGKILL, is adopted, ended, and reaped.
    assert_eq!(outer.get("/spawn?session=new").unwrap().0, 200);
    let is_stranger = |process: &tandem::Process| process.args.contains("sleep 1000");
    let stranger = descendants(first).into_iter().find(is_stranger).unwrap();
    kill(Pid::from_raw(stranger.parent), Signal::SIGKILL).unwrap();
    wait_for("the stranger to be reaped", || zombies_of(first).is_empty() && !tandem::lives(stranger.pid));
    wait_for("the worker's return", || outer.health()["workers_ready"] == 2);
    wait_for("PostgreSQL untouched by it", || outer.ready() == Some(true));

    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    assert_eq!(outer.wait_code(), 0, "{}", outer.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}
