//! From values to [`Settings`]: every key finds its field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::backup::{Backup, CloudVariables, Disk};
use super::credentials::Said;
use super::database::Database;
use super::drop_env::DropEnv;
use super::environment::is_root;
use super::foreign;
use super::layers::Layer;
use super::problem::Origin;
use super::references;
use super::serving::Serving;
use super::settings::*;
use super::tls::PostgresTls;
use super::value::Typed;
use super::values::Values;
use crate::plan::libpq::{TEST_SOCKET, is_libpq, stays_attached};

/// Build the settings. What cannot be built right has been told as a problem already.
pub fn settings(
    values: &Values,
    file: Option<PathBuf>,
    directory: &Path,
    database: Database,
    processes: Vec<ProcessSettings>,
    environment: &BTreeMap<String, String>,
    clouds: Clouds,
) -> Settings {
    let in_test = environment.contains_key(TEST_SOCKET);
    let attached = database.mode == PostgresMode::Attach && !in_test;
    let workers_env = worker_environment(values, attached);
    Settings {
        name: values.text("name").unwrap_or_else(|| name_of(directory)),
        directory: directory.to_path_buf(),
        file,
        state_dir: values.path("state_dir"),
        search_path: environment.get("PATH").cloned().unwrap_or_default(),
        cache_dir: values.path("cache_dir").unwrap_or_else(|| cache_dir(environment, directory)),
        postgres: postgres(values, database),
        migrations: migrations(values),
        python: python(values),
        workers: workers(values, directory, workers_env.clone()),
        pool: Pool {
            size: values.number("pool.size"),
            overflow: values.number("pool.overflow"),
            recycle: values.duration("pool.recycle"),
            timeout: values.duration("pool.timeout"),
        },
        health: health(values),
        metrics: Metrics {
            interval: values.duration_or_never("metrics.interval"),
            tables: values.number("metrics.tables"),
        },
        stop: Stop {
            drain_delay: values.duration("stop.drain_delay"),
            grace: values.duration("stop.grace"),
            idle_drain: values.duration("stop.idle_drain"),
            postgres_grace: values.duration("stop.postgres_grace"),
            platform_grace: values.duration("stop.platform_grace"),
        },
        hooks: hooks(values),
        processes,
        backup: Backup::of(values),
        restore_if_empty: values.text("restore.if_empty"),
        restore_locale: values.text("restore.locale"),
        restore_trust: values.boolean("restore.trust"),
        cloud_variables: CloudVariables::of(
            clouds.own,
            clouds.dropped.into_iter().chain(workers_env).chain(environment.clone()),
        ),
        credentials_refused: None,
        inherited: Inherited(environment.clone()),
        disk: Disk::of(values),
        memory: 0,
        test: test(values),
        log: Log {
            colour: environment.get("NO_COLOR").is_none_or(String::is_empty),
            format: match values.word("log.format").as_str() {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                _ => LogFormat::Auto,
            },
            filter: values.word("log.filter"),
            ring: values.bytes("log.ring").unwrap_or_default(),
            file: values.path("log.file").map(|path| LogFile {
                path,
                size_max: values.bytes("log.file_size_max").unwrap_or_default(),
                count: values.number("log.file_count"),
            }),
        },
    }
}

/// Cloud variables that are not in the environment.
pub struct Clouds<'a> {
    /// To Tandem alone.
    pub own: &'a Said,
    /// In `.env`, and taken from the workers by `workers.drop_env`.
    pub dropped: BTreeMap<String, String>,
}

/// The directory's own name, fit for paths and for PostgreSQL's `application_name`.
fn name_of(directory: &Path) -> String {
    let name = directory.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let fit: String = name.chars().map(|letter| if is_name_letter(letter) { letter } else { '-' }).collect();
    let fit = fit.trim_matches(['.', '-']);
    if fit.is_empty() { "tandem".to_owned() } else { fit.to_owned() }
}

/// What a deployment's name may hold.
pub fn is_name_letter(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-_.".contains(letter)
}

/// The user's cache directory (XDG Base Directory Specification), or the machine's when root.
fn cache_dir(environment: &BTreeMap<String, String>, directory: &Path) -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/cache/tandem");
    }
    let absolute = |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.map_or_else(|| directory.join(".tandem/cache"), |cache| cache.join("tandem"))
}

