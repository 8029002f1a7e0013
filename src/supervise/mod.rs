//! Supervision: keep each child as its plan says, boot in order, stop in the reverse order.
//!
//! [`state`] is one child, [`tree`] is all of them with the boot list; both are pure and know no clock but the `now`
//! they are handed. [`task`] is the loop that waits for an event, lets the tree decide, and has the actions carried out.

pub mod service;
#[cfg(test)]
mod simulation;
pub mod state;
pub mod task;
pub mod tree;
