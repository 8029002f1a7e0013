//! A child, spawned or adopted, and how it ended.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;

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

    fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => UNKNOWN,
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

/// An end that cannot be known: somebody else took the status.
const UNKNOWN: Exit = Exit::Code(-1);

/// A running child. Dropping it does not end the process; it is reaped as a stranger would be.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    inner: Inner,
    /// Keeps what its group was tied to alive (see `spawn`), should the child itself be the first to end.
    _tie: Option<OwnedFd>,
}

/// Where the end of a child is learnt from.
#[derive(Debug)]
enum Inner {
    Spawned(Box<tokio::process::Child>),
    /// Its pidfd, which is readable once the process has ended (pidfd_open(2)).
    Adopted(AsyncFd<OwnedFd>),
    Ended(Exit),
}

/// The two output streams of a child.
#[derive(Debug)]
pub struct Output {
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
}

impl Child {
    pub(super) fn spawned(inner: tokio::process::Child, tie: Option<OwnedFd>) -> Self {
        let pid = inner.id().map_or(-1, u32::cast_signed);
        remember(pid);
        Self { pid, inner: Inner::Spawned(Box::new(inner)), _tie: tie }
    }

    /// The process id, which is also the id of the child's process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Wait for the end of the child. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        let exit = match &mut self.inner {
            Inner::Spawned(child) => child.wait().await.map(Exit::from_status),
            Inner::Adopted(pidfd) => ended(pidfd).await,
            Inner::Ended(exit) => Ok(*exit),
        };
        let exit = exit.unwrap_or_else(|error| {
            tracing::error!(process.pid = self.pid, %error, "wait for child");
            UNKNOWN
        });
        if matches!(self.inner, Inner::Adopted(_)) {
            self.inner = Inner::Ended(exit);
        }
        forget(self.pid);
        exit
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        forget(self.pid);
    }
}

/// Keep `pid`, a process whose parent died and left it to this one (see [`super::orphans::adopt`]), as a child like any
/// other. `stdout` and `stderr` are the reading ends of the pipes that it writes to.
///
/// A process that is gone already is a child too, whose end is known at once: as it was, if it could not be reaped
/// before (see [`super::orphans::hold`]), as [`Exit::Code`] -1 otherwise.
///
/// # Errors
/// `AlreadyExists` when somebody here waits for that process already; a stream that is no pipe; no descriptor is left.
pub fn adopt(pid: i32, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<(Child, Output)> {
    if is_own(pid) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("process {pid} is a child already")));
    }
    let output =
        Output { stdout: Some(Receiver::from_owned_fd(stdout)?), stderr: Some(Receiver::from_owned_fd(stderr)?) };
    let os_pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
    let inner = match pidfd_open(os_pid, PidfdFlags::NONBLOCK) {
        // Should the id have been given to another process meanwhile, that one is not a child of ours.
        Ok(pidfd) if is_child(&pidfd) => Inner::Adopted(watch(pidfd)?),
        Ok(_) | Err(rustix::io::Errno::SRCH) => Inner::Ended(UNKNOWN),
        Err(error) => return Err(error.into()),
    };
    remember(pid);
    Ok((Child { pid, inner, _tie: None }, output))
}

#[expect(unsafe_code, reason = "tokio has no safe door for a descriptor of a kind it does not know")]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay the same and open while it is registered: an `OwnedFd` does, and moves in.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn is_child(pidfd: &OwnedFd) -> bool {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::PIDFd(pidfd.as_fd()), peek).is_ok()
}

async fn ended(pidfd: &AsyncFd<OwnedFd>) -> io::Result<Exit> {
    loop {
        let mut guard = pidfd.readable().await?;
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)? {
            WaitStatus::Exited(_, code) => return Ok(Exit::Code(code)),
            WaitStatus::Signaled(_, signal, _) => return Ok(Exit::Signal(signal as i32)),
            _ => guard.clear_ready(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::super::{lines, orphans, signal, spawn};
    use super::*;
    use crate::plan::CommandLine;

    const LIMIT: Duration = Duration::from_secs(10);

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    /// The id of a process that runs `script` and whose parent, a shell, has ended.
    async fn orphan(script: &str) -> i32 {
        orphans::adopt();
        let both = format!("({script}) >/dev/null 2>&1 & echo $!");
        let (mut parent, output) = spawn(&CommandLine::new("sh").args(["-c", &both]), &[], Signal::SIGKILL).unwrap();
        let mut pid = 0;
        lines(output.stdout.unwrap(), |line| pid = line.parse().unwrap()).await;
        assert_eq!(parent.wait().await, Exit::Code(0));
        pid
    }

    async fn wait(child: &mut Child) -> Exit {
        timeout(LIMIT, child.wait()).await.unwrap()
    }

    #[tokio::test]
    async fn an_adopted_process_is_a_child_like_any_other() {
        let (stdout, mut writer) = std::io::pipe().map(|(reader, writer)| (reader.into(), writer)).unwrap();
        let (stderr, other) = pipe();
        let pid = orphan("exec sleep 1000").await;
        let (mut child, output) = adopt(pid, stdout, stderr).unwrap();
        assert_eq!(child.pid(), pid);
        std::io::Write::write_all(&mut writer, b"a line\n").unwrap();
        drop((writer, other));
        let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
        assert_eq!(adopt(pid, stdout, stderr).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let mut text = String::new();
        output.stdout.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a line\n");
        assert!(!orphans::strays().contains(&pid), "it is no stray");
        assert!(timeout(Duration::from_millis(20), child.wait()).await.is_err(), "a wait may be given up");
        signal(pid, Signal::SIGKILL);
        orphans::reap();
        assert_eq!(wait(&mut child).await, Exit::Signal(9), "the reaper left it alone");
        assert_eq!(wait(&mut child).await, Exit::Signal(9), "and it can be asked again");
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_died_before_its_adoption_is_known() {
        let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
        let hold = orphans::hold();
        // Not before its parent has ended, which would take the status.
        let pid = orphan("while kill -0 $$; do sleep 0.01; done; exit 7").await;
        let is_dead = || procfs::process::Process::new(pid).unwrap().stat().unwrap().state == 'Z';
        timeout(LIMIT, async {
            while !is_dead() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        orphans::reap();
        let (mut child, _output) = adopt(pid, stdout, stderr).unwrap();
        drop(hold);
        assert_eq!(wait(&mut child).await, Exit::Code(7));
    }

    #[tokio::test]
    async fn a_process_that_nobody_knows_has_an_unknown_end() {
        for pid in [orphan("exit 0").await, 1] {
            if pid != 1 {
                let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            }
            let ((stdout, _one), (stderr, _two)) = (pipe(), pipe());
            let (mut child, _output) = adopt(pid, stdout, stderr).unwrap();
            assert_eq!(wait(&mut child).await, Exit::Code(-1));
        }
    }
}
