//! A child that has the terminal: the command of `tandem test`, such as a test run with a debugger in it.
//!
//! The child leads its own process group, so that signals reach all of it. The kernel must then be told that this group is
//! in the foreground: otherwise the child cannot read the terminal (SIGTTIN) and Ctrl-C does not reach it (tcsetpgrp(3)).

use std::io::{self, IsTerminal, Stdin};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use super::child::Child;
use super::spawn::{Streams, signal_group, spawn_with};
use crate::plan::CommandLine;

/// How the terminal was when Tandem was found to be in front of it.
static MODES: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether Tandem is in front of a terminal. What a child makes of it then, [`take_back`] mends.
pub fn has_terminal() -> bool {
    let stdin = io::stdin();
    let in_front = stdin.is_terminal() && tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
    if in_front && let Ok(modes) = tcgetattr(&stdin) {
        *MODES.lock().unwrap_or_else(PoisonError::into_inner) = Some(modes);
    }
    in_front
}

/// Take the terminal back from the process group of a child that ended in front of it, in the midst of a debugger's line.
pub fn take_back(group: i32) {
    let stdin = io::stdin();
    if let Some(modes) = &*MODES.lock().unwrap_or_else(PoisonError::into_inner)
        && tcgetpgrp(&stdin).is_ok_and(|front| front.as_raw() == group)
    {
        let _ = tcsetpgrp(&stdin, getpgrp());
        let _ = tcsetattr(&stdin, SetArg::TCSADRAIN, modes);
    }
}

/// The child, and the terminal that it got from us. Dropped, it gives the terminal back.
#[derive(Debug)]
pub struct Foreground {
    pub child: Child,
    terminal: Option<Stdin>,
}

/// Start `command` with Tandem's own standard streams, in front of the terminal if Tandem is; it dies with Tandem.
///
/// # Errors
/// As [`super::spawn()`].
pub fn spawn_foreground(command: &CommandLine) -> io::Result<Foreground> {
    let stdin = io::stdin();
    let in_front = stdin.is_terminal() && tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
    // Blocks: until the command runs, for which alone Tandem was started.
    let child = spawn_with(command, Some(Signal::SIGKILL), Streams::inherited())?;
    let foreground = Foreground { child, terminal: in_front.then_some(stdin) };
    foreground.bring_forward();
    Ok(foreground)
}

impl Foreground {
    /// Give it the terminal, and continue it if it was stopped because it asked for the terminal too early.
    fn bring_forward(&self) {
        let Some(terminal) = &self.terminal else { return };
        // From the background this raises SIGTTOU, which `signals::block` has blocked.
        let _ = tcsetpgrp(terminal, Pid::from_raw(self.child.pid()));
        signal_group(self.child.pid(), Signal::SIGCONT);
    }

    fn take_back(&self) {
        if let Some(terminal) = &self.terminal {
            let _ = tcsetpgrp(terminal, getpgrp());
        }
    }

    /// If it was stopped from the terminal (Ctrl-Z), stop too, as the shell expects; returns when both are continued.
    pub fn follow_stop(&self) {
        let look = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        let stopped = waitid(Id::Pid(Pid::from_raw(self.child.pid())), look);
        if self.terminal.is_none() || !matches!(stopped, Ok(WaitStatus::Stopped(..))) {
            return;
        }
        self.take_back();
        // All of our group stops: the shell waits for all of it.
        let _ = nix::sys::signal::raise(Signal::SIGSTOP);
        self.bring_forward();
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        self.take_back();
    }
}
