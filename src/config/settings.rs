//! The typed settings: what every other room reads. Built once, by [`super::load`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::plan::{Budget, DatabaseUrl, Secret, StopLadder};

/// Everything the operator decided, or left to a default.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the deployment; the default is the name of its directory.
    pub name: String,
    /// Where the configuration lies; relative paths in it start here.
    pub directory: PathBuf,
    /// The configuration file, if one was found.
    pub file: Option<PathBuf>,
    /// Where Tandem keeps what it makes; `None` means `.tandem` beside the configuration, moved where the server's
    /// user cannot reach that (`postgres::home` decides).
    pub state_dir: Option<PathBuf>,
    /// PATH, where programs of the system are looked for.
    pub search_path: String,
    /// Where downloads and unpacked PostgreSQL versions are shared between projects.
    pub cache_dir: PathBuf,
    pub postgres: Postgres,
    pub migrations: Migrations,
    pub python: Python,
    pub workers: Workers,
    pub pool: Pool,
    pub health: Health,
    pub stop: Stop,
    pub log: Log,
}

impl Settings {
    /// The connection budget that these settings ask for.
    pub fn budget(&self) -> Budget {
        Budget {
            workers: self.workers.count,
            pool_size: self.pool.size,
            pool_overflow: self.pool.overflow,
            rolling: 1,
            reserved: self.postgres.reserved_connections,
            max_connections: self.postgres.max_connections,
        }
    }

    /// The rungs of an orderly stop.
    pub fn stop_ladder(&self) -> StopLadder {
        let server = (self.postgres.mode == PostgresMode::Managed).then_some(self.stop.postgres_grace);
        StopLadder::new(self.stop.drain_delay, self.stop.grace, server, self.stop.platform_grace)
    }
}

/// Whose PostgreSQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresMode {
    /// Tandem runs it.
    Managed,
    /// It runs elsewhere; `postgres.url` says where.
    Attach,
}

/// Where the PostgreSQL binaries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BinarySource {
    /// A system PostgreSQL 16, then the cached install, then the pinned package.
    Auto,
    /// Only a PostgreSQL 16 that the machine already has.
    System,
    /// The pinned package, through the user's pip or uv.
    Package,
    /// The theseus-rs releases that `postgresql_embedded` knows.
    Theseus,
    /// A directory with `bin/postgres` in it, or an archive (`.tar.gz`, `.whl`), with the archive's SHA-256 if given.
    Path(PathBuf, Option<String>),
}

/// A TCP port, and whether a person chose it (then a taken port is an error, not a reason to move).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub number: u16,
    pub chosen: bool,
}

/// `[postgres]`
#[derive(Clone, Debug)]
pub struct Postgres {
    pub mode: PostgresMode,
    /// The server to attach to (`mode = "attach"`).
    pub url: Option<DatabaseUrl>,
    pub source: BinarySource,
    pub listen: IpAddr,
    pub port: Port,
    /// The role the application connects as; owner of the database.
    pub user: String,
    /// `None`: Tandem makes one and keeps it in the state directory.
    pub password: Option<Secret>,
    pub database: String,
    /// As root: the user `postgres` runs as. `None`: `postgres`, then `nobody`, whichever exists.
    pub run_as: Option<String>,
    pub max_connections: u32,
    /// Connections kept back for people, backups and Tandem itself.
    pub reserved_connections: u32,
    /// Bytes. `None`: a quarter of the memory that this machine or container may use, within bounds.
    pub shared_buffers: Option<u64>,
    /// PostgreSQL's own settings, by their own names.
    pub settings: BTreeMap<String, String>,
    /// How long the server may take from spawn to its first answer.
    pub ready_limit: Duration,
    /// How old a health sample may be before a new one is taken.
    pub probe_interval: Duration,
    /// How long one probe may take before the server counts as hung.
    pub probe_deadline: Duration,
    /// How long the server may hang before it is ended and started again; `None`: never.
    pub hang_limit: Option<Duration>,
}

/// How the schema is brought to where the application needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationRun {
    /// The migrations compiled into this binary.
    SeaOrm,
    /// A command, such as `alembic upgrade head`, with `DATABASE_URL` set.
    Command(Vec<String>),
    None,
}

