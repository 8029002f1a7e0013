//! `[backup]`: what is kept so that data can come back.

use std::path::PathBuf;
use std::time::Duration;

use super::values::Values;

/// `[backup]`
#[derive(Clone, Debug)]
pub struct Backup {
    pub pitr: Pitr,
}

/// `[backup.pitr]`: point-in-time recovery.
#[derive(Clone, Debug)]
pub struct Pitr {
    pub enabled: bool,
    /// Where the archive is; `None`: `pitr` in the state directory.
    pub dir: Option<PathBuf>,
    /// Bytes of WAL that may wait for the archive.
    pub max_backlog: u64,
    pub at_limit: AtLimit,
    /// How old the newest archived change may be while there are changes.
    pub archive_timeout: Duration,
    /// Base backups that are kept.
    pub base_backups: u32,
}

/// What follows when more WAL waits for the archive than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// An alarm; the disk goes on filling.
    Warn,
    /// The chain is given up, and the disk stays free: a new base backup begins another.
    GiveUp,
}

/// Read the section.
pub fn backup(values: &Values) -> Backup {
    Backup {
        pitr: Pitr {
            enabled: values.boolean("backup.pitr.enabled"),
            dir: values.path("backup.pitr.dir"),
            max_backlog: values.bytes("backup.pitr.max_backlog").unwrap_or_default(),
            at_limit: match values.word("backup.pitr.at_limit").as_str() {
                "give_up" => AtLimit::GiveUp,
                _ => AtLimit::Warn,
            },
            archive_timeout: values.duration("backup.pitr.archive_timeout"),
            base_backups: values.number("backup.pitr.base_backups"),
        },
    }
}
