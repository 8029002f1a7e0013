//! Supervision: keep each child as its plan says, boot in order, put new in the place of old, stop in the reverse order.
//!
//! Pure: no I/O, and no clock but the `now` that it is handed. It is a crate of its own, so that nothing of Tandem's other
//! rooms can get in, and so that the simulation runs optimised.
//!
//! [`policy`] says how one child is kept, [`state`] and [`step`] are one child, [`tree`] is all of them with the boot list,
//! [`roll`] puts new children in the place of old ones while the tree serves.

mod climb;
mod leave;
pub mod plan;
pub mod policy;
pub mod roll;
#[cfg(test)]
mod simulation;
pub mod state;
pub mod step;
pub mod tree;
pub mod vocabulary;
