//! Tandem: PostgreSQL 16 and a Python ASGI backend as one process tree.

pub mod config;
pub mod exit;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod telemetry;
