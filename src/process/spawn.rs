//! Start one child: own process group, death signal, identity, inherited descriptors, piped output.
//!
//! Children must be spawned from a thread that lives as long as the process, because the parent-death signal follows
//! the spawning *thread* (prctl(2), PR_SET_PDEATHSIG): the main one, or one of `aside`'s.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::c_int;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::{Pid, getpid, getppid};
use tokio::net::unix::pipe::Receiver;

use super::child::{Child, Output, while_own};
use super::{handed, limits, mark, umask};
use crate::plan::{self, CommandLine};

/// Variables that a supervisor sets for Tandem alone (sd_notify(3), sd_listen_fds(3)). A child that got them would answer in
/// Tandem's name: PostgreSQL built with systemd's library says READY=1 to the socket that is named here.
const NOT_FOR_CHILDREN: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES"];

/// A descriptor that the child gets under the same number; the child learns the number from its environment.
#[derive(Clone, Debug)]
pub struct InheritedFd(pub Arc<OwnedFd>);

impl InheritedFd {
    /// The number the descriptor has here and in the child.
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The numbers of `all`, as a child's environment holds them.
    pub fn numbers(all: &[Self]) -> String {
        all.iter().map(|fd| fd.number().to_string()).collect::<Vec<_>>().join(",")
    }
}

/// Start `command` in a process group of its own, with `death` as the signal that it gets when Tandem dies. Waits until the
/// child has executed its program: not for the event loop, which has [`super::spawn_aside`].
///
/// Standard input is empty; standard output and error come back as [`Output`].
///
/// # Errors
/// What fork(2), setuid(2) or execve(2) answered: a missing program is `NotFound`.
pub fn spawn(command: &CommandLine, fds: &[InheritedFd], death: Signal) -> io::Result<(Child, Output)> {
    let streams = Streams::new(Stdio::null(), Stdio::piped(), Stdio::piped());
    let (mut process, child) = start(command, fds, Some(death), streams)?;
    let output = outputs(&mut process).inspect_err(|_| {
        let _ = process.kill();
    })?;
    Ok((child, output))
}

/// The standard streams of a child.
#[derive(Debug)]
pub struct Streams {
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
    /// Whether the child also gets the other descriptors that Tandem was started with.
    handed: bool,
}

