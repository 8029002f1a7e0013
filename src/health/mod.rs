//! What the health port says, and to whom.
//!
//! Answers come from the last [`Picture`]; nothing here asks PostgreSQL or a worker anything, and nothing here changes
//! anything. No secret can be in an answer: a [`Picture`] has no field that could hold one.

pub mod backups;
pub mod client;
pub mod metrics;
pub mod picture;
pub mod report;
pub mod server;

pub use client::probe;
pub use picture::Picture;
pub use server::serve;
