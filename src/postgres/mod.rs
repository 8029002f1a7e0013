//! A PostgreSQL 16 cluster and its postmaster.

pub mod binaries;