impl Streams {
    /// These, and no other descriptor.
    pub fn new(stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Self {
        Self { stdin, stdout, stderr, handed: false }
    }

    /// Tandem's own, with all other descriptors that it was started with: a person's command may be told of one by its
    /// arguments (`<(…)` in a shell, make's jobserver).
    pub fn inherited() -> Self {
        Self { stdin: Stdio::inherit(), stdout: Stdio::inherit(), stderr: Stdio::inherit(), handed: true }
    }

    /// None at all.
    pub fn none() -> Self {
        Self::new(Stdio::null(), Stdio::null(), Stdio::null())
    }

    /// No input; both outputs are added to the file `log`, which only its owner reads.
    ///
    /// # Errors
    /// `log` cannot be written.
    pub fn to_log(log: &Path) -> io::Result<Self> {
        // Blocks: for `tandem test` alone.
        let file = File::options().append(true).create(true).mode(0o600).open(log)?;
        Ok(Self::new(Stdio::null(), file.try_clone()?.into(), file.into()))
    }
}

/// As [`spawn`], with the caller's `streams`. Without `death` the child gets a session of its own and outlives Tandem,
/// however Tandem ends.
///
/// # Errors
/// As [`spawn`].
// Blocks: until the child has executed its program, as its documentation says.
pub fn spawn_with(command: &CommandLine, death: Option<Signal>, streams: Streams) -> io::Result<Child> {
    start(command, &[], death, streams).map(|(_, child)| child)
}

fn outputs(process: &mut std::process::Child) -> io::Result<Output> {
    let stdout = process.stdout.take().map(|stream| Receiver::from_owned_fd(stream.into()));
    let stderr = process.stderr.take().map(|stream| Receiver::from_owned_fd(stream.into()));
    Ok(Output { stdout: stdout.transpose()?, stderr: stderr.transpose()? })
}

/// The command that chooses the signal of a descriptor (fcntl(2)); the libc crate lacks it. The number stands in Linux's
/// `asm-generic/fcntl.h`, which x86 and ARM share.
const F_SETSIG: c_int = 10;

/// The least number of the lifeline's writing end. Above those of its reading ends, because the kernel closes a dead
/// process's files from the highest number down: the writing end must go while they are still there to tell of it.
const WRITER_MIN: RawFd = 1000;

/// The pipe whose writing end lives as long as Tandem does.
static LIFELINE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();

/// A reading end of the lifeline that can get an owner of its own: the same pipe, opened once more (proc_pid_fd(5)).
fn lifeline() -> io::Result<OwnedFd> {
    let pipe = match LIFELINE.get() {
        Some(pipe) => pipe,
        None => {
            let (reader, writer) = io::pipe()?;
            let writer = match fcntl(&writer, FcntlArg::F_DUPFD_CLOEXEC(WRITER_MIN)) {
                // SAFETY: the number is new and has no other owner.
                #[expect(unsafe_code, reason = "fcntl(2) gives a bare number")]
                Ok(number) => unsafe { PipeWriter::from_raw_fd(number) },
                // Fewer descriptors are allowed (RLIMIT_NOFILE): then it stays where it is.
                Err(_) => writer,
            };
            LIFELINE.get_or_init(|| (reader, writer))
        }
    };
    // Blocks: never, it is a pipe whose other end is here too.
    Ok(File::open(format!("/proc/self/fd/{}", pipe.0.as_raw_fd()))?.into())
}

/// Make the kernel kill the whole group of the calling process when Tandem dies: PR_SET_PDEATHSIG kills the process alone,
/// and not what it has started (fcntl(2), F_SETSIG). Async-signal-safe.
#[expect(unsafe_code, reason = "fcntl(2) has no safe door for F_SETSIG and F_SETOWN")]
fn tie_group(lifeline: RawFd) -> io::Result<()> {
    let set = |command: c_int, value: c_int| {
        // SAFETY: the descriptor is open, and the arguments of these commands are plain numbers.
        nix::errno::Errno::result(unsafe { nix::libc::fcntl(lifeline, command, value) })
    };
    set(F_SETSIG, nix::libc::SIGKILL)?;
    set(nix::libc::F_SETOWN, -getpid().as_raw())?;
    set(nix::libc::F_SETFL, nix::libc::O_ASYNC | nix::libc::O_NONBLOCK)?;
    set(nix::libc::F_SETFD, 0)?;
    Ok(())
}

/// How long a program that is open for writing is tried again (ETXTBSY, execve(2)): what was written here a moment ago, as
/// PostgreSQL's files at the first start, a child forked meanwhile has open until it executes its own program.
const BUSY: Duration = Duration::from_millis(50);

fn while_busy<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < BUSY => {}
            started => return started,
        }
    }
}

