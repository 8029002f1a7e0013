//! Backups that are proven to restore.
//!
//! ```text
//! name · manifest        what a backup is called, what is written down beside it (pure)
//! reach ─> census        the server; what it holds, in one snapshot; contents: sequences, digests of rows; reader: by which role
//!       ─> dump ─> pace ─> compress ─> files    that snapshot into a file that has its name only when it is whole
//! load <─ rights <─ verify    a file into an empty database, with few rights; and the proof, in a throwaway cluster;
//!                        differences: what is compared (pure)
//!                <─ restore ─> roles · swap     beside the live database, verified there, and put in its place; statistics
//! part                   some tables, a schema, or all of it as another database; only: what alone is wanted of a dump (pure)
//! database_level         what belongs to a database's name and is in no dump
//! feed ─> screen · tokens    the SQL on its way to psql; without the commands that are not pg_dump's (pure); existing: what the
//!                        server has of it already; pour: in a transaction that ends only when all of it was read
//! signature              who made a backup: manifests are signed, and what nobody here has signed is not trusted
//! replication            subscriptions and slots, which stay with the database that is replaced
//! copies ─> store · ledger   off the machine, checked after they went; sealed if asked for; which copies there are
//! import ─> repair           the old scripts' files, made into backups
//! catalog <─ retention     the directory of backups, and which of them may go (pure)
//! estimate               how large something becomes, for crate::room to ask whether it fits (pure)
//! pitr                   recovery to any moment: the WAL archive, base backups, retention, backlog, restore
//! doctor                 what of all this takes room and need not, and its removal
//! stand_back             the server's part of a backup waits for the processor behind the application
//! scheduled              what the schedule does in one go, and the record of it; webhook: who is told of a failure
//! ```
//!
//! Must not decide when: that is `plan::schedule`'s, or a person's.

pub mod catalog;
mod census;
pub mod compress;
mod contents;
pub mod copies;
mod database_level;
mod differences;
pub mod doctor;
pub mod dump;
mod estimate;
mod existing;
mod feed;
mod files;
pub mod import;
mod ledger;
pub mod load;
pub mod manifest;
pub mod name;
mod only;
mod pace;
pub mod part;
pub mod pitr;
mod pour;
pub mod reach;
mod reader;
pub mod repair;
pub mod replication;
pub mod restore;
mod restore_room;
pub mod retention;
mod rights;
mod roles;
pub mod scheduled;
mod screen;
pub mod signature;
mod stand_back;
mod statistics;
pub mod store;
pub mod swap;
mod tokens;
pub mod verify;
pub mod webhook;
