//! What single values cannot show: names that must exist, and combinations that cannot work.

mod initdb;
mod owned;
mod password;
mod servers;
mod serving;
mod tls;

use std::time::Duration;

use super::Purpose;
use super::backup::{Ack, BackupFormat};
use super::build::is_name_letter;
use super::credentials::{self, Said};
use super::drop_env;
use super::keys;
use super::layers::Layer;
use super::places;
use super::problem::Problems;
use super::pyproject;
use super::references;
use super::settings::*;
use super::values::Values;
use crate::plan::{libpq, schedule};

pub use owned::owned_setting;
pub use password::{Weakness, weakness};

/// Words that stand for other things where a role is named (PostgreSQL documentation, CREATE ROLE).
const ROLES_RESERVED: [&str; 2] = ["none", "public"];
/// Databases that every cluster has for its own use.
const DATABASES_RESERVED: [&str; 2] = ["template0", "template1"];
/// PostgreSQL truncates longer names (NAMEDATALEN - 1).
const IDENTIFIER_BYTES_MAX: usize = 63;

/// The shortest time between two samples of the database.
const METRICS_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Bytes that a Python process with a web server in it has at the least.
const WORKER_MEMORY_MIN: u64 = 16 << 20;

/// Settings of PostgreSQL that are not the operator's to change here, and why or what to use.
const PROTECTED: &[(&str, &str)] = &[
    ("fsync", "without it a crash corrupts the cluster; Tandem keeps it on"),
    ("full_page_writes", "without it a crash corrupts the cluster; Tandem keeps it on"),
    ("data_directory", "Tandem keeps the cluster in its state directory: use state_dir"),
    ("port", "use postgres.port"),
    ("listen_addresses", "use postgres.listen"),
    ("unix_socket_directories", "Tandem keeps the socket in its state directory"),
    ("hba_file", "Tandem writes pg_hba.conf"),
    ("ident_file", "Tandem writes its own"),
    ("config_file", "Tandem writes postgresql.conf"),
    ("external_pid_file", "Tandem is the server's parent and needs none"),
    ("include", "write the settings themselves"),
    ("include_dir", "write the settings themselves"),
    ("include_if_exists", "write the settings themselves"),
    ("max_connections", "use postgres.max_connections, which the connection budget counts with"),
    ("shared_buffers", "use postgres.shared_buffers"),
    ("password_encryption", "Tandem's pg_hba.conf asks for SCRAM"),
];

const OWN_VENV: &str = "an environment that is there is used with python.venv = \".venv\" and python.managed = false";

/// Settings of PostgreSQL that archiving needs as they are.
const ARCHIVING: [&str; 6] =
    ["archive_mode", "archive_command", "archive_library", "archive_timeout", "wal_level", "max_wal_senders"];

/// PostgreSQL would take more, but a change that waits for weeks is not archived.
const ARCHIVE_TIMEOUT_MAX: std::time::Duration = std::time::Duration::from_secs(12 * 24 * 3600);

/// Look for what cannot work. `complete` says that every file could be read.
pub fn check(
    settings: &Settings,
    values: &Values,
    (purpose, complete): (Purpose, bool),
    problems: &mut Problems,
    notices: &mut Vec<String>,
    remarks: &mut Vec<String>,
) {
    let mut checker = Checker { settings, values, problems, notices, remarks };
    checker.names();
    checker.app(complete && purpose == Purpose::Serve);
    checker.files(purpose);
    checker.serving();
    checker.limits();
    checker.replacement();
    checker.commands();
    checker.pool();
    checker.postgres_settings();
    checker.postgres_tls();
    checker.new_cluster();
    checker.password(purpose);
    checker.slow_query();
    checker.worker_environment();
    checker.backup();
    checker.archiving();
    checker.budget();
}

/// A notice where the workers get what lets one into the places for copies.
pub fn shared_credentials(settings: &Settings, own: &Said) -> Option<String> {
    let Settings { inherited, workers, backup, .. } = settings;
    let inherited = inherited.0.keys().filter(|name| !workers.drop_env.matches(name));
    let names = inherited.chain(workers.env.keys()).map(String::as_str);
    credentials::notice(own, &backup.destinations, names.collect::<Vec<_>>().iter().copied())
}

