//! What commands print: to a reader that has read enough, which is no error, and to a disk that is full, which is one.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};

use crate::common::harness::Suite;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};

/// A pipe that nothing reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    OwnedFd::from(writer).into()
}

fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn with(project: &Project, args: &[&str], stdout: Stdio) -> Output {
    tandem::command(project).args(args).stdout(stdout).stderr(Stdio::piped()).output().unwrap()
}

/// Commands that print something while Tandem runs.
const COMMANDS: [&[&str]; 24] = [
    &["--help"],
    &["--version"],
    &["backup", "--help"],
    &["completions", "bash"],
    &["check"],
    &["check", "--all"],
    &["check", "--json"],
    &["status"],
    &["status", "--json"],
    &["logs"],
    &["logs", "--json"],
    &["health"],
    &["health", "--ready", "--json"],
    &["url"],
    &["url", "--json"],
    &["env"],
    &["env", "--json"],
    &["migrate", "status"],
    &["migrate", "status", "--json"],
    &["migrate", "up"],
    &["install"],
    &["install", "--json"],
    &["backup", "list"],
    &["backup", "key"],
];

#[test]
fn a_reader_that_has_read_enough_is_no_error_and_a_full_disk_is_one() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    for args in COMMANDS {
        let output = with(&project, args, closed_pipe());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?} into a closed pipe: {said}");
        assert!(!said.contains("panicked") && !said.contains("standard output"), "{args:?} into a closed pipe: {said}");

        let output = with(&project, args, full_disk());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(73), "{args:?} > /dev/full: {said}");
        assert!(said.contains("write standard output: No space left on device"), "{args:?} > /dev/full: {said}");
        assert!(!said.contains("panicked"), "{args:?} > /dev/full: {said}");
    }
    // Nothing reads: it has nothing to go on for.
    for args in [&["status", "--watch"][..], &["status", "--watch", "--json"], &["logs", "--follow"]] {
        let mut child = tandem::command(&project).args(args).stdout(closed_pipe()).spawn().unwrap();
        wait_for(&format!("the end of {args:?}"), || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_backup_whose_name_cannot_be_printed_was_taken_all_the_same() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    let output = with(&project, &["backup"], full_disk());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("write standard output: No space left on device"), "{said}");
    let output = with(&project, &["backup"], closed_pipe());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let listed = tandem::run(&project, &["backup", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// What a command says beside its data may get lost, and changes nothing.
#[test]
fn standard_error_that_cannot_be_written_changes_no_exit_code() {
    let suite = Suite::bare();
    let runs: [(&[&str], i32); 3] =
        [(&["test", "--", "false"], 1), (&["test", "--", "/no/such/program"], 127), (&["status"], 78)];
    for (args, code) in runs {
        for stderr in [closed_pipe as fn() -> Stdio, full_disk] {
            let mut command = tandem::command_in(suite.dir());
            let status = command.args(args).stdout(Stdio::null()).stderr(stderr()).status().unwrap();
            assert_eq!(status.code(), Some(code), "{args:?}");
        }
    }
}