fn postgres(values: &Values, database: Database) -> Postgres {
    let number = u16::try_from(values.number("postgres.port")).unwrap_or_default();
    Postgres {
        mode: database.mode,
        url: database.url,
        scheme: database.scheme,
        unresolved_help: database.unresolved_help,
        source: source(values),
        listen: values.ip("postgres.listen"),
        port: Port { number, chosen: values.chosen("postgres.port") },
        tls: PostgresTls::of(values),
        user: values.word("postgres.user"),
        password: values.secret("postgres.password"),
        database: values.word("postgres.database"),
        run_as: values.text("postgres.run_as"),
        max_connections: values.number_or("postgres.max_connections", 0),
        max_connections_auto: *values.typed("postgres.max_connections") == Typed::Text("auto".into()),
        reserved_connections: values.number("postgres.reserved_connections"),
        shared_buffers: values.bytes("postgres.shared_buffers"),
        slow_query: values.duration_or_never("postgres.slow_query"),
        read_all_stats: values.boolean("postgres.read_all_stats"),
        initdb_args: values.list("postgres.initdb_args").unwrap_or_default(),
        init_scripts: match values.word("postgres.init_scripts").as_str() {
            "auto" => foreign::init_scripts(),
            "none" => None,
            _ => values.path("postgres.init_scripts"),
        },
        init_limit: values.duration("postgres.init_limit"),
        settings: values.table("postgres.settings"),
        ready_limit: values.duration("postgres.ready_limit"),
        probe_interval: values.duration("postgres.probe_interval"),
        probe_deadline: values.duration("postgres.probe_deadline"),
        hang_limit: values.duration_or_never("postgres.hang_limit"),
    }
}

fn source(values: &Values) -> BinarySource {
    let path = || values.path("postgres.source").unwrap_or_default();
    match values.word("postgres.source").as_str() {
        "auto" => BinarySource::Auto,
        "system" => BinarySource::System,
        "package" => BinarySource::Package,
        "theseus" => BinarySource::Theseus,
        _ => BinarySource::Path(path(), values.text("postgres.source_sha256").map(|hash| hash.to_lowercase())),
    }
}

fn health(values: &Values) -> Health {
    Health {
        listen: values.place("health.listen"),
        workers_min: values.number("health.workers_min"),
        page: match values.word("health.page").as_str() {
            "on" => PageMode::On,
            "off" => PageMode::Off,
            _ => PageMode::Auto,
        },
        page_password: values.secret("health.page_password"),
        page_hosts: values.list("health.page_hosts").unwrap_or_default(),
    }
}

fn migrations(values: &Values) -> Migrations {
    let run = match (values.list("migrations.run"), values.word("migrations.run").as_str()) {
        (Some(command), _) => MigrationRun::Command(command),
        (None, "seaorm") => MigrationRun::SeaOrm,
        (None, "sql") => MigrationRun::Sql,
        (None, _) => MigrationRun::None,
    };
    let is_auto = values.word("migrations.run") == "auto";
    Migrations {
        run,
        chosen: !is_auto && !matches!(values.origin("migrations.run"), Origin::Default | Origin::Found(_)),
        dir: values.path("migrations.dir"),
        lock_limit: values.duration("migrations.lock_limit"),
        lock_timeout: values.duration("migrations.lock_timeout"),
        limit: values.duration("migrations.limit"),
    }
}

fn python(values: &Values) -> Python {
    let interpreter = values.word("python.interpreter");
    let path = values.path("python.interpreter").filter(|_| interpreter.contains('/'));
    Python {
        interpreter: path.map_or(interpreter, |path| path.to_string_lossy().into_owned()),
        requirements: values.path("python.requirements"),
        groups: values.list("python.groups").unwrap_or_default(),
        extras: values.list("python.extras").unwrap_or_default(),
        venv: values.path("python.venv"),
        managed: values.boolean("python.managed"),
        installer: match values.word("python.installer").as_str() {
            "uv" => Installer::Uv,
            "pip" => Installer::Pip,
            _ => Installer::Auto,
        },
        limit: values.duration("python.limit"),
        wanted: None,
    }
}

/// `.env` and `[workers.env]`. Of libpq's variables a line of `.env` sets none, as one of the environment does not: only
/// what keeps a connection to an attached server safe.
fn worker_environment(values: &Values, attached: bool) -> BTreeMap<String, String> {
    let entries = values
        .entries("workers.env")
        .filter(|(name, entry)| !entry.is_of(Layer::Workers) || !is_libpq(name) || (attached && stays_attached(name)));
    let read = entries.filter_map(|(name, entry)| Some((name.to_owned(), references::marked(&entry.raw.to_plain()?))));
    read.collect()
}

