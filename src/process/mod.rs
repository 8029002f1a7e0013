//! The only door to OS processes: spawn, run to the end, read output, change identity, find orphans.
//!
//! Must not decide anything: what to run is `plan/`'s, when to restart is `supervise/`'s.

pub mod identity;
pub mod memory;
pub mod orphans;
pub mod ports;
mod run;
mod spawn;
mod wait;

pub use run::{Finished, RunError, run, run_with};
pub use spawn::{Child, Exit, InheritedFd, Output, lines, replace, signal, signal_group, spawn};
pub use wait::ended;
