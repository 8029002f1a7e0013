//! HTTP/1 over any stream, TCP or unix socket, with a limit on everything that the other side decides.
//!
//! ```text
//! server   answers on whatever listens: the health port, the control socket, the test harness's sockets
//! client   sends one request and reads its answer
//! ```
//!
//! Must not know what is asked or answered.

pub mod client;
pub mod server;

/// What an HTTP server counts of its own work. Workers report it, and the health report shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Requests answered since it started.
    pub requests: u64,
    /// Connections open now.
    pub connections: u64,
    /// Requests being answered now.
    pub in_flight: u64,
}