fn workers(values: &Values, directory: &Path, env: BTreeMap<String, String>) -> Workers {
    Workers {
        app: values.word("workers.app"),
        app_dir: values.path("workers.app_dir").unwrap_or_else(|| directory.to_path_buf()),
        dir: values.path("workers.dir"),
        count: values.number("workers.count"),
        listen: values.places("workers.listen"),
        serving: Serving::of(values),
        backlog: values.number("workers.backlog"),
        url_scheme: values.word("workers.url_scheme"),
        env,
        drop_env: DropEnv::of(&values.list("workers.drop_env").unwrap_or_default()),
        no_new_privs: values.boolean("workers.no_new_privs"),
        preimport: values.list("workers.preimport").unwrap_or_default(),
        access_log: values.boolean("workers.access_log"),
        event_loop: values.word("workers.event_loop"),
        run_as: values.text("workers.run_as"),
        factory: match values.typed("workers.factory") {
            Typed::Boolean(true) => Factory::Yes,
            Typed::Boolean(false) => Factory::No,
            _ => Factory::Auto,
        },
        lifespan: values.word("workers.lifespan"),
        interface: values.word("workers.interface"),
        check: values.text("workers.check"),
        ready_limit: values.duration("workers.ready_limit"),
        watchdog: values.duration_or_never("workers.watchdog"),
        restart_intensity: values.number("workers.restart_intensity"),
        restart_period: values.duration("workers.restart_period"),
        backoff_first: values.duration("workers.backoff_first"),
        backoff_max: values.duration("workers.backoff_max"),
        surge: values.number("workers.surge"),
        drain: values.duration("workers.drain"),
        drain_busy: values.duration_or_never("workers.drain_busy"),
        drain_streams: match values.typed("workers.drain_streams") {
            Typed::Duration(limit) => *limit,
            _ => Some(values.duration("workers.drain")),
        },
        max_requests: values.number("workers.max_requests"),
        max_requests_jitter: values.number("workers.max_requests_jitter"),
        max_memory: values.bytes("workers.max_memory"),
        memory_kind: match values.word("workers.memory_kind").as_str() {
            "rss" => MemoryKind::Rss,
            _ => MemoryKind::Pss,
        },
        max_age: values.duration_or_never("workers.max_age"),
        preload: match values.typed("workers.preload") {
            Typed::Boolean(true) => Preload::On,
            Typed::Text(_) => Preload::Strict,
            _ => Preload::Off,
        },
        command: values.list("workers.command"),
        ready: match values.word("workers.ready") {
            path if path.contains('/') => Readiness::Http(path),
            _ => Readiness::Notify,
        },
        socket: match values.word("workers.socket").as_str() {
            "own" => WorkerSocket::Own,
            _ => WorkerSocket::Inherited,
        },
        reload_include: values.list("workers.reload_include").unwrap_or_default(),
        reload_dirs: values.paths("workers.reload_dirs"),
        debugger: Debugger::None,
    }
}

fn test(values: &Values) -> Test {
    Test {
        seed: values.list("test.seed").unwrap_or_default(),
        inputs: values.list("test.inputs"),
        url_scheme: values.text("test.url_scheme").unwrap_or_else(|| values.word("workers.url_scheme")),
        max_connections: values.number("test.max_connections"),
        settings: values.table("test.settings"),
        pool: values.number("test.pool"),
        keep_failed: values.number("test.keep_failed"),
        dir: (values.word("test.dir") != "auto").then(|| values.path("test.dir")).flatten(),
        superuser: values.boolean("test.superuser"),
        spare: values.boolean("test.spare"),
    }
}

fn hooks(values: &Values) -> Hooks {
    Hooks {
        after_ready: values.list("hooks.after_ready"),
        after_ready_on: match values.word("hooks.after_ready_on").as_str() {
            "replaced" => AfterReady::Replaced,
            _ => AfterReady::Start,
        },
        before_stop: values.list("hooks.before_stop"),
        worker_exit: values.list("hooks.worker_exit"),
        limit: values.duration("hooks.limit"),
        on_failure: match values.word("hooks.on_failure").as_str() {
            "stop" => OnFailure::Stop,
            _ => OnFailure::Warn,
        },
    }
}
