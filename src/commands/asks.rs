//! How a command that works for a while hears that it is to end.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C and SIGTERM of the process that waits or works.
pub struct Asks {
    interrupt: Signal,
    terminate: Signal,
}

impl Asks {
    /// Hear them from now on: neither ends the process by itself any more.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn open() -> anyhow::Result<Self> {
        let open = |kind| signal(kind).context("install signal handlers");
        Ok(Self { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())? })
    }

    /// Wait for the next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Wait until this command is asked to end; its work is dropped then, which cleans up. Where nothing can be heard, the signal
/// ends the process.
pub async fn asked_to_end() {
    match Asks::open() {
        Ok(mut asks) => asks.next().await,
        Err(_) => std::future::pending().await,
    }
}
