//! What the looks found: facts without opinions. The judges read nothing else.

mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};

use crate::backup::doctor::{Disk, Finding as Room};
use crate::backup::retention::State;
use crate::config::Settings;
use crate::control::messages::Status;
use crate::exit::Reason;

pub use server::*;

/// Why something was not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// There is nothing to look at, for this reason: no server runs, nothing of the kind is configured.
    Nothing(String),
    /// It could not be looked at.
    Unknown(String),
}

impl Unseen {
    pub fn nothing(why: impl Into<String>) -> Self {
        Self::Nothing(why.into())
    }

    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown(why.into())
    }

    /// Why.
    pub fn words(self) -> String {
        match self {
            Self::Nothing(why) | Self::Unknown(why) => why,
        }
    }
}

/// What a look found, or why it found nothing.
pub type Look<T> = Result<T, Unseen>;

/// All that the judges know.
#[derive(Debug)]
pub struct Facts {
    pub now: DateTime<Utc>,
    /// Whether what takes long was looked at too.
    pub deep: bool,
    pub configuration: Configuration,
    pub settings: Look<Settings>,
    pub machine: Look<Machine>,
    pub ports: Look<Vec<PortUse>>,
    pub tandem: Look<Running>,
    pub owners: Look<Vec<Entry>>,
    pub data: Look<Data>,
    pub disks: Look<Vec<Disk>>,
    pub places: Look<Vec<FilePlace>>,
    pub room: Look<Vec<Room>>,
    pub recovery: Look<Vec<String>>,
    pub programs: Look<Programs>,
    pub python: Look<Python>,
    pub backups: Look<Backups>,
    pub copies: Look<Vec<Copies>>,
    pub wal: Look<Wal>,
    pub certificates: Look<Vec<Certificate>>,
    pub hba: Look<Vec<String>>,
    pub server: Look<Server>,
    pub caches: Look<Vec<OldCache>>,
}

/// What the configuration says about itself.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    pub directory: PathBuf,
    /// What is wrong with it.
    pub problems: Vec<Reason>,
    pub notices: Vec<String>,
    /// Whether there is a project here at all.
    pub is_project: bool,
}

