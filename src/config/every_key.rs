//! Every key there is: name, kind, default, meaning. The single source of all of it; holds no logic.

mod backup;
mod workers;

use super::keys::{Effect, Key, Kind, key, open};

use Effect::{Live, Restart, Roll};

/// All keys by groups, in the order in which they are shown.
pub const GROUPS: &[&[Key]] = &[BEFORE_WORKERS, workers::KEYS, AROUND_WORKERS, backup::KEYS, REST];

/// What there is before the application: the deployment, PostgreSQL, the migrations, the Python environment.
const BEFORE_WORKERS: &[Key] = &[
    open(Restart, "name", Kind::Text, "the project directory's name", "Name of the deployment"),
    open(Restart, "state_dir", Kind::Path, ".tandem in the project directory", "Where Tandem keeps what it makes"),
    open(
        Restart,
        "cache_dir",
        Kind::Path,
        "the user's cache directory",
        "Downloads and PostgreSQL, shared between projects",
    ),
    key(Restart, "postgres.mode", Kind::Choice(&["auto", "managed", "attach"]), r#""auto""#, "Whose PostgreSQL it is"),
    open(Restart, "postgres.url", Kind::Url, "none", "The server to attach to; DATABASE_URL"),
    key(
        Restart,
        "postgres.source",
        Kind::ChoiceOrPath(&["auto", "system", "package", "theseus"]),
        r#""auto""#,
        "Where PostgreSQL's binaries come from",
    ),
    open(Restart, "postgres.source_sha256", Kind::Text, "none", "Checksum of the archive that postgres.source names"),
    key(Restart, "postgres.listen", Kind::Ip, r#""127.0.0.1""#, "Address the server listens on"),
    key(Restart, "postgres.port", Kind::Port, "5432", "Port the server listens on"),
    key(Restart, "postgres.user", Kind::Text, r#""app""#, "Role of the application, owner of the database"),
    open(
        Restart,
        "postgres.password",
        Kind::Secret,
        "made by Tandem, kept in the state directory",
        "Password of that role",
    ),
    open(Restart, "postgres.password_file", Kind::Path, "none", "File that holds the password"),
    key(Restart, "postgres.database", Kind::Text, r#""app""#, "Database of the application"),
    open(
        Restart,
        "postgres.run_as",
        Kind::Text,
        "as root: postgres, else nobody",
        "User the server runs as, when root",
    ),
    key(
        Restart,
        "postgres.max_connections",
        Kind::CountOr(4, &["auto"]),
        r#""auto""#,
        "Connections the server accepts; auto: what the workers' pools need",
    ),
    key(
        Restart,
        "postgres.reserved_connections",
        Kind::Count(0),
        "10",
        "Kept back for people, backups and Tandem itself",
    ),
    open(
        Restart,
        "postgres.shared_buffers",
        Kind::Size,
        "a quarter of the memory, at most 1 GB",
        "PostgreSQL's own page cache",
    ),
    key(
        Restart,
        "postgres.slow_query",
        Kind::DurationOrNever,
        r#""never""#,
        "Statements that take longer are in the log (log_min_duration_statement)",
    ),
    key(
        Restart,
        "postgres.read_all_stats",
        Kind::Boolean,
        "true",
        "The application's role sees the statistics of all sessions (pg_read_all_stats)",
    ),
    open(Restart, "postgres.settings", Kind::Table, "none", "PostgreSQL's own settings, by their own names"),
    key(Restart, "postgres.ready_limit", Kind::Duration, r#""30m""#, "Longest time from spawn to the first answer"),
    key(Restart, "postgres.probe_interval", Kind::Duration, r#""1s""#, "Time between two health samples"),
    key(
        Restart,
        "postgres.probe_deadline",
        Kind::Duration,
        r#""2s""#,
        "Longest time for one probe, then the server hangs",
    ),
    key(
        Restart,
        "postgres.hang_limit",
        Kind::DurationOrNever,
        r#""60s""#,
        "Longest hang before the server is restarted",
    ),
    key(
        Restart,
        "migrations.run",
        Kind::ChoiceOrCommand(&["auto", "none", "seaorm"]),
        r#""auto""#,
        "What brings the schema to where the application needs it",
    ),
    open(
        Restart,
        "migrations.dir",
        Kind::Path,
        "the working directory, or app_dir where only that has alembic.ini or manage.py",
        "Directory that a migration command runs in",
    ),
    key(Restart, "migrations.lock_limit", Kind::Duration, r#""60s""#, "Longest wait for another migrator"),
    key(
        Restart,
        "migrations.lock_timeout",
        Kind::Duration,
        r#""3s""#,
        "Longest wait for a lock of the application's, during `tandem deploy`; then it is tried again",
    ),
    key(Restart, "migrations.limit", Kind::Duration, r#""10m""#, "Longest time for the migrations in all"),
    key(Restart, "python.interpreter", Kind::Program, r#""python3""#, "The interpreter that makes the environment"),
    open(
        Restart,
        "python.requirements",
        Kind::Path,
        "a lock or list of the project's, where no environment is there",
        "What to install into the environment",
    ),
    key(
        Restart,
        "python.groups",
        Kind::List,
        "[]",
        "Dependency groups of a uv.lock or pyproject.toml that are installed too",
    ),
    key(Restart, "python.extras", Kind::List, "[]", "Extras of a uv.lock or pyproject.toml that are installed too"),
    open(
        Restart,
        "python.venv",
        Kind::Path,
        "the active one or .venv, if it has Uvicorn, else venv in the state directory",
        "The virtual environment",
    ),
    key(
        Restart,
        "python.managed",
        Kind::Boolean,
        "true",
        "Tandem makes and updates the environment; false: it is used as it is",
    ),
    key(
        Restart,
        "python.installer",
        Kind::Choice(&["auto", "uv", "pip"]),
        r#""auto""#,
        "What installs the requirements",
    ),
    key(Restart, "python.limit", Kind::Duration, r#""10m""#, "Longest time for making the environment"),
];

/// Health, stop and hooks.
const AROUND_WORKERS: &[Key] = &[
    key(
        Restart,
        "health.listen",
        Kind::Address,
        r#""127.0.0.1:8001""#,
        "Address of /health, /ready, /live and /metrics",
    ),
    key(Live, "health.workers_min", Kind::Count(1), "1", "Ready workers that /ready asks for"),
    key(Live, "stop.drain_delay", Kind::Duration, r#""0s""#, "Serving on after readiness is withdrawn"),
    key(Roll, "stop.grace", Kind::Duration, r#""10s""#, "Longest time for requests in flight"),
    key(Roll, "stop.idle_drain", Kind::Duration, r#""1s""#, "Longest time for idle connections and half-sent requests"),
    key(Live, "stop.postgres_grace", Kind::Duration, r#""10s""#, "Longest fast shutdown before the immediate one"),
    key(Live, "stop.platform_grace", Kind::Duration, r#""30s""#, "What the platform grants before it kills"),
    open(Live, "hooks.after_ready", Kind::Command, "none", "What to run once the application serves"),
    key(
        Live,
        "hooks.after_ready_on",
        Kind::Choice(&["start", "replaced"]),
        r#""start""#,
        "Once a start, or again whenever workers were replaced",
    ),
    open(Live, "hooks.before_stop", Kind::Command, "none", "What to run before anything is stopped"),
    open(Live, "hooks.worker_exit", Kind::Command, "none", "What to run whenever a worker's process has ended"),
    key(Live, "hooks.limit", Kind::Duration, r#""30s""#, "Longest time for a hook"),
    key(Live, "hooks.on_failure", Kind::Choice(&["warn", "stop"]), r#""warn""#, "What follows a hook that fails"),
];

/// Tests and the log.
const REST: &[Key] = &[
    key(Restart, "test.seed", Kind::List, "[]", "SQL files and Python callables that fill the tests' database"),
    open(
        Restart,
        "test.inputs",
        Kind::List,
        "what looks like migrations",
        "Globs of the files that the migrations consist of",
    ),
    open(Restart, "test.url_scheme", Kind::Text, "workers.url_scheme", "Scheme of the tests' DATABASE_URL"),
    key(Restart, "test.max_connections", Kind::Count(10), "100", "Connections that the tests' server accepts"),
    open(Restart, "test.settings", Kind::Table, "none", "Settings of the tests' server, beside postgres.settings"),
    key(Restart, "test.pool", Kind::Count(1), "16", "Databases made ahead"),
    key(Restart, "test.keep_failed", Kind::Count(0), "5", "Databases of failed tests that are kept"),
    key(
        Restart,
        "test.dir",
        Kind::ChoiceOrPath(&["auto"]),
        r#""auto""#,
        "Where the tests' server lives: memory if there is room, or a directory",
    ),
    key(
        Restart,
        "test.superuser",
        Kind::Boolean,
        "true",
        "The tests' role may do anything on their server; migrations run without that right",
    ),
    key(Restart, "test.spare", Kind::Boolean, "true", "A data directory for the next run is made ready by this one"),
    key(Restart, "log.format", Kind::Choice(&["auto", "text", "json"]), r#""auto""#, "How output looks"),
    key(Restart, "log.filter", Kind::Text, r#""info""#, "What is logged, as a tracing filter"),
    key(Restart, "log.ring", Kind::Size, r#""1MB""#, "Log kept in memory for `tandem logs`"),
];
