//! Every key there is: name, kind, default, meaning. The single source for the unknown-key check, for suggestions, for
//! the environment's names, for defaults and for `tandem check`. Holds no logic beyond looking itself up.

/// What a key's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that is never shown.
    Secret,
    /// A database URL; shown without its password.
    Url,
    Choice(&'static [&'static str]),
    /// One of the words, or a path.
    ChoiceOrPath(&'static [&'static str]),
    /// One of the words, or a command as a list.
    ChoiceOrCommand(&'static [&'static str]),
    /// A whole number of at least this.
    Count(u32),
    Port,
    Boolean,
    /// True, false, or one of the words.
    BooleanOr(&'static [&'static str]),
    Duration,
    /// A duration, or `never`.
    DurationOrNever,
    Size,
    Ip,
    Address,
    Path,
    /// A program: a name in PATH, or a path.
    Program,
    List,
    /// A program and its arguments, as a list.
    Command,
    /// A table whose keys are free; its values are text.
    Table,
    /// The same, with values that are never shown.
    SecretTable,
}

/// What holds when nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// A TOML value.
    Value(&'static str),
    /// Found out later, or nothing; in words.
    Words(&'static str),
}

/// What a changed value asks of a Tandem that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Only the supervisor uses it: it holds from now on.
    Live,
    /// It reaches the workers as they start: they must be replaced.
    Roll,
    /// It is built in at the start of Tandem.
    Restart,
}

use Effect::{Live, Restart, Roll};

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// What a change of it asks for. What a worker's environment or launcher holds asks for a roll.
    pub effect: Effect,
    /// What it means, in one line.
    pub doc: &'static str,
}

const fn key(effect: Effect, name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Value(default), effect, doc }
}

const fn open(effect: Effect, name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Words(default), effect, doc }
}

