//! Supervision: keep each child as its plan says, boot in order, put new in the place of old, stop in the reverse order.
//!
//! [`state`] and [`step`] are one child, [`tree`] is all of them with the boot list, [`roll`] puts new children in the
//! place of old ones while the tree serves; all are pure and know no clock but the `now` they are handed. [`task`] is the
//! loop that waits for an event, lets the tree decide, and has the actions carried out.

mod climb;
pub mod plan;
pub mod roll;
#[cfg(test)]
mod simulation;
pub mod state;
pub mod step;
pub mod task;
pub mod tree;
pub mod vocabulary;
