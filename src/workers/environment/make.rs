//! Make an environment in its place, with uv or with venv and pip.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::interpreter;
use super::marker::{self, Made, State};
use super::project::{self, Options, Sort};
use crate::config::{Installer, Python};
use crate::durable;
use crate::exit::{Code, Failure, NoRoom};
use crate::install::{Complaint, copy_dir, is_of_a_lower_layer, last_lines, make_shared_dir, open_to_all};
use crate::plan::CommandLine;
use crate::process::{self, Finished, RunError};
use crate::telemetry::{Progress, progress};

/// The oldest Python that current Uvicorn and our launcher run on.
const PYTHON_MIN: (u32, u32) = (3, 9);

/// Tells the version, whether environments can be made with a pip of their own (Debian ships `ensurepip` apart), and
/// where the interpreter's own pip (22.3 or newer) has the script by which it runs under another interpreter.
const PROBE: &str = "import os, sys, importlib.util as u
print(sys.version_info[0], sys.version_info[1], all(u.find_spec(m) for m in ('venv', 'ensurepip')))
pip = u.find_spec('venv') and u.find_spec('pip')
runner = os.path.join(os.path.dirname(pip.origin), '__pip-runner__.py') if pip and pip.origin else ''
if os.path.isfile(runner):
    print(runner)";

/// What makes the environment and installs into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Uv,
    /// The interpreter's own pip, run by the environment's interpreter through this script: the environment needs no
    /// pip, and putting one in costs more than all the rest (18 s against 6 s for Uvicorn alone, on a busy machine).
    /// Not `pip --python`, which does the same in a grandchild of ours: that one outlives a kill -9 of Tandem and
    /// would go on writing into the environment that the next start makes.
    PipOutside(PathBuf),
    /// A pip in the environment.
    PipInside,
}

/// Keeps the working directory, which is the project's, out of an interpreter's modules (Python 3.11 and newer): as root a
/// `venv.py` of the project's would run with all rights.
const SAFE_PATH: (&str, &str) = ("PYTHONSAFEPATH", "1");

/// How long an interpreter may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The path of something of ours that lies beside `venv`: `.venv.lock` for `venv` and `lock`.
pub(super) fn beside(venv: &Path, what: &str) -> PathBuf {
    let name = venv.file_name().unwrap_or_default().to_string_lossy();
    venv.with_file_name(format!(".{}.{what}", name.trim_start_matches('.')))
}

