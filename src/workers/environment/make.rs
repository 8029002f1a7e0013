//! Make an environment in its place, with uv or with venv and pip.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::choose::{self, ANSWER_LIMIT, Base, Means, SAFE_PATH, Way};
use super::marker::{self, Made, State};
use super::project::{self, Options, Sort};
use super::{interpreter, lock_check, locks};
use crate::config::Python;
use crate::durable;
use crate::exit::{Code, Failure, NoRoom};
use crate::install::{Complaint, copy_dir, is_of_a_lower_layer, last_lines, make_shared_dir, open_to_all};
use crate::plan::CommandLine;
use crate::process::{self, Finished};
use crate::telemetry::{Progress, progress};

/// Where the lines lie that a lock is turned into.
const LINES: &str = ".tandem-requirements.txt";

/// How uv makes an environment; the interpreter follows.
const UV_VENV: [&str; 4] = ["venv", "--allow-existing", "--no-project", "--python"];

/// Whether uv may fetch interpreters.
const UV_DOWNLOADS: &str = "UV_PYTHON_DOWNLOADS";

/// The path of something of ours that lies beside `venv`: `.venv.lock` for `venv` and `lock`.
pub(super) fn beside(venv: &Path, what: &str) -> PathBuf {
    let name = venv.file_name().unwrap_or_default().to_string_lossy();
    venv.with_file_name(format!(".{}.{what}", name.trim_start_matches('.')))
}

/// Clean up after an attempt that died: remove an unfinished environment, move the earlier one back. Only under the lock.
pub(super) fn recover(venv: &Path) -> io::Result<()> {
    remove(&beside(venv, "removed"))?;
    let previous = beside(venv, "previous");
    match State::of(venv) {
        State::Begun => discard(venv)?,
        State::Absent | State::Foreign | State::Made(_) => {}
    }
    match State::of(venv) {
        State::Absent if previous.exists() => bring_back(&previous, venv),
        _ => remove(&previous),
    }
}

/// Let the environment that stood aside be in its place again.
fn bring_back(previous: &Path, venv: &Path) -> io::Result<()> {
    match durable::rename(previous, venv) {
        Err(error) if is_of_a_lower_layer(&error) => {
            let copy = beside(venv, "removed");
            copy_dir(previous, &copy)?;
            durable::rename(&copy, venv)?;
            remove(previous)
        }
        renamed => renamed,
    }
}

/// Let the environment stand aside while a new one is made in its place.
fn put_aside(venv: &Path, previous: &Path) -> io::Result<()> {
    match durable::rename(venv, previous) {
        Err(error) if is_of_a_lower_layer(&error) => {
            let copy = beside(venv, "removed");
            copy_dir(venv, &copy)?;
            durable::rename(&copy, previous)?;
            // From here on what is left of it in its place is no environment.
            marker::begin(venv)?;
            empty(venv)
        }
        renamed => renamed,
    }
}

/// Remove a directory so that no part of it is ever seen in its place: without its marker, the rest of an
/// environment of ours would count as foreign.
pub(super) fn discard(venv: &Path) -> io::Result<()> {
    let removed = beside(venv, "removed");
    match durable::rename(venv, &removed) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if is_of_a_lower_layer(&error) => empty(venv),
        Err(error) => Err(error),
        Ok(()) => remove(&removed),
    }
}

/// Empty the directory of an unfinished environment, its marker last.
fn empty(venv: &Path) -> io::Result<()> {
    for entry in venv.read_dir()? {
        let entry = entry?;
        if entry.file_name() != marker::MARKER_FILE {
            if entry.file_type()?.is_dir() { remove(&entry.path())? } else { std::fs::remove_file(entry.path())? }
        }
    }
    std::fs::remove_file(venv.join(marker::MARKER_FILE))
}

fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Make the environment anew. From scratch, not by installing into the old one, which would keep packages that the
/// requirements no longer name and be neither old nor new after a failure. The old one comes back if this fails.
pub(super) async fn make(
    python: &Python,
    venv: &Path,
    requirements: &Path,
    wanted: Made,
    directory: &Path,
) -> anyhow::Result<()> {
    let shown = progress(format!("Making the Python environment {}", venv.display()));
    // Before the old one is touched: what can be known to fail.
    let means = choose::choose(python, requirements, directory).await?;
    let making = Making { python, venv, requirements, directory, means, shown };
    let previous = beside(venv, "previous");
    let begin = || -> io::Result<()> {
        if matches!(State::of(venv), State::Made(_)) {
            put_aside(venv, &previous)?;
        }
        make_shared_dir(venv)?;
        marker::begin(venv)
    };
    begin().with_context(|| super::cannot_create(venv))?;
    let built = tokio::time::timeout(python.limit, making.build(wanted)).await.unwrap_or_else(|_| {
        let message = format!(
            "making the Python environment took longer than {:?} (`python.limit`); the index may be slow or out of reach",
            python.limit
        );
        Err(Failure::new(Code::Temporary, message).into())
    });
    let venv = venv.to_path_buf();
    let failed = built.is_err();
    let rest = tokio::task::spawn_blocking(move || {
        if failed {
            discard(&venv)?;
        }
        recover(&venv)
    });
    if let Err(error) = rest.await? {
        tracing::warn!(%error, "tidy up beside the Python environment");
    }
    built
}