/// All keys, in the order in which they are shown.
pub const KEYS: &[Key] = &[
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
    key(Restart, "postgres.max_connections", Kind::Count(4), "100", "Connections the server accepts"),
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
        Kind::ChoiceOrCommand(&["seaorm", "none"]),
        r#""seaorm""#,
        "What brings the schema to where the application needs it",
    ),
    key(Restart, "migrations.lock_limit", Kind::Duration, r#""60s""#, "Longest wait for another migrator"),
    key(Restart, "migrations.limit", Kind::Duration, r#""10m""#, "Longest time for the migrations in all"),
    key(Restart, "python.interpreter", Kind::Program, r#""python3""#, "The interpreter that makes the environment"),
    open(Restart, "python.requirements", Kind::Path, "none", "What to install into the environment"),
    open(Restart, "python.venv", Kind::Path, "venv in the state directory", "The virtual environment"),
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
    open(Roll, "workers.app", Kind::Text, "none: it must be given", "The ASGI application, module:attribute"),
    key(Roll, "workers.app_dir", Kind::Path, r#"".""#, "Directory that imports start from"),
    key(Live, "workers.count", Kind::Count(1), "4", "How many workers"),
    key(Restart, "workers.listen", Kind::Address, r#""127.0.0.1:8000""#, "Address the application is served on"),
    key(Restart, "workers.backlog", Kind::Count(1), "2048", "Length of the listening queue"),
    key(Roll, "workers.url_scheme", Kind::Text, r#""postgresql+psycopg2""#, "Scheme of the workers' DATABASE_URL"),
    open(Roll, "workers.env", Kind::SecretTable, "what .env holds", "More environment for the workers"),
    key(
        Roll,
        "workers.preimport",
        Kind::List,
        r#"["uvicorn", "fastapi", "sqlalchemy", "psycopg2"]"#,
        "Modules imported while PostgreSQL starts",
    ),
    key(Roll, "workers.access_log", Kind::Boolean, "false", "One line of log per request"),
    key(Roll, "workers.event_loop", Kind::Choice(&["auto", "asyncio", "uvloop"]), r#""auto""#, "Uvicorn's event loop"),
    open(
        Roll,
        "workers.run_as",
        Kind::Text,
        "as root: www-data or nobody, where they can",
        "User workers run as, when root",
    ),
    key(Live, "workers.ready_limit", Kind::Duration, r#""60s""#, "Longest time from release to ready"),
    key(Roll, "workers.watchdog", Kind::DurationOrNever, r#""15s""#, "Longest silence of a worker's event loop"),
    key(
        Live,
        "workers.restart_intensity",
        Kind::Count(1),
        "5",
        "Restarts of a slot within the period before it gives up",
    ),
    key(Live, "workers.restart_period", Kind::Duration, r#""60s""#, "The period of restart_intensity"),
    key(Live, "workers.backoff_first", Kind::Duration, r#""100ms""#, "Wait before the second restart in a row"),
    key(Live, "workers.backoff_max", Kind::Duration, r#""10s""#, "Longest wait before a restart"),
    key(Live, "workers.surge", Kind::Count(1), "1", "Replacements beside the old workers at once, during a roll"),
    key(Roll, "workers.drain", Kind::Duration, r#""30s""#, "Longest time for a replaced worker's connections"),
    key(Live, "workers.max_requests", Kind::Count(0), "0", "Requests after which a worker is replaced; 0: never"),
    key(Live, "workers.max_requests_jitter", Kind::Count(0), "0", "Up to so many requests more; 0: a tenth"),
    open(Live, "workers.max_memory", Kind::Size, "none", "Memory at which a worker is replaced"),
    key(Live, "workers.memory_kind", Kind::Choice(&["pss", "rss"]), r#""pss""#, "What counts as a worker's memory"),
    key(Live, "workers.max_age", Kind::DurationOrNever, r#""never""#, "Age at which a worker is replaced"),
    key(
        Roll,
        "workers.preload",
        Kind::BooleanOr(&["strict"]),
        "false",
        "Import the application once, and fork the workers from there",
    ),
    open(Roll, "workers.command", Kind::Command, "none", "Another server's command, in place of Tandem's launcher"),
    key(
        Roll,
        "workers.ready",
        Kind::ChoiceOrPath(&["notify"]),
        r#""notify""#,
        "How a worker says that it is ready: itself, or by answering at this path",
    ),
    key(
        Roll,
        "workers.socket",
        Kind::Choice(&["inherited", "own"]),
        r#""inherited""#,
        "Whose the listening socket of workers.command is",
    ),
    key(Restart, "workers.reload_include", Kind::List, r#"["*.py"]"#, "Files that `tandem up --reload` watches"),
    key(Roll, "pool.size", Kind::Count(1), "5", "Connections that each worker's pool keeps"),
    key(Roll, "pool.overflow", Kind::Count(0), "10", "Connections that it may open beyond those"),
    key(Roll, "pool.recycle", Kind::Duration, r#""1h""#, "Age at which a connection is replaced"),
    key(Roll, "pool.timeout", Kind::Duration, r#""30s""#, "Longest wait for a free connection"),
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
    key(Roll, "stop.idle_drain", Kind::Duration, r#""1s""#, "Longest time for idle keep-alive connections"),
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
    key(Live, "hooks.limit", Kind::Duration, r#""30s""#, "Longest time for a hook"),
    key(Live, "hooks.on_failure", Kind::Choice(&["warn", "stop"]), r#""warn""#, "What follows a hook that fails"),
    key(Restart, "backup.pitr.enabled", Kind::Boolean, "false", "WAL is archived, for recovery to any moment"),
    open(Restart, "backup.pitr.dir", Kind::Path, "pitr in the state directory", "Where base backups and WAL are kept"),
    key(Restart, "backup.pitr.max_backlog", Kind::Size, r#""1GB""#, "WAL that may wait for the archive"),
    key(
        Restart,
        "backup.pitr.at_limit",
        Kind::Choice(&["warn", "give_up"]),
        r#""warn""#,
        "What follows when more waits: an alarm, or the chain is given up and the disk stays free",
    ),
    key(Restart, "backup.pitr.archive_timeout", Kind::Duration, r#""60s""#, "Longest time until a change is archived"),
    key(Restart, "backup.pitr.base_backups", Kind::Count(1), "2", "Base backups that are kept"),
    key(Restart, "test.seed", Kind::List, "[]", "SQL files and Python callables that fill the tests' database"),
    open(
        Restart,
        "test.inputs",
        Kind::List,
        "what looks like migrations",
        "Globs of the files that the migrations consist of",
    ),
    open(
        Restart,
        "test.url_scheme",
        Kind::Text,
        "workers.url_scheme, if written, else postgresql",
        "Scheme of the tests' DATABASE_URL",
    ),
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
    key(Restart, "test.spare", Kind::Boolean, "true", "A data directory for the next run is made ready by this one"),
    key(Restart, "log.format", Kind::Choice(&["auto", "text", "json"]), r#""auto""#, "How output looks"),
    key(Restart, "log.filter", Kind::Text, r#""info""#, "What is logged, as a tracing filter"),
    key(Restart, "log.ring", Kind::Size, r#""1MB""#, "Log kept in memory for `tandem logs`"),
];

/// The keys of one `[[process]]`. Only the file has them: a list of tables has no names that the environment could say.
pub const PROCESS_KEYS: &[Key] = &[
    open(Restart, "process.name", Kind::Text, "none: it must be given", "What the process is called"),
    open(Restart, "process.command", Kind::Command, "none: it must be given", "The program and its arguments"),
    key(Restart, "process.dir", Kind::Path, r#"".""#, "Its working directory"),
    open(Restart, "process.env", Kind::SecretTable, "none", "More environment, beside what workers get"),
    key(Restart, "process.stop_grace", Kind::Duration, r#""10s""#, "Longest time from SIGTERM to SIGKILL"),
];

/// The names that FFE's guide and the postgres image use, and the keys that they set.
pub const GUIDE_NAMES: &[(&str, &str)] = &[
    ("DATABASE_URL", "postgres.url"),
    ("POSTGRES_USER", "postgres.user"),
    ("POSTGRES_PASSWORD", "postgres.password"),
    ("POSTGRES_PASSWORD_FILE", "postgres.password_file"),
    ("POSTGRES_DB", "postgres.database"),
    ("POSTGRES_PORT", "postgres.port"),
    ("DB_POOL_SIZE", "pool.size"),
    ("DB_POOL_OVERFLOW", "pool.overflow"),
    ("DB_POOL_RECYCLE", "pool.recycle"),
    ("DB_POOL_TIMEOUT", "pool.timeout"),
];

/// The guide's names for backups, which this version does not make yet.
pub const BACKUP_NAMES: &[&str] = &["BACKUP_PATH", "BACKUP_RETENTION_DAYS"];

/// What workers get from Tandem itself, so that nobody else may say it.
pub const INJECTED_NAMES: &[&str] =
    &["DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGAPPNAME"];

/// The key called `name`.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The table key that `name` lies in, and the free part: `postgres.settings` and `work_mem`.
pub fn find_table(name: &str) -> Option<(&'static Key, &str)> {
    KEYS.iter().filter(|key| matches!(key.kind, Kind::Table | Kind::SecretTable)).find_map(|key| {
        let free = name.strip_prefix(key.name)?.strip_prefix('.')?;
        (!free.is_empty()).then_some((key, free))
    })
}

/// Whether `name` is a section: what stands before a dot in a key.
pub fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The sections, each once, in order.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().filter_map(|key| Some(key.name.rsplit_once('.')?.0)).collect();
    sections.dedup();
    sections
}

/// The variable that sets the key `name`: `workers.count` is `TANDEM_WORKERS__COUNT`.
pub fn variable(name: &str) -> String {
    format!("TANDEM_{}", name.replace('.', "__").to_uppercase())
}

/// The known key that `name` most likely means, if one is close.
pub fn closest(name: &str) -> Option<&'static str> {
    closest_among(KEYS, name)
}

/// The one of these keys that `name` most likely means, if one is close.
pub fn closest_among(among: &'static [Key], name: &str) -> Option<&'static str> {
    let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
    let score = |key: &str| {
        let (key_section, key_last) = key.rsplit_once('.').unwrap_or(("", key));
        let both = strsim::normalized_damerau_levenshtein(section, key_section)
            * strsim::normalized_damerau_levenshtein(last, key_last);
        // A right key in the wrong section is a likely slip, a merely similar one is not.
        if last == key_last { f64::max(both, 0.75) } else { both }
    };
    most(among.iter().map(|key| key.name), score)
}

/// The section that `name` most likely means, if one is close.
pub fn closest_section(name: &str) -> Option<&'static str> {
    most(sections().into_iter().chain(["process"]), |section| strsim::normalized_damerau_levenshtein(name, section))
}

/// The name with the highest score, if that is high enough to be worth a suggestion.
pub fn most<'a>(names: impl Iterator<Item = &'a str>, score: impl Fn(&str) -> f64) -> Option<&'a str> {
    let scored = names.map(|name| (score(name), name)).filter(|(score, _)| *score >= 0.6);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