#[expect(unsafe_code, reason = "pre_exec: only async-signal-safe calls between fork and exec")]
fn start(
    command: &CommandLine,
    fds: &[InheritedFd],
    death: Option<Signal>,
    streams: Streams,
) -> io::Result<(std::process::Child, Child)> {
    let mut process = prepare(command);
    // What outlives Tandem on purpose carries no mark, not that of a Tandem around this one either.
    let mark = death.and_then(|death| mark::next(death != Signal::SIGKILL));
    match &mark {
        Some(mark) => process.env(mark::NAME, mark.to_string()),
        None if death.is_none() => process.env_remove(mark::NAME),
        None => &mut process,
    };
    process.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
    if death.is_some() {
        process.process_group(0);
    }
    let numbers: Vec<RawFd> = fds.iter().map(InheritedFd::number).collect();
    let kept = fds.to_vec();
    let handed = if streams.handed { handed::sealed() } else { Vec::new() };
    let (no_new_privs, many_files) = (command.no_new_privs, command.many_files);
    // A postmaster, which ends in an orderly way, ends its own children.
    let lifeline = if death == Some(Signal::SIGKILL) { Some(lifeline()?) } else { None };
    // Kept here too: the child may end before Tandem's files are closed, by its own death signal, and the group with it
    // would lose the only opening of the pipe that names it.
    let tie = lifeline.as_ref().map(OwnedFd::try_clone).transpose()?;
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and calls only prctl, getpid, getppid, setsid, sigprocmask, umask,
    // setrlimit and fcntl, all async-signal-safe; it allocates nothing. The descriptors outlive it: `kept` and `lifeline` move in.
    unsafe {
        process.pre_exec(move || {
            let _ = &kept;
            // Before Tandem's life is looked at for the last time, below.
            if let Some(lifeline) = &lifeline {
                tie_group(lifeline.as_raw_fd())?;
            }
            match death {
                // After the uid change, which clears it (prctl(2)).
                Some(death) => {
                    nix::sys::prctl::set_pdeathsig(death)?;
                    if getppid() != parent {
                        return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
                    }
                }
                None => {
                    nix::unistd::setsid()?;
                }
            }
            if no_new_privs {
                nix::sys::prctl::set_no_new_privs()?;
            }
            // Tandem's own blocked signals are not for the child.
            SigSet::empty().thread_set_mask()?;
            umask::restore();
            limits::restore(many_files);
            handed::unseal(&handed);
            for &number in &numbers {
                let fd = std::os::fd::BorrowedFd::borrow_raw(number);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    #[cfg(test)]
    let _forking = crate::forks::begin();
    let process = while_busy(|| process.spawn())?;
    let child = Child::spawned(process.id().cast_signed(), tie, mark);
    Ok((process, child))
}

/// Replace this process with `command` (execve(2)); returns only if that failed.
pub fn replace(command: &CommandLine) -> io::Error {
    // Tandem's own blocked signals are not for the new program.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return error.into();
    }
    umask::restore();
    limits::restore(command.many_files);
    handed::unseal(&handed::sealed());
    if command.no_new_privs
        && let Err(error) = nix::sys::prctl::set_no_new_privs()
    {
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
    for name in NOT_FOR_CHILDREN {
        process.env_remove(name);
    }
    // The command itself says where the child's database is; Tandem's own variables are for no child.
    for name in crate::config::names_kept_from_children(command.is_tandem) {
        process.env_remove(name);
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

/// The signal of a rung, as the kernel has it.
pub fn os_signal(signal: plan::Signal) -> Signal {
    match signal {
        plan::Signal::Retire => Signal::SIGWINCH,
        plan::Signal::Term => Signal::SIGTERM,
        plan::Signal::Interrupt => Signal::SIGINT,
        plan::Signal::Quit => Signal::SIGQUIT,
        plan::Signal::Abort => Signal::SIGABRT,
        plan::Signal::Kill => Signal::SIGKILL,
    }
}

/// Send `signal` to one child; one that was reaped already gets none, for its number may be another's by now.
pub fn signal(pid: i32, signal: Signal) {
    report(pid, signal, while_own(pid, || kill(Pid::from_raw(pid), signal)));
}

/// The process group of a process, if it is there (getpgid(2)).
pub fn group_of(pid: i32) -> Option<i32> {
    nix::unistd::getpgid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

/// Send `signal` to the whole process group that the child `group` leads. Once the child was reaped no signal is sent: the
/// group may be empty then, and its number another's.
pub fn signal_group(group: i32, signal: Signal) {
    report(group, signal, while_own(group, || killpg(Pid::from_raw(group), signal)));
}

fn report(pid: i32, signal: Signal, sent: Option<nix::Result<()>>) {
    if let Some(Err(error)) = sent
        && error != nix::errno::Errno::ESRCH
    {
        tracing::warn!(process.pid = pid, signal.name = %signal, %error, "send signal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_open_for_writing_is_tried_again_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        crate::forks::script(&program, "#!/bin/sh\nexit 7");
        let command = CommandLine::new(&program);
        let mut writer = Some(std::fs::OpenOptions::new().append(true).open(&program).unwrap());
        let refused = spawn_with(&command, Some(Signal::SIGKILL), Streams::none());
        assert_eq!(refused.err().map(|error| error.kind()), Some(io::ErrorKind::ExecutableFileBusy));
        let mut tried = 0;
        let mut started = while_busy(|| {
            tried += 1;
            if tried == 2 {
                writer = None;
            }
            prepare(&command).spawn()
        })
        .unwrap();
        assert_eq!(started.wait().unwrap().code(), Some(7));
        assert!(tried >= 2);
    }
}
