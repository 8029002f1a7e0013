//! A command whose data goes through a pipe that a thread of the caller reads or writes.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use super::child::{Child, Exit};
use super::lines::lines;
use super::run::{OUTPUT_LIMIT, RunError};
use super::spawn::{Streams, signal_group, spawn_with};
use crate::plan::CommandLine;

/// The size of the pipe's buffer in bytes; with the usual 64 kB each side waits for the other.
const PIPE_SIZE: i32 = 1 << 20;
/// Lines of standard error that are kept: the first ones name the cause.
const LINES_MAX: usize = 50;

/// A running command. Dropped, its whole process group is killed.
pub struct Streaming {
    name: String,
    child: Child,
    /// What it said on standard error so far, read by a task of its own.
    said: Arc<Mutex<Vec<String>>>,
    reading: JoinHandle<()>,
}

/// How a streaming command ended, and its first lines on standard error.
#[derive(Debug)]
pub struct Streamed {
    pub exit: Exit,
    pub stderr: Vec<String>,
}

impl Streaming {
    /// Start `command` with a pipe as its standard output.
    ///
    /// # Errors
    /// [`RunError`] when it could not start.
    pub fn reading(command: &CommandLine) -> Result<(Self, PipeReader), RunError> {
        let spawn = || {
            let (reader, writer) = wide_pipe()?;
            Ok((Self::start(command, Stdio::null(), writer.into())?, reader))
        };
        spawn().map_err(|error| failure(command, error))
    }

    /// As [`Self::reading`], with `file` as its standard input.
    ///
    /// # Errors
    /// [`RunError`] when it could not start.
    pub fn reading_from(command: &CommandLine, file: File) -> Result<(Self, PipeReader), RunError> {
        let spawn = || {
            let (reader, writer) = wide_pipe()?;
            Ok((Self::start(command, file.into(), writer.into())?, reader))
        };
        spawn().map_err(|error| failure(command, error))
    }

    /// Start `command` with a pipe as its standard input.
    ///
    /// # Errors
    /// [`RunError`] when it could not start.
    pub fn writing(command: &CommandLine) -> Result<(Self, PipeWriter), RunError> {
        let spawn = || {
            let (reader, writer) = wide_pipe()?;
            Ok((Self::start(command, reader.into(), Stdio::null())?, writer))
        };
        spawn().map_err(|error| failure(command, error))
    }

    fn start(command: &CommandLine, stdin: Stdio, stdout: Stdio) -> io::Result<Self> {
        let (errors, stderr) = io::pipe()?;
        // Blocks: until the program runs; for commands and boot jobs, which run elsewhere.
        let child = spawn_with(command, Some(Signal::SIGKILL), Streams::new(stdin, stdout, stderr.into()))?;
        let errors = Receiver::from_owned_fd(errors.into())?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = said.clone();
        let reading = tokio::spawn(lines(errors, move |line| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < LINES_MAX {
                kept.push(line.to_owned());
            }
        }));
        Ok(Self { name: command.name(), child, said, reading })
    }

    /// Wait for its end, at most `limit`. What it leaves in its process group ends with it.
    ///
    /// # Errors
    /// [`RunError::Limit`]; it is killed then.
    pub async fn end(mut self, limit: Duration) -> Result<Streamed, RunError> {
        let Self { name, child, reading, said } = &mut self;
        let reading = async {
            let _ = reading.await;
        };
        let outcome = tokio::time::timeout(limit, child.wait_with_group(reading, OUTPUT_LIMIT)).await;
        let (exit, _) = outcome.map_err(|_| RunError::Limit(name.clone(), limit))?;
        Ok(Streamed { exit, stderr: said.lock().unwrap_or_else(PoisonError::into_inner).clone() })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        // Nothing is sent once it was reaped.
        signal_group(self.child.pid(), Signal::SIGKILL);
    }
}

fn wide_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // An ordinary user may have used up the memory for pipes (pipe(7)); then the size stays as it is.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok((reader, writer))
}

fn failure(command: &CommandLine, error: io::Error) -> RunError {
    match error.kind() {
        io::ErrorKind::NotFound => RunError::NotFound(command.name()),
        _ => RunError::Spawn(command.name(), error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Identifier;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_command_that_ended_has_ended_whatever_holds_its_errors() {
        let began = Instant::now();
        let script = "(sleep 1000 & echo $!) >&2; setsid sleep 1000 >/dev/null & echo $! >&2; exit 3";
        let (running, _reader) = Streaming::reading(&CommandLine::new("sh").args(["-c", script])).unwrap();
        let ended = running.end(LIMIT).await.unwrap();
        assert!(began.elapsed() < LIMIT / 2, "{:?}", began.elapsed());
        assert_eq!(ended.exit, Exit::Code(3));
        let left: Vec<i32> = ended.stderr.iter().map(|line| line.parse().unwrap()).collect();
        let group_gone = async {
            while Identifier::look_up(left[0]).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, group_gone).await.expect("what it left in its group is gone");
        // It has left the group, and is killed if it is not gone by now.
        if let Some(stranger) = super::super::Stranger::hold(left[1]) {
            stranger.signal(Signal::SIGKILL);
        }
    }
}
