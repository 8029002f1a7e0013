//! Run one command to its end within a limit, and bring back what it printed.

use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::child::Exit;
use super::spawn::{lines, signal_group, spawn};
use crate::plan::CommandLine;

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0} is not installed or not in PATH")]
    NotFound(String),
    #[error("start {0}: {1}")]
    Spawn(String, #[source] io::Error),
    #[error("{0} did not end within {1:?} and was killed")]
    Limit(String, Duration),
}

/// Kills the whole group unless it has been disarmed: a cancelled run must leave nothing behind.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            signal_group(group, Signal::SIGKILL);
        }
    }
}

/// Run `command` until it ends, at most `limit`. Dropping the future kills the command's process group.
///
/// # Errors
/// [`RunError`] when it could not start or passed the limit; a non-zero status is not an error here.
pub async fn run(command: &CommandLine, limit: Duration) -> Result<Finished, RunError> {
    run_with(command, limit, |_| ()).await
}

/// As [`run`], with each line of either stream shown to `on_line` as it comes.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    command: &CommandLine,
    limit: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<Finished, RunError> {
    let (mut child, output) = spawn(command, &[], Signal::SIGKILL).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => RunError::NotFound(command.name()),
        _ => RunError::Spawn(command.name(), error),
    })?;
    let mut group = Group(Some(child.pid()));
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let shown = std::cell::RefCell::new(&mut on_line);
    let read = async {
        let out = async {
            if let Some(stream) = output.stdout {
                lines(stream, |line| keep(&mut stdout, line, &mut **shown.borrow_mut())).await;
            }
        };
        let err = async {
            if let Some(stream) = output.stderr {
                lines(stream, |line| keep(&mut stderr, line, &mut **shown.borrow_mut())).await;
            }
        };
        tokio::join!(out, err);
    };
    let whole = async { tokio::join!(read, child.wait()).1 };
    let exit = tokio::time::timeout(limit, whole).await.map_err(|_| RunError::Limit(command.name(), limit))?;
    group.0 = None;
    Ok(Finished { exit, stdout, stderr })
}

fn keep(text: &mut String, line: &str, on_line: &mut dyn FnMut(&str)) {
    on_line(line);
    text.push_str(line);
    text.push('\n');
}