struct Making<'a> {
    python: &'a Python,
    venv: &'a Path,
    requirements: &'a Path,
    directory: &'a Path,
    means: Means,
    shown: Progress,
}

impl Making<'_> {
    /// Make the environment and install into it; marks it as whole at the very end.
    async fn build(&self, wanted: Made) -> anyhow::Result<()> {
        let Means { way, base } = &self.means;
        let create = match (way, base) {
            (Way::PipOutside(_), Base::Program(program)) => self.command(program).args(["-m", "venv", "--without-pip"]),
            (Way::PipInside, Base::Program(program)) => self.command(program).args(["-m", "venv"]),
            (_, Base::Program(program)) => self.command("uv").args(UV_VENV).arg(program),
            // It may fetch one, unless the user's own settings say otherwise.
            (_, Base::Fetched(versions)) => {
                self.shown.say(format!("uv finds or fetches Python {versions}"));
                self.command("uv").args(UV_VENV).arg(versions).env_remove(UV_DOWNLOADS)
            }
        };
        let create = create.arg(self.venv).env(SAFE_PATH.0, SAFE_PATH.1);
        self.step("make the Python environment", create).await?;

        let client = if *way == Way::Uv { "uv" } else { "pip" };
        self.shown.say(format!("Installing {} with {client}", self.requirements.display()));
        let python = interpreter(self.venv);
        let pip = ["--no-input", "--disable-pip-version-check", "install", "--progress-bar", "off"];
        let install = match way {
            // Byte code now: workers that run as another user cannot write it and would compile at every start.
            Way::Uv => {
                let install = ["pip", "install", "--no-progress", "--compile-bytecode", "--python"];
                self.command("uv").args(install).arg(&python)
            }
            Way::PipOutside(runner) => self.command(&python).arg(runner).args(pip),
            // Without the working directory in front of the modules, which would hold for builds too as a variable.
            Way::PipInside => self.command(&python).args(["-I", "-m", "pip"]).args(pip),
        };
        let install = self.what(install).await?;
        self.step(&format!("install the requirements {}", self.requirements.display()), install).await?;
        self.check_uvicorn().await?;

        let venv = self.venv.to_path_buf();
        tokio::task::spawn_blocking(move || open_to_all(&venv)).await?.context("make the environment readable")?;
        wanted.write(self.venv)
    }

    /// Let `install` be told what to install.
    async fn what(&self, install: CommandLine) -> anyhow::Result<CommandLine> {
        let text = std::fs::read_to_string(self.requirements).unwrap_or_default();
        let options = Options::of(self.python);
        Ok(match Sort::of(self.requirements) {
            Sort::Lines if text.contains("--hash=") => install.arg("--require-hashes").arg("-r").arg(self.requirements),
            Sort::Lines => install.arg("-r").arg(self.requirements),
            Sort::Project => install.args(project::dependencies(&text, self.requirements, options)?),
            Sort::UvLock if self.means.way == Way::Uv => {
                let lines = self.venv.join(LINES);
                let directory = self.requirements.parent().unwrap_or(self.directory);
                let export = ["export", "--quiet", "--frozen", "--no-emit-project", "--project"];
                let export = self.command("uv").args(export).arg(directory).args(project::export(options));
                let export = if is_workspace(directory) { export.arg("--all-packages") } else { export };
                let export = export.arg("--output-file").arg(&lines);
                self.step(&format!("read {}", self.requirements.display()), export).await?;
                // What lies beside the lock (members of a workspace, other paths) is named by paths that start there.
                install.arg("-r").arg(lines).dir(directory)
            }
            sort => {
                let lines = self.venv.join(LINES);
                let converted = lock_check::manifest(sort, self.requirements.parent().unwrap_or(self.directory))
                    .and_then(|manifest| locks::read(sort, self.requirements, &text, &manifest))
                    .and_then(|locked| locked.lines(self.requirements, options));
                let text = match converted {
                    Ok(text) => text,
                    Err(refused) => self.exported(sort, refused).await?,
                };
                std::fs::write(&lines, &text).with_context(|| format!("write {}", lines.display()))?;
                // All of them stand there: none is to be looked for.
                let install = if text.contains("--hash=") { install.arg("--require-hashes") } else { install };
                install.args(["--no-deps", "-r"]).arg(lines)
            }
        })
    }

    /// The lines that the lock's own tool makes of it, where Tandem `refused` to.
    async fn exported(&self, sort: Sort, refused: Failure) -> anyhow::Result<String> {
        let help = |how: &str| {
            let message = format!(
                "{refused}; {how}, or make the environment with the project's own tool, and write python.venv = \".venv\""
            );
            Failure::new(Code::Config, message)
        };
        let (tool, args, plugin): (&str, &[&str], &str) = match sort {
            Sort::PoetryLock => {
                ("poetry", &["export", "--format", "requirements.txt"], "install poetry and poetry-plugin-export")
            }
            Sort::PdmLock => ("pdm", &["export", "--format", "requirements", "--prod"], "install pdm"),
            Sort::PipfileLock => ("pipenv", &["requirements", "--hash"], "install pipenv"),
            _ => return Err(help("install uv (`pip install uv`)").into()),
        };
        if !choose::is_there(tool).await {
            return Err(help(plugin).into());
        }
        let directory = self.requirements.parent().unwrap_or(self.directory);
        let export = self.command(tool).args(args.iter().copied()).dir(directory);
        let finished = process::run(&export, self.python.limit).await.with_context(|| format!("run {tool}"))?;
        if finished.exit.success() {
            return Ok(finished.stdout);
        }
        let said = last_lines(&finished.stdout, &finished.stderr);
        Err(anyhow::Error::from(help(plugin)).context(format!("`{tool} {}` failed:\n{said}", args.join(" "))))
    }

    async fn check_uvicorn(&self) -> anyhow::Result<()> {
        let import = self.command(interpreter(self.venv)).args(["-c", "import uvicorn"]);
        let import = import.env(SAFE_PATH.0, SAFE_PATH.1);
        let finished = process::run(&import, ANSWER_LIMIT).await.context("import uvicorn")?;
        if finished.exit.success() {
            return Ok(());
        }
        let lines = last_lines(&finished.stdout, &finished.stderr);
        let message = format!(
            "the Python environment cannot import uvicorn, which runs the workers; add it to {}:\n{lines}",
            self.requirements.display()
        );
        Err(Failure::new(Code::Config, message).into())
    }

    /// A command in the configuration's directory, without what would lead packages elsewhere.
    fn command(&self, program: impl Into<PathBuf>) -> CommandLine {
        let stray = ["PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"];
        let command = CommandLine::new(program).dir(self.directory).env("PIP_USER", "0").env(UV_DOWNLOADS, "never");
        stray.into_iter().fold(command, CommandLine::env_remove)
    }

    /// Run one command of the making; its lines are shown as they come.
    async fn step(&self, what: &str, command: CommandLine) -> anyhow::Result<()> {
        let finished = process::run_with(&command, self.python.limit, |line| self.shown.say(line))
            .await
            .with_context(|| what.to_owned())?;
        if finished.exit.success() { Ok(()) } else { Err(failure(what, &finished)) }
    }
}

