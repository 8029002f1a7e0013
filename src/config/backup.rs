//! `[backup]`: its settings, and how they are built from values.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::{self, CLOUDS, Said};
use super::value::Room;
use super::values::Values;
use crate::plan::Secret;

/// What pg_dump writes (PostgreSQL documentation, pg_dump, `--format`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupFormat {
    /// SQL that `psql` reads.
    Plain,
    /// One file for `pg_restore`.
    Custom,
    /// A directory with a file for each table, for `pg_restore`.
    Directory,
}

/// How a backup is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The variables by which the places for copies are reached: addresses, proxies and keys. `Debug` shows no value.
#[derive(Clone, Default)]
pub struct CloudVariables(pub BTreeMap<String, String>);

impl CloudVariables {
    /// Tandem's `own` credentials and the cloud and proxy variables of `environment`. Later variables win.
    pub(super) fn of(own: &Said, environment: impl Iterator<Item = (String, String)>) -> Self {
        let about = |name: &str| {
            let name = name.to_uppercase();
            CLOUDS.iter().any(|(start, _)| name.starts_with(start)) || name.ends_with("_PROXY") || name == "HOME"
        };
        Self(credentials::together(own, environment.filter(|(name, _)| about(name))))
    }

    /// The values that are credentials.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(name, _)| credentials::lets_in(name)).map(|(_, value)| value.as_str())
    }
}

impl std::fmt::Debug for CloudVariables {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// What is called when a scheduled backup fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Program first.
    Command(Vec<String>),
    /// An http address that gets a POST. It may hold what lets one in.
    Webhook(Secret),
}

/// `[disk]`: free room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disk {
    /// Below this health degrades.
    pub warn_free: Room,
    /// A backup that would leave less is refused.
    pub stop_free: Room,
}

impl Disk {
    pub(super) fn of(values: &Values) -> Self {
        Self { warn_free: values.room("disk.warn_free"), stop_free: values.room("disk.stop_free") }
    }
}

/// When scheduled backups are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Each one.
    Always,
    /// Each one, with digests of the rows.
    Content,
    /// One a week.
    Weekly,
    Never,
}

/// How long backups stay; 0 is "no such limit" for the first two, and "none" for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub days: u32,
    pub count: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
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
    /// Days of which every moment can be reached, however many base backups that takes.
    pub keep_days: u32,
    /// Whether base backups and WAL go to the destinations too.
    pub copy: bool,
    pub ack: Ack,
    /// How long a destination may be behind before health degrades.
    pub behind_max: Duration,
}

/// When a file of WAL is archived, as PostgreSQL is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// When it is durable in the archive of this machine.
    Local,
    /// When a destination has it.
    Remote,
}

impl Pitr {
    fn of(values: &Values) -> Self {
        Self {
            enabled: values.boolean("backup.pitr.enabled"),
            dir: values.path("backup.pitr.dir"),
            max_backlog: values.bytes("backup.pitr.max_backlog").unwrap_or_default(),
            at_limit: match values.word("backup.pitr.at_limit").as_str() {
                "give_up" => AtLimit::GiveUp,
                _ => AtLimit::Warn,
            },
            archive_timeout: values.duration("backup.pitr.archive_timeout"),
            base_backups: values.number("backup.pitr.base_backups"),
            keep_days: values.number("backup.pitr.keep_days"),
            copy: values.boolean("backup.pitr.copy"),
            ack: match values.word("backup.pitr.ack").as_str() {
                "remote" => Ack::Remote,
                _ => Ack::Local,
            },
            behind_max: values.duration("backup.pitr.behind_max"),
        }
    }
}

/// What follows when more WAL waits for the archive than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtLimit {
    /// An alarm; the disk goes on filling.
    Warn,
    /// The chain is given up, and the disk stays free: a new base backup begins another.
    GiveUp,
}

/// `[backup]`
#[derive(Clone, Debug)]
pub struct Backup {
    pub pitr: Pitr,
    /// Where backups are kept; `None`: `backups` in the state directory.
    pub dir: Option<PathBuf>,
    pub format: BackupFormat,
    pub compression: Compression,
    /// How long a backup may take.
    pub limit: Duration,
    /// How far backups stand behind all else for the processor, as nice(1) counts.
    pub nice: u32,
    /// How many bytes a backup reads in a second, at most.
    pub rate: Option<u64>,
    /// Where each one is copied to, such as `s3://bucket/prefix`.
    pub destinations: Vec<String>,
    /// How long one that is out of reach is tried again.
    pub retry_limit: Duration,
    /// The age recipients that copies are encrypted for; empty: copies are not encrypted.
    pub encrypt_to: Vec<String>,
    /// The file with what opens sealed copies.
    pub identity_file: Option<PathBuf>,
    /// When `tandem up` takes one, as a cron expression; `None`: never.
    pub schedule: Option<String>,
    /// Of the schedule's hours: `local`, or a name of the tz database.
    pub time_zone: String,
    /// Each run begins up to so much later.
    pub jitter: Duration,
    /// Whether a run that was missed is made up for.
    pub catch_up: bool,
    /// How long after one that failed the next is tried; `None`: when it is scheduled.
    pub retry_after: Option<Duration>,
    /// What is called when a scheduled run fails.
    pub on_failure: Option<Alarm>,
    /// When the schedule verifies what it has taken.
    pub verify: Verify,
    /// How long backups stay.
    pub retention: Retention,
}

impl Backup {
    pub(super) fn of(values: &Values) -> Self {
        Self {
            pitr: Pitr::of(values),
            dir: values.path("backup.dir"),
            format: match values.word("backup.format").as_str() {
                "custom" => BackupFormat::Custom,
                "directory" => BackupFormat::Directory,
                _ => BackupFormat::Plain,
            },
            compression: match values.word("backup.compress").as_str() {
                "zstd" => Compression::Zstd,
                "none" => Compression::None,
                _ => Compression::Gzip,
            },
            limit: values.duration("backup.limit"),
            nice: values.number("backup.nice"),
            rate: values.bytes("backup.rate"),
            destinations: values.list("backup.destinations").unwrap_or_default(),
            retry_limit: values.duration("backup.retry_limit"),
            encrypt_to: values.list("backup.encrypt_to").unwrap_or_default(),
            identity_file: values.path("backup.identity_file"),
            schedule: Some(values.word("backup.schedule")).filter(|text| text != "never"),
            time_zone: values.word("backup.time_zone"),
            jitter: values.duration("backup.jitter"),
            catch_up: values.boolean("backup.catch_up"),
            retry_after: values.duration_or_never("backup.retry_after"),
            on_failure: match (values.list("backup.on_failure"), values.text("backup.on_failure")) {
                (Some(command), _) => Some(Alarm::Command(command)),
                (None, address) => address.map(|address| Alarm::Webhook(Secret::new(address))),
            },
            verify: match values.word("backup.verify").as_str() {
                "always" => Verify::Always,
                "content" => Verify::Content,
                "never" => Verify::Never,
                _ => Verify::Weekly,
            },
            retention: Retention {
                days: values.number("backup.retention_days"),
                count: values.number("backup.retention_count"),
                daily: values.number("backup.keep_daily"),
                weekly: values.number("backup.keep_weekly"),
                monthly: values.number("backup.keep_monthly"),
                yearly: values.number("backup.keep_yearly"),
            },
        }
    }
}
