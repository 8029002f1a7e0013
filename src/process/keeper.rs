//! The keeper: a small process beside Tandem. When Tandem is killed, it ends what Tandem started.
//!
//! Tandem's children get a death signal (prctl(2), PR_SET_PDEATHSIG) and their groups a lifeline (see `spawn`). What left
//! its group and its session, or cleared its death signal, outlives both: nothing but a process can look for it. The
//! keeper waits for the end of a pipe whose other end Tandem alone has, and then kills what carries the run's mark, and
//! what it last saw below Tandem. A server of PostgreSQL ends by the rungs of its own stop (see `orderly`).
//!
//! As the first process of a container Tandem needs none: the kernel ends the others with it (pid_namespaces(7)).

use std::ffi::OsString;
use std::io::{self, PipeWriter, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use tokio::sync::watch;

use super::child::Child;
use super::mark::{self, RunId};
use super::spawn::{Streams, spawn_with};
use super::stranger::Identifier;
use super::{orderly, orphans};
use crate::plan::{CommandLine, Rung};

/// The first argument of the process. It is no subcommand of the command line: a keeper needs nothing that goes with one,
/// and takes the less memory for it.
const NAME: &str = "keeper";
/// How often it looks at what there is below Tandem, for descendants that do not carry the mark.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long it goes on ending what was left.
const LIMIT: Duration = Duration::from_secs(10);
/// How long Tandem waits for the end of a keeper that it dismisses.
pub const DISMISS_LIMIT: Duration = Duration::from_secs(1);
/// The word that dismisses it.
const DONE: &str = "done";
/// Before the next keeper is started where one was ended.
const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// How the server of the run is to end when Tandem was killed: the rungs of its stop, as they are now.
pub type ServerEnd = watch::Receiver<Vec<Rung>>;

/// The running keeper, from Tandem's side.
#[derive(Debug)]
pub struct Keeper {
    run: RunId,
    end: ServerEnd,
    orders: PipeWriter,
    process: Child,
}

impl Keeper {
    /// Start one for `run`; `None` where none is needed.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(run: RunId, mut end: ServerEnd) -> io::Result<Option<Self>> {
        if std::process::id() == 1 {
            return Ok(None);
        }
        let (orders, process) = spawn(&run, &end.borrow_and_update())?;
        Ok(Some(Self { run, end, orders, process }))
    }

    /// Start another whenever it ends, and tell it of new rungs; never returns.
    pub async fn keep(&mut self) {
        loop {
            tokio::select! {
                exit = self.process.wait() => {
                    tracing::debug!("the keeper ended: {exit}; another is started");
                    tokio::time::sleep(REPLACE_AFTER).await;
                    let rungs = self.end.borrow_and_update().clone();
                    match spawn(&self.run, &rungs) {
                        Ok((orders, process)) => (self.orders, self.process) = (orders, process),
                        Err(error) => tracing::warn!("start the keeper: {error}"),
                    }
                }
                Ok(()) = self.end.changed() => {
                    let rungs = orderly::to_words(&self.end.borrow_and_update());
                    // It may have been killed: then the next one is started with them.
                    let _ = writeln!(self.orders, "{rungs}");
                }
            }
        }
    }

    /// Let it go: there is nothing left to end.
    pub async fn dismiss(mut self) {
        // It may have been killed.
        let _ = writeln!(self.orders, "{DONE}");
        let _ = tokio::time::timeout(DISMISS_LIMIT, self.process.wait()).await;
    }
}

