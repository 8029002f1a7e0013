//! A child, spawned or adopted, and how it ended.
//!
//! The number of a process and of its group are its own until it is reaped, and anybody's afterwards. So a child is
//! reaped in one place, when all that is to be sent to its group has been sent; [`while_own`] holds everything else to it.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{sleep, timeout};

use super::mark::Mark;
use super::spawn::signal_group;

/// How often a child is looked at where the kernel has no descriptor for it (pidfd_open(2), since Linux 5.3).
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The children that are not reaped yet and that this process waits for; the reaper of strangers leaves them alone.
static OWN: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

fn own() -> MutexGuard<'static, Option<HashSet<i32>>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `pid` is a child that is not reaped yet and that this process waits for.
pub(super) fn is_own(pid: i32) -> bool {
    own().as_ref().is_some_and(|own| own.contains(&pid))
}

/// Do something to the child `pid` that must not happen to another process of that number: it cannot be reaped
/// meanwhile. `None` when it is no child of ours, or was reaped already.
pub(super) fn while_own<T>(pid: i32, act: impl FnOnce() -> T) -> Option<T> {
    let own = own();
    own.as_ref().is_some_and(|own| own.contains(&pid)).then(act)
}

fn remember(pid: i32) {
    own().get_or_insert_with(HashSet::new).insert(pid);
}

fn forget(pid: i32) {
    if let Some(own) = own().as_mut() {
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

    fn of(status: &WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
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

/// An end that cannot be known: another part of this process took the status.
const UNKNOWN: Exit = Exit::Code(-1);

/// A running child. Dropping it does not end the process; it is reaped as a stranger would be.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    reaping: Reaping,
    mark: Option<Mark>,
    /// Keeps the lifeline of its group alive when the child itself ends first (see `spawn`).
    _tie: Option<OwnedFd>,
}

#[derive(Debug)]
enum Reaping {
    Due(EndNotice),
    Done(Exit),
}

/// How this process learns that a child has ended.
#[derive(Debug)]
enum EndNotice {
    /// The kernel's descriptor for the process, which is readable once it has ended (pidfd_open(2)).
    Pidfd(AsyncFd<OwnedFd>),
    /// Repeated looks, where the kernel has no such descriptor.
    Poll,
}

/// The two output streams of a child.
#[derive(Debug)]
pub struct Output {
    pub stdout: Option<Receiver>,
    pub stderr: Option<Receiver>,
}

impl Child {
    /// The child `pid`, which nothing has reaped.
    pub(super) fn spawned(pid: i32, tie: Option<OwnedFd>, mark: Option<Mark>) -> Self {
        remember(pid);
        Self { pid, reaping: Reaping::Due(EndNotice::on(pid)), mark, _tie: tie }
    }

    /// The process id, which is also the id of the child's process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The mark in its environment, by which its descendants are known.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// Other children carry its mark too, so that what it leaves behind cannot be told from what is theirs.
    pub fn share_mark(&mut self) {
        self.mark = None;
    }

    /// Wait for the end of the child, and reap it. Cancel-safe.
    pub async fn wait(&mut self) -> Exit {
        self.ended().await;
        self.reap()
    }

    /// Wait until the child has ended, and leave it unreaped. Cancel-safe.
    pub async fn ended(&self) {
        let Reaping::Due(watch) = &self.reaping else { return };
        while !has_ended(self.pid) {
            watch.wait(self.pid).await;
        }
    }

    /// As [`Child::wait`], while `reading` reads what the child prints. After the end what is still to be read gets at most
    /// `limit`: what the child has started may hold its output open for ever. The second value tells whether all was read.
    pub async fn wait_reading(&mut self, reading: impl Future<Output = ()>, limit: Duration) -> (Exit, bool) {
        self.finish(reading, limit, |_| ()).await
    }

    /// As [`Child::wait_reading`]; what is left in the child's process group is killed before the child is reaped.
    pub async fn wait_with_group(&mut self, reading: impl Future<Output = ()>, limit: Duration) -> (Exit, bool) {
        self.finish(reading, limit, |pid| signal_group(pid, Signal::SIGKILL)).await
    }

    async fn finish(
        &mut self,
        reading: impl Future<Output = ()>,
        limit: Duration,
        at_the_end: impl Fn(i32),
    ) -> (Exit, bool) {
        let mut reading = pin!(reading);
        let mut is_read = tokio::select! {
            () = self.ended() => false,
            () = &mut reading => true,
        };
        self.ended().await;
        if matches!(self.reaping, Reaping::Due(_)) {
            at_the_end(self.pid);
        }
        if !is_read {
            is_read = timeout(limit, reading).await.is_ok();
        }
        (self.reap(), is_read)
    }

    /// The child has ended: take its status, and with it its number.
    fn reap(&mut self) -> Exit {
        if let Reaping::Done(exit) = self.reaping {
            return exit;
        }
        let mut own = own();
        let status = id(self.pid).and_then(|pid| waitid(pid, WaitIdOptions::EXITED | WaitIdOptions::NOHANG));
        if let Some(own) = own.as_mut() {
            own.remove(&self.pid);
        }
        drop(own);
        let exit = match status {
            Ok(Some(status)) => Exit::of(&status),
            Ok(None) => UNKNOWN,
            Err(error) => {
                tracing::error!(process.pid = self.pid, %error, "wait for child");
                UNKNOWN
            }
        };
        self.reaping = Reaping::Done(exit);
        exit
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Reaping::Due(watch) = mem::replace(&mut self.reaping, Reaping::Done(UNKNOWN)) else { return };
        forget(self.pid);
        let pid = self.pid;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while !has_ended(pid) {
                    watch.wait(pid).await;
                }
                super::orphans::reap();
            });
        }
    }
}

