//! What will happen, before it happens: commands, secrets and URLs, the connection budget, the stop ladder, restart
//! policy. Pure: no I/O, no clock.

mod command;
mod url;

pub use command::{CommandLine, Identity};
pub use url::{DatabaseUrl, InvalidUrl, Secret};
