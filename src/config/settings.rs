//! The typed settings: what every other room reads. Built once, by [`super::load`].

mod choices;
mod hooks;
mod migrations;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::backup::{Backup, CloudVariables, Disk};
use super::drop_env::DropEnv;
use super::serving::Serving;
use super::tls::PostgresTls;
use crate::plan::{DatabaseUrl, Place, Secret};
use crate::project::{Found, Wanted};

pub use choices::*;
pub use hooks::*;
pub use migrations::*;

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
    pub metrics: Metrics,
    pub stop: Stop,
    pub hooks: Hooks,
    /// `[[process]]`, in the order of the file.
    pub processes: Vec<ProcessSettings>,
    pub backup: Backup,
    /// Restored at the start when the database is empty: `latest`, a name, a path or an address.
    pub restore_if_empty: Option<String>,
    /// The locale of the databases that restores make, instead of the backup's.
    pub restore_locale: Option<String>,
    /// Whether backups are restored that no key of this deployment has signed.
    pub restore_trust: bool,
    pub cloud_variables: CloudVariables,
    /// Why what lets into the places for copies cannot be used: copies to a cloud fail for it.
    pub credentials_refused: Option<String>,
    pub inherited: Inherited,
    pub disk: Disk,
    /// Bytes of memory that all of it may use: the machine's, or the container's limit.
    pub memory: u64,
    pub test: Test,
    pub log: Log,
}

/// Tandem's own environment, which its children inherit, libpq's variables excepted. `Debug` shows no value.
#[derive(Clone, Default)]
pub struct Inherited(pub BTreeMap<String, String>);

impl std::fmt::Debug for Inherited {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// Which PostgreSQL server is used.
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
    /// The scheme of the database URL that was written, whatever became of its server; it may name a driver.
    pub scheme: Option<String>,
    /// What to do where the name of the server to attach to does not resolve; `None` for an address.
    pub unresolved_help: Option<String>,
    pub source: BinarySource,
    pub listen: IpAddr,
    pub port: Port,
    pub tls: PostgresTls,
    /// The role the application connects as; owner of the database.
    pub user: String,
    /// `None`: Tandem makes one and keeps it in the state directory.
    pub password: Option<Secret>,
    pub database: String,
    /// As root: the user `postgres` runs as. `None`: `postgres`, then `nobody`, whichever exists.
    pub run_as: Option<String>,
    pub max_connections: u32,
    /// Whether that number follows from the pools (`"auto"`).
    pub max_connections_auto: bool,
    /// Connections kept back for people, backups and Tandem itself.
    pub reserved_connections: u32,
    /// Bytes. `None`: a quarter of the memory that this machine or container may use, within bounds.
    pub shared_buffers: Option<u64>,
    /// From which duration on a statement is in the server's log; `None`: none is.
    pub slow_query: Option<Duration>,
    /// Whether the application's role sees what all sessions do (`pg_read_all_stats`).
    pub read_all_stats: bool,
    /// More options of initdb's, for a new cluster.
    pub initdb_args: Vec<String>,
    /// The directory of the scripts that run once in a new cluster; `None`: there are none.
    pub init_scripts: Option<PathBuf>,
    /// How long one of them may take.
    pub init_limit: Duration,
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

/// `[python]`
#[derive(Clone, Debug)]
pub struct Python {
    /// The interpreter that makes the environment: a name in PATH or a path.
    pub interpreter: String,
    /// What to install; `None`: nothing, the environment is used as it is.
    pub requirements: Option<PathBuf>,
    /// Which dependency groups of a `uv.lock` or `pyproject.toml` are installed too.
    pub groups: Vec<String>,
    /// Which of its extras (`[project.optional-dependencies]`) are.
    pub extras: Vec<String>,
    /// The virtual environment. `None`: `venv` in the state directory.
    pub venv: Option<PathBuf>,
    /// Whether Tandem makes and updates `venv`. If not, Tandem only uses it.
    pub managed: bool,
    /// `auto`, `uv` or `pip`.
    pub installer: Installer,
    /// How long making the environment may take.
    pub limit: Duration,
    /// The Python that the project asks for, where nobody wrote `interpreter`.
    pub wanted: Option<Found<Wanted>>,
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
    /// The ASGI application, `module:attribute`; may be empty when there is a `command`.
    pub app: String,
    /// The directory that imports start from.
    pub app_dir: PathBuf,
    /// The working directory; `None`: the project's ([`Settings::work_dir`]).
    pub dir: Option<PathBuf>,
    pub count: u32,
    pub listen: Vec<Place>,
    pub serving: Serving,
    /// Length of the listening queue.
    pub backlog: u32,
    /// The scheme of the workers' `DATABASE_URL`; `auto`: what the Python environment has a driver for.
    pub url_scheme: String,
    /// More environment for the workers: `.env`, then `[workers.env]`. What refers to the server is marked in it
    /// ([`super::references`]).
    pub env: BTreeMap<String, String>,
    /// Variables that no child gets.
    pub drop_env: DropEnv,
    /// Whether children are kept from gaining rights (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// Modules imported while PostgreSQL starts; a missing one is passed over.
    pub preimport: Vec<String>,
    pub access_log: bool,
    /// Uvicorn's `loop`: `auto`, `asyncio` or `uvloop`.
    pub event_loop: String,
    /// As root: the user workers run as. `None`: `www-data` or `nobody` where they can reach the code, else root.
    pub run_as: Option<String>,
    /// Whether `app` is called for the application.
    pub factory: Factory,
    /// `auto`, `on` or `off`.
    pub lifespan: String,
    /// `auto`, `asgi3`, `asgi2` or `wsgi`.
    pub interface: String,
    /// The path at which a worker must answer before it is let at the socket.
    pub check: Option<String>,
    /// How long a worker may take from its release to READY=1.
    pub ready_limit: Duration,
    /// How long a worker's event loop may say nothing before the worker counts as hung; `None`: never.
    pub watchdog: Option<Duration>,
    /// Restarts within `restart_period` that a slot may have before it gives up.
    pub restart_intensity: u32,
    pub restart_period: Duration,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// Replacements that may stand beside the workers that they replace, during a roll; at least 1.
    pub surge: u32,
    /// How long a replaced worker's keep-alive connections are kept.
    pub drain: Duration,
    /// How long its requests in flight may take; `None`: as long as they need.
    pub drain_busy: Option<Duration>,
    /// How long its WebSockets and event streams are kept; `None`: until their clients leave.
    pub drain_streams: Option<Duration>,
    /// Requests after which a worker is replaced; 0: never.
    pub max_requests: u32,
    /// Up to so many requests more, by chance, so that workers are not all replaced at once; 0: a tenth of
    /// `max_requests`.
    pub max_requests_jitter: u32,
    /// Bytes of memory at which a worker is replaced; `None`: never.
    pub max_memory: Option<u64>,
    pub memory_kind: MemoryKind,
    /// Age at which a worker is replaced; `None`: never.
    pub max_age: Option<Duration>,
    pub preload: Preload,
    /// Another server's command, program first, in place of Tandem's launcher.
    pub command: Option<Vec<String>>,
    pub ready: Readiness,
    pub socket: WorkerSocket,
    /// Globs of the file names that `tandem up --reload` watches.
    pub reload_include: Vec<String>,
    /// The directories that it watches beside `app_dir`.
    pub reload_dirs: Vec<PathBuf>,
    /// Chosen on the command line, never by the configuration.
    pub debugger: Debugger,
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
    pub listen: Place,
    /// `/ready` needs at least this many ready workers.
    pub workers_min: u32,
    pub page: PageMode,
    /// What the page asks for.
    pub page_password: Option<Secret>,
    /// Names by which browsers may ask for it.
    pub page_hosts: Vec<String>,
}

impl Health {
    /// Whether nobody beyond this machine reaches the health port.
    pub fn is_loopback(&self) -> bool {
        matches!(&self.listen, Place::At(address) if address.ip().is_loopback())
    }

