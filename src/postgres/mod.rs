//! A PostgreSQL 16 cluster and its postmaster: where it lies, how it is made, configured, started, provisioned, probed.
//!
//! Must not know about workers: the database URL travels through `plan/`.

pub mod address;
pub mod adopt;
pub mod alter;
mod authority;
pub mod binaries;
pub mod checkpoint;
pub mod cluster;
mod cluster_processes;
pub mod collation;
pub mod conf;
pub mod data;
mod door;
pub mod embedded;
mod files;
mod full;
pub mod home;
pub mod initial;
pub mod lock;
pub mod log;
pub mod log_message;
pub mod lookup;
pub mod measure;
mod names;
mod pauses;
pub mod policy;
pub mod port;
pub mod probe;
pub mod provision;
pub mod rotation;
pub mod scram;
pub mod secret;
pub mod server;
pub mod service;
mod session;
pub mod settings;
pub mod shared_memory;
pub mod stale;
#[cfg(test)]
pub mod test_support;
pub mod tls;
pub mod tried;
pub mod trouble;

pub use files::{free_bytes, write_whole};
