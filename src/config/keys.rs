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

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// What it means, in one line.
    pub doc: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Value(default), doc }
}

const fn open(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default: Default::Words(default), doc }
}

/// All keys, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    open("name", Kind::Text, "the project directory's name", "Name of the deployment"),
    open("state_dir", Kind::Path, ".tandem in the project directory", "Where Tandem keeps what it makes"),
    open("cache_dir", Kind::Path, "the user's cache directory", "Downloads and PostgreSQL, shared between projects"),
    key("postgres.mode", Kind::Choice(&["auto", "managed", "attach"]), r#""auto""#, "Whose PostgreSQL it is"),
    open("postgres.url", Kind::Url, "none", "The server to attach to; DATABASE_URL"),
    key(
        "postgres.source",
        Kind::ChoiceOrPath(&["auto", "system", "package", "theseus"]),
        r#""auto""#,
        "Where PostgreSQL's binaries come from",
    ),
    open("postgres.source_sha256", Kind::Text, "none", "Checksum of the archive that postgres.source names"),
    key("postgres.listen", Kind::Ip, r#""127.0.0.1""#, "Address the server listens on"),
    key("postgres.port", Kind::Port, "5432", "Port the server listens on"),
    key("postgres.user", Kind::Text, r#""app""#, "Role of the application, owner of the database"),
    open("postgres.password", Kind::Secret, "made by Tandem, kept in the state directory", "Password of that role"),
    open("postgres.password_file", Kind::Path, "none", "File that holds the password"),
    key("postgres.database", Kind::Text, r#""app""#, "Database of the application"),
    open("postgres.run_as", Kind::Text, "as root: postgres, else nobody", "User the server runs as, when root"),
    key("postgres.max_connections", Kind::Count(4), "100", "Connections the server accepts"),
    key("postgres.reserved_connections", Kind::Count(0), "10", "Kept back for people, backups and Tandem itself"),
    open("postgres.shared_buffers", Kind::Size, "a quarter of the memory, at most 1 GB", "PostgreSQL's own page cache"),
    open("postgres.settings", Kind::Table, "none", "PostgreSQL's own settings, by their own names"),
    key("postgres.ready_limit", Kind::Duration, r#""30m""#, "Longest time from spawn to the first answer"),
    key("postgres.probe_interval", Kind::Duration, r#""1s""#, "Time between two health samples"),
    key("postgres.probe_deadline", Kind::Duration, r#""2s""#, "Longest time for one probe, then the server hangs"),
    key("postgres.hang_limit", Kind::DurationOrNever, r#""60s""#, "Longest hang before the server is restarted"),
    key(
        "migrations.run",
        Kind::ChoiceOrCommand(&["seaorm", "none"]),
        r#""seaorm""#,
        "What brings the schema to where the application needs it",
    ),
    key("migrations.lock_limit", Kind::Duration, r#""60s""#, "Longest wait for another migrator"),
    key("migrations.limit", Kind::Duration, r#""10m""#, "Longest time for the migrations in all"),
    key("python.interpreter", Kind::Program, r#""python3""#, "The interpreter that makes the environment"),
    open("python.requirements", Kind::Path, "none", "What to install into the environment"),
    open("python.venv", Kind::Path, "venv in the state directory", "The virtual environment"),
    key(
        "python.managed",
        Kind::Boolean,
        "true",
        "Tandem makes and updates the environment; false: it is used as it is",
    ),
    key("python.installer", Kind::Choice(&["auto", "uv", "pip"]), r#""auto""#, "What installs the requirements"),
    key("python.limit", Kind::Duration, r#""10m""#, "Longest time for making the environment"),
    open("workers.app", Kind::Text, "none: it must be given", "The ASGI application, module:attribute"),
    key("workers.app_dir", Kind::Path, r#"".""#, "Directory that imports start from"),
    key("workers.count", Kind::Count(1), "4", "How many workers"),
    key("workers.listen", Kind::Address, r#""127.0.0.1:8000""#, "Address the application is served on"),
    key("workers.backlog", Kind::Count(1), "2048", "Length of the listening queue"),
    key("workers.url_scheme", Kind::Text, r#""postgresql+psycopg2""#, "Scheme of the workers' DATABASE_URL"),
    open("workers.env", Kind::SecretTable, "what .env holds", "More environment for the workers"),
    key(
        "workers.preimport",
        Kind::List,
        r#"["uvicorn", "fastapi", "sqlalchemy", "psycopg2"]"#,
        "Modules imported while PostgreSQL starts",
    ),
    key("workers.access_log", Kind::Boolean, "false", "One line of log per request"),
    key("workers.event_loop", Kind::Choice(&["auto", "asyncio", "uvloop"]), r#""auto""#, "Uvicorn's event loop"),
    open("workers.run_as", Kind::Text, "as root: www-data or nobody, where they can", "User workers run as, when root"),
    key("workers.ready_limit", Kind::Duration, r#""60s""#, "Longest time from release to ready"),
    key("workers.watchdog", Kind::DurationOrNever, r#""15s""#, "Longest silence of a worker's event loop"),
    key("workers.restart_intensity", Kind::Count(1), "5", "Restarts of a slot within the period before it gives up"),
    key("workers.restart_period", Kind::Duration, r#""60s""#, "The period of restart_intensity"),
    key("workers.backoff_first", Kind::Duration, r#""100ms""#, "Wait before the second restart in a row"),
    key("workers.backoff_max", Kind::Duration, r#""10s""#, "Longest wait before a restart"),
    key("pool.size", Kind::Count(1), "5", "Connections that each worker's pool keeps"),
    key("pool.overflow", Kind::Count(0), "10", "Connections that it may open beyond those"),
    key("pool.recycle", Kind::Duration, r#""1h""#, "Age at which a connection is replaced"),
    key("pool.timeout", Kind::Duration, r#""30s""#, "Longest wait for a free connection"),
    key("health.listen", Kind::Address, r#""127.0.0.1:8001""#, "Address of /health, /ready, /live and /metrics"),
    key("health.workers_min", Kind::Count(1), "1", "Ready workers that /ready asks for"),
    key("stop.drain_delay", Kind::Duration, r#""0s""#, "Serving on after readiness is withdrawn"),
    key("stop.grace", Kind::Duration, r#""10s""#, "Longest time for requests in flight"),
    key("stop.idle_drain", Kind::Duration, r#""1s""#, "Longest time for idle keep-alive connections"),
    key("stop.postgres_grace", Kind::Duration, r#""10s""#, "Longest fast shutdown before the immediate one"),
    key("stop.platform_grace", Kind::Duration, r#""30s""#, "What the platform grants before it kills"),
    key("log.format", Kind::Choice(&["auto", "text", "json"]), r#""auto""#, "How output looks"),
    key("log.filter", Kind::Text, r#""info""#, "What is logged, as a tracing filter"),
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

/// Whether `name` is a section: the first part of a key.
pub fn is_section(name: &str) -> bool {
    sections().contains(&name)
}

/// The sections, each once, in order.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = KEYS.iter().filter_map(|key| Some(key.name.split_once('.')?.0)).collect();
    sections.dedup();
    sections
}

/// The variable that sets the key `name`: `workers.count` is `TANDEM_WORKERS__COUNT`.
pub fn variable(name: &str) -> String {
    format!("TANDEM_{}", name.replace('.', "__").to_uppercase())
}

/// The known key that `name` most likely means, if one is close.
pub fn closest(name: &str) -> Option<&'static str> {
    let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
    let score = |key: &str| {
        let (key_section, key_last) = key.rsplit_once('.').unwrap_or(("", key));
        let both = strsim::normalized_damerau_levenshtein(section, key_section)
            * strsim::normalized_damerau_levenshtein(last, key_last);
        // A right key in the wrong section is a likely slip, a merely similar one is not.
        if last == key_last { f64::max(both, 0.75) } else { both }
    };
    most(KEYS.iter().map(|key| key.name), score)
}

/// The section that `name` most likely means, if one is close.
pub fn closest_section(name: &str) -> Option<&'static str> {
    most(sections().into_iter(), |section| strsim::normalized_damerau_levenshtein(name, section))
}

/// The name with the highest score, if that is high enough to be worth a suggestion.
pub fn most<'a>(names: impl Iterator<Item = &'a str>, score: impl Fn(&str) -> f64) -> Option<&'a str> {
    let scored = names.map(|name| (score(name), name)).filter(|(score, _)| *score >= 0.6);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::problem::Problems;
    use super::super::{file, value, values};
    use super::*;

    /// The shipped file with every commented key uncommented.
    fn uncommented(text: &str) -> String {
        let is_key = |line: &str| {
            line.split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'))
        };
        text.lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_shipped_file_names_every_key_with_its_default() {
        let shipped = include_str!("../../config/tandem.toml");
        let text = uncommented(shipped);
        let mut problems = Problems::default();
        let entries = file::read(&text, Path::new("config/tandem.toml"), Path::new("/"), &mut problems).unwrap();
        problems.into_result().unwrap();
        let written: BTreeMap<_, _> = entries.iter().map(|entry| (entry.key.as_str(), &entry.raw)).collect();
        for key in KEYS {
            if matches!(key.kind, Kind::Table | Kind::SecretTable) {
                assert!(shipped.contains(&format!("[{}]", key.name)), "{} is missing", key.name);
                continue;
            }
            let raw = written.get(key.name).unwrap_or_else(|| panic!("{} is missing", key.name));
            let typed = value::read(key.kind, raw).unwrap_or_else(|error| panic!("{}: {error:?}", key.name));
            // What the reference backend sets has its default in the comment behind it.
            let set =
                shipped.lines().any(|line| line.starts_with(&format!("{} = ", key.name.rsplit('.').next().unwrap())));
            if let (Default::Value(_), false) = (key.default, set) {
                assert_eq!(&typed, &values::default(key), "{}", key.name);
            }
        }
    }

    #[test]
    fn suggestions_are_close_or_missing() {
        let cases = [
            ("workers.cuont", Some("workers.count")),
            ("worker.count", Some("workers.count")),
            ("count", Some("workers.count")),
            ("health.grace", Some("stop.grace")),
            ("postgres.max_connection", Some("postgres.max_connections")),
            ("nmae", Some("name")),
            ("workers.colour", None),
            ("zebra", None),
        ];
        for (written, meant) in cases {
            assert_eq!(closest(written), meant, "{written}");
        }
        assert_eq!(variable("postgres.max_connections"), "TANDEM_POSTGRES__MAX_CONNECTIONS");
    }
}
