//! Names that other images of PostgreSQL and Uvicorn read (docker-library/postgres, uvicorn-gunicorn-fastapi, Uvicorn's own
//! command): honoured where they mean exactly what a key means, else told with the key to write instead.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::keys;
use super::layers::{Entry, Layer};
use super::problem::{Origin, Problems};
use super::settings::{Postgres, PostgresMode, Settings};
use super::text;
use super::uvicorn;
use super::value::Raw;
use super::values::Values;
use crate::plan::Place;

/// Where docker-library/postgres has scripts that run in a new cluster.
const INIT_SCRIPTS: &str = "/docker-entrypoint-initdb.d";

/// Options of initdb's, as a shell reads them.
const INITDB_ARGS: (&str, &str) = ("POSTGRES_INITDB_ARGS", "postgres.initdb_args");

/// Names of files that hold a value, as Docker's secrets do.
const FILES: &[(&str, &str, &str)] = &[
    ("POSTGRES_USER_FILE", "POSTGRES_USER", "postgres.user"),
    ("POSTGRES_DB_FILE", "POSTGRES_DB", "postgres.database"),
];

/// How many workers there are, to Uvicorn and Gunicorn; platforms set it by themselves, so whatever is written wins.
const WORKERS: (&str, &str) = ("WEB_CONCURRENCY", "workers.count");

/// What docker-library/postgres reads, and what there is instead.
const OF_POSTGRES: &[(&str, &str)] = &[
    (
        "PGDATA",
        "the cluster lies in the state directory, which TANDEM_STATE_DIR (state_dir) names; mount the volume there",
    ),
    ("POSTGRES_INITDB_WALDIR", "the WAL lies in the data directory"),
    ("POSTGRES_HOST_AUTH_METHOD", "every connection over TCP needs a password (SCRAM)"),
];

/// What Bitnami's image of PostgreSQL reads, and the key to write instead.
const OF_BITNAMI: &[(&str, &str)] = &[
    ("POSTGRESQL_USERNAME", "postgres.user"),
    ("POSTGRESQL_PASSWORD", "postgres.password"),
    ("POSTGRESQL_PASSWORD_FILE", "postgres.password"),
    ("POSTGRESQL_DATABASE", "postgres.database"),
    ("POSTGRESQL_PORT_NUMBER", "postgres.port"),
    ("POSTGRESQL_MAX_CONNECTIONS", "postgres.max_connections"),
    ("POSTGRESQL_VOLUME_DIR", "state_dir"),
    ("POSTGRESQL_DATA_DIR", "state_dir"),
    ("POSTGRESQL_SHARED_PRELOAD_LIBRARIES", "postgres.settings.shared_preload_libraries"),
    ("POSTGRESQL_EXTRA_FLAGS", "postgres.settings"),
];

/// What stands before the names that Uvicorn's command reads its options from.
const UVICORN: &str = "UVICORN_";

/// What images around Uvicorn read, and the key to write instead.
const OF_UVICORN: &[(&str, &str)] = &[
    ("APP_MODULE", "workers.app"),
    ("MODULE_NAME", "workers.app"),
    ("VARIABLE_NAME", "workers.app"),
    ("PRE_START_PATH", "migrations.run"),
    ("MAX_WORKERS", "workers.count"),
    ("WORKERS_PER_CORE", "workers.count"),
    ("WORKER_CLASS", "workers.command"),
    ("GUNICORN_CONF", "workers.command"),
    ("GUNICORN_CMD_ARGS", "workers.command"),
];

