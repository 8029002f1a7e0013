//! Start one child: own process group, death signal, identity, inherited descriptors, piped output.
//!
//! Children must be spawned from a thread that lives as long as the process, because the parent-death signal follows
//! the spawning *thread* (prctl(2), PR_SET_PDEATHSIG): Tandem's runtime is single-threaded and lives on the main one.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::{Pid, getpid, getppid};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{ChildStderr, ChildStdout};

use crate::plan::CommandLine;

/// Longest line kept whole, in bytes; a longer one is cut into several.
const LINE_LENGTH_MAX: u64 = 64 * 1024;

/// Pids of children that somebody here waits for; the reaper leaves these alone.
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// Whether `pid` is a child that this process spawned and still waits for.
pub(super) fn is_own(pid: i32) -> bool {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|own| own.contains(&pid))
}

fn remember(pid: i32) {
    OWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(HashSet::new).insert(pid);
}

fn forget(pid: i32) {
    if let Some(own) = OWN.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        own.remove(&pid);
    }
}

/// A descriptor that the child gets under the same number; the child learns the number from its environment.
#[derive(Clone, Debug)]
pub struct InheritedFd(pub Arc<OwnedFd>);

impl InheritedFd {
    /// The number the descriptor has here and in the child.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// exit(3) with this status.
    Code(i32),
    /// Ended by this signal's number.
    Signal(i32),
}

impl Exit {
    /// Whether the child ended with status 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    pub(super) fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Code(-1),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(formatter, "exit status {code}"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(formatter, "{signal}"),
                Err(_) => write!(formatter, "signal {number}"),
            },
        }
    }
}

/// A running child. Dropping it does not end the process; it is reaped as a stranger would be.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    inner: tokio::process::Child,
}

/// The two output streams of a child.
#[derive(Debug)]
pub struct Output {
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

impl Child {
    /// The process id, which is also the id of the child's process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Wait for the end of the child.
    pub async fn wait(&mut self) -> Exit {
        let exit = match self.inner.wait().await {
            Ok(status) => Exit::from_status(status),
            Err(error) => {
                tracing::error!(process.pid = self.pid, %error, "wait for child");
                Exit::Code(-1)
            }
        };
        forget(self.pid);
        exit
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        forget(self.pid);
    }
}

/// Start `command` in a process group of its own, with `death` as the signal it gets should Tandem die.
///
/// Standard input is empty; standard output and error come back as [`Output`].
///
/// # Errors
/// What fork(2), setuid(2) or execve(2) answered: a missing program is `NotFound`.
pub fn spawn(command: &CommandLine, fds: &[InheritedFd], death: Signal) -> io::Result<(Child, Output)> {
    let mut child = start(command, fds, death)?;
    let output = Output { stdout: child.inner.stdout.take(), stderr: child.inner.stderr.take() };
    Ok((child, output))
}

#[expect(unsafe_code, reason = "pre_exec: only async-signal-safe calls between fork and exec")]
fn start(command: &CommandLine, fds: &[InheritedFd], death: Signal) -> io::Result<Child> {
    let mut process = tokio::process::Command::from(prepare(command));
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let numbers: Vec<RawFd> = fds.iter().map(InheritedFd::number).collect();
    let kept = fds.to_vec();
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and calls only prctl, getppid, sigprocmask and fcntl, all
    // async-signal-safe; it allocates nothing. The descriptors outlive it: `kept` moves in with it.
    unsafe {
        process.pre_exec(move || {
            let _ = &kept;
            // After the uid change, which clears it (prctl(2)).
            nix::sys::prctl::set_pdeathsig(death)?;
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            // What Tandem blocks is its own affair.
            SigSet::empty().thread_set_mask()?;
            for &number in &numbers {
                let fd = std::os::fd::BorrowedFd::borrow_raw(number);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    let inner = process.spawn()?;
    let pid = inner.id().map_or(-1, u32::cast_signed);
    remember(pid);
    Ok(Child { pid, inner })
}

/// Replace this process with `command` (execve(2)); returns only if that failed.
pub fn replace(command: &CommandLine) -> io::Error {
    // What Tandem blocks is its own affair.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return error.into();
    }
    prepare(command).exec()
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
fn prepare(command: &CommandLine) -> std::process::Command {
    let mut process = std::process::Command::new(&command.program);
    process.args(&command.args);
    if !command.inherit_env {
        process.env_clear();
    }
    for (name, value) in &command.env {
        match value {
            Some(value) => process.env(name, value),
            None => process.env_remove(name),
        };
    }
    if let Some(dir) = &command.dir {
        process.current_dir(dir);
    }
    if let Some(identity) = &command.identity {
        // As root this drops the supplementary groups too.
        process.uid(identity.uid).gid(identity.gid);
    }
    process
}

/// Send `signal` to one process; a process that is gone already is not an error.
pub fn signal(pid: i32, signal: Signal) {
    report(pid, signal, kill(Pid::from_raw(pid), signal));
}

/// Send `signal` to a whole process group; a group that is gone already is not an error.
pub fn signal_group(group: i32, signal: Signal) {
    report(group, signal, killpg(Pid::from_raw(group), signal));
}

fn report(pid: i32, signal: Signal, result: nix::Result<()>) {
    if let Err(error) = result
        && error != nix::errno::Errno::ESRCH
    {
        tracing::warn!(process.pid = pid, %signal, %error, "send signal");
    }
}

/// Hand each line of `stream` to `on_line`, without its line end, until the stream ends.
pub async fn lines(stream: impl AsyncRead + Unpin, mut on_line: impl FnMut(&str)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_LENGTH_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => on_line(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r'])),
        }
    }
}
