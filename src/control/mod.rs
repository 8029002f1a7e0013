//! The control socket: what a running Tandem tells its own user, and what it lets that user change.
//!
//! ```text
//! messages   what travels, as JSON
//! server     HTTP on a unix socket that only its user and root can reach; orders go to the supervisor as `Ask`s
//! client     the other side, for commands
//! status     from a picture and the memory of its processes to the answer of `GET /status`; pure
//! ```
//!
//! Must not decide anything about services: it carries orders to the supervisor, and answers back.

pub mod client;
pub mod messages;
pub mod server;
pub mod socket;
pub mod status;

pub use messages::{Answer, Ask, Order, ScaleTo};
pub use server::serve;
pub use socket::{ControlSocket, open};
