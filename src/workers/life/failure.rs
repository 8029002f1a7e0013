//! Why a process failed or was replaced, in one of a few words: labels of `/metrics`.

use super::Life;
use crate::process::{Exit, oom};
use nix::sys::signal::Signal;

/// How a process failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    /// There was none.
    #[default]
    NotStarted,
    /// It ended by itself.
    Exit,
    Signal,
    /// The kernel ended it for want of memory.
    OutOfMemory,
    /// It said that the application cannot be imported or started.
    StartError,
    /// It was not ready within `workers.ready_limit`.
    NotReady,
    /// Its event loop stood still.
    Hung,
}

impl Failure {
    pub(super) fn of(exit: Exit) -> Self {
        match exit {
            Exit::Signal(signal) if signal == Signal::SIGKILL as i32 && oom::has_killed() => Self::OutOfMemory,
            Exit::Signal(_) => Self::Signal,
            Exit::Code(_) => Self::Exit,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::OutOfMemory => "out_of_memory",
            Self::StartError => "start_error",
            Self::NotReady => "not_ready",
            Self::Hung => "hung",
        }
    }
}

/// Why a worker is replaced, new before old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhyReplaced {
    /// All of them are: a reload, a deployment, a saved file.
    #[default]
    Reload,
    /// A person asked for this one.
    Restart,
    MaxRequests,
    MaxMemory,
    MaxAge,
}

impl WhyReplaced {
    pub fn word(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::MaxRequests => "max_requests",
            Self::MaxMemory => "max_memory",
            Self::MaxAge => "max_age",
        }
    }
}

impl Life {
    /// How the last process failed, if it did.
    pub fn failure(&self) -> Failure {
        self.0.previous.borrow().failure
    }

    /// Note why the process that is there now is replaced, for the log and for the metrics.
    pub fn note_replacement(&self, why: WhyReplaced, reason: String) {
        self.of_process(|process| (process.why_replaced, process.noted) = (why, Some(reason)));
    }

    /// Why the process that is there now is replaced.
    pub fn why_replaced(&self) -> WhyReplaced {
        self.of_process(|process| process.why_replaced).unwrap_or_default()
    }
}
