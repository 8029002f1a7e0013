//! `tandem test` on a terminal: the command has it, as if Tandem were not there.

use crate::common::harness::Suite;
use crate::common::project::root;
use crate::common::refusal::{Refusal, said};
use crate::common::tandem::command_as;

/// Run `command` on a terminal, and type the second of each pair when the first has been shown.
fn typed(suite: &Suite, turns: &[(&str, &str)], command: &[&str]) -> Refusal {
    let mut typist = command_as("python3", suite.dir());
    typist.arg(root().join("tests/fixtures/typist.py")).arg(serde_json::to_string(turns).unwrap()).args(command);
    said(typist.output().unwrap())
}

const TANDEM: &str = env!("CARGO_BIN_EXE_tandem");

#[test]
fn a_command_reads_the_terminal_and_gets_its_interrupts() {
    let suite = Suite::bare();
    let ask = "import sys; print('name', 'please'); print('hello', input()); sys.exit(3)";
    let run = typed(&suite, &[("name please", "world\r")], &[TANDEM, "test", "--", "python3", "-c", ask]);
    run.expect(3, &["hello world"]);

    // Ctrl-C is the command's alone: Tandem passes on what comes of it.
    let script = "trap 'echo caught; exit 5' INT; echo wait''ing; while :; do sleep 0.05; done";
    let run = typed(&suite, &[("waiting", "\u{3}")], &[TANDEM, "test", "--", "sh", "-c", script]);
    run.expect(5, &["caught"]);
}

#[test]
fn a_stopped_command_stops_tandem_and_both_go_on() {
    let suite = Suite::bare();
    let start = format!("{TANDEM} test -- sh -c 'echo be''gun; read line; echo go''t $line; exit 4'\r");
    let turns = [
        ("ready>", &start[..]),
        ("begun", "\u{1a}"),
        ("Stopped", ""),
        ("ready>", "jobs\r"),
        // Its echo, and what it prints: a prompt that came before must not be taken for the next one, nor this command's
        // words for those of `fg`. What is typed while the shell edits a line ends with no line for the command.
        ("jobs", ""),
        ("sh -c", ""),
        ("ready>", "fg\r"),
        ("fg", ""),
        ("sh -c", "text\r"),
        ("got text", "echo code $?\r"),
        ("code 4", "exit 6\r"),
    ];
    // A shell with job control, whose prompt is known.
    let shell = ["/usr/bin/env", "PS1=ready>", "bash", "--norc", "--noprofile", "-i"];
    typed(&suite, &turns, &shell).expect(6, &["Stopped", "code 4"]);
}
