//! What a person asks of a running Tandem, through the binary's own commands.

use std::process::{Child, Stdio};

use super::project::Project;
use super::refusal::{self, Refusal};
use super::tandem;

/// Run a command to its end.
pub fn run(project: &Project, args: &[&str]) -> Refusal {
    refusal::run(project, args)
}

/// Start a command that waits for something.
pub fn start(project: &Project, args: &[&str]) -> Child {
    tandem::command(project).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What such a command said in the end.
pub fn said(child: Child) -> Refusal {
    refusal::said(child.wait_with_output().unwrap())
}

/// `tandem status --json`.
pub fn status(project: &Project) -> serde_json::Value {
    let output = tandem::run(project, &["status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}
