//! A process that is no child of ours, held so that nothing is sent to another one of its number.

use std::os::fd::OwnedFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd;
use procfs::process::{Process, Stat};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::child::os_pid;

/// A process, told from a later one of the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identifier {
    pub pid: i32,
    /// In clock ticks since the machine's boot.
    pub start: u64,
}

impl Identifier {
    /// Of the process that `stat` shows.
    pub fn of(stat: &Stat) -> Self {
        Self { pid: stat.pid, start: stat.starttime }
    }

    /// The process `pid`, if there is one that has not ended.
    pub fn look_up(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).ok()?.stat().ok()?;
        (!matches!(stat.state, 'Z' | 'X')).then(|| Self::of(&stat))
    }
}

/// A process that was there when it was taken hold of.
#[derive(Debug)]
pub struct Stranger {
    id: Identifier,
    /// `None` where the kernel has no such descriptors (before Linux 5.3).
    pidfd: Option<OwnedFd>,
}

impl Stranger {
    /// Take hold of the process `pid`; whatever is asked of that number afterwards is about this one for as long as
    /// [`Stranger::is_there`] says so. `None` when there is none.
    pub fn hold(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(os_pid(pid)?, PidfdFlags::empty()).ok();
        Some(Self { id: Identifier::look_up(pid)?, pidfd })
    }

    /// As [`Stranger::hold`], for the very process `id`.
    pub fn hold_this(id: Identifier) -> Option<Self> {
        Self::hold(id.pid).filter(|held| held.id == id)
    }

    pub fn pid(&self) -> i32 {
        self.id.pid
    }

    /// Whether it lives still, and the number is its own.
    pub fn is_there(&self) -> bool {
        Identifier::look_up(self.id.pid) == Some(self.id)
    }

    /// Send `signal`; a process that is gone already gets none.
    pub fn signal(&self, signal: Signal) {
        let pid = self.id.pid;
        let sent = match &self.pidfd {
            Some(pidfd) => match rustix::process::Signal::from_named_raw(signal as i32) {
                Some(number) => pidfd_send_signal(pidfd, number).map_err(std::io::Error::from),
                None => return,
            },
            None if self.is_there() => kill(unistd::Pid::from_raw(pid), signal).map_err(std::io::Error::from),
            None => return,
        };
        match sent {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => {
                tracing::warn!(process.pid = pid, signal.name = %signal, %error, "send signal");
            }
            _ => {}
        }
    }
}
