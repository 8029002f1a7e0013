//! Backups: what is kept of a cluster outside its data directory.
//!
//! Must not know who asks for them, or when.

pub mod store;
