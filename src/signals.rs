//! The signals Tandem itself gets, as a stream of words.

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM (Docker, Kubernetes, systemd), SIGINT (Ctrl-C), SIGHUP (the terminal is gone).
    Stop,
    /// SIGCHLD: a child, ours or adopted, has ended.
    Reap,
}

/// The stream of signals. Made before the first child, so that no signal is missed.
pub struct Inbox(Signals);

impl Inbox {
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn open() -> std::io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?))
    }

    /// The next request.
    pub async fn next(&mut self) -> Asked {
        let signal = std::future::poll_fn(|context| {
            let stream = std::pin::Pin::new(&mut self.0);
            futures_core::Stream::poll_next(stream, context)
        })
        .await;
        match signal {
            Some(SIGCHLD) => Asked::Reap,
            Some(_) => Asked::Stop,
            None => std::future::pending().await,
        }
    }
}
