//! The text of a configuration for a project that has none yet, and what its code asks of its environment.
//!
//! ```text
//! names        which variables the code reads, and which of them lead to the database
//! draft        the text of a configuration (pure)
//! ```

pub mod draft;
pub mod names;