/// The interpreter's path: a name is left to PATH, a path starts at `directory`.
pub(super) fn resolve(interpreter: &str, directory: &Path) -> PathBuf {
    if interpreter.contains('/') { directory.join(interpreter) } else { PathBuf::from(interpreter) }
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
    let making = Making { python, venv, requirements, directory, shown };
    // Before the old one is touched: what can be known to fail.
    let way = making.choose().await?;
    let previous = beside(venv, "previous");
    let begin = || -> io::Result<()> {
        if matches!(State::of(venv), State::Made(_)) {
            put_aside(venv, &previous)?;
        }
        make_shared_dir(venv)?;
        marker::begin(venv)
    };
    begin().with_context(|| super::cannot_create(venv))?;
    let built = tokio::time::timeout(python.limit, making.build(way, wanted)).await.unwrap_or_else(|_| {
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
    shown: Progress,
}

impl Making<'_> {
    /// How to make it, after a check that the interpreter is there, new enough and able.
    async fn choose(&self) -> anyhow::Result<Way> {
        let uv = match self.python.installer {
            Installer::Pip => false,
            Installer::Uv | Installer::Auto => process::run(&CommandLine::new("uv").arg("--version"), ANSWER_LIMIT)
                .await
                .is_ok_and(|it| it.exit.success()),
        };
        if self.python.installer == Installer::Uv && !uv {
            let message =
                "`python.installer` is \"uv\", and uv is not installed or not in PATH; install it, or set \"pip\"";
            return Err(Failure::new(Code::Config, message).into());
        }
        let program = resolve(&self.python.interpreter, self.directory);
        let probe = CommandLine::new(&program).args(["-c", PROBE]).dir(self.directory).env(SAFE_PATH.0, SAFE_PATH.1);
        let finished = match process::run(&probe, ANSWER_LIMIT).await {
            Err(RunError::NotFound(_)) => {
                let message = format!(
                    "there is no Python interpreter {} (`python.interpreter`): install Python {}.{} or newer, or name \
                     the one to use",
                    program.display(),
                    PYTHON_MIN.0,
                    PYTHON_MIN.1
                );
                return Err(Failure::new(Code::Config, message).into());
            }
            result => result.context("ask the Python interpreter for its version")?,
        };
        if !finished.exit.success() {
            let lines = last_lines(&finished.stdout, &finished.stderr);
            let message = format!("the Python interpreter {} does not run:\n{lines}", program.display());
            return Err(Failure::new(Code::Config, message).into());
        }
        let way = judge(&finished.stdout, &self.python.interpreter, uv)?;
        if Sort::of(self.requirements) == Sort::Lines && !Options::of(self.python).is_empty() {
            let message = format!(
                "`python.groups` and `python.extras` name parts of a uv.lock or a pyproject.toml, and {} (`python.requirements`) \
                 is a list of requirements, without parts",
                self.requirements.display()
            );
            return Err(Failure::new(Code::Config, message).into());
        }
        if Sort::of(self.requirements) == Sort::UvLock && way != Way::Uv {
            let message = format!(
                "only uv reads {} (`python.requirements`), and it is not installed, not in PATH, or not the installer that \
                 `python.installer` names: install it, as with `pip install uv`",
                self.requirements.display()
            );
            return Err(Failure::new(Code::Config, message).into());
        }
        Ok(way)
    }

    /// Make the environment and install into it; marks it as whole at the very end.
    async fn build(&self, way: Way, wanted: Made) -> anyhow::Result<()> {
        let program = resolve(&self.python.interpreter, self.directory);
        let create = match &way {
            Way::Uv => self.command("uv").args(["venv", "--allow-existing", "--no-project", "--python"]).arg(&program),
            Way::PipOutside(_) => self.command(&program).args(["-m", "venv", "--without-pip"]),
            Way::PipInside => self.command(&program).args(["-m", "venv"]),
        };
        let create = create.arg(self.venv).env(SAFE_PATH.0, SAFE_PATH.1);
        self.step("make the Python environment", create).await?;

        let client = if way == Way::Uv { "uv" } else { "pip" };
        self.shown.say(format!("Installing {} with {client}", self.requirements.display()));
        let python = interpreter(self.venv);
        let pip = ["--no-input", "--disable-pip-version-check", "install", "--progress-bar", "off"];
        let install = match &way {
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
        Ok(match Sort::of(self.requirements) {
            Sort::Lines if text.contains("--hash=") => install.arg("--require-hashes").arg("-r").arg(self.requirements),
            Sort::Lines => install.arg("-r").arg(self.requirements),
            Sort::Project => install.args(project::dependencies(&text, self.requirements, Options::of(self.python))?),
            Sort::UvLock => {
                let lines = self.venv.join(".tandem-requirements.txt");
                let directory = self.requirements.parent().unwrap_or(self.directory);
                let export = ["export", "--quiet", "--frozen", "--no-emit-project", "--project"];
                let export =
                    self.command("uv").args(export).arg(directory).args(project::export(Options::of(self.python)));
                let export = export.arg("--output-file").arg(&lines);
                self.step(&format!("read {}", self.requirements.display()), export).await?;
                // What lies beside the lock (members of a workspace, other paths) is named by paths that start there.
                install.arg("-r").arg(lines).dir(directory)
            }
        })
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
        let command =
            CommandLine::new(program).dir(self.directory).env("PIP_USER", "0").env("UV_PYTHON_DOWNLOADS", "never");
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

/// Which way the interpreter that answered the probe with `said` allows, if any. Pure.
pub(super) fn judge(said: &str, interpreter: &str, uv: bool) -> anyhow::Result<Way> {
    let (first, runner) = said.trim().split_once('\n').unwrap_or((said, ""));
    let words: Vec<&str> = first.split_whitespace().collect();
    let Some(version) = version(&words) else {
        let message =
            format!("`python.interpreter` is {interpreter:?}, which does not answer as Python does: {said:?}");
        return Err(Failure::new(Code::Config, message).into());
    };
    let (major, minor) = version;
    if version < PYTHON_MIN {
        let message = format!(
            "{interpreter} is Python {major}.{minor}, and {}.{} or newer is needed; name a newer one with `python.interpreter`",
            PYTHON_MIN.0, PYTHON_MIN.1
        );
        return Err(Failure::new(Code::Config, message).into());
    }
    if uv {
        return Ok(Way::Uv);
    }
    if !runner.is_empty() {
        return Ok(Way::PipOutside(PathBuf::from(runner)));
    }
    if words.get(2) == Some(&"True") {
        return Ok(Way::PipInside);
    }
    let message = format!(
        "{interpreter} (Python {major}.{minor}) cannot make environments: its venv or ensurepip module is missing. \
         On Debian and Ubuntu: `apt-get install python{major}.{minor}-venv`; or install uv"
    );
    Err(Failure::new(Code::Config, message).into())
}

fn version(words: &[&str]) -> Option<(u32, u32)> {
    Some((words.first()?.parse().ok()?, words.get(1)?.parse().ok()?))
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
        Complaint::NoRelease => (
            Code::Temporary,
            "the package index names no release of a requirement: it cannot be reached (no network?), or the name is wrong",
        ),
        Complaint::NoMatch => (Code::Config, "a requirement has no release for this Python and platform"),
        Complaint::Conflict => (Code::Config, "the requirements exclude each other"),
        Complaint::NoPip => (Code::Config, "the environment has no pip; install Python's ensurepip, or uv"),
        Complaint::Other => (Code::Failed, "the command failed"),
    };
    Failure::new(code, format!("cannot {what}: {why} ({}).\n{lines}", finished.exit)).into()
}
