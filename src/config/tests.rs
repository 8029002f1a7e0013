//! Whole configurations, from what lies on disk to what is reported.

mod database;
mod diff;
mod foreign;
mod workers;

use std::path::Path;

use expect_test::{Expect, expect};
use tempfile::TempDir;

use super::*;
use crate::exit::{Code, code_of};

/// A project directory with these files in it, and an environment.
struct Project {
    directory: TempDir,
    environment: Vec<(&'static str, &'static str)>,
    flags: Vec<(&'static str, &'static str, &'static str)>,
    memory: u64,
    /// No name resolves, as if the resolver were out of reach.
    resolver: fn(&str) -> Lookup,
}

const APP: &str = "[workers]\napp = \"main:app\"\n";

fn project(files: &[(&str, &str)]) -> Project {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Project { directory, environment: Vec::new(), flags: Vec::new(), memory: 8 << 30, resolver: |_| Lookup::Unanswered }
}

impl Project {
    fn environment(mut self, variables: &[(&'static str, &'static str)]) -> Self {
        self.environment.extend(variables);
        self
    }

    fn flag(mut self, key: &'static str, value: &'static str, name: &'static str) -> Self {
        self.flags.push((key, value, name));
        self
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn load(&self) -> anyhow::Result<Loaded> {
        let flag = |(key, value, name): &(&str, &str, &str)| Flag {
            key: (*key).into(),
            value: (*value).into(),
            name: (*name).into(),
        };
        let source = Source {
            purpose: Purpose::default(),
            resolver: Resolver(self.resolver),
            file: None,
            flags: self.flags.iter().map(flag).collect(),
            cwd: self.path().to_path_buf(),
            environment: self.environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        };
        load_with(&source, self.memory)
    }

    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(&self, report: Expect) {
        let error = self.load().unwrap_err();
        assert_eq!(code_of(&error), Code::Config);
        report.assert_eq(&error.to_string().replace(self.path().to_str().unwrap(), "<project>"));
    }
}

/// The rows that somebody wrote, as `key = value (origin)`, then the notices.
fn summary(loaded: &Loaded) -> String {
    let rows = loaded.rows().iter().filter(|row| row.origin != "default");
    let rows = rows.map(|row| format!("{} = {} ({})", row.key, row.value, row.origin));
    rows.chain(loaded.notices.iter().chain(&loaded.remarks).map(|notice| format!("notice: {notice}")))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn everything_wrong_is_told_at_once() {
    let file = r#"nmae = "x"
[postgres]
mode = "manged"
port = "5432"
shared_buffers = 128
user = "pg_app"

[postgres.settings]
fsync = false
max_connections = 50

[workers]
app = "main.py"
cuont = 4
watchdog = "soon"
app_dir = "nowhere"
listen = "127.0.0.1:8001"

[worker]
count = 4

[hooks]
after_ready = "x"

[process]
name = "x"

[zebra]
stripes = 3

[health]
workers_min = 9
"#;
    let dotenv =
        "POSTGRES_PORT=many\nTANDEM_WORKERS__COUNTS=4\nno sense\nPOSTGRES_PASSWORD=a\nPOSTGRES_PASSWORD_FILE=b\n";
    project(&[("tandem.toml", file), (".env", dotenv)])
        .environment(&[("DB_POOL_SIZE", "-1"), ("TANDEM_POOL__OVERFLOWS", "1")])
        .flag("workers.count", "lots", "--workers")
        .flag("workers.env", "A=1", "--set")
        .flag("workers.cont", "1", "--set")
        .refused(expect![[r#"
            the configuration has 25 problems:
              .env:1: POSTGRES_PORT = "many": expected a port: a whole number up to 65535
              .env:2: TANDEM_WORKERS__COUNTS names no key of the configuration
                help: did you mean TANDEM_WORKERS__COUNT?
              .env:3: expected NAME=value
              .env:5: POSTGRES_PASSWORD (.env:4) and POSTGRES_PASSWORD_FILE both give the password
                help: keep one of them
              tandem.toml:1: unknown key `nmae`
                help: did you mean `name`?
              tandem.toml:3: postgres.mode = "manged": expected one of "auto", "managed", "attach"
                help: did you mean "managed"?
              tandem.toml:5: postgres.shared_buffers = 128: expected a size with its unit, such as "256MB" or "2GB"
              tandem.toml:6: postgres.user: PostgreSQL keeps names that begin with pg_ to itself
              tandem.toml:9: PostgreSQL's fsync cannot be set here
                help: without it a crash corrupts the cluster; Tandem keeps it on
              tandem.toml:10: PostgreSQL's max_connections cannot be set here
                help: use postgres.max_connections, which the connection budget counts with
              tandem.toml:13: workers.app: "main.py" is not an application
                help: write app = "module:attribute" under [workers], as for uvicorn: "main:app" for main.py with `app = FastAPI()`
              tandem.toml:14: unknown key `workers.cuont`
                help: did you mean `workers.count`?
              tandem.toml:15: workers.watchdog = "soon": expected a duration such as "30s", "500ms" or "10m", no more than a year, or "never"
              tandem.toml:16: workers.app_dir: <project>/nowhere is not a directory
              tandem.toml:17: workers.listen: the port is that of health.listen too
                help: give each its own port
              tandem.toml:19: unknown section [worker]
                help: did you mean [workers]?
              tandem.toml:23: hooks.after_ready = "x": expected a program and its arguments as a list, such as ["npm", "run", "dev"]
              tandem.toml:25: `process` is a list of tables
                help: write [[process]] above the keys of each process
              tandem.toml:28: unknown section [zebra]
                help: the sections are postgres, migrations, python, workers, pool, health, metrics, stop, hooks, backup, backup.pitr, restore, disk, test, log, and any number of [[process]]
              tandem.toml:32: health.workers_min: 9 ready workers are never reached with 4 workers
              environment: TANDEM_POOL__OVERFLOWS names no key of the configuration
                help: did you mean TANDEM_POOL__OVERFLOW?
              environment: DB_POOL_SIZE = "-1": expected a whole number of at least 1
              --workers: workers.count = "lots": expected a whole number of at least 1
              --set: workers.env is a table
                help: set workers.env.NAME
              --set: unknown key `workers.cont`
                help: did you mean `workers.count`?"#]]);
}

#[test]
fn bad_toml_is_told_with_its_line_and_without_the_text() {
    project(&[("config/tandem.toml", "[workers]\napp = main:app\n[postgres]\npassword = \"s3cret\n")]).refused(
        expect![[r#"
            the configuration has 2 problems:
              config/tandem.toml:2: not TOML: string values must be quoted, expected literal string
              config/tandem.toml:4: not TOML: invalid basic string, expected `"`"#]],
    );
}

#[test]
fn odd_toml_is_understood_or_explained() {
    let file = "health = 4\n[[pool]]\nsize = 1\n[postgres]\nsettings.work_mem = '8MB'\nport = 99999999999999999999\n\
                settings.pg_stat_statements.max = 100\nsettings.data_directory = [1]\nurl = 5\nrun_as = ''\n\
                user = { name = 'x' }\ndatabase = 1979-05-27\npassword = ''\nlisten = '::1'\n\
                [migrations]\nrun = 'alembic upgrade head'\n[workers.env]\nDATABASE_URL = 'x'\nA = [1]\n'B=' = 'c'\n";
    project(&[("tandem.toml", file)]).refused(expect![[r#"
        the configuration has 15 problems:
          tandem.toml:1: `health` is a section
            help: write [health] above its keys
          tandem.toml:2: `pool` is a section
            help: write [pool] above its keys
          tandem.toml:6: postgres.port = (a number beyond 64 bits): expected a port: a whole number up to 65535
          tandem.toml:8: postgres.settings.data_directory = (a list that holds more than texts): expected text, a number, or true or false
          tandem.toml:8: PostgreSQL's data_directory cannot be set here
            help: Tandem keeps the cluster in its state directory: use state_dir
          tandem.toml:9: postgres.url: expected a URL such as "postgresql://user:password@host:5432/database"
          tandem.toml:10: postgres.run_as = "": expected text that is not empty
          tandem.toml:11: postgres.user = (a table): expected text that is not empty
          tandem.toml:12: postgres.database = (a date): expected text that is not empty
          tandem.toml:13: postgres.password: expected text that is not empty
          tandem.toml:16: migrations.run = "alembic upgrade head": expected one of "auto", "none", "seaorm", "sql", or a command as a list: ["alembic", "upgrade", "head"]
          tandem.toml:18: workers get DATABASE_URL from Tandem
            help: it follows from [postgres]; leave it out
          tandem.toml:19: workers.env.A: expected text, a number, or true or false
          tandem.toml:20: "B=" is not a variable's name
          workers.app is missing: which application shall run?
            help: write app = "module:attribute" under [workers], as for uvicorn: "main:app" for main.py with `app = FastAPI()`"#]]);
    let file = "workers.app = 'main:app'\nstop = { grace = 90, drain_delay = 1.5 }\npostgres.\"port\" = 0x1538\n\
                workers.env = { A = 1, B = true }\npostgres.settings = { 'pg_stat_statements.max' = 100 }\n";
    let loaded = project(&[("tandem.toml", file)]).loaded();
    expect![[r#"
        postgres.port = 5432 (tandem.toml:3)
        postgres.settings.pg_stat_statements.max = 100 (tandem.toml:5)
        workers.app = main:app (tandem.toml:1)
        workers.env.A = ******** (tandem.toml:4)
        workers.env.B = ******** (tandem.toml:4)
        stop.drain_delay = 1s 500ms (tandem.toml:2)
        stop.grace = 1m 30s (tandem.toml:2)"#]]
    .assert_eq(&summary(&loaded));
    assert_eq!(loaded.settings.postgres.settings["pg_stat_statements.max"], "100");
    assert_eq!(loaded.settings.workers.env["B"], "true");
}

#[test]
fn nothing_at_all_says_what_to_write() {
    project(&[]).refused(expect![[r#"
        the configuration has 1 problem:
          there is no tandem.toml here and no config/tandem.toml, and no application was found: no main.py, app.py, api.py, asgi.py or manage.py, here or in a package, has one
            help: make a tandem.toml with the section [workers]; write app = "module:attribute" under [workers], as for uvicorn: "main:app" for main.py with `app = FastAPI()`"#]]);
    project(&[("tandem.toml", "")]).refused(expect![[r#"
        the configuration has 1 problem:
          workers.app is missing: which application shall run?
            help: write app = "module:attribute" under [workers], as for uvicorn: "main:app" for main.py with `app = FastAPI()`"#]]);
}

#[test]
fn a_file_that_was_named_must_be_there() {
    project(&[])
        .environment(&[("TANDEM_CONFIG", "gone.toml")])
        .refused(expect!["TANDEM_CONFIG names <project>/gone.toml, which is not a file"]);
}

#[test]
fn layers_win_in_order_and_say_so() {
    let file = "[postgres]\nuser = \"file\"\n[pool]\nsize = 1\noverflow = 1\n[workers]\napp = \"main:app\"\ncount = 1\n\
                [workers.env]\nA = \"file\"\nB = 2\n";
    let loaded = project(&[
        ("config/tandem.toml", file),
        (".env", "DB_POOL_SIZE=2\nTANDEM_WORKERS__COUNT=2\nA=dotenv\nC=dotenv\nD=dotenv\nPOSTGRES_PORT=\n"),
    ])
    .environment(&[
        ("DB_POOL_SIZE", "3"),
        ("TANDEM_POOL__SIZE", "4"),
        ("TANDEM_WORKERS__ENV__MY__Name", "v"),
        ("TANDEM_POSTGRES__SETTINGS__WORK_MEM", "8MB"),
        ("TANDEM_POOL_SIZE", "9"),
        ("TANDEM_SERVICE_HOST", "10.0.0.1"),
        ("D", "environment"),
    ])
    .flag("workers.count", "3", "--workers")
    .loaded();
    expect![[r#"
        postgres.user = file (config/tandem.toml:2)
        postgres.settings.work_mem = 8MB (environment TANDEM_POSTGRES__SETTINGS__WORK_MEM)
        workers.app = main:app (config/tandem.toml:7)
        workers.count = 3 (--workers)
        workers.env.A = ******** (.env:3)
        workers.env.B = ******** (config/tandem.toml:11)
        workers.env.C = ******** (.env:4)
        workers.env.D = ******** (environment D)
        workers.env.MY__Name = ******** (environment TANDEM_WORKERS__ENV__MY__Name)
        pool.size = 4 (environment TANDEM_POOL__SIZE)
        pool.overflow = 1 (config/tandem.toml:5)
        notice: TANDEM_POOL_SIZE (environment) has no effect: did you mean TANDEM_POOL__SIZE?
        notice: A (.env:3) wins over workers.env.A (config/tandem.toml:10)
        notice: TANDEM_POOL__SIZE (environment) and DB_POOL_SIZE (environment) differ: TANDEM_POOL__SIZE wins
        notice: D (environment) wins over D (.env:5)"#]]
    .assert_eq(&summary(&loaded));
    assert_eq!(loaded.settings.workers.env["C"], "dotenv");
    assert!(!loaded.settings.postgres.port.chosen);
    assert_eq!(loaded.origins["workers.count"], Origin::Flag("--workers".into()));
}

#[test]
fn the_guides_pools_fit_unless_a_number_is_written_for_the_server() {
    const DOTENV: &str = "DB_POOL_SIZE=20\nDB_POOL_OVERFLOW=10\n";
    let mut auto = project(&[("tandem.toml", APP), (".env", DOTENV)]);
    let loaded = auto.loaded();
    assert_eq!(loaded.settings.postgres.max_connections, 163);
    assert!(summary(&loaded).contains("pool.size = 20 (.env:1)"), "{}", summary(&loaded));
    let row = loaded.rows().iter().find(|row| row.key == "postgres.max_connections").unwrap();
    assert_eq!((row.value.as_str(), row.origin.as_str()), ("auto: 163", "default"));

    auto.memory = 128 << 20;
    auto.refused(expect![[r#"
        the configuration has 1 problem:
          .env:1: the workers' pools may open more connections than PostgreSQL accepts: 4 workers × (20 + 10) + 1 more during a roll × 30 + 10 reserved + 3 for superusers = 163, max_connections is 100
            help: more connections would not fit into 128 MB of memory, if all are used: raise postgres.max_connections to 163, let pool.size + pool.overflow be at most 17, or let workers.count be at most 1"#]]);
    auto.memory = 192 << 20;
    let auto = auto.flag("workers.count", "2", "--workers");
    assert!(
        auto.loaded()
            .connections()
            .contains("is 128 (auto: room for 2 workers, more would not fit into 192 MB of memory)")
    );

    let text = format!("postgres.max_connections = 100\n{APP}");
    project(&[("tandem.toml", &text), (".env", DOTENV)]).refused(expect![[r#"
        the configuration has 1 problem:
          .env:1: the workers' pools may open more connections than PostgreSQL accepts: 4 workers × (20 + 10) + 1 more during a roll × 30 + 10 reserved + 3 for superusers = 163, max_connections is 100
            help: raise postgres.max_connections to 163, let pool.size + pool.overflow be at most 17, or let workers.count be at most 1"#]]);
}

#[test]
fn the_project_is_the_parent_of_config() {
    let files = [("config/tandem.toml", APP), ("deploy/prod.toml", APP), ("deploy/.env", "TANDEM_WORKERS__COUNT=2\n")];
    let project = project(&files);
    assert_eq!(project.loaded().settings.directory, project.path());
    let project = project.environment(&[("TANDEM_CONFIG", "deploy/prod.toml")]);
    let settings = project.loaded().settings;
    assert_eq!((settings.directory, settings.workers.count), (project.path().join("deploy"), 2));
}

#[test]
fn the_table_is_aligned() {
    let loaded = project(&[("tandem.toml", "name = \"x\"\n[workers]\napp = \"main:app\"\n")]).loaded();
    expect![[r#"
        connections: 4 workers × (20 + 10) + 1 more during a roll × 30 + 10 reserved + 3 for superusers = 163, max_connections is 163 (auto: room for 4 workers)
    "#]]
    .assert_eq(&loaded.connections());
    let table = loaded.table(false);
    let lines: Vec<_> =
        table.lines().filter(|line| line.contains("workers.") || line.starts_with("name")).map(str::to_owned).collect();
    expect![[r#"
        name                           x                                                 tandem.toml:1
        workers.app                    main:app                                          tandem.toml:3
        workers.app_dir                .                                                 default
        workers.dir                    (the project directory)                           default
        workers.count                  4                                                 default
        workers.listen                 127.0.0.1:8000                                    default
        workers.socket_mode            0666                                              default
        workers.socket_owner           (the user Tandem runs as)                         default
        workers.tls_cert               (none)                                            default
        workers.tls_key                (workers.tls_cert)                                default
        workers.tls_ca                 (none)                                            default
        workers.tls_client             none                                              default
        workers.uvicorn                (none)                                            default
        workers.backlog                2048                                              default
        workers.url_scheme             auto                                              default
        workers.env                    (what .env holds)                                 default
        workers.preimport              ["uvicorn", "fastapi", "sqlalchemy", "psycopg2"]  default
        workers.drop_env               []                                                default
        workers.no_new_privs           true                                              default
        workers.access_log             false                                             default
        workers.event_loop             auto                                              default
        workers.run_as                 (as root: www-data or nobody, where they can)     default
        workers.factory                auto                                              default
        workers.lifespan               auto                                              default
        workers.interface              auto                                              default
        workers.check                  (none)                                            default
        workers.ready_limit            1m                                                default
        workers.watchdog               15s                                               default
        workers.restart_intensity      5                                                 default
        workers.restart_period         1m                                                default
        workers.backoff_first          100ms                                             default
        workers.backoff_max            10s                                               default
        workers.surge                  1                                                 default
        workers.drain                  30s                                               default
        workers.drain_busy             never                                             default
        workers.drain_streams          (workers.drain)                                   default
        workers.max_requests           0                                                 default
        workers.max_requests_jitter    0                                                 default
        workers.max_memory             (none)                                            default
        workers.memory_kind            pss                                               default
        workers.max_age                never                                             default
        workers.preload                false                                             default
        workers.command                (none)                                            default
        workers.ready                  notify                                            default
        workers.socket                 inherited                                         default
        workers.reload_include         ["*.py"]                                          default
        workers.reload_dirs            []                                                default
        test.url_scheme                (workers.url_scheme)                              default"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn the_shipped_files_load() {
    for (text, user) in [
        (include_str!("../../config/tandem.toml"), "ffe_user"),
        (include_str!("../../config/finance-feedback-engine.toml"), "ffe_user"),
    ] {
        let files = [("config/tandem.toml", text), ("examples/backend/requirements.txt", ""), ("uv.lock", "")];
        let loaded = project(&files).loaded();
        assert_eq!(loaded.notices, Vec::<String>::new());
        assert_eq!(loaded.settings.postgres.user, user);
    }
}

/// Lines of FFE's own `.env.production.example`, with its pools.
const FFE_DOTENV: &str = r#"ENVIRONMENT="development"
DATABASE_URL="postgresql+psycopg2://ffe_user:your_strong_password@postgres:5432/ffe"
POSTGRES_USER="ffe_user"
POSTGRES_PASSWORD="your_strong_password"
POSTGRES_DB="ffe"
DB_POOL_SIZE="30"
DB_POOL_OVERFLOW="15"
TRADING_PLATFORM="coinbase_advanced"  # or "oanda" for forex
FINANCE_FEEDBACK_API_KEY="your_secure_api_key_here"
"#;

#[test]
fn the_deployment_takes_its_own_dotenv_with_four_workers() {
    let file = include_str!("../../config/finance-feedback-engine.toml");
    let files = [("tandem.toml", file), ("uv.lock", ""), (".env", FFE_DOTENV)];
    let loaded = project(&files).flag("workers.count", "4", "--workers").loaded();
    let settings = &loaded.settings;
    assert_eq!((settings.postgres.mode, settings.postgres.database.as_str()), (PostgresMode::Managed, "ffe"));
    assert_eq!(settings.postgres.max_connections, 5 * 45 + 13);
    assert_eq!(settings.workers.env["ENVIRONMENT"], "development");
    assert_eq!(settings.workers.env["AGENT_ASSET_PAIRS"], "BTCUSD,ETHUSD");
    assert_eq!(settings.base_url(), "http://127.0.0.1:8000");
    let notices = loaded.notices.join("\n");
    assert!(notices.contains("its server postgres:5432 is ignored"), "{notices}");
    assert!(notices.contains("ENVIRONMENT (.env:1) wins over workers.env.ENVIRONMENT (tandem.toml:"), "{notices}");

    let files = [("tandem.toml", file), ("pyproject.toml", "")];
    let error = project(&files).load().unwrap_err().to_string();
    assert!(error.contains("write requirements = \"pyproject.toml\"") && error.contains("python.venv"), "{error}");
}