/// The entries that foreign names in `variables` come to.
pub fn entries(variables: &BTreeMap<String, String>, base: &Path, problems: &mut Problems) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut entry = |layer: Layer, key: &str, value: String, name: &str| {
        let (origin, rank) = (Origin::Environment(name.to_owned()), layer.rank(key, true));
        entries.push(Entry { key: key.to_owned(), raw: Raw::Word(value), origin, rank, base: base.to_path_buf() });
    };
    let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    for (name, plain, key) in FILES {
        let Some(path) = given(name) else { continue };
        let origin = Origin::Environment((*name).to_owned());
        if given(plain).is_some() {
            problems.add(&origin, format!("{name} and {plain} both give {key}"), Some("keep one of them".into()));
            continue;
        }
        let path = base.join(path);
        match text::read(&path) {
            Ok(text) => entry(Layer::Environment, key, text.trim_end_matches(['\n', '\r']).to_owned(), name),
            Err(error) => problems.add(&origin, format!("{name}: cannot read {}: {error}", path.display()), None),
        }
    }
    let (name, key) = WORKERS;
    if let Some(count) = given(name) {
        entry(Layer::Platform, key, count.clone(), name);
    }
    let (name, key) = INITDB_ARGS;
    if let Some(args) = given(name) {
        let (origin, rank) = (Origin::Environment(name.to_owned()), Layer::Environment.rank(key, true));
        match shlex::split(args) {
            Some(args) => entries.push(Entry {
                key: key.to_owned(),
                raw: Raw::List(args),
                origin,
                rank,
                base: base.to_path_buf(),
            }),
            None => {
                problems.add(&origin, format!("{name}: a quote is not closed"), Some("write it as for a shell".into()))
            }
        }
    }
    for (name, option, value) in options_of_uvicorn(variables).filter(|(_, option, _)| is_handed_on(option)) {
        let key = format!("{}.{option}", uvicorn::TABLE);
        // Of headers Uvicorn's command takes each word for one.
        let headers = || Raw::List(value.split_whitespace().map(str::to_owned).collect());
        let raw = if option == "headers" { headers() } else { Raw::Word(value.clone()) };
        let (origin, rank) = (Origin::Environment(name.clone()), Layer::Platform.rank(&key, true));
        entries.push(Entry { key, raw, origin, rank, base: base.to_path_buf() });
    }
    entries
}

/// The variables that Uvicorn's command reads, the option that each is, and its value.
fn options_of_uvicorn(variables: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, String, &String)> {
    let given = variables.iter().filter(|(_, value)| !value.is_empty());
    given.filter_map(|(name, value)| Some((name, name.strip_prefix(UVICORN)?.to_lowercase(), value)))
}

fn is_handed_on(option: &str) -> bool {
    uvicorn::home(option) == Some(uvicorn::Home::Table)
}

/// Notices about foreign names in `environment` and in `.env`.
pub fn notices(environment: &BTreeMap<String, String>, settings: &Settings, values: &Values) -> Vec<String> {
    let given = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let anywhere = |name: &str| given(name).or_else(|| settings.workers.env.get(name));
    // What no child gets is not among the settings.
    let written = |name: &str| values.entries("workers.env").any(|(written, _)| written == name);
    let mut notices = Vec::new();
    if settings.postgres.mode == PostgresMode::Managed {
        for (name, instead) in OF_POSTGRES.iter().filter(|(name, _)| given(name).is_some() || written(name)) {
            notices.push(format!("{name} has no effect on Tandem: {instead}"));
        }
        for (name, key) in OF_BITNAMI {
            let value = given(name).or_else(|| written(name).then(|| settings.workers.env.get(*name)).flatten());
            // The application may read this name itself, with what holds anyway.
            if value.is_some_and(|value| !settings.postgres.says(key, value)) {
                notices.push(format!("{name} has no effect on Tandem: set {} ({key})", variable_of(key)));
            }
        }
        let (name, key) = INITDB_ARGS;
        if written(name) && given(name).is_none() {
            notices.push(format!("{name} of .env has no effect on Tandem: set {} ({key})", keys::variable(key)));
        }
    } else if values.chosen("postgres.init_scripts") || values.chosen("postgres.initdb_args") {
        let keys = "postgres.init_scripts and postgres.initdb_args have";
        notices.push(format!("{keys} no effect: the server is not Tandem's own"));
    }
    // Another server reads its own names.
    if settings.workers.command.is_none() {
        for (name, key) in OF_UVICORN {
            if anywhere(name).is_some_and(|value| *value != settings.workers.app) {
                notices.push(format!("{name} has no effect on Tandem: set {} ({key})", keys::variable(key)));
            }
        }
        notices.extend(of_uvicorn(environment, settings, values));
    }
    notices.extend(listening(&given, settings));
    let (name, key) = WORKERS;
    match given(name) {
        Some(count) if *values.origin(key) != Origin::Environment(name.to_owned()) => {
            notices.push(format!("{name}={count} has no effect: {key} is set ({})", values.origin(key)));
        }
        _ => {}
    }
    if let Some(level) = given("LOG_LEVEL").filter(|level| !level.eq_ignore_ascii_case("info"))
        && !values.chosen("log.filter")
    {
        let variable = keys::variable("log.filter");
        notices.push(format!("LOG_LEVEL={level} is left to the application: {variable} (log.filter) is Tandem's own"));
    }
    notices
}

