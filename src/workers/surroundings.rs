//! What a child of Tandem's starts with: its environment, its user, its rights, where its programs are. The one place that
//! says it, for workers, migrations, seeds, hooks, companions, tests and people's tools.
//!
//! ```text
//! Tandem's own environment, without libpq's and Tandem's variables      `process` takes those out of every child
//!   without what workers.drop_env names
//!   < HOME, USER and LOGNAME of the user that it runs as
//!   < .env, [workers.env]                                 what refers to the server (${PGPORT}) filled in
//!   < the Python environment                              VIRTUAL_ENV, its bin first in PATH
//!   < where the database is                               DATABASE_URL, PG*, POSTGRES_*, DB_POOL_*
//! ```
//!
//! Blocks: it looks whether programs and files are there. Used through `around_aside`, [`super::launch::Launch::aside`], or
//! by commands.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::addresses;
use crate::config::{PostgresMode, Settings, references};
use crate::plan::libpq::stays_attached;
use crate::plan::{CommandLine, DatabaseUrl, Identity};
use crate::process::identity;
use crate::project::Interpreter;

/// Variables that a login sets for one user, and that lead another one into the first one's places.
const OF_ONE_LOGIN: [&str; 8] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "MAIL",
    "SSH_AUTH_SOCK",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
];

/// How Python says that it finds no module of a name.
pub const NO_MODULE: &str = "No module named";

/// What the environments of all children of one server are made from.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub settings: &'a Settings,
    /// The server of this run.
    pub url: &'a DatabaseUrl,
    /// The interpreter of the Python environment.
    pub python: &'a Path,
    /// `None`: the user Tandem runs as.
    pub identity: Option<&'a Identity>,
    /// Whether the server is the tests' own: then no other database may be reached by mistake.
    pub of_tests: bool,
}

/// Variables to set, or to remove where there is no value; later ones win.
#[derive(Clone, Default)]
pub struct Variables(pub Vec<(String, Option<String>)>);

impl Variables {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), Some(value.into())));
    }

    /// The command with these variables.
    pub fn apply(self, command: CommandLine) -> CommandLine {
        self.0.into_iter().fold(command, |command, (name, value)| match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        })
    }

    /// The variables that are set, each once.
    pub fn values(self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        for (name, value) in self.0 {
            match value {
                Some(value) => drop(values.insert(name, value)),
                None => drop(values.remove(&name)),
            }
        }
        values
    }
}

