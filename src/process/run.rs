//! Run one command to its end within a limit, and return what it printed.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::aside::spawn_aside;
use super::child::{Exit, Output};
use super::lines::lines;
use super::spawn::signal_group;
use crate::plan::CommandLine;

/// How long the rest of the output is read after the command has ended: a process that it left behind, such as a daemon, may
/// hold the output open for ever.
pub const OUTPUT_LIMIT: Duration = Duration::from_secs(1);
/// How much is kept of each stream, in bytes: of more, the last half of it at least.
const OUTPUT_SIZE_MAX: usize = 1 << 20;
/// Lines that are kept for a message.
const LINES_LAST: usize = 20;

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    /// What it printed; of more than 1 MiB, the last.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
    /// The last lines of both in the order of their arrival, without empty ones.
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

/// Kills the whole group of a run that is cancelled, which must leave nothing behind. Nothing is sent to the group of a
/// command that was reaped.
struct Group(i32);

impl Drop for Group {
    fn drop(&mut self) {
        signal_group(self.0, Signal::SIGKILL);
    }
}

/// Add `line` to `text`, which keeps the last of what it gets.
fn keep_last(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
    if text.len() > OUTPUT_SIZE_MAX {
        let half = text.len() - OUTPUT_SIZE_MAX / 2;
        let cut =
            text.as_bytes().iter().skip(half).position(|&byte| byte == b'\n').map_or(text.len(), |at| half + at + 1);
        text.drain(..cut);
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
    let _group = Group(child.pid());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let shown = std::cell::RefCell::new((on_line, VecDeque::new()));
    let keep = |text: &mut String, line: &str| {
        let (on_line, last) = &mut *shown.borrow_mut();
        on_line(line);
        keep_last(text, line);
        if !line.trim().is_empty() {
            last.truncate(LINES_LAST - 1);
            last.push_front(line.trim_end().to_owned());
        }
    };
    let ended = {
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
        tokio::time::timeout(limit, child.wait_reading(read, OUTPUT_LIMIT)).await
    };
    let (exit, is_read) = ended.map_err(|_| RunError::Limit(command.name(), limit))?;
    if !is_read {
        tracing::debug!("{} has ended, and left a process that holds its output open", command.name());
        swallow(output);
    }
    let (_, last) = shown.into_inner();
    Ok(Finished { exit, stdout, stderr, last: last.into_iter().rev().collect() })
}

/// Read what still comes and drop it: a process that was left behind would die when it writes to a closed pipe.
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
        super::super::Stranger::hold(left).unwrap().signal(Signal::SIGKILL);
    }

    #[tokio::test]
    async fn what_a_talkative_command_printed_is_kept_in_part() {
        let script = "yes 'a line of output' | head -n 500000; echo the last";
        let finished = run(&CommandLine::new("sh").args(["-c", script]), Duration::from_secs(60)).await.unwrap();
        assert!(finished.stdout.len() <= OUTPUT_SIZE_MAX, "{}", finished.stdout.len());
        assert!(finished.stdout.starts_with("a line of output\n") && finished.stdout.ends_with("\nthe last\n"));
    }

    #[tokio::test]
    async fn a_cancelled_run_takes_what_holds_its_output_along() {
        let temp = tempfile::tempdir().unwrap();
        let pid = temp.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; exit 0", pid.display());
        let command = CommandLine::new("sh").args(["-c", &script]);
        // The command has ended when the run is given up; what it started has its output open still.
        let left = tokio::select! {
            _ = run(&command, Duration::from_secs(60)) => panic!("it waits for the rest of the output"),
            left = async {
                while !pid.exists() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let left = std::fs::read_to_string(&pid).unwrap().trim().parse::<i32>().unwrap();
                let shell = super::super::spawn::group_of(left).unwrap();
                while procfs::process::Process::new(shell).unwrap().stat().unwrap().state != 'Z' {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                left
            } => left,
        };
        let gone = async {
            while super::super::Identifier::look_up(left).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    }
}
