//! The keeper: a small process beside Tandem. When Tandem is killed, it ends what Tandem started.
//!
//! Tandem's children get a death signal (prctl(2), PR_SET_PDEATHSIG) and their groups a lifeline (see `spawn`). What left
//! its group and its session, or cleared its death signal, outlives both: nothing but a process can look for it. The
//! keeper waits for the end of a pipe whose other end Tandem alone has, and then kills what carries the run's mark, and
//! what it last saw below Tandem.
//!
//! As the first process of a container Tandem needs none: the kernel ends the others with it (pid_namespaces(7)).

use std::ffi::OsString;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;

use super::child::Child;
use super::mark::{self, Mark, RunId};
use super::orphans;
use super::spawn::{Streams, spawn_with};
use super::stranger::Identifier;
use crate::plan::CommandLine;

/// The first argument of the process. It is no subcommand of the command line: a keeper needs nothing that goes with one,
/// and takes the less memory for it.
const NAME: &str = "keeper";
/// How often it looks at what there is below Tandem, for descendants that do not carry the mark.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long it goes on ending what was left.
const LIMIT: Duration = Duration::from_secs(10);
/// How long Tandem waits for the end of a keeper that it dismisses.
const DISMISS_LIMIT: Duration = Duration::from_secs(1);
/// Before the next keeper is started where one was ended.
const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// The running keeper, from Tandem's side.
#[derive(Debug)]
pub struct Keeper {
    run: RunId,
    orders: PipeWriter,
    process: Child,
}

impl Keeper {
    /// Start one for `run`; `None` where none is needed.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(run: RunId) -> io::Result<Option<Self>> {
        if std::process::id() == 1 {
            return Ok(None);
        }
        let (orders, process) = spawn(&run)?;
        Ok(Some(Self { run, orders, process }))
    }

    /// Start another whenever it ends; never returns.
    pub async fn keep(&mut self) {
        loop {
            let exit = self.process.wait().await;
            tracing::debug!("the keeper ended: {exit}; another is started");
            tokio::time::sleep(REPLACE_AFTER).await;
            match spawn(&self.run) {
                Ok((orders, process)) => (self.orders, self.process) = (orders, process),
                Err(error) => tracing::warn!("start the keeper: {error}"),
            }
        }
    }

    /// Let it go: there is nothing left to end.
    pub async fn dismiss(mut self) {
        // It may have been killed.
        let _ = self.orders.write_all(b"done\n");
        let _ = tokio::time::timeout(DISMISS_LIMIT, self.process.wait()).await;
    }
}

fn spawn(run: &RunId) -> io::Result<(PipeWriter, Child)> {
    let (listens, orders) = io::pipe()?;
    // The running program, though another may lie at its path by now.
    let command = CommandLine::new("/proc/self/exe").arg(NAME).arg(run.to_string()).clean_env().dir("/");
    // Blocks: for nothing but fork(2): the program is in memory, the directory is the root.
    let process = spawn_with(&command, None, Streams::new(Stdio::from(listens), Stdio::null(), Stdio::null()))?;
    Ok((orders, process))
}

/// The run that a process with these arguments is the keeper of, if it is to be one.
pub fn asked_for(args: impl IntoIterator<Item = OsString>) -> Option<RunId> {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    let [name, run] = args.as_slice() else { return None };
    if name == NAME { RunId::parse(run.to_str()?) } else { None }
}

/// What the process does: wait for the end of Tandem, its parent, and end what it left.
pub fn main(run: &RunId) {
    // What asks Tandem for its end, a terminal or systemd, asks its whole group or control group.
    let _ = SigSet::all().thread_block();
    // Its name in lists of processes: `pkill tandem` is not to end it.
    let _ = nix::sys::prctl::set_name(c"keeper");
    let parent = nix::unistd::getppid().as_raw();
    let mut stdin = io::stdin().lock();
    let mut below = Vec::new();
    loop {
        let mut waiting = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::try_from(LOOK_AGAIN).unwrap_or(PollTimeout::NONE)) {
            Ok(0) => below = look(parent),
            Err(nix::errno::Errno::EINTR) => {}
            _ => break,
        }
    }
    // With a word it is dismissed; at the end of the pipe Tandem is gone.
    if !matches!(stdin.read(&mut [0; 16]), Ok(0)) {
        return;
    }
    let is_ours = |mark: &Mark| mark.run == *run;
    orphans::end_marked(is_ours, &below, LIMIT);
}

/// What there is below `parent` now and is to be ended with it.
fn look(parent: i32) -> Vec<Identifier> {
    let own = std::process::id().cast_signed();
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    // Parents come before their children.
    for stat in orphans::listed_below(parent).into_iter().filter(|stat| stat.pid != own) {
        let is_kept = kept.contains(&stat.ppid)
            || match mark::of(stat.pid) {
                Ok(mark) => mark.is_some_and(|mark| mark.orderly),
                // It may not be looked at: a server is not killed on a guess.
                Err(_) => stat.comm == "postgres",
            };
        if is_kept {
            kept.push(stat.pid);
        } else {
            found.push(Identifier::of(&stat));
        }
    }
    found
}
