//! Point-in-time recovery: PostgreSQL's WAL, archived segment by segment, and base backups to begin from.
//!
//! ```text
//! wal          names and positions, pure
//! archive      the directory: push, fetch; whole or absent, never half
//! ahead        what one archive_command does, and what it does ahead of the next
//! command      the command lines that PostgreSQL runs
//! notes        what is known of the archiving, in files beside the WAL
//! ```
//!
//! `archive`, `ahead` and `notes` run inside `tandem wal`, once a segment, as the server's user: they read no
//! configuration and need no runtime.

pub mod ahead;
pub mod archive;
pub mod command;
pub mod notes;
pub mod wal;
