//! What will happen, before it happens: commands, secrets and URLs, the connection budget, the stop ladder, restart
//! policy. Pure: no I/O, no clock.

mod budget;
mod command;
mod ladder;
mod url;

pub use budget::{Budget, OverBudget};
pub use command::{CommandLine, Identity};
pub use ladder::{Rung, StopLadder};
pub use url::{DatabaseUrl, InvalidUrl, Secret};
