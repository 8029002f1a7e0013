//! Part of a backup beside what is live: some tables, a schema, or all of it as another database. Nothing live is changed.
//!
//! ```text
//! wish       what a person asks for, among what the backup holds (pure)
//! keys       the foreign keys that are left out with the tables that are not asked for (pure)
//! names      free names for what must be renamed (pure)
//! shape      in a scratch database: what is asked for, cut loose from the rest and under its new names
//! bring      from there into the live database, in one transaction
//! objects    large objects that the rows refer to
//! tables     all of these
//! beside     the whole backup as another database
//! ```

pub mod beside;
mod bring;
mod keys;
mod names;
mod objects;
mod shape;
pub mod tables;
pub mod wish;
