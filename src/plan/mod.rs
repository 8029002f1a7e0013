//! What will happen, before it happens: commands, secrets and URLs, the connection budget, the stop ladder, restart
//! policy. Pure: no I/O, no clock.

mod budget;
mod command;
pub mod deployment;
pub mod ladder;
pub mod libpq;
mod place;
pub mod schedule;
mod url;

pub use ::supervise::policy::{KILL_AGAIN, KILL_GRACE, Ladder, Policy, Rung, STARVED_PAUSE, Signal};
pub use budget::{Budget, OverBudget};
pub use command::{CommandLine, Identity, in_one_line};
pub use ladder::{StopLadder, StopTerm};
pub use place::{Place, SOCKET_PATH_MAX};
pub use url::{DatabaseUrl, InvalidUrl, Secret};
