//! What an environment is made with: which interpreter, and uv or pip. All that can be known to fail is known before anything
//! is touched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::lock_check;
use super::project::{Options, Sort};
use crate::config::{Installer, Python};
use crate::exit::{Code, Failure};
use crate::install::last_lines;
use crate::plan::CommandLine;
use crate::process::{self, RunError};
use crate::project::{Found, Wanted};

/// The oldest Python that current Uvicorn and our launcher run on.
const PYTHON_MIN: (u32, u32) = (3, 9);

/// The newest one that is looked for by its name.
const MINOR_MAX: u32 = 15;

/// Tells the version, whether environments can be made with a pip of their own (Debian ships `ensurepip` apart), and
/// where the interpreter's own pip (22.3 or newer) has the script by which it runs under another interpreter.
const PROBE: &str = "import os, sys, importlib.util as u
v = sys.version_info
print(v[0], v[1], all(u.find_spec(m) for m in ('venv', 'ensurepip')), v[2])
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

/// The interpreter of the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Program(PathBuf),
    /// None that is there will do: uv finds or fetches one of these versions.
    Fetched(String),
}

/// What an environment is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Means {
    pub way: Way,
    pub base: Base,
}

/// Keeps the working directory, which is the project's, out of an interpreter's modules (Python 3.11 and newer): as root a
/// `venv.py` of the project's would run with all rights.
pub(super) const SAFE_PATH: (&str, &str) = ("PYTHONSAFEPATH", "1");

/// How long an interpreter may take to answer a question.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The interpreter's path: a name is left to PATH, a path starts at `directory`.
pub(super) fn resolve(interpreter: &str, directory: &Path) -> PathBuf {
    if interpreter.contains('/') { directory.join(interpreter) } else { PathBuf::from(interpreter) }
}

/// What to make an environment of `requirements` with, after a check that the interpreter is there, new enough, able, and one
/// that the project asks for.
///
/// # Errors
/// [`Code::Config`] with what is missing and what to do.
pub(super) async fn choose(python: &Python, requirements: &Path, directory: &Path) -> anyhow::Result<Means> {
    check_options(python, requirements)?;
    lock_check::check(requirements)?;
    let uv = python.installer != Installer::Pip && is_there("uv").await;
    if python.installer == Installer::Uv && !uv {
        let message =
            "`python.installer` is \"uv\", and uv is not installed or not in PATH; install it, or set \"pip\"";
        return Err(Failure::new(Code::Config, message).into());
    }
    let program = resolve(&python.interpreter, directory);
    let asked = ask(&program, directory).await;
    let Some(wanted) = &python.wanted else {
        let way = judge(&asked?, &python.interpreter, uv)?;
        return Ok(Means { way, base: Base::Program(program) });
    };
    let mut there = Vec::new();
    if let Ok(said) = &asked
        && let Some(version) = version(said)
    {
        if wanted.value.fits(version) {
            let way = judge(said, &python.interpreter, uv)?;
            return Ok(Means { way, base: Base::Program(program) });
        }
        there.push((version, program.display().to_string()));
    }
    for minor in (PYTHON_MIN.1..=MINOR_MAX).rev() {
        let name = format!("python3.{minor}");
        let Ok(said) = ask(Path::new(&name), directory).await else { continue };
        let Some(version) = version(&said) else { continue };
        if wanted.value.fits(version) {
            let way = judge(&said, &name, uv)?;
            return Ok(Means { way, base: Base::Program(name.into()) });
        }
        there.push((version, name));
    }
    if uv {
        return Ok(Means { way: Way::Uv, base: Base::Fetched(wanted.value.specifiers()) });
    }
    Err(none_fits(wanted, &there).into())
}

fn none_fits(wanted: &Found<Wanted>, there: &[((u32, u32, u32), String)]) -> Failure {
    let each = there.iter().map(|((major, minor, patch), name)| format!("{major}.{minor}.{patch} ({name})"));
    let there = match there {
        [] => "there is none".to_owned(),
        _ => format!("there is {}", each.collect::<Vec<_>>().join(", ")),
    };
    let Found { value, seen } = wanted;
    Failure::new(
        Code::Config,
        format!(
            "the project asks for Python {} ({seen}), and {there}: install it; or install uv, which fetches it (`pip install \
             uv`); or name the interpreter to use with `python.interpreter`",
            value.text
        ),
    )
}

/// Whether the program `name` can be run.
pub(super) async fn is_there(name: &str) -> bool {
    let asked = process::run(&CommandLine::new(name).arg("--version"), ANSWER_LIMIT).await;
    asked.is_ok_and(|it| it.exit.success())
}

/// Groups and extras are of projects.
fn check_options(python: &Python, requirements: &Path) -> Result<(), Failure> {
    if Sort::of(requirements) != Sort::Lines || Options::of(python).is_empty() {
        return Ok(());
    }
    let message = format!(
        "`python.groups` and `python.extras` name parts of a lock or a pyproject.toml, and {} (`python.requirements`) is a list \
         of requirements, without parts",
        requirements.display()
    );
    Err(Failure::new(Code::Config, message))
}

/// What the interpreter `program` answers to the probe.
async fn ask(program: &Path, directory: &Path) -> anyhow::Result<String> {
    let probe = CommandLine::new(program).args(["-c", PROBE]).dir(directory).env(SAFE_PATH.0, SAFE_PATH.1);
    let finished = match process::run(&probe, ANSWER_LIMIT).await {
        Err(RunError::NotFound(_)) => {
            let message = format!(
                "there is no Python interpreter {} (`python.interpreter`): install Python {}.{} or newer, or name the one to use",
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
    Ok(finished.stdout)
}

/// Which way the interpreter that answered the probe with `said` allows, if any. Pure.
pub(super) fn judge(said: &str, interpreter: &str, uv: bool) -> anyhow::Result<Way> {
    let (first, runner) = said.trim().split_once('\n').unwrap_or((said, ""));
    let Some((major, minor, _)) = version(said) else {
        let message =
            format!("`python.interpreter` is {interpreter:?}, which does not answer as Python does: {said:?}");
        return Err(Failure::new(Code::Config, message).into());
    };
    if (major, minor) < PYTHON_MIN {
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
    if first.split_whitespace().nth(2) == Some("True") {
        return Ok(Way::PipInside);
    }
    let message = format!(
        "{interpreter} (Python {major}.{minor}) cannot make environments: its venv or ensurepip module is missing. \
         On Debian and Ubuntu: `apt-get install python{major}.{minor}-venv`; or install uv"
    );
    Err(Failure::new(Code::Config, message).into())
}

/// The version in an answer to the probe.
fn version(said: &str) -> Option<(u32, u32, u32)> {
    let words: Vec<&str> = said.lines().next()?.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse().ok();
    Some((number(0)?, number(1)?, number(3).unwrap_or(0)))
}
