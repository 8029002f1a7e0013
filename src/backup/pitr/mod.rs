//! Point-in-time recovery: PostgreSQL's WAL, archived segment by segment, and base backups to begin from.
//!
//! ```text
//! wal          names and positions, pure
//! header       what a segment says of itself
//! compare      whether an archived file holds what another does
//! archive      the directory: push, fetch; whole or absent, never half; gaps: where its chain was given up
//! ahead        what one archive_command does, and what it does ahead of the next
//! notes        what is known of the archiving, in files beside the WAL
//! command      the command lines that PostgreSQL runs
//! backlog      whether archiving keeps up, and what follows when it does not
//! start        what a start of the server needs
//! file_list    PostgreSQL's own list of a backup's files, and whether they are these
//! bases        the base backups that there are
//! sender       the server, sending one
//! base         make one
//! expiry       which base backups and WAL may go, pure
//! marks        moments with a name; moments: what can be reached, and to where
//! timeline     how timelines came out of one another, pure
//! target       where a recovery is to end, and from which base backup it begins, pure
//! layout       a base backup as a data directory
//! recovery     a server that recovers and promotes itself
//! subscriptions    what replication loses by a restore to a moment
//! staging      the new data directory in the old one's place
//! to_moment    all of these; apart: the same beside the live cluster, for a dump of what was there
//! ack          where PostgreSQL waits for a destination
//! away         all of it in the destinations off the machine, and a restore from there
//! ```
//!
//! `archive`, `ahead` and `notes` run inside `tandem wal`, once a segment, as the server's user: they read no
//! configuration and need no runtime.

pub mod ack;
pub mod ahead;
pub mod apart;
pub mod archive;
pub mod away;
pub mod backlog;
pub mod base;
pub mod bases;
pub mod command;
mod compare;
pub mod expiry;
pub mod file_list;
mod gaps;
pub mod header;
mod histories;
pub mod layout;
pub mod live;
pub mod marks;
pub mod moments;
pub mod notes;
mod records;
pub mod recovery;
mod sender;
pub mod staging;
pub mod start;
pub mod subscriptions;
pub mod tablespaces;
pub mod target;
pub mod timeline;
pub mod to_moment;
pub mod wal;
mod way;

pub use start::{archive, archiving};