struct Checker<'a> {
    settings: &'a Settings,
    values: &'a Values,
    problems: &'a mut Problems,
    notices: &'a mut Vec<String>,
    remarks: &'a mut Vec<String>,
}

impl Checker<'_> {
    /// Note that `key`, as it was written, cannot be.
    fn wrong(&mut self, key: &str, message: &str, help: Option<&str>) {
        let origin = self.values.origin(key);
        let name = origin.name_of(key);
        self.problems.add_to(key, origin, format!("{name}: {message}"), help.map(str::to_owned));
    }

    fn names(&mut self) {
        if !self.settings.name.chars().all(is_name_letter) || self.settings.name.starts_with('.') {
            self.wrong("name", "may hold letters, digits, `-`, `_` and `.`, because it becomes part of paths", None);
        }
        let (user, database) = (&self.settings.postgres.user, &self.settings.postgres.database);
        for (key, name) in [("postgres.user", user), ("postgres.database", database)] {
            if name.len() > IDENTIFIER_BYTES_MAX {
                self.wrong(key, "PostgreSQL's names have at most 63 bytes", None);
            }
        }
        let managed = self.settings.postgres.mode == PostgresMode::Managed;
        if managed && user.starts_with("pg_") {
            self.wrong("postgres.user", "PostgreSQL keeps names that begin with pg_ to itself", None);
        }
        if managed && ROLES_RESERVED.contains(&user.as_str()) {
            self.wrong("postgres.user", &format!("PostgreSQL gives no role the name {user}"), None);
        }
        if let Some(template) = DATABASES_RESERVED.iter().find(|reserved| *reserved == database) {
            let message = format!("{template} is what PostgreSQL copies new databases from; name another");
            self.wrong("postgres.database", &message, None);
        }
        let scheme = &self.settings.workers.url_scheme;
        if scheme != "auto" && scheme != "postgresql" && !scheme.starts_with("postgresql+") {
            let help = "\"auto\", or SQLAlchemy's postgresql+psycopg2, postgresql+psycopg and postgresql+asyncpg";
            self.wrong("workers.url_scheme", "not a scheme for PostgreSQL", Some(help));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.settings.log.filter) {
            let help = "such as \"info\", or \"info,tandem=debug\"";
            self.wrong("log.filter", &format!("not a filter: {error}"), Some(help));
        }
    }

    fn app(&mut self, complete: bool) {
        let app = &self.settings.workers.app;
        let above = self.settings.file.as_ref().filter(|file| pyproject::is_one(file)).map_or("", |_| pyproject::ABOVE);
        let help = format!(
            "write app = \"module:attribute\" under [{above}workers], as for uvicorn: \"main:app\" for main.py with `app = \
             FastAPI()`"
        );
        if app.is_empty() && (self.settings.workers.command.is_some() || self.values.chosen("workers.command")) {
            return;
        }
        if app.is_empty() {
            // A bad value has been told already, and in a file that cannot be read it may well stand.
            if complete && !self.values.chosen("workers.app") {
                let message = match &self.settings.file {
                    Some(_) => "workers.app is missing: which application shall run?",
                    None => {
                        "there is no tandem.toml here and no config/tandem.toml, and no application was found: no \
                         main.py, app.py, api.py, asgi.py or manage.py, here or in a package, has one"
                    }
                };
                let help = match &self.settings.file {
                    Some(_) => help,
                    None => format!("make a tandem.toml with the section [workers]; {help}"),
                };
                self.problems.add_to("workers.app", &super::Origin::Default, message, Some(help));
            }
            return;
        }
        let is_path = |part: &str| part.split('.').all(|name| !name.is_empty() && name.chars().all(is_python_letter));
        if !app.split_once(':').is_some_and(|(module, attribute)| is_path(module) && is_path(attribute)) {
            self.wrong("workers.app", &format!("{app:?} is not an application"), Some(&help));
        }
    }

    fn files(&mut self, purpose: Purpose) {
        let Settings { python, postgres, .. } = self.settings;
        if purpose != Purpose::Install {
            self.application_files();
        }
        if let Some(file) = python.requirements.as_ref().filter(|file| !file.is_file()) {
            let there = |name: &&str| self.settings.directory.join(name).is_file();
            let help = match ["uv.lock", "pyproject.toml"].iter().find(|name| there(name)) {
                Some(name) => format!("there is a {name}: write requirements = \"{name}\"; {OWN_VENV}"),
                None => OWN_VENV.to_owned(),
            };
            self.wrong("python.requirements", &format!("{} is not a file", file.display()), Some(&help));
        }
        if python.interpreter.contains('/') && !std::path::Path::new(&python.interpreter).is_file() {
            self.wrong("python.interpreter", &format!("{} is not a file", python.interpreter), None);
        }
        if !python.managed && python.venv.is_none() {
            let help = "write python.venv, or leave the environment to Tandem";
            self.wrong("python.managed", "false, but python.venv does not say which environment to use", Some(help));
        }
        if let BinarySource::Path(path, hash) = &postgres.source {
            if !path.exists() {
                self.wrong("postgres.source", &format!("{} does not exist", path.display()), None);
            }
            if hash
                .as_ref()
                .is_some_and(|hash| hash.len() != 64 || !hash.chars().all(|digit| digit.is_ascii_hexdigit()))
            {
                self.wrong("postgres.source_sha256", "a SHA-256 has 64 hexadecimal digits", None);
            }
        } else if self.values.chosen("postgres.source_sha256") {
            self.wrong("postgres.source_sha256", "belongs to an archive, and postgres.source names none", None);
        }
    }

    /// What the application brings.
    fn application_files(&mut self) {
        for (key, message) in places::missing(self.settings) {
            self.wrong(key, &message, None);
        }
        self.migration_program();
    }

    /// A program of the migrations that is written with its path must be there. A bare name may be in the Python
    /// environment, which is made later.
    fn migration_program(&mut self) {
        let migrations = &self.settings.migrations;
        if migrations.run == MigrationRun::Sql && !self.settings.sql_dir().is_dir() {
            let message = format!("{} is not a directory", self.settings.sql_dir().display());
            self.wrong("migrations.dir", &message, Some("name the directory that holds the numbered SQL files"));
        }
        let MigrationRun::Command(words) = &migrations.run else { return };
        let Some(program) = words.first().filter(|program| program.contains('/')) else { return };
        let path = self.settings.migrations_dir().join(program);
        if !path.is_file() {
            let message = format!("{} is not a file", path.display());
            self.wrong("migrations.run", &message, Some("write the program's name, or its path from migrations.dir"));
        }
    }

    fn limits(&mut self) {
        let Settings { workers, health, postgres, .. } = self.settings;
        if health.workers_min > workers.count {
            let message =
                format!("{} ready workers are never reached with {} workers", health.workers_min, workers.count);
            self.wrong("health.workers_min", &message, None);
        }
        if self.settings.metrics.interval.is_some_and(|interval| interval < METRICS_INTERVAL_MIN) {
            self.wrong("metrics.interval", "shorter than 1s: the samples would be the server's main work", None);
        }
        if workers.backoff_first > workers.backoff_max {
            self.wrong("workers.backoff_first", "longer than workers.backoff_max", None);
        }
        if postgres.hang_limit.is_some_and(|limit| limit < postgres.probe_deadline) {
            self.wrong("postgres.hang_limit", "shorter than postgres.probe_deadline, after which a hang begins", None);
        }
        let above_zero = [
            ("postgres.ready_limit", postgres.ready_limit),
            ("postgres.probe_interval", postgres.probe_interval),
            ("postgres.probe_deadline", postgres.probe_deadline),
            ("postgres.init_limit", postgres.init_limit),
            ("workers.ready_limit", workers.ready_limit),
            ("workers.restart_period", workers.restart_period),
            ("hooks.limit", self.settings.hooks.limit),
        ];
        for (key, _) in above_zero.into_iter().filter(|(_, limit)| limit.is_zero()) {
            self.wrong(key, "must be longer than nothing", None);
        }
    }

    /// What workers are replaced for.
    fn replacement(&mut self) {
        let workers = &self.settings.workers;
        if workers.max_memory.is_some_and(|limit| limit < WORKER_MEMORY_MIN) {
            let message = "less than a worker takes to begin with: each would be replaced for ever";
            self.wrong("workers.max_memory", message, Some("a worker takes 16MB at the very least, most take 100MB"));
        }
    }

    /// Applications read `DB_POOL_RECYCLE` and `DB_POOL_TIMEOUT` as whole seconds.
    fn pool(&mut self) {
        let pool = &self.settings.pool;
        for (key, limit) in [("pool.recycle", pool.recycle), ("pool.timeout", pool.timeout)] {
            if limit.subsec_nanos() != 0 {
                self.wrong(key, "must be whole seconds, because the application reads it as a whole number", None);
            }
        }
    }

    /// What `postgres.slow_query` cannot be.
    fn slow_query(&mut self) {
        let Some(limit) = self.settings.postgres.slow_query else { return };
        if self.settings.postgres.mode == PostgresMode::Attach {
            return self.notices.push("postgres.slow_query has no effect: the server is not Tandem's own".into());
        }
        if i32::try_from(limit.as_millis()).is_err() {
            self.wrong("postgres.slow_query", "longer than PostgreSQL counts, 24 days", Some("\"never\""));
        }
        let given = self.values.entries("postgres.settings").map(|(name, _)| name);
        if given.into_iter().any(|name| name.eq_ignore_ascii_case("log_min_duration_statement")) {
            let message = "[postgres.settings] has log_min_duration_statement, which is the same";
            self.wrong("postgres.slow_query", message, Some("keep one of them"));
        }
    }

    fn postgres_settings(&mut self) {
        let attached = self.settings.postgres.mode == PostgresMode::Attach;
        let mut any = false;
        for (name, entry) in self.values.entries("postgres.settings") {
            any = true;
            let bare = name.to_lowercase();
            let is_name = bare.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.".contains(letter));
            if let Some((_, reason)) = PROTECTED.iter().find(|(protected, _)| *protected == bare) {
                self.problems.add_to(
                    &entry.key,
                    &entry.origin,
                    format!("PostgreSQL's {bare} cannot be set here"),
                    Some((*reason).into()),
                );
            } else if !is_name {
                let message = format!("{name:?} is not the name of a PostgreSQL setting");
                self.problems.add_to(&entry.key, &entry.origin, message, None);
            } else if bare == "synchronous_commit" && entry.raw.to_plain().is_some_and(|value| is_off(&value)) {
                self.notices.push(format!(
                    "synchronous_commit is off ({}): a crash may lose the last transactions that were reported as done",
                    entry.origin
                ));
            }
        }
        if attached && any {
            self.notices.push("[postgres.settings] has no effect: the server is not Tandem's own".into());
        }
    }

    fn backup(&mut self) {
        let backup = &self.settings.backup;
        if let Some(Err(error)) = backup.schedule.as_deref().map(schedule::cron) {
            let help =
                "five fields: minute, hour, day, month, weekday; \"0 2 * * *\" is every night at two; or \"never\"";
            self.wrong("backup.schedule", &format!("not a cron expression: {error}"), Some(help));
        }
        if backup.format == BackupFormat::Directory && !backup.destinations.is_empty() {
            let help = "\"custom\" is as good for pg_restore, and one file";
            self.wrong("backup.format", "a directory cannot be copied to backup.destinations", Some(help));
        }
        let known =
            |place: &String| ["file://", "s3://", "gs://", "az://"].iter().any(|start| place.starts_with(start));
        if let Some(place) = backup.destinations.iter().find(|place| !known(place)) {
            let message = format!("{place:?} is no place for copies");
            self.wrong(
                "backup.destinations",
                &message,
                Some("file:///dir, s3://bucket, gs://bucket or az://container"),
            );
        }
        if let Err(error) = schedule::zone(&backup.time_zone) {
            self.wrong("backup.time_zone", &error.to_string(), Some("such as \"Europe/Berlin\", \"UTC\" or \"local\""));
        }
    }

    /// What cannot be beside `backup.pitr.enabled`.
    fn archiving(&mut self) {
        let pitr = &self.settings.backup.pitr;
        if !pitr.enabled {
            return;
        }
        if self.settings.postgres.mode == PostgresMode::Attach {
            self.notices.push("[backup.pitr] has no effect: the server is not Tandem's own".into());
        }
        if pitr.archive_timeout.subsec_nanos() != 0 || pitr.archive_timeout > ARCHIVE_TIMEOUT_MAX {
            self.wrong(
                "backup.pitr.archive_timeout",
                "must be whole seconds, at most 12 days: PostgreSQL reads it",
                None,
            );
        }
        if pitr.ack == Ack::Remote && (self.settings.backup.destinations.is_empty() || !pitr.copy) {
            self.wrong("backup.pitr.ack", "no destination gets WAL", Some("set backup.destinations and pitr.copy"));
        }
        for (name, entry) in self.values.entries("postgres.settings") {
            let bare = name.to_lowercase();
            // It has all that recovery needs, and what logical replication needs besides.
            let more =
                bare == "wal_level" && entry.raw.as_text().is_some_and(|text| text.eq_ignore_ascii_case("logical"));
            if ARCHIVING.contains(&bare.as_str()) && !more {
                let help = "leave it out, or set backup.pitr.enabled = false".to_owned();
                let message = format!("PostgreSQL's {bare} follows from [backup.pitr]");
                self.problems.add_to(&entry.key, &entry.origin, message, Some(help));
            }
        }
    }

    fn worker_environment(&mut self) {
        let patterns = self.values.list("workers.drop_env").unwrap_or_default();
        if let Some(pattern) = drop_env::unreadable(&patterns) {
            self.wrong("workers.drop_env", &format!("{pattern:?} is not a pattern"), Some("such as \"AWS_*\""));
        }
        for (name, entry) in self.values.entries("workers.env") {
            if name.contains(['=', '\0']) || name.is_empty() {
                let message = format!("{name:?} is not a variable's name");
                self.problems.add_to(&entry.key, &entry.origin, message, None);
            } else if entry.is_of(Layer::Workers) {
                // A line of `.env` that says where the database is sets nothing.
            } else if keys::INJECTED_NAMES.contains(&name) || libpq::says_where(name) {
                let help = "it follows from [postgres]; leave it out".to_owned();
                let message = format!("workers get {name} from Tandem");
                self.problems.add_to(&entry.key, &entry.origin, message, Some(help));
            } else if references::NAMES.contains(&name) {
                self.remarks.push(format!(
                    "workers.env.{name} ({}) has no effect: Tandem says there where its own database is",
                    entry.origin
                ));
            }
        }
    }

    fn budget(&mut self) {
        let Err(over) = self.settings.budget().check() else { return };
        if self.settings.postgres.mode == PostgresMode::Attach {
            // The real limit is the other server's, which may also stand behind a pooler.
            self.notices.push(format!("{over} (taken from postgres.max_connections; the attached server may differ)"));
            return;
        }
        let terms = ["pool.size", "pool.overflow", "workers.count", "workers.surge", "postgres.max_connections"];
        let key = terms.into_iter().find(|key| self.values.chosen(key)).unwrap_or("pool.size");
        let mut help = over.help();
        if self.settings.postgres.max_connections_auto {
            let memory = self.settings.memory >> 20;
            help = format!("more connections would not fit into {memory} MB of memory, if all are used: {help}");
        }
        self.problems.add_to(key, self.values.origin(key), over.to_string(), Some(help));
    }
}

fn is_python_letter(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn is_off(value: &str) -> bool {
    matches!(value.to_lowercase().as_str(), "off" | "false" | "no" | "0")
}
