//! What the integration tests share; the benchmarks use parts of it.

#![allow(dead_code, reason = "each benchmark compiles this, and none uses all of it")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

pub mod alembic;
pub mod alone;
pub mod backups;
pub mod bare;
pub mod certificates;
pub mod control;
pub mod deployed;
pub mod doctor;
pub mod exchange;
pub mod hang;
pub mod harness;
pub mod leftovers;
pub mod namespace;
pub mod pitr;
pub mod plain;
pub mod ports;
pub mod power_cut;
pub mod project;
pub mod python;
pub mod quota;
pub mod readiness;
pub mod refusal;
pub mod scraped;
pub mod server;
pub mod skip;
pub mod small_disk;
pub mod strict;
pub mod system_calls;
pub mod tandem;
pub mod watchdog;
pub mod worker;
