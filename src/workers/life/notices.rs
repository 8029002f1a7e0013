//! What a process says of itself, and what becomes of it.

use std::rc::Rc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::notify::{Heard, Message, Notice, NotifySocket, StartErrorKind};
use super::{Kind, Life, Standing};
use crate::event_loop;
use crate::http::Counts;
use crate::metrics::names::{DRAINS_BEGUN, DRAINS_ENDED, REQUESTS};
use crate::metrics::registry;
use crate::process;
use crate::service::ProcessReporter;

/// How often one process may say that the application is not safe to fork.
const FORK_UNSAFE_MAX: usize = 16;

impl Life {
    /// Hear what the process `pid` says of itself, until this is aborted.
    pub(super) fn listen(self, pid: i32, notify: Rc<NotifySocket>) -> JoinHandle<()> {
        event_loop::spawn("a worker's notices", async move {
            let mut overrun = false;
            let name = self.0.name.clone();
            let on_heard = |heard| {
                if heard == Heard::Overrun && !std::mem::replace(&mut overrun, true) {
                    tracing::warn!(
                        { service.name = %name },
                        "something sends more notices in its name than are read: some may be lost, so its silence counts for \
                         nothing meanwhile"
                    );
                }
                self.hear(pid, heard);
            };
            notify.listen(&name, on_heard).await;
        })
    }

    /// Take what the socket of process `pid` brought.
    pub(super) fn hear(&self, pid: i32, heard: Heard) {
        if self.pid() != Some(pid) {
            return;
        }
        match heard {
            Heard::Notice(Notice { pid: sender, messages }) if self.may_speak(pid, sender) => {
                messages.into_iter().for_each(|message| self.understand(message));
            }
            Heard::Notice(_) => {}
            Heard::Overrun => self.forgive(),
        }
    }

    /// Whether process `sender` may speak for process `pid`: itself, and where that is another server, whatever is in its
    /// process group, for such a server's own children may do it.
    fn may_speak(&self, pid: i32, sender: i32) -> bool {
        let is_ours = self.of_process(|process| process.gate.is_some()) == Some(true);
        sender == pid || (!is_ours && process::group_of(sender) == Some(pid))
    }

    fn report(&self, what: impl FnOnce(&ProcessReporter)) {
        let reporter = self.of_process(|process| process.reporter.clone());
        if let Some(reporter) = reporter {
            what(&reporter);
        }
    }

    /// Keep what a process counted; a slot's requests go on being counted over its processes.
    fn take_counts(&self, counts: Counts) {
        let before = self.of_process(|process| process.counts.replace(counts)).flatten();
        if let Kind::Worker { slot, .. } = self.0.kind {
            let new = counts.requests.saturating_sub(before.map_or(0, |before| before.requests));
            registry().add(&REQUESTS, &[&slot.to_string()], new);
        }
    }

    fn understand(&self, message: Message) {
        match message {
            Message::Ready => self.report_ready(),
            Message::Watchdog => {
                self.of_process(|process| {
                    // Not armed before it is ready: an import may take its time.
                    if let Standing::Ready { heartbeat } | Standing::Retiring { heartbeat } = &mut process.standing {
                        *heartbeat = Some(Instant::now());
                    }
                });
            }
            Message::Counts(counts) => self.take_counts(counts),
            Message::Stopping => {
                // Our own launcher says more of it.
                let is_other = self.of_process(|process| process.gate.is_none()) == Some(true);
                if is_other {
                    self.report(ProcessReporter::closed);
                }
            }
            Message::Closed => {
                registry().count(&DRAINS_BEGUN, &[]);
                self.report(ProcessReporter::closed);
            }
            Message::Drained => {
                registry().count(&DRAINS_ENDED, &[]);
                // The application's own shutdown may hold up the event loop, and what comes after it has none.
                self.of_process(|process| {
                    (process.standing, process.unfinished) = (Standing::Leaving { was_ready: true }, None)
                });
                self.report(ProcessReporter::drained);
            }
            Message::Draining(unfinished) => drop(self.of_process(|process| process.unfinished = Some(unfinished))),
            Message::StartError(error) => {
                // An application that runs has been imported: one that says otherwise would have its worker given up.
                let is_starting = self.of_process(|process| matches!(process.standing, Standing::Starting));
                // One that could not be imported has said all there is.
                let mut previous = self.0.previous.borrow_mut();
                let known = previous.start_error.as_ref().map(|error| error.kind);
                if is_starting == Some(true)
                    && known.is_none_or(|known| known != StartErrorKind::Import && known != error.kind)
                {
                    self.0.roster.log_start_error(&error);
                    previous.start_error = Some(error);
                }
            }
            Message::ForkUnsafe(findings) => {
                let count = self.of_process(|process| {
                    process.unsafe_count += 1;
                    process.unsafe_count
                });
                if count.is_some_and(|count| count <= FORK_UNSAFE_MAX) {
                    tracing::warn!(
                        { service.name = %self.0.name },
                        "the application is not safe to fork: its import leaves behind {}. Workers share connections, and \
                         have none of the threads: open and start them in the application's startup (its lifespan)",
                        findings.join(", ")
                    );
                }
            }
        }
    }
}