/// The machine or the container.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Bytes that all of it may use: the machine's, or the control group's limit.
    pub memory: u64,
    pub memory_total: Option<u64>,
    pub swap_total: u64,
    pub swap_free: u64,
    /// Processes that the kernel killed for want of memory, in this control group or on this machine.
    pub oom_kills: u64,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`
    pub hugepages: Option<String>,
    /// Free and total bytes of /dev/shm; `None`: it is not there.
    pub shared_memory: Option<(u64, u64)>,
    /// How many files Tandem may open, and may raise that to.
    pub open_files: Limit,
    /// How large a file may get.
    pub file_size: Limit,
    /// The first port that needs no privilege.
    pub first_free_port: u16,
    pub is_root: bool,
    /// Whether a time service runs that has not set the clock.
    pub unsynchronised: bool,
    /// Of the newest file that Tandem wrote, if one is from the future.
    pub newest_file: Option<(PathBuf, SystemTime)>,
    pub local_time: LocalTime,
    pub system: String,
}

/// A limit of setrlimit(2); `None`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Where local time comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalTime {
    #[default]
    Usable,
    /// `/etc/localtime` leads nowhere.
    Dangling(PathBuf),
    /// There is no time zone database.
    NoZones,
}

/// A port that Tandem listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// The key that says it.
    pub key: &'static str,
    pub port: u16,
    /// Who listens there now.
    pub holder: Option<String>,
    /// Whether Tandem would take another one.
    pub moves: bool,
}

/// A Tandem that runs here, or another holder of what it needs.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// What it says, if one runs.
    pub status: Option<Result<Status, NoStatus>>,
    /// Who holds the state directory.
    pub holder: Option<String>,
    /// Who holds the data directory.
    pub data_holder: Option<String>,
    /// What `/health` complains of.
    pub reasons: Vec<String>,
}

/// Why a Tandem that runs says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoStatus {
    /// This user may not ask it.
    Refused(String),
    /// It does not answer.
    Silent(String),
}

impl Running {
    /// Whether a Tandem serves here, or something holds its state directory.
    pub fn is_there(&self) -> bool {
        self.status.is_some() || self.holder.is_some()
    }
}

/// A file or directory of Tandem's that must be private, or its owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub what: &'static str,
    pub mode: u32,
    pub uid: u32,
    /// The permission bits that it may have.
    pub allowed: u32,
    /// Who may own it; empty: anybody.
    pub owners: Vec<u32>,
    /// Whether it holds a secret.
    pub is_secret: bool,
}

/// The data directory.
#[derive(Clone, Debug, Default)]
pub struct Data {
    pub path: PathBuf,
    /// Whether there is a cluster; `Err`: why it must not be used.
    pub cluster: Option<Result<bool, String>>,
    /// What pg_controldata says, by its own names.
    pub control: Option<Result<BTreeMap<String, String>, String>>,
    pub pid_file: PidFile,
    /// Processes of PostgreSQL that work in it.
    pub processes: Vec<i32>,
    /// One of another container or namespace.
    pub foreign: Option<i32>,
    /// What ALTER SYSTEM has set that does not hold, or overrides the configuration.
    pub altered: Vec<String>,
    /// What pg_checksums found in a stopped cluster.
    pub checksums: Option<Result<String, String>>,
}

/// postmaster.pid
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PidFile {
    #[default]
    Absent,
    Whole,
    Damaged,
}

/// What a place is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlace {
    pub what: &'static str,
    pub path: PathBuf,
    /// As mount(8) names it, such as `ext4`.
    pub kind: String,
    pub read_only: bool,
    /// Files that can still be made there, and all; `None` where the file system has no such number.
    pub inodes: Option<(u64, u64)>,
}

/// PostgreSQL's programs.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    pub bin: PathBuf,
    pub version: String,
    /// Why they cannot run here.
    pub lacks: Option<String>,
    /// What modules lack.
    pub modules: Vec<String>,
}

/// The Python environment of the workers.
#[derive(Clone, Debug, Default)]
pub struct Python {
    pub interpreter: PathBuf,
    pub is_there: bool,
    /// Whether there is an environment yet.
    pub is_made: bool,
    /// The requirements that it was not made from; `Err`: they cannot be read.
    pub changed: Option<Result<PathBuf, String>>,
    pub uvicorn: Option<String>,
    /// Whether Tandem's own launcher runs the application.
    pub is_uvicorn: bool,
}

/// A backup in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFact {
    pub name: String,
    pub taken: DateTime<Utc>,
    pub state: State,
    pub database_bytes: Option<u64>,
}

/// The backups on this machine.
#[derive(Clone, Debug, Default)]
pub struct Backups {
    /// The oldest first.
    pub all: Vec<BackupFact>,
    /// How far apart two scheduled ones are; `None`: none are scheduled.
    pub period: Option<Duration>,
    /// Whether they are verified.
    pub proves: bool,
    /// Why the last run failed.
    pub failed: Option<String>,
    /// When the cluster was made.
    pub cluster_since: Option<DateTime<Utc>>,
    /// Free bytes of the data's disk.
    pub free: Option<u64>,
}

/// A destination of copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    pub destination: String,
    /// The newest whole one; `Err`: it cannot be reached.
    pub newest: Result<Option<DateTime<Utc>>, String>,
}

/// The archive of WAL.
#[derive(Clone, Debug, Default)]
pub struct Wal {
    pub waiting: u64,
    pub waiting_max: u64,
    pub failure: Option<String>,
    pub given_up: Option<String>,
    pub newest_base: Option<DateTime<Utc>>,
}

/// A certificate that somebody is served with.
#[derive(Clone, Debug, Default)]
pub struct Certificate {
    pub whose: &'static str,
    pub wrong: Vec<(String, String)>,
    pub not_after: Option<SystemTime>,
}

/// An old version's programs in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldCache {
    pub path: PathBuf,
    pub bytes: u64,
}

#[cfg(test)]
impl Facts {
    /// Facts of a look that saw nothing.
    pub fn unseen() -> Self {
        fn none<T>() -> Look<T> {
            Err(Unseen::nothing("this is a test"))
        }
        Self {
            now: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            deep: false,
            configuration: Configuration { is_project: true, ..Configuration::default() },
            settings: none(),
            machine: none(),
            ports: none(),
            tandem: none(),
            owners: none(),
            data: none(),
            disks: none(),
            places: none(),
            room: none(),
            recovery: none(),
            programs: none(),
            python: none(),
            backups: none(),
            copies: none(),
            wal: none(),
            certificates: none(),
            hba: none(),
            server: none(),
            caches: none(),
        }
    }

    /// Facts of a server that has these sessions.
    pub fn of_sessions(sessions: Vec<Session>) -> Self {
        fn none<T>() -> Look<T> {
            Err(Unseen::nothing("this is a test"))
        }
        let server = Server {
            door: Ok(()),
            is_own: true,
            clock: none(),
            connections: none(),
            sessions: Ok(sessions),
            prepared: none(),
            ages: none(),
            archiver: none(),
            slots: none(),
            settings: none(),
            pending: none(),
            invalid_indexes: none(),
            collations: none(),
            damaged_pages: none(),
            hba: none(),
            revisions: none(),
            damage: none(),
            replies_superuser: none(),
            kept: none(),
        };
        Self { server: Ok(server), ..Self::unseen() }
    }
}
