//! Tandem: PostgreSQL 16 and a Python ASGI backend as one process tree.

pub mod cli;
pub mod commands;
pub mod config;
pub mod exit;
pub mod health;
pub mod install;
pub mod phase;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod schema;
pub mod sidecar;
pub mod signals;
pub mod supervise;
pub mod telemetry;
pub mod workers;
