//! HTTP/1 over any stream, TCP or unix socket, with a limit on everything that the other side decides.
//!
//! ```text
//! server   answers on whatever listens: the health port, the control socket, the test harness's sockets
//! client   sends one request and reads its answer
//! parts    a body whose bytes are shared by all who read it
//! ```
//!
//! Must not know what is asked or answered.

pub mod client;
pub mod parts;
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
    /// The longest that its event loop was late since the report before, in whole milliseconds. `None`: it does not measure
    /// that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loop_lag_ms: Option<u64>,
}

/// What an HTTP server that accepts no more has still to finish.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unfinished {
    /// Requests without an answer, and what runs after an answer.
    pub requests: u64,
    /// WebSockets and event streams.
    pub streams: u64,
    /// Connections that wait for a request.
    pub idle: u64,
    /// Some of the requests and streams, such as `GET /export`.
    pub on: Vec<String>,
}
