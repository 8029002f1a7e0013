//! `tandem test`, run as a user runs it, and what it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::project::{root, venv};
use super::refusal::Refusal;
use super::tandem::{self, Tandem, left_in, wait_for};

/// A project that has tests and needs no application, removed on drop.
pub struct Suite {
    dir: TempDir,
}

impl Suite {
    /// A project without a configuration.
    pub fn bare() -> Self {
        let everybody = fs::Permissions::from_mode(0o755);
        Self { dir: tempfile::Builder::new().prefix("tandem-test-").permissions(everybody).tempdir().unwrap() }
    }

    /// A project with the built-in migrations, and the tests' Python environment; with more lines of configuration.
    pub fn with(lines: &str) -> Self {
        let suite = Self::bare();
        let requirements = root().join("tests/fixtures/requirements.txt");
        let (venv, requirements) = (venv().display().to_string(), requirements.display().to_string());
        let migrations = if lines.contains("migrations.run") { "" } else { "migrations.run = 'seaorm'\n" };
        suite.write(
            "tandem.toml",
            &format!("{lines}\n{migrations}python.venv = '{venv}'\npython.requirements = '{requirements}'\n"),
        );
        suite
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What a file that a command wrote says.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default().trim().to_owned()
    }

    /// The binary. The suites' scripts hand their URLs to psql and psycopg2, which know the plain scheme alone.
    fn binary(&self) -> Command {
        let mut command = tandem::command_in(self.dir());
        command.env("TANDEM_TEST__URL_SCHEME", "postgresql");
        command
    }

    /// `tandem test` with `args`, ready to start.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.binary();
        command.arg("test").args(args);
        command
    }

    /// `tandem test OPTIONS -- sh -c SCRIPT` to its end.
    pub fn run(&self, options: &[&str], script: &str) -> Refusal {
        let args = [options, &["--", "sh", "-c", script]].concat();
        super::refusal::said(self.command(&args).output().unwrap())
    }

    /// The same in the background; the script's own run says where its server lives in the file `socket`.
    pub fn start(&self, options: &[&str], script: &str) -> Tandem {
        let script = format!("echo $TANDEM_TEST_SOCKET >socket.new; mv socket.new socket; {script}");
        let args = [&["test"], options, &["--", "sh", "-c", &script]].concat();
        Tandem::start_in(self.dir(), self.binary(), &args)
    }

    /// Wait until the command of [`Suite::start`] runs; the directory of its server.
    pub fn wait_place(&self, run: &mut Tandem) -> PathBuf {
        wait_for("the command", || self.path("socket").exists() || run.ended());
        assert!(self.path("socket").exists(), "it ended before its command began:\n{}", run.log());
        place(&self.read("socket"))
    }
}

/// The directory of the run whose socket is `socket`.
pub fn place(socket: &str) -> PathBuf {
    Path::new(socket).ancestors().nth(2).unwrap().to_owned()
}

/// Wait until nothing is left of the run in `place`: no process, no directory.
pub fn wait_gone(place: &Path) {
    wait_for(&format!("the end of {}", place.display()), || left_in(place).is_empty() && !place.exists());
}

/// The process id of the postmaster in `place`.
pub fn postmaster(place: &Path) -> i32 {
    let text = fs::read_to_string(place.join("postgres/16/postmaster.pid")).unwrap();
    text.lines().next().unwrap().trim().parse().unwrap()
}
