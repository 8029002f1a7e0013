//! A command with its bulk of data on one of its streams, read or written by a thread of the caller's.

use std::io::{self, PipeReader, PipeWriter};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

use super::child::{Child, Exit};
use super::run::RunError;
use super::spawn::{Streams, lines, signal_group, spawn_with};
use crate::plan::CommandLine;

/// What the kernel may hold between the two ends, in bytes; 64 kB would make each side wait for the other.
const PIPE_SIZE: i32 = 1 << 20;
/// Lines of standard error that are kept: the first ones name the cause.
const LINES_MAX: usize = 50;

/// A running command. Dropped, its whole process group is killed.
pub struct Streaming {
    name: String,
    child: Child,
    stderr: JoinHandle<Vec<String>>,
    ended: bool,
}

/// How a streaming command ended, and what it said on standard error.
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
        let child = spawn_with(command, Some(Signal::SIGKILL), Streams { stdin, stdout, stderr: stderr.into() })?;
        let errors = Receiver::from_owned_fd(errors.into())?;
        let stderr = tokio::spawn(async move {
            let mut kept = Vec::new();
            lines(errors, |line| {
                if kept.len() < LINES_MAX {
                    kept.push(line.to_owned());
                }
            })
            .await;
            kept
        });
        Ok(Self { name: command.name(), child, stderr, ended: false })
    }

    /// Wait for its end, at most `limit`.
    ///
    /// # Errors
    /// [`RunError::Limit`]; it is killed then.
    pub async fn end(mut self, limit: Duration) -> Result<Streamed, RunError> {
        let whole = async {
            let exit = self.child.wait().await;
            (exit, (&mut self.stderr).await.unwrap_or_default())
        };
        let outcome = tokio::time::timeout(limit, whole).await;
        let (exit, stderr) = outcome.map_err(|_| RunError::Limit(self.name.clone(), limit))?;
        self.ended = true;
        Ok(Streamed { exit, stderr })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if !self.ended {
            signal_group(self.child.pid(), Signal::SIGKILL);
        }
    }
}

fn wide_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // An ordinary user may have used up what pipes may take (pipe(7)); then it stays as it is.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    Ok((reader, writer))
}

fn failure(command: &CommandLine, error: io::Error) -> RunError {
    match error.kind() {
        io::ErrorKind::NotFound => RunError::NotFound(command.name()),
        _ => RunError::Spawn(command.name(), error),
    }
}
