//! A project as its author has it, without a configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::ports::free_port;
use super::project::{self, venv};
use super::tandem::{Tandem, command_in, get, wait_for};

/// A project's directory without a `tandem.toml`, and ports for what runs in it.
pub struct Bare {
    dir: tempfile::TempDir,
    name: String,
    pub app: u16,
    pub health: u16,
    pub postgres: u16,
}

/// An application in one file.
pub const FASTAPI: &str =
    "from fastapi import FastAPI\n\napp = FastAPI()\n\n\n@app.get('/')\ndef index():\n    return 'found'\n";

impl Bare {
    /// A project with these files.
    pub fn new(files: &[(&str, &str)]) -> Self {
        Self::called("project", files)
    }

    /// As [`Self::new`], in a directory of this name.
    pub fn called(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("tandem-test-").tempdir().unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), everybody).unwrap();
        fs::create_dir(dir.path().join(name)).unwrap();
        let bare = Self { dir, name: name.to_owned(), app: free_port(), health: free_port(), postgres: free_port() };
        for (name, text) in files {
            bare.write(name, text);
        }
        bare
    }

    /// Its directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// Write a file of it.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The command with the ports of this test, and the tests' Python environment as the one that is active.
    pub fn command(&self) -> std::process::Command {
        self.command_in(&self.path())
    }

    /// As [`Self::command`], in another directory.
    pub fn command_in(&self, dir: &Path) -> std::process::Command {
        self.with_ports(command_in(dir))
    }

    /// Another command, with the same environment.
    pub fn with_ports(&self, mut command: std::process::Command) -> std::process::Command {
        command
            .env("TANDEM_WORKERS__LISTEN", format!("127.0.0.1:{}", self.app))
            .env("TANDEM_HEALTH__LISTEN", format!("127.0.0.1:{}", self.health))
            .env("TANDEM_POSTGRES__PORT", self.postgres.to_string())
            .env("TANDEM_WORKERS__COUNT", "1")
            .env("TANDEM_DISK__WARN_FREE", "0%")
            .env("VIRTUAL_ENV", venv());
        command
    }

    /// Run a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Start it and wait until it is ready.
    pub fn up(&self) -> Tandem {
        let mut tandem = Tandem::start_in(&self.path(), self.command(), &["up", "--log-format", "text"]);
        wait_for("readiness", || {
            assert!(!tandem.ended(), "{}", tandem.log());
            get(self.health, "/ready").is_some_and(|(status, _)| status == 200)
        });
        tandem
    }
}

/// What a command printed, and that it ended with `code`.
pub fn said(output: &Output, code: i32) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The tests' environment must be there: it is used as it is.
pub fn with_environment() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(project::python());
}