/// Whether the `pyproject.toml` in `directory` is no project, only what holds the members of a workspace together.
fn is_workspace(directory: &Path) -> bool {
    lock_check::manifest(Sort::UvLock, directory).is_ok_and(|manifest| {
        manifest.get(&["project"]).is_none() && manifest.get(&["tool", "uv", "workspace"]).is_some()
    })
}

/// The error for a step that ran and failed.
fn failure(what: &str, finished: &Finished) -> anyhow::Error {
    let lines = last_lines(&finished.stdout, &finished.stderr);
    let printed = format!("{}{}", finished.stdout, finished.stderr);
    let (code, why) = match Complaint::of(&printed) {
        Complaint::Network => (Code::Temporary, "the package index cannot be reached; try again"),
        Complaint::Certificate => (
            Code::Config,
            "the package index's certificate is not trusted; name your CA bundle in PIP_CERT or SSL_CERT_FILE",
        ),
        Complaint::Digest => (Code::Failed, "a package is not what the requirements' hashes say; it was refused"),
        Complaint::NoRoom(NoRoom::Disk) => (Code::CannotCreate, "the disk is full"),
        Complaint::NoRoom(NoRoom::Quota) => (Code::CannotCreate, "the disk quota is used up"),
        Complaint::NoSuchPart => (Code::Config, "the project lacks what `python.groups` or `python.extras` names"),
        // Of a connection that fails pip tells before, unless PIP_RETRIES is 0: it is the name, mostly.
        Complaint::NoRelease => (
            Code::Config,
            "the package index names no release of a requirement: it cannot be reached (no network?), or the name is wrong",
        ),
        Complaint::NoMatch => (Code::Config, "a requirement has no release for this Python and platform"),
        Complaint::Conflict => (Code::Config, "the requirements exclude each other"),
        Complaint::NoPip => (Code::Config, "the environment has no pip; install Python's ensurepip, or uv"),
        Complaint::Other => (Code::Failed, "the command failed"),
    };
    Failure::new(code, format!("cannot {what}: {why} ({}).\n{lines}", finished.exit)).into()
}