impl Surroundings<'_> {
    /// The command that `words` say, if they say any, in the directory `dir`; a program of the Python environment is found
    /// there first. The server knows it as `application`.
    pub fn command(&self, words: &[String], application: &str, dir: &Path) -> Option<CommandLine> {
        let (program, args) = words.split_first()?;
        Some(self.with_all(CommandLine::new(self.program(program)).args(args), application, dir))
    }

    /// `command` with the whole environment of a child; it can import the application's modules.
    pub fn with_all(&self, command: CommandLine, application: &str, dir: &Path) -> CommandLine {
        self.importing(application).apply(self.as_worker(command, dir))
    }

    /// As [`Self::variables`], so that the application's modules can be imported.
    pub fn importing(&self, application: &str) -> Variables {
        let mut variables = self.variables(application);
        self.imports(&mut variables);
        variables
    }

    /// A person's tool, with the variables that let it into the database, and no others.
    pub fn tool(&self, command: CommandLine, application: &str) -> CommandLine {
        self.database(application).apply(Variables(self.kept()).apply(command))
    }

    /// The variables of libpq that children keep where Tandem is attached to a server.
    fn kept(&self) -> Vec<(String, Option<String>)> {
        let attached = self.settings.postgres.mode == PostgresMode::Attach && !self.of_tests;
        let all = self.settings.inherited.0.iter().filter(|(name, _)| attached && stays_attached(name));
        all.map(|(name, value)| (name.clone(), Some(value.clone()))).collect()
    }

    /// `command` as everything runs that runs the application's code: as the workers' user and in none of its other
    /// groups, without a way to more rights, with that user's names, in the directory `dir`. Variables come on top of it:
    /// a HOME of `[workers.env]` wins.
    pub fn as_worker(&self, command: CommandLine, dir: &Path) -> CommandLine {
        let command =
            command.identity(self.identity.cloned()).no_new_privs(self.settings.workers.no_new_privs).dir(dir);
        let Some(identity) = self.identity else { return command };
        let command = OF_ONE_LOGIN.iter().fold(command, |command, name| command.env_remove(name));
        command.env("HOME", &identity.home).env("USER", &identity.name).env("LOGNAME", &identity.name)
    }

    /// What `workers.drop_env` takes away of Tandem's own environment.
    fn dropped(&self) -> Vec<(String, Option<String>)> {
        let drop_env = &self.settings.workers.drop_env;
        self.settings
            .inherited
            .0
            .keys()
            .filter(|name| drop_env.matches(name))
            .map(|name| (name.clone(), None))
            .collect()
    }

    /// The working directory of what runs the application's code: the project's, unless the configuration names another.
    /// Where their user may not pass to the project's, it is `workers.app_dir`.
    pub fn work_dir(&self) -> &Path {
        let settings = self.settings;
        let is_barred = self.identity.is_some_and(|user| identity::barrier(settings.work_dir(), user).is_some());
        if is_barred && settings.workers.dir.is_none() { &settings.workers.app_dir } else { settings.work_dir() }
    }

    /// Where the program `name` is: a tool such as alembic lives in the Python environment, and is found there first.
    pub fn program(&self, name: &str) -> PathBuf {
        let beside = self.python.parent().filter(|_| !name.contains('/')).map(|bin| bin.join(name));
        beside.filter(|tool| tool.is_file()).unwrap_or_else(|| name.into())
    }

    /// Whether the program `name` is there. A path always counts as there: it starts in the child's directory.
    pub fn finds(&self, name: &str) -> bool {
        let path = self.settings.workers.env.get("PATH").unwrap_or(&self.settings.search_path);
        let in_path = || path.split(':').any(|dir| Path::new(dir).join(name).is_file());
        name.contains('/') || self.program(name).is_absolute() || in_path()
    }

    /// The virtual environment, if `python` is one's.
    pub fn venv(&self) -> Option<&Path> {
        let venv = self.python.parent()?.parent()?;
        venv.join("pyvenv.cfg").is_file().then_some(venv)
    }

    /// The environment of a child that the server knows as `application`.
    pub fn variables(&self, application: &str) -> Variables {
        let database = self.database(application);
        let mut all = Variables(self.dropped());
        all.0.extend(self.kept());
        all.0.extend(self.own(&database).0);
        self.python_environment(&mut all);
        all.0.extend(database.0);
        all
    }

    /// The scheme of `DATABASE_URL`: the one that was chosen, else that of the operator's own URL where it names a driver,
    /// else one for the driver that the Python environment has.
    pub fn scheme(&self) -> String {
        scheme(self.settings, self.python)
    }

    /// The variables that say where the database is: `DATABASE_URL` in the application's dialect, libpq's own (PostgreSQL
    /// documentation, "Environment Variables"), those that Tandem itself reads and their usual neighbours, and the pool's
    /// size. What Tandem reads it also writes: an application that reads `POSTGRES_PORT` must not find another server there.
    pub fn database(&self, application: &str) -> Variables {
        let (url, pool) = (self.url, &self.settings.pool);
        let password = url.password.as_ref().map(|password| password.expose()).unwrap_or_default();
        let port = url.port.to_string();
        let mut all = Variables::default();
        all.set("DATABASE_URL", url.with_scheme(&self.scheme()).expose().expose());
        all.set("PGAPPNAME", application);
        for (names, value) in [
            (&["PGHOST", "POSTGRES_HOST", "POSTGRES_SERVER", "POSTGRES_HOSTNAME"][..], url.host.as_str()),
            (&["PGPORT", "POSTGRES_PORT"], &port),
            (&["PGUSER", "POSTGRES_USER"], &url.user),
            (&["PGPASSWORD", "POSTGRES_PASSWORD"], password),
            (&["PGDATABASE", "POSTGRES_DB"], &url.database),
        ] {
            for name in names {
                all.set(name, value);
            }
        }
        for name in ["DATABASE_URL_FILE", "POSTGRES_PASSWORD_FILE", "POSTGRES_USER_FILE", "POSTGRES_DB_FILE"] {
            all.0.extend([(name.to_owned(), None), (name.to_lowercase(), None)]);
        }
        if self.of_tests {
            // A service that a test names (`psql service=prod`) is another server: it is looked up in files.
            all.set("PGSERVICEFILE", "/dev/null");
            all.set("PGSYSCONFDIR", "/nonexistent");
        }
        // TLS and the like, where the address says so.
        for (name, value) in url.variables() {
            all.set(name, value);
        }
        all.set("DB_POOL_SIZE", pool.size.to_string());
        all.set("DB_POOL_OVERFLOW", pool.overflow.to_string());
        all.set("DB_POOL_RECYCLE", pool.recycle.as_secs().to_string());
        all.set("DB_POOL_TIMEOUT", pool.timeout.as_secs().to_string());
        all
    }

    /// The variables of `.env` and `[workers.env]`. For tests the environment wins over those that do not name the server,
    /// so that a suite can have settings of its own; and the address of another database is replaced wherever it stands.
    fn own(&self, database: &Variables) -> Variables {
        let known = database.clone().values();
        let inherited = &self.settings.inherited.0;
        let is_inherited = |name| inherited.contains_key(name) && !self.settings.workers.drop_env.matches(name);
        let mut all = Variables::default();
        for (name, value) in inherited.iter().filter(|(name, _)| is_inherited(name)) {
            if let Some(value) = self.in_place_of(name, value, &known) {
                all.set(name, value);
            }
        }
        for (name, value) in &self.settings.workers.env {
            let resolved = || references::resolve(value, |name| known.get(name).cloned().unwrap_or_default());
            match self.in_place_of(name, value, &known) {
                Some(value) => all.set(name, value),
                None if self.of_tests && is_inherited(name) && !references::refers(value) => {}
                None => all.set(name, resolved()),
            }
        }
        all
    }

    /// The value that replaces `value` of the variable `name` in a child, where one does.
    fn in_place_of(&self, name: &str, value: &str, known: &BTreeMap<String, String>) -> Option<String> {
        let upper = name.to_uppercase();
        if references::NAMES.contains(&upper.as_str()) {
            // pydantic-settings takes `postgres_port` and POSTGRES_PORT for the same, whichever comes last.
            return known.get(&upper).cloned();
        }
        let replaced = Some(value).filter(|_| self.of_tests).and_then(|value| addresses::replaced(value, self.url))?;
        Some(references::resolve(&replaced, |name| known.get(name).cloned().unwrap_or_default()))
    }

    /// Fill in what `variables` refers to, for a child's variables beside these ([`crate::config::ProcessSettings::env`]).
    pub fn resolve(&self, variables: &BTreeMap<String, String>, application: &str) -> Variables {
        let known = self.database(application).values();
        let resolve = |(name, value): (&String, &String)| {
            let own = self.in_place_of(name, value, &known).filter(|_| self.of_tests);
            own.unwrap_or_else(|| references::resolve(value, |name| known.get(name).cloned().unwrap_or_default()))
        };
        Variables(variables.iter().map(|pair| (pair.0.clone(), Some(resolve(pair)))).collect())
    }

    /// Variables of the environment, `.env` and `[workers.env]` that hold the address of another database.
    pub fn other_databases(&self) -> BTreeSet<&str> {
        let all = self.settings.inherited.0.iter().chain(&self.settings.workers.env);
        let others =
            all.filter(|(name, value)| *name != "DATABASE_URL" && addresses::replaced(value, self.url).is_some());
        others.map(|(name, _)| name.as_str()).collect()
    }

    fn python_environment(&self, all: &mut Variables) {
        let Some(venv) = self.venv() else { return };
        let path = self.settings.workers.env.get("PATH").filter(|_| !self.of_tests);
        let path = path.unwrap_or(&self.settings.search_path);
        all.set("VIRTUAL_ENV", venv.display().to_string());
        // As `activate` does: it would lead the environment's interpreter to another standard library.
        all.0.push(("PYTHONHOME".to_owned(), None));
        let bin = venv.join("bin").display().to_string();
        all.set("PATH", if path.is_empty() { bin } else { format!("{bin}:{path}") });
    }

    /// Why a tool cannot import the application's modules, where that is Tandem's doing.
    pub fn import_help(&self) -> Option<String> {
        let (app_dir, obstacle) = (self.settings.workers.app_dir.display(), self.settings.import_obstacle()?);
        Some(format!(
            "{app_dir} (workers.app_dir) is not in PYTHONPATH, because {} would be taken for a module of Python's own: give \
             that file another name",
            obstacle.display()
        ))
    }

    /// Let the application's modules be imported, as in a worker.
    fn imports(&self, all: &mut Variables) {
        let app_dir = &self.settings.workers.app_dir;
        // Python's own modules cannot be put before it, as Uvicorn's command does by importing them first.
        if let Some(obstacle) = self.settings.import_obstacle() {
            tracing::debug!("PYTHONPATH goes without {}: {} would break tools", app_dir.display(), obstacle.display());
            return;
        }
        let said =
            || self.settings.workers.env.get("PYTHONPATH").or_else(|| self.settings.inherited.0.get("PYTHONPATH"));
        let rest = said().filter(|path| !path.is_empty()).map(|path| format!(":{path}")).unwrap_or_default();
        all.set("PYTHONPATH", format!("{}{rest}", app_dir.display()));
    }
}

