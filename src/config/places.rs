//! Where the application runs and is imported from: the one rule for workers, the template, migrations, hooks and tests.
//!
//! Blocks: it looks which files are there.

use std::path::{Path, PathBuf};

use super::settings::Settings;
use crate::plan::libpq::TEST_SOCKET;

/// What a migration command reads in its directory.
const OF_MIGRATIONS: [&str; 2] = ["alembic.ini", "manage.py"];

/// Modules of Python's own that Alembic, Django's `manage.py` and pytest import before the application: a file of the
/// application's with such a name, found first, breaks the tool.
const OF_TOOLS: &str = "\
    abc argparse ast asyncio base64 bisect bz2 calendar codecs collections compileall concurrent configparser \
    contextlib contextvars copy copyreg csv ctypes dataclasses datetime decimal difflib dis email encodings enum \
    fnmatch functools genericpath getopt getpass glob gzip hashlib heapq hmac importlib inspect io ipaddress \
    json keyword linecache locale logging numbers opcode operator os pathlib pickle pkgutil platform pprint \
    queue quopri random re reprlib selectors shlex shutil signal socket ssl stat string struct subprocess \
    tempfile textwrap threading token tokenize traceback types typing urllib warnings";

impl Settings {
    /// Whether this Tandem runs inside a `tandem test`.
    pub fn in_test(&self) -> bool {
        self.inherited.0.contains_key(TEST_SOCKET)
    }

    /// The directory of the `tandem test` that this Tandem runs inside, which goes with it.
    pub fn directory_of_tests(&self) -> Option<&Path> {
        Path::new(self.inherited.0.get(TEST_SOCKET)?).ancestors().nth(2)
    }

    /// The working directory of workers, hooks and seeds.
    pub fn work_dir(&self) -> &Path {
        self.workers.dir.as_deref().unwrap_or(&self.directory)
    }

    /// Where a migration command runs: `alembic` and `manage.py` want the directory that holds what they read.
    pub fn migrations_dir(&self) -> &Path {
        let holds = |dir: &Path| OF_MIGRATIONS.iter().any(|name| dir.join(name).is_file());
        match &self.migrations.dir {
            Some(dir) => dir,
            None if !holds(self.work_dir()) && holds(&self.workers.app_dir) => &self.workers.app_dir,
            None => self.work_dir(),
        }
    }

    /// The directory of the SQL files of `migrations.run = "sql"`.
    pub fn sql_dir(&self) -> PathBuf {
        self.migrations.dir.clone().unwrap_or_else(|| self.directory.join("migrations"))
    }

    /// What stands in the way of `workers.app_dir` as the first directory that a tool imports from: a file there that the
    /// tool would take for a module of Python's or its own.
    pub fn import_obstacle(&self) -> Option<PathBuf> {
        let dir = &self.workers.app_dir;
        // Alembic's own directory, if it is a package.
        let packages = OF_TOOLS.split_whitespace().chain(["alembic"]).map(|name| dir.join(name).join("__init__.py"));
        let files = OF_TOOLS.split_whitespace().map(|name| dir.join(name).with_extension("py"));
        packages.chain(files).find(|path| path.is_file())
    }
}

/// The directories that are none, by the keys that name them.
pub(super) fn missing(settings: &Settings) -> Vec<(&'static str, String)> {
    let workers = &settings.workers;
    let named = [
        ("workers.app_dir", Some(&workers.app_dir)),
        ("workers.dir", workers.dir.as_ref()),
        ("migrations.dir", settings.migrations.dir.as_ref()),
    ];
    let named = named.into_iter().filter_map(|(key, dir)| Some((key, dir?)));
    let named = named.chain(workers.reload_dirs.iter().map(|dir| ("workers.reload_dirs", dir)));
    named
        .filter(|(_, dir)| !dir.is_dir())
        .map(|(key, dir)| (key, format!("{} is not a directory", dir.display())))
        .collect()
}
