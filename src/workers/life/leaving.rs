//! How a process leaves: what it is told, and what it has still to finish.

use std::time::Duration;

use super::super::notify::WorkerOrder;
use super::{Life, Standing};
use crate::http::Unfinished;
use crate::plan::Signal;

impl Life {
    /// Note that the process was told to leave by `signal`, and return its pid.
    pub(super) fn is_to_leave(&self, signal: Signal) -> Option<i32> {
        self.of_process(|process| {
            process.standing = match process.standing {
                Standing::Ready { heartbeat } if signal == Signal::Retire => Standing::Retiring { heartbeat },
                standing @ (Standing::Starting
                | Standing::Ready { .. }
                | Standing::Hung
                | Standing::Retiring { .. }
                | Standing::Leaving { .. }) => Standing::Leaving { was_ready: !standing.is_start() },
            };
            process.pid
        })
    }

    /// Say on Tandem's own channel what `signal` means: the application may have taken the signal.
    pub(super) fn order(&self, signal: Signal) {
        let order = match signal {
            Signal::Retire => WorkerOrder::Retire,
            Signal::Term => WorkerOrder::Stop,
            Signal::Interrupt | Signal::Quit | Signal::Abort | Signal::Kill => return,
        };
        self.of_process(|process| {
            // Another server knows no such word.
            if let (Some(_), Some(notify)) = (&process.gate, &process.notify) {
                notify.order(order);
            }
        });
    }

    /// It did not say within `limit` that it accepts no more.
    pub(super) fn log_unheard(&self, pid: i32, limit: Duration) {
        let says_so = self.of_process(|process| process.gate.is_some()).unwrap_or_default();
        if says_so {
            tracing::warn!(
                { service.name = %self.name(), process.pid = pid },
                "the old process {pid} did not say within {limit:?} that it accepts no more connections (does something block \
                 its event loop?): it may still answer with the old code"
            );
        }
    }

    /// Whether the process was replaced and finishes what it has.
    pub fn is_retiring(&self) -> bool {
        self.of_process(|process| matches!(process.standing, Standing::Retiring { .. })).unwrap_or_default()
    }

    /// What the process has still to finish, once it accepts no more.
    pub fn unfinished(&self) -> Option<Unfinished> {
        self.of_process(|process| process.unfinished.clone()).flatten()
    }
}