/// As [`Surroundings::scheme`], for the interpreter `python`.
pub fn scheme(settings: &Settings, python: &Path) -> String {
    let written = settings.postgres.scheme.as_deref().filter(|scheme| scheme.contains('+'));
    match (settings.workers.url_scheme.as_str(), written) {
        ("auto", Some(written)) => written.to_owned(),
        ("auto", None) => {
            let home = settings.inherited.0.get("HOME").map(Path::new);
            Interpreter::of(python, &settings.search_path, home, &settings.directory).scheme().to_owned()
        }
        (chosen, _) => chosen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Flag, Purpose, Source};
    use crate::plan::Secret;

    fn variables(of_tests: bool, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> BTreeMap<String, String> {
        let temp = tempfile::tempdir().unwrap();
        let dotenv = "OWN=a${PGPORT}\nSQLALCHEMY_URI=postgresql+asyncpg://u:p@live/db\nPGSERVICE=prod\nPOSTGRES_HOST=live\n\
                      BUILT=${POSTGRES_USER}@${POSTGRES_SERVER}\nQUOTED='${PGHOST}'\nPLAIN=dotenv\n";
        std::fs::write(temp.path().join(".env"), dotenv).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let flag =
            |(key, value): &(&str, &str)| Flag { key: (*key).into(), value: (*value).into(), name: "--set".into() };
        let source = Source {
            cwd: temp.path().to_owned(),
            purpose: Purpose::Test,
            environment: environment.iter().map(own).collect(),
            flags: flags.iter().map(flag).collect(),
            ..Source::default()
        };
        let settings = config::load(&source).unwrap().settings;
        let url = DatabaseUrl {
            scheme: "postgresql".into(),
            user: "clerk".into(),
            password: Some(Secret::new("pw")),
            host: "127.0.0.1".into(),
            port: 4711,
            database: "shop".into(),
            parameters: Vec::new(),
        };
        let python = Path::new("/nowhere/bin/python");
        let around = Surroundings { settings: &settings, url: &url, python, identity: None, of_tests };
        around.variables("a").values()
    }

    #[test]
    fn whatever_tandem_reads_it_writes_and_references_are_filled_in() {
        for of_tests in [false, true] {
            let flags = [("DB_PORT", "${PGPORT}"), ("POSTGRES_USER_FILE", "/f"), ("postgres_db_file", "/f")];
            let keys = flags.map(|(name, _)| format!("workers.env.{name}"));
            let flags: Vec<_> = keys.iter().zip(flags).map(|(key, (_, value))| (key.as_str(), value)).collect();
            let all = variables(of_tests, &[("POSTGRES_PORT", "1")], &flags);
            for (name, value) in [
                ("POSTGRES_PORT", "4711"),
                ("POSTGRES_HOST", "127.0.0.1"),
                ("POSTGRES_SERVER", "127.0.0.1"),
                ("POSTGRES_USER", "clerk"),
                ("POSTGRES_DB", "shop"),
                ("PGPASSWORD", "pw"),
                ("OWN", "a4711"),
                ("DB_PORT", "4711"),
                ("BUILT", "clerk@127.0.0.1"),
                ("QUOTED", "${PGHOST}"),
            ] {
                assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}, tests: {of_tests}");
            }
            assert!(!all.contains_key("PGSERVICE") && !all.contains_key("POSTGRES_PASSWORD_FILE"));
            assert!(!all.contains_key("POSTGRES_USER_FILE") && !all.contains_key("postgres_db_file"));
            assert_eq!(all.get("PGSERVICEFILE").map(String::as_str), of_tests.then_some("/dev/null"));
        }
    }

    #[test]
    fn tests_get_no_other_databases_address_and_the_environment_wins_in_the_rest() {
        let environment = [
            ("PLAIN", "environment"),
            ("REPORTS", "postgres://prod/reports"),
            ("OWN", "1"),
            ("DSN", "host=prod port=1 dbname=x"),
            ("JAVA", "jdbc:postgresql://prod/x?user=u"),
            ("OPTIONS", "host=x y"),
            ("postgres_port", "5432"),
        ];
        let mixed = ("workers.env.MIXED", "--dsn postgres://live/x --port ${PGPORT}");
        let tests = variables(true, &environment, &[mixed]);
        assert_eq!(tests["SQLALCHEMY_URI"], "postgresql+asyncpg://clerk:pw@127.0.0.1:4711/shop");
        assert_eq!(tests["MIXED"], "--dsn postgres://clerk:pw@127.0.0.1:4711/shop --port 4711");
        assert_eq!(tests["REPORTS"], "postgres://clerk:pw@127.0.0.1:4711/shop");
        assert_eq!(tests["DSN"], "host='127.0.0.1' port=4711 user='clerk' password='pw' dbname='shop'");
        assert_eq!(tests["JAVA"], "jdbc:postgresql://127.0.0.1:4711/shop?user=clerk&password=pw");
        assert!(!tests.contains_key("PLAIN") && !tests.contains_key("OPTIONS"), "they are inherited");
        let up = variables(false, &environment, &[]);
        assert_eq!(up["SQLALCHEMY_URI"], "postgresql+asyncpg://u:p@live/db");
        assert!(!up.contains_key("REPORTS") && !up.contains_key("DSN"));
        assert_eq!((&*up["postgres_port"], &*tests["postgres_port"]), ("4711", "4711"), "pydantic knows no case");
    }
}