impl EndNotice {
    fn on(pid: i32) -> Self {
        let pidfd = os_pid(pid).ok_or(rustix::io::Errno::SRCH);
        let pidfd = pidfd.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK));
        match pidfd.map_err(io::Error::from).and_then(readable) {
            Ok(pidfd) => Self::Pidfd(pidfd),
            Err(_) => Self::Poll,
        }
    }

    /// Wait until it is worth looking at `pid` again.
    async fn wait(&self, pid: i32) {
        let Self::Pidfd(pidfd) = self else { return sleep(LOOK_AGAIN).await };
        let is_ready = pidfd.readable().await.is_ok();
        if !is_ready || !has_ended(pid) {
            // A debugger holds it: the kernel shows its end to its parent when the debugger lets go of it.
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[expect(unsafe_code, reason = "tokio has no safe door for a descriptor of a kind it does not know")]
fn readable(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay the same and open while it is registered: an `OwnedFd` does, and moves in.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn id(pid: i32) -> rustix::io::Result<WaitId<'static>> {
    os_pid(pid).map(WaitId::Pid).ok_or(rustix::io::Errno::CHILD)
}

/// `None` for a number that no process can have: the library panics at a negative one.
pub(super) fn os_pid(pid: i32) -> Option<Pid> {
    Pid::from_raw(pid.max(0))
}

fn peek(pid: i32) -> rustix::io::Result<Option<WaitIdStatus>> {
    waitid(id(pid)?, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)
}

/// Whether the child `pid` has ended; one that is no child counts as ended, for nothing will ever be heard of it.
fn has_ended(pid: i32) -> bool {
    !matches!(peek(pid), Ok(None))
}

/// Keep `pid` as a child like any other: a process that forked off `parent`, and whose own parent died and left it to this
/// process (see [`super::orphans::adopt`]). `stdout` and `stderr` are the reading ends of the pipes that it writes to,
/// `mark` is what its environment holds.
///
/// The number comes from a program that this process must not believe. So the kernel is asked: the process must be a child
/// of this one (waitid(2)) that no part of it waits for, it must lead its own process group, and it must run as the user
/// that `parent` runs as.
///
/// A process that has ended and is not reaped (see [`super::orphans::hold`]) is a child too, whose end is known at once.
///
/// # Errors
/// `AlreadyExists` for a child that is waited for already, `PermissionDenied` for a process that is not such a child; a
/// stream is no pipe; no descriptor is left.
pub fn adopt(
    pid: i32,
    parent: i32,
    stdout: OwnedFd,
    stderr: OwnedFd,
    mark: Option<Mark>,
) -> io::Result<(Child, Output)> {
    if is_own(pid) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("process {pid} is a child already")));
    }
    let refuse = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, format!("process {pid} {why}"));
    // As long as it is not reaped the number stays with it, and here alone it could be.
    peek(pid).map_err(|_| refuse("is no child of Tandem's"))?;
    let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid)))?;
    if group.as_raw() != pid {
        return Err(refuse("leads no process group"));
    }
    if users(pid)? != users(parent)? {
        return Err(refuse(&format!("does not run as the user of process {parent}")));
    }
    let output =
        Output { stdout: Some(Receiver::from_owned_fd(stdout)?), stderr: Some(Receiver::from_owned_fd(stderr)?) };
    Ok((Child::spawned(pid, None, mark), output))
}

/// The real, effective and saved user ids of a process.
fn users(pid: i32) -> io::Result<[u32; 3]> {
    // Blocks: for no disk.
    let status = procfs::process::Process::new(pid).and_then(|process| process.status()).map_err(io::Error::other)?;
    Ok([status.ruid, status.euid, status.suid])
}

#[cfg(test)]
mod tests;
