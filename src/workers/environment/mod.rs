//! The Python environment that workers run in: made when it is missing or its requirements changed, reused otherwise.
//!
//! A virtual environment cannot be moved (its scripts hold its path), so it is built in its final place, under a
//! lock. A marker says "begun" before anything else is in it, and what it was made from once it is whole. An earlier
//! environment is moved aside meanwhile and comes back if the new one fails. An environment without a marker is foreign:
//! it is used as it is. The caller must not remake the environment of running workers.

mod beside;
mod choose;
mod editable;
mod lock_check;
mod locks;
mod make;
mod marker;
mod project;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::Python;
use crate::exit::{Code, Failure, code_of};
use crate::install::{keep_out_of_git, lock, make_shared_dir};
pub use beside::{Next, changed, make_next};
pub use editable::editable;
use marker::{Made, State};
use project::Options;

/// A Python interpreter that has the application's packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub python: PathBuf,
    /// Whether this call made it, or made it anew.
    pub made: bool,
}

/// The environment that `python` describes; relative paths start at `directory`, the default one lies in `state_dir`.
///
/// One that is there and up to date costs the reading of its requirements and its marker, and no process.
///
/// # Errors
/// What is missing, refused or failed, and what to do, with the exit code of the kind of failure.
pub async fn ensure(python: &Python, state_dir: &Path, directory: &Path) -> anyhow::Result<Environment> {
    // Children work in directories of their own, where a relative path would lead elsewhere.
    let directory = &std::path::absolute(directory).context("find the current directory")?;
    let state_dir = std::path::absolute(state_dir).context("find the current directory")?;
    let base = base(python, &state_dir, directory);
    let venv = beside::in_use(&base);
    let state = State::of(&venv);
    let Some(requirements) = python.requirements.as_ref().map(|file| directory.join(file)) else {
        return as_it_is(python, &venv, &state, directory);
    };
    if !python.managed || state == State::Foreign {
        return foreign(&venv);
    }
    let wanted = Made::wanted(&requirements, Options::of(python), python)?;
    if state.is_made(&venv, &wanted) {
        return Ok(Environment { python: interpreter(&venv), made: false });
    }
    let parent = venv.parent().unwrap_or(directory);
    make_shared_dir(parent).with_context(|| cannot_create(parent))?;
    if python.venv.is_none() {
        keep_out_of_git(&state_dir);
    }
    let lock_file = make::beside(&base, "lock");
    let locked = lock(&lock_file, "make the Python environment", python.limit).await;
    let _lock = locked.map_err(|error| match code_of(&error) {
        Code::CannotCreate => error.context(cannot_create(parent)),
        _ => error,
    })?;
    make::recover(&venv).with_context(|| cannot_create(&venv))?;
    // The former holder of the lock may have made it.
    match State::of(&venv) {
        State::Foreign => return foreign(&venv),
        state if state.is_made(&venv, &wanted) => {
            return Ok(Environment { python: interpreter(&venv), made: false });
        }
        _ => make::make(python, &venv, &requirements, wanted, directory).await?,
    }
    Ok(Environment { python: interpreter(&venv), made: true })
}

/// The interpreter that [`ensure`] would give, as far as it is there already; nothing is made.
pub fn existing(python: &Python, state_dir: &Path, directory: &Path) -> PathBuf {
    let inside = interpreter(&beside::in_use(&base(python, state_dir, directory)));
    if inside.is_file() { inside } else { choose::resolve(&python.interpreter, directory) }
}

/// Where the environment of the configuration lies.
fn base(python: &Python, state_dir: &Path, directory: &Path) -> PathBuf {
    python.venv.as_ref().map_or_else(|| state_dir.join("venv"), |venv| directory.join(venv))
}

/// Nothing is to be installed: the environment if there is one, else the interpreter itself.
fn as_it_is(python: &Python, venv: &Path, state: &State, directory: &Path) -> anyhow::Result<Environment> {
    if *state != State::Absent {
        return foreign(venv);
    }
    if python.venv.is_some() {
        let message = format!(
            "`python.venv` is {}, which does not exist, and `python.requirements` names nothing to make it from",
            venv.display()
        );
        return Err(Failure::new(Code::Config, message).into());
    }
    Ok(Environment { python: choose::resolve(&python.interpreter, directory), made: false })
}

/// An environment that Tandem did not make, used as it is.
fn foreign(venv: &Path) -> anyhow::Result<Environment> {
    let python = interpreter(venv);
    if python.is_file() {
        return Ok(Environment { python, made: false });
    }
    let message = format!(
        "{} is not a Python environment (it has no bin/python), and Tandem did not make it, so it was left alone; \
         make one there, or name another place with `python.venv`",
        venv.display()
    );
    Err(Failure::new(Code::Config, message).into())
}

fn interpreter(venv: &Path) -> PathBuf {
    venv.join("bin/python")
}

fn cannot_create(path: &Path) -> Failure {
    let message = format!("make the Python environment: cannot write in {}", path.display());
    let ways = "name another place with `python.venv`, or run `tandem install` as its owner";
    Failure::new(Code::CannotCreate, format!("{message}: {ways}"))
}

#[cfg(test)]
mod tests;
