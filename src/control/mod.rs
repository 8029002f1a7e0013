//! The control socket: a running Tandem answers its own user there, and takes orders from them.
//!
//! ```text
//! messages   what travels, as JSON
//! socket     the unix socket, which only its user and root can reach
//! server     HTTP on it; orders go to the supervisor as `Ask`s
//! client     the other side, which commands use
//! status     makes the answer of `GET /status` from a picture and the memory of its processes; pure
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
