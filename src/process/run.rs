//! Run one command to its end within a limit, and bring back what it printed.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::aside::spawn_aside;
use super::child::{Exit, Output};
use super::spawn::{lines, signal_group};
use crate::plan::CommandLine;

/// How long the rest of the output is waited for when the command has ended: a process that it left behind, a daemon or an
/// agent, may hold it open for ever.
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);
/// Lines that are kept for a message.
const LINES_LAST: usize = 20;

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
    /// The last lines of both, in the order in which they came, without empty ones.
    pub last: Vec<String>,
}

impl Finished {
    /// The last lines of its output, indented for an error message.
    pub fn last_lines(&self) -> String {
        self.last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }
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

/// Run `command` until it ends, at most `limit`. What it leaves running in its group goes on, as long as Tandem does, and
/// its output is dropped. Dropping the future kills the command's process group.
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
pub async fn run_with(command: &CommandLine, limit: Duration, on_line: impl FnMut(&str)) -> Result<Finished, RunError> {
    let (mut child, mut output) =
        spawn_aside(command, &[], Signal::SIGKILL).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => RunError::NotFound(command.name()),
            _ => RunError::Spawn(command.name(), error),
        })?;
    let mut group = Group(Some(child.pid()));
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let shown = std::cell::RefCell::new((on_line, VecDeque::new()));
    let keep = |text: &mut String, line: &str| {
        let (on_line, last) = &mut *shown.borrow_mut();
        on_line(line);
        text.push_str(line);
        text.push('\n');
        if !line.trim().is_empty() {
            last.truncate(LINES_LAST - 1);
            last.push_front(line.trim_end().to_owned());
        }
    };
    let is_read = {
        let read = async {
            let out = async {
                if let Some(stream) = &mut output.stdout {
                    lines(stream, |line| keep(&mut stdout, line)).await;
                }
            };
            let err = async {
                if let Some(stream) = &mut output.stderr {
                    lines(stream, |line| keep(&mut stderr, line)).await;
                }
            };
            tokio::join!(out, err);
        };
        let whole = async {
            tokio::pin!(read);
            tokio::select! {
                () = &mut read => (child.wait().await, true),
                exit = child.wait() => (exit, tokio::time::timeout(OUTPUT_LIMIT, read).await.is_ok()),
            }
        };
        tokio::time::timeout(limit, whole).await
    };
    let (exit, is_read) = is_read.map_err(|_| RunError::Limit(command.name(), limit))?;
    group.0 = None;
    if !is_read {
        tracing::debug!("{} has ended, and left a process that holds its output open", command.name());
        swallow(output);
    }
    let (_, last) = shown.into_inner();
    Ok(Finished { exit, stdout, stderr, last: last.into_iter().rev().collect() })
}

/// Read what still comes and drop it: a process that was left behind would die of a closed pipe.
fn swallow(output: Output) {
    for stream in [output.stdout, output.stderr].into_iter().flatten() {
        tokio::spawn(lines(stream, |_| ()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_commands_own_end_counts_whoever_holds_its_output() {
        let began = std::time::Instant::now();
        let script = "(while :; do sleep 0.1; echo more || exit; done) & echo $!; echo oops >&2; exit 3";
        let finished = run(&CommandLine::new("sh").args(["-c", script]), Duration::from_secs(30)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(finished.exit, Exit::Code(3));
        let left: i32 = finished.stdout.lines().next().unwrap().parse().unwrap();
        assert!(finished.last.iter().any(|line| line == "oops") && finished.last.contains(&left.to_string()));
        assert!(super::super::spawn::group_of(left).is_some(), "what it left goes on");
        signal_group(super::super::spawn::group_of(left).unwrap(), Signal::SIGKILL);
    }
}
