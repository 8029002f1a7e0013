//! What the server answers.

use std::collections::BTreeMap;

use super::Look;
use crate::backup::doctor::Finding as Room;

/// What the server answers. Each question may fail by itself.
#[derive(Debug)]
pub struct Server {
    /// How the application's role got in.
    pub door: Result<(), Refused>,
    pub is_own: bool,
    pub clock: Look<f64>,
    pub connections: Look<Connections>,
    pub sessions: Look<Vec<Session>>,
    pub prepared: Look<Vec<String>>,
    pub ages: Look<Vec<Age>>,
    pub archiver: Look<Archiver>,
    pub slots: Look<Vec<Slot>>,
    pub settings: Look<BTreeMap<String, String>>,
    pub pending: Look<Vec<String>>,
    pub invalid_indexes: Look<Vec<String>>,
    pub collations: Look<Vec<String>>,
    pub damaged_pages: Look<i64>,
    pub hba: Look<Vec<String>>,
    pub revisions: Look<Revisions>,
    pub damage: Look<Damage>,
    pub replies_superuser: Look<bool>,
    pub kept: Look<Vec<Room>>,
}

/// Why the application's role did not get in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub sqlstate: Option<String>,
    pub why: String,
}

/// Connections of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    pub used: i64,
    /// Those that an ordinary role may have.
    pub max: i64,
}

/// A session that is worth a look: it waits, or has a transaction open for long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    pub pid: i32,
    pub role: String,
    pub application: String,
    pub state: String,
    /// Of its transaction, in seconds.
    pub age: f64,
    /// Since its state changed.
    pub idle: f64,
    /// Of its wait for a lock.
    pub waits: Option<f64>,
    pub blockers: Vec<i32>,
    /// The first words of its statement: its kind, no values.
    pub command: String,
}

/// How far a database is on the way to wraparound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Age {
    pub database: String,
    pub transactions: i64,
    pub multixacts: i64,
}

/// `pg_stat_archiver`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archiver {
    pub is_on: bool,
    pub is_failing: bool,
    pub last_failed: Option<String>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub is_active: bool,
    /// Bytes of WAL that it keeps.
    pub kept: i64,
    pub is_lost: bool,
}

/// The revisions of the schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// What the database is at.
    pub current: Vec<String>,
    /// What the code knows, and its heads; `None`: not known without running the tool.
    pub known: Option<(Vec<String>, Vec<String>)>,
    /// What is wrong, in the words of the built-in migrations.
    pub refused: Option<String>,
    pub pending: usize,
}

/// What a deep look at tables and indexes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    pub looked_at: usize,
    pub found: Vec<String>,
}
