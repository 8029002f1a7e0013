//! Throwaway servers leave nothing: neither a directory nor the lock that runs take turns by, whoever is the last to leave.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::common::backups::{backup, running};
use crate::common::harness::Suite;
use crate::common::refusal::{self, names, said};
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;

/// A directory of a suite's own for throwaway servers.
fn memory(suite: &Suite) -> PathBuf {
    let memory = suite.path("memory");
    fs::create_dir(&memory).unwrap();
    fs::set_permissions(&memory, fs::Permissions::from_mode(0o755)).unwrap();
    memory
}

const OPTIONS: [&str; 4] = ["--set", "test.dir=./memory", "--set", "test.spare=false"];

#[test]
fn the_last_run_removes_the_place_of_all_runs_however_it_ends() {
    let suite = Suite::bare();
    let memory = memory(&suite);
    let is_empty = || names(&memory).is_empty();
    suite.run(&OPTIONS, "true").expect(0, &[]);
    wait_for("the end of the place", is_empty);

    let mut run = suite.start(&OPTIONS, "exec sleep 1000");
    suite.wait_place(&mut run);
    run.signal(Signal::SIGKILL);
    run.wait_exit();
    wait_for("the end of the place after kill -9", is_empty);

    // As long as a server lives on that was asked to, its directory does.
    suite
        .run(&[&OPTIONS[..], &["--keep"]].concat(), "pg_ctl --version >/dev/null || true; echo $PGPORT >port")
        .expect(0, &[]);
    assert!(!is_empty());
    for process in tandem::left_in(&memory).iter().filter(|process| process.name == "postgres") {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), Signal::SIGQUIT);
    }
    wait_for("the end of the place of a kept server", is_empty);
}

#[test]
fn runs_that_come_while_others_leave_get_their_server() {
    let suite = Suite::bare();
    let memory = memory(&suite);
    // What the template needs is made once.
    suite.run(&OPTIONS, "true").expect(0, &[]);
    let rounds = 0..3;
    std::thread::scope(|scope| {
        let turns: Vec<_> = (0..3)
            .map(|_| {
                let (suite, rounds) = (&suite, rounds.clone());
                scope.spawn(move || {
                    rounds
                        .map(|_| {
                            said(
                                suite
                                    .command(&[&OPTIONS[..], &["--", "psql", "-XAtc", "SELECT 42"]].concat())
                                    .output()
                                    .unwrap(),
                            )
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for run in turns.into_iter().flat_map(|turn| turn.join().unwrap()) {
            run.expect(0, &["42\n"]);
        }
    });
    wait_for("the end of the place", || names(&memory).is_empty());
    assert!(tandem::left_in(&memory).is_empty());
}

#[test]
fn a_verification_of_a_backup_leaves_nothing_either() {
    let (project, mut tandem) = running();
    let manifest = backup(&project, &[]);
    let name = manifest["file"].as_str().unwrap().split('.').next().unwrap().to_owned();
    assert_eq!(tandem.stop(), 0);
    let mut before = names(&project.state());
    before.sort();
    // The word that a restore knows, and the name.
    for word in ["latest", name.as_str()] {
        let verified = refusal::run(&project, &["backup", "verify", word]);
        verified.expect(0, &[&name, ": verified, 2010 rows in 10 tables"]);
    }
    refusal::run(&project, &["backup", "verify", "newest"]).expect(64, &["newest"]);
    assert_eq!(names(&project.state()), before);
    let mut killed = Tandem::start_in(project.dir(), tandem::command(&project), &["backup", "verify", "latest"]);
    wait_for("its server", || killed.descendants().iter().any(|process| process.name == "postgres") || killed.ended());
    killed.signal(Signal::SIGKILL);
    killed.wait_exit();
    wait_for("the end of all of it", || tandem::left_in(project.dir()).is_empty());
}
