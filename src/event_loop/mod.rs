//! Keeps the event loop turning: what may block runs on another thread behind a limit, and what runs on the loop is timed.
//!
//! One thread answers the health port, reads signals, watches every child and decides. A call on that thread that waits
//! for a disk, a pipe, a resolver or `/proc` stops all of it at once. So such a call goes through [`within`] or
//! [`elsewhere`], and every task of the loop starts with [`spawn`], which measures how long each of its turns takes.
//!
//! `tests/it/tidy_blocking.rs` looks for blocking calls in the rooms that run on the loop.

mod aside;
mod meter;

pub use aside::{Call, Hangs, elsewhere, within};
pub use meter::{Measured, STALL, measure, measured, spawn, step, timed};