    /// Whether there is a status page.
    pub fn has_page(&self) -> bool {
        match self.page {
            PageMode::Auto => self.is_loopback(),
            PageMode::On => true,
            PageMode::Off => false,
        }
    }
}

/// Whether there is a status page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageMode {
    /// Where the health port is loopback.
    Auto,
    On,
    Off,
}

/// `[metrics]`: what `/metrics` tells of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// How often the database is measured; `None`: never.
    pub interval: Option<Duration>,
    /// How many tables have series of their own, the largest first.
    pub tables: u32,
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

/// `[[process]]`: one more process beside the workers.
#[derive(Clone, PartialEq, Eq)]
pub struct ProcessSettings {
    /// No other service has it.
    pub name: String,
    /// Program first; never empty.
    pub command: Vec<String>,
    pub dir: PathBuf,
    /// More environment, beside what workers get.
    pub env: BTreeMap<String, String>,
    /// How long it may take to end after SIGTERM, before SIGKILL.
    pub stop_grace: Duration,
}

/// Leaves the environment's values out.
impl std::fmt::Debug for ProcessSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.keys().collect();
        formatter
            .debug_struct("ProcessSettings")
            .field("name", &self.name)
            .field("command", &self.command)
            .field("dir", &self.dir)
            .field("env", &names)
            .field("stop_grace", &self.stop_grace)
            .finish()
    }
}

/// `[test]`: the throwaway server of `tandem test`.
#[derive(Clone, Debug)]
pub struct Test {
    /// SQL files, and Python callables as `module:function`, applied once to what every database is cloned from.
    pub seed: Vec<String>,
    /// Globs of the files that the migrations consist of; `None`: what looks like migrations.
    pub inputs: Option<Vec<String>>,
    /// Of the `DATABASE_URL` that tests get; `auto` as for workers.
    pub url_scheme: String,
    pub max_connections: u32,
    /// PostgreSQL's own settings, which win over those of `[postgres.settings]`.
    pub settings: BTreeMap<String, String>,
    /// Databases that are kept ready.
    pub pool: u32,
    /// Databases of failed tests that are kept.
    pub keep_failed: u32,
    /// Where servers live; `None`: in memory if there is room, else in the directory for temporary files.
    pub dir: Option<PathBuf>,
    /// Whether the tests' role is a superuser, which is denied nothing.
    pub superuser: bool,
    /// Whether a data directory for the next run is made ready.
    pub spare: bool,
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
    /// Bytes of the log's last lines that are kept in memory; 0: none.
    pub ring: u64,
    /// The file that the log goes to as well.
    pub file: Option<LogFile>,
}

/// `log.file`, with its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    /// The size in bytes at which a new file is begun.
    pub size_max: u64,
    /// How many files there are, the newest included.
    pub count: u32,
}
