//! It stops well as the first process of a container, where it is everybody's parent in the end.

mod common;

use common::project::Project;
use common::tandem::{self, Tandem, descendants, lives, processes, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

/// `tandem up` as process 1 of a pid namespace of its own.
fn contained(project: &Project) -> std::process::Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = std::process::Command::new("unshare");
    command.current_dir(project.dir()).stdin(std::process::Stdio::null());
    if !Uid::effective().is_root() {
        // An ordinary user makes a pid namespace inside a user namespace, and stays who he is.
        command.args(["--user", "--map-current-user"]);
    }
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--", env!("CARGO_BIN_EXE_tandem")]);
    command
}

/// Processes that have ended and that `parent` has not reaped.
fn zombies_of(parent: i32) -> usize {
    let all = procfs::process::all_processes().unwrap().filter_map(Result::ok);
    all.filter_map(|process| process.stat().ok()).filter(|stat| stat.ppid == parent && stat.state == 'Z').count()
}

#[test]
fn as_process_one_it_reaps_orphans_and_stops_cleanly() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 2");
    let mut outside = Tandem::start_as(&project, contained(&project));
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| outside.wait_ready())).is_err() {
        let log = outside.log();
        assert!(log.contains("unshare"), "{log}");
        println!("this kernel lets nobody make a namespace: {log}");
        return;
    }
    let first = descendants(outside.pid()).into_iter().find(|process| process.name == "tandem").unwrap().pid;

    for _ in 0..20 {
        assert_eq!(outside.get("/orphan").unwrap().0, 200, "{}", outside.log());
    }
    wait_for("the orphans' ends, all reaped", || {
        let sleeping = processes().iter().any(|process| process.parent == first && process.name == "sleep");
        !sleeping && zombies_of(first) == 0
    });
    assert_eq!(outside.ready(), Some(true), "no status of our own was taken:\n{}", outside.log());

    let family = descendants(first);
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    assert_eq!(outside.wait_code(), 0, "{}", outside.log());
    assert!(outside.log().contains("database system is shut down"), "{}", outside.log());
    assert!(!family.iter().any(|process| lives(process.pid)));
    assert_eq!(tandem::left_in(project.dir()).len(), 0);
}
