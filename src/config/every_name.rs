//! Names beside the keys: those of a `[[process]]`, those that others have given, those that Tandem gives. Holds no logic.

use super::keys::{Effect, Key, Kind, key, open};

use Effect::Restart;

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
    ("BACKUP_PATH", "backup.dir"),
    ("BACKUP_RETENTION_DAYS", "backup.retention_days"),
];

/// What workers get from Tandem itself, so that nobody else may say it.
pub const INJECTED_NAMES: &[&str] =
    &["DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGAPPNAME"];