/// `[migrations]`
#[derive(Clone, Debug)]
pub struct Migrations {
    pub run: MigrationRun,
    /// How long to wait for another migrator to finish.
    pub lock_limit: Duration,
    /// How long the migrations may take in all.
    pub limit: Duration,
}

/// `[python]`
#[derive(Clone, Debug)]
pub struct Python {
    /// The interpreter that makes the environment: a name in PATH or a path.
    pub interpreter: String,
    /// What to install; `None`: nothing, the environment is used as it is.
    pub requirements: Option<PathBuf>,
    /// The virtual environment. `None`: `venv` in the state directory.
    pub venv: Option<PathBuf>,
    /// Whether Tandem makes and updates `venv`; if not, somebody else made it and it must not be touched.
    pub managed: bool,
    /// `auto`, `uv` or `pip`.
    pub installer: Installer,
    /// How long making the environment may take.
    pub limit: Duration,
}

/// What makes the Python environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installer {
    Auto,
    Uv,
    Pip,
}

/// `[workers]`
#[derive(Clone)]
pub struct Workers {
    /// The ASGI application, `module:attribute`.
    pub app: String,
    /// The directory that imports start from, and the workers' working directory.
    pub app_dir: PathBuf,
    pub count: u32,
    pub listen: SocketAddr,
    /// Length of the listening queue.
    pub backlog: u32,
    /// The scheme of the workers' `DATABASE_URL`.
    pub url_scheme: String,
    /// More environment for the workers: `.env`, then this.
    pub env: BTreeMap<String, String>,
    /// Modules imported while PostgreSQL starts; a missing one is passed over.
    pub preimport: Vec<String>,
    pub access_log: bool,
    /// Uvicorn's `loop`: `auto`, `asyncio` or `uvloop`.
    pub event_loop: String,
    /// As root: the user workers run as. `None`: `www-data` or `nobody` where they can reach the code, else root.
    pub run_as: Option<String>,
    /// How long a worker may take from its release to READY=1.
    pub ready_limit: Duration,
    /// How long a worker's event loop may say nothing before the worker counts as hung; `None`: never.
    pub watchdog: Option<Duration>,
    /// Restarts within `restart_period` that a slot may have before it gives up.
    pub restart_intensity: u32,
    pub restart_period: Duration,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

/// Leaves the environment out: it holds what `.env` holds, API keys and passwords.
impl std::fmt::Debug for Workers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.keys().collect();
        formatter
            .debug_struct("Workers")
            .field("app", &self.app)
            .field("count", &self.count)
            .field("listen", &self.listen)
            .field("env", &names)
            .finish_non_exhaustive()
    }
}

/// `[pool]`: SQLAlchemy's pool in each worker, and the connection budget's terms.
#[derive(Clone, Debug)]
pub struct Pool {
    pub size: u32,
    pub overflow: u32,
    pub recycle: Duration,
    pub timeout: Duration,
}

/// `[health]`
#[derive(Clone, Debug)]
pub struct Health {
    pub listen: SocketAddr,
    /// `/ready` needs at least this many ready workers.
    pub workers_min: u32,
}

/// `[stop]`: the limits of the stop ladder's rungs.
#[derive(Clone, Debug)]
pub struct Stop {
    /// How long to go on serving after readiness was withdrawn, so that load balancers look away.
    pub drain_delay: Duration,
    /// How long workers may finish what they have in flight after SIGTERM.
    pub grace: Duration,
    /// How long idle keep-alive connections are kept during the drain.
    pub idle_drain: Duration,
    /// How long PostgreSQL may take for a fast shutdown before the immediate one.
    pub postgres_grace: Duration,
    /// What the platform grants in all before it kills; longer ladders are named at start.
    pub platform_grace: Duration,
}

/// How output looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// Whether a terminal may be shown colours: not when NO_COLOR is set.
    pub colour: bool,
    pub format: LogFormat,
    /// A `tracing` filter, such as `info` or `tandem=debug`.
    pub filter: String,
}
