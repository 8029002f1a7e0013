//! A directory as a user has one: a configuration, an application, and what Tandem makes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tandem::config::{Installer, Python};
use tandem::workers::environment;
use tempfile::TempDir;

use super::ports::free_port;
use super::tandem::LIMIT;

/// The reference backend's migrations.
const BUILT_IN: &str = "migrations.run = 'seaorm'\n";

/// A project in a directory of its own, removed on drop.
pub struct Project {
    dir: TempDir,
    pub app: u16,
    pub health: u16,
    pub postgres: u16,
}

impl Project {
    /// A project that runs the reference backend.
    pub fn backend() -> Self {
        Self::with(&root().join("examples/backend"), "app:app", "")
    }

    /// A project that runs one of the applications in `tests/fixtures/apps`, such as `plain:app`.
    pub fn app(app: &str) -> Self {
        Self::with(&root().join("tests/fixtures/apps"), app, "")
    }

    /// As [`Project::app`], with more lines of configuration, as `section.key = value`.
    pub fn app_with(app: &str, lines: &str) -> Self {
        // The raw ones need nothing ahead, and several tests wait for the processor.
        let preimport = if lines.contains("preimport") { "" } else { "workers.preimport = []\n" };
        Self::with(&root().join("tests/fixtures/apps"), app, &format!("{lines}\n{preimport}"))
    }

    /// As [`Project::backend`], with more lines of configuration.
    pub fn backend_with(lines: &str) -> Self {
        Self::with(&root().join("examples/backend"), "app:app", lines)
    }

    fn with(app_dir: &Path, app: &str, lines: &str) -> Self {
        let everybody = fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("tandem-test-").permissions(everybody).tempdir().unwrap();
        let project = Self { dir, app: free_port(), health: free_port(), postgres: free_port() };
        let (http, health, postgres) = (project.app, project.health, project.postgres);
        let (app_dir, venv) = (app_dir.display(), venv().display().to_string());
        let requirements = requirements().display().to_string();
        // How full the machine's disk is, is none of the tests' business.
        let room = if lines.contains("disk.warn_free") { "" } else { "disk.warn_free = '0%'\n" };
        // Other tests would keep a backup that stands back from the processor.
        let nice = if lines.contains("backup.nice") { "" } else { "backup.nice = 0\n" };
        let migrations = if lines.contains("migrations.run") { "" } else { BUILT_IN };
        let text = format!(
            "{lines}\n{room}{nice}{migrations}\
             workers.app = '{app}'\nworkers.app_dir = '{app_dir}'\nworkers.listen = '127.0.0.1:{http}'\n\
             health.listen = '127.0.0.1:{health}'\npostgres.port = {postgres}\n\
             python.venv = '{venv}'\npython.requirements = '{requirements}'\n"
        );
        project.write("tandem.toml", &text);
        project
    }

    /// The project's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where Tandem keeps what it makes.
    pub fn state(&self) -> PathBuf {
        self.dir().join(".tandem")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.state().join("postgres/16")
    }

    /// Write a file of the project.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Write an executable script of the project. A child writes it: had this process the file open for writing while
    /// another test forks, executing it could fail with ETXTBSY.
    pub fn write_script(&self, name: &str, text: &str) {
        let path = self.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let write = "printf '%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        #[expect(clippy::disallowed_methods, reason = "a child writes it")]
        let written = std::process::Command::new("sh").args(["-c", write, "sh", text]).arg(&path).status().unwrap();
        assert!(written.success());
    }

    /// Change the configuration that is there.
    pub fn reconfigure(&self, change: impl FnOnce(&str) -> String) {
        let path = self.dir().join("tandem.toml");
        fs::write(&path, change(&fs::read_to_string(&path).unwrap())).unwrap();
    }

    /// Take a key out of the configuration.
    pub fn without(self, key: &str) -> Self {
        let starts = format!("{key} = ");
        self.reconfigure(|text| {
            text.lines().filter(|line| !line.starts_with(&starts)).map(|line| format!("{line}\n")).collect()
        });
        self
    }

    /// Put more lines before the configuration that is there.
    pub fn configure(&self, lines: &str) {
        let path = self.dir().join("tandem.toml");
        let mut text = fs::read_to_string(&path).unwrap();
        if lines.contains("migrations.run") {
            text = text.replace(BUILT_IN, "");
        }
        fs::write(path, format!("{lines}\n{text}")).unwrap();
    }
}

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the tests' Python environment holds: the reference backend's requirements, and Alembic.
fn requirements() -> PathBuf {
    root().join("tests/fixtures/requirements.txt")
}

/// The interpreter of the tests' Python environment, made if it is not there yet.
pub async fn python() -> PathBuf {
    python_with("venv", "requirements.txt").await
}

/// The interpreter of the environment called `name`, which has the packages of the fixture `requirements`: the first test that
/// asks makes it, under Tandem's own lock.
pub async fn python_with(name: &str, requirements: &str) -> PathBuf {
    let python = Python {
        interpreter: "python3".into(),
        requirements: Some(root().join("tests/fixtures").join(requirements)),
        venv: Some(venv_of(name)),
        groups: Vec::new(),
        extras: Vec::new(),
        managed: true,
        installer: Installer::Auto,
        limit: LIMIT,
        wanted: None,
    };
    environment::ensure(&python, root(), root()).await.unwrap().python
}

/// One Python environment for all tests: the first of them makes it, under Tandem's own lock.
pub fn venv() -> PathBuf {
    venv_of("venv")
}

/// The directory of the environment called `name`.
pub fn venv_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}