fn spawn(run: &RunId, rungs: &[Rung]) -> io::Result<(PipeWriter, Child)> {
    let (listens, orders) = io::pipe()?;
    // A keeper that is stopped reads nothing, and must not hold up Tandem.
    fcntl(&orders, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // The running program, though another may lie at its path by now.
    let command = CommandLine::new("/proc/self/exe").arg(NAME).arg(run.to_string()).arg(orderly::to_words(rungs));
    let command = command.clean_env().dir("/");
    // Blocks: for nothing but fork(2): the program is in memory, the directory is the root.
    let process = spawn_with(&command, None, Streams::new(Stdio::from(listens), Stdio::null(), Stdio::null()))?;
    Ok((orders, process))
}

/// What a keeper is started for.
#[derive(Debug, PartialEq, Eq)]
pub struct Duty {
    run: RunId,
    /// How the run's server ends.
    rungs: Vec<Rung>,
}

/// The duty that these arguments give a process, if it is to be a keeper.
pub fn asked_for(args: impl IntoIterator<Item = OsString>) -> Option<Duty> {
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    let [name, run, rungs] = args.as_slice() else { return None };
    let duty = || Some(Duty { run: RunId::parse(run.to_str()?)?, rungs: orderly::of_words(rungs.to_str()?)? });
    if name == NAME { duty() } else { None }
}

/// What the process does: wait for the end of Tandem, its parent, and end what it left.
pub fn main(duty: Duty) {
    // What asks Tandem for its end, a terminal or systemd, asks its whole group or control group.
    let _ = SigSet::all().thread_block();
    // Its name in lists of processes: `pkill tandem` is not to end it.
    let _ = nix::sys::prctl::set_name(c"keeper");
    let Duty { run, mut rungs } = duty;
    let parent = nix::unistd::getppid().as_raw();
    let mut seen = Seen::default();
    loop {
        match hear(&mut rungs) {
            Heard::Nothing => seen = Seen::below(parent),
            Heard::Something => {}
            Heard::Dismissed => return,
            Heard::End => break,
        }
    }
    let began = Instant::now();
    orphans::end_marked(|mark| mark.run == run, |mark, _| mark.orderly, &seen.others, LIMIT);
    orderly::end(&run, seen.orderly, &rungs, began);
}

/// What the pipe from Tandem brought.
enum Heard {
    /// Nothing for a while.
    Nothing,
    Something,
    /// There is nothing to end.
    Dismissed,
    /// Its end: Tandem is gone.
    End,
}

/// Wait for what Tandem has to say; other `rungs` replace those that there are.
fn hear(rungs: &mut Vec<Rung>) -> Heard {
    // Blocks: the keeper, which has nothing else to do.
    let stdin = io::stdin();
    let mut waiting = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut waiting, PollTimeout::try_from(LOOK_AGAIN).unwrap_or(PollTimeout::NONE)) {
        Ok(0) => return Heard::Nothing,
        Err(Errno::EINTR) => return Heard::Something,
        _ => {}
    }
    // A line is written in one piece, as it is shorter than a pipe takes at once (pipe(7), PIPE_BUF).
    let mut piece = [0; 4096];
    let length = match nix::unistd::read(&stdin, &mut piece) {
        Ok(0) => return Heard::End,
        Ok(length) => length,
        Err(Errno::EINTR) => return Heard::Something,
        Err(_) => return Heard::Dismissed,
    };
    for line in String::from_utf8_lossy(&piece[..length]).lines() {
        match orderly::of_words(line) {
            _ if line == DONE => return Heard::Dismissed,
            Some(others) => *rungs = others,
            None => {}
        }
    }
    Heard::Something
}

/// What there was below Tandem, when it was last looked at.
#[derive(Default)]
struct Seen {
    /// A server of PostgreSQL with all that is below it: it ends in its own way.
    orderly: Vec<Identifier>,
    /// What is ended with Tandem.
    others: Vec<Identifier>,
}

impl Seen {
    fn below(parent: i32) -> Self {
        let own = std::process::id().cast_signed();
        let mut seen = Self::default();
        // Parents come before their children.
        for stat in orphans::listed_below(parent).into_iter().filter(|stat| stat.pid != own) {
            let is_orderly = seen.orderly.iter().any(|id| id.pid == stat.ppid)
                || match mark::of(stat.pid) {
                    Ok(mark) => mark.is_some_and(|mark| mark.orderly),
                    // It may not be looked at: a server is not killed on a guess.
                    Err(_) => stat.comm == orphans::SERVER,
                };
            let kind = if is_orderly { &mut seen.orderly } else { &mut seen.others };
            kind.push(Identifier::of(&stat));
        }
        seen
    }
}