/// What of the variables that Uvicorn's command reads has no effect, and why.
fn of_uvicorn(environment: &BTreeMap<String, String>, settings: &Settings, values: &Values) -> Vec<String> {
    let mut notices = Vec::new();
    for (name, option, value) in options_of_uvicorn(environment) {
        let key = format!("{}.{option}", uvicorn::TABLE);
        let origin = values.origin(&key);
        if !is_handed_on(&option) {
            if *value != settings.workers.app {
                notices.push(uvicorn::without_effect(name, &option));
            }
        } else if *origin != Origin::Environment(name.clone()) {
            notices.push(format!("{name} has no effect: {key} is set ({origin})"));
        }
    }
    let written = options_of_uvicorn(&settings.workers.env).filter(|(name, ..)| !environment.contains_key(*name));
    notices.extend(written.map(|(name, option, _)| uvicorn::without_effect(name, &option)));
    notices
}

/// The variable that sets `key`; a setting of the server's has a name in a table.
fn variable_of(key: &str) -> String {
    if key.starts_with("postgres.settings") { "[postgres.settings]".to_owned() } else { keys::variable(key) }
}

impl Postgres {
    /// Whether `key` has this value.
    fn says(&self, key: &str, value: &str) -> bool {
        match key {
            "postgres.user" => self.user == value,
            "postgres.database" => self.database == value,
            "postgres.password" => self.password.as_ref().is_some_and(|password| password.expose() == value),
            "postgres.port" => self.port.number.to_string() == value,
            _ => false,
        }
    }
}

/// The directory whose scripts run in a new cluster where nothing else is said, if it is there.
pub fn init_scripts() -> Option<PathBuf> {
    directory(Path::new(INIT_SCRIPTS))
}

fn directory(dir: &Path) -> Option<PathBuf> {
    dir.is_dir().then(|| dir.to_path_buf())
}

/// `HOST` and `PORT`, which platforms tell a container to listen on.
fn listening<'a>(given: &dyn Fn(&str) -> Option<&'a String>, settings: &Settings) -> Option<String> {
    let listen = &settings.workers.listen;
    let is_other = |port: u16| !listen.iter().any(|place| place.port() == Some(port));
    let is_elsewhere = |host: std::net::IpAddr| {
        let is_it = |place: &Place| match place {
            Place::Every(_) => true,
            Place::At(address) => address.ip() == host || address.ip() == std::net::Ipv6Addr::UNSPECIFIED,
            Place::Unix(_) => false,
        };
        !listen.iter().any(is_it)
    };
    let port = given("PORT").filter(|port| port.parse().is_ok_and(is_other));
    // The name of the machine, to some shells.
    let host = given("HOST").filter(|host| host.parse().is_ok_and(is_elsewhere));
    let said: Vec<String> =
        [("HOST", host), ("PORT", port)].iter().filter_map(|(name, it)| Some(format!("{name}={}", (*it)?))).collect();
    let variable = keys::variable("workers.listen");
    (!said.is_empty()).then(|| {
        let listen = super::listening::text(listen);
        format!("Tandem does not listen on {}: set {variable} (workers.listen), which is {listen}", said.join(" and "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_docker_librarys_scripts_is_taken_where_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(INIT_SCRIPTS, "/docker-entrypoint-initdb.d");
        assert_eq!(directory(dir.path()), Some(dir.path().to_path_buf()));
        assert_eq!(directory(&dir.path().join("none")), None);
    }

    #[test]
    fn a_pipe_that_nobody_writes_into_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("user");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let variables = BTreeMap::from([("POSTGRES_USER_FILE".to_owned(), pipe.display().to_string())]);
        let mut problems = Problems::default();
        assert!(entries(&variables, dir.path(), &mut problems).is_empty());
        assert!(format!("{problems:?}").contains("nothing came out of it"), "{problems:?}");
    }
}
