//! What a project directory is, found by looking at its files: the application, its packages, its migrations, its Python.
//!
//! Each finding carries the place where it was seen. Nothing is run and no code is imported: Python is read as text
//! ([`source`]). What is found more than once stays more than once, so that a person can choose. Must not know what a
//! configuration is: `config` asks this room for what nobody wrote.
//!
//! ```text
//! files ─ manifest (pyproject.toml) ┬─ application   which ASGI application
//!         source (a Python file)    ┼─ migrations    Alembic, Django, yoyo, the built-in ones
//!                                   ├─ packages      a lock, requirements, an environment that is there
//!                                   └─ versions      which Python is asked for
//! ```
//!
//! Blocks: it reads small files of the project.

pub mod application;
mod commands;
mod files;
mod frameworks;
pub mod interpreter;
mod layout;
mod manifest;
pub mod migrations;
mod module;
pub mod packages;
mod source;
pub mod versions;

use std::fmt;
use std::path::{Path, PathBuf};

pub use application::{Application, Framework, Interface};
pub use interpreter::{Driver, Interpreter};
pub use manifest::{Item, Manifest, Value};
pub use migrations::{Migration, Tool};
pub use packages::{Environment, Requirements, Sort};
pub use versions::Wanted;

/// The package whose tables the built-in migrations make.
pub const BUILT_IN_PACKAGE: &str = "finance_feedback_engine";

/// Where something was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A file or directory, as its path from the project's directory, and the line in it.
    File(PathBuf, Option<usize>),
    /// A variable of the process environment.
    Variable(String),
}

impl Seen {
    /// In `file`, as a whole.
    pub fn in_file(file: impl Into<PathBuf>) -> Self {
        Self::File(file.into(), None)
    }

    /// In line `line` of `file`.
    pub fn at(file: impl Into<PathBuf>, line: usize) -> Self {
        Self::File(file.into(), Some(line))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file, Some(line)) => write!(formatter, "{}:{line}", file.display()),
            Self::File(file, None) => write!(formatter, "{}", file.display()),
            Self::Variable(name) => write!(formatter, "environment {name}"),
        }
    }
}

/// Something that was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub value: T,
    pub seen: Seen,
}

impl<T> Found<T> {
    pub fn new(value: T, seen: Seen) -> Self {
        Self { value, seen }
    }
}

/// A file that cannot be understood, so that what it might say is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub seen: Seen,
    pub message: String,
}

/// What a project directory is. Paths in it start at that directory.
#[derive(Clone, Debug, Default)]
pub struct Project {
    /// The applications that may be meant. More than one: a person must choose.
    pub applications: Vec<Found<Application>>,
    /// What migrates the database. More than one: a person must choose.
    pub migrations: Vec<Found<Migration>>,
    /// What the Python environment is to be made from, the most exact first.
    pub requirements: Vec<Found<Requirements>>,
    /// A Python environment that lies in the project.
    pub environment: Option<Found<Environment>>,
    /// The Python that is asked for.
    pub python: Option<Found<Wanted>>,
    /// The database drivers that the requirements name.
    pub drivers: Vec<Found<Driver>>,
    /// Files that could not be understood.
    pub troubles: Vec<Trouble>,
}

/// Look at `directory`.
pub fn look(directory: &Path) -> Project {
    look_in(directory, None)
}

/// As [`look`], where it is known that the application's imports start in `app_dir`.
pub fn look_in(directory: &Path, app_dir: Option<&Path>) -> Project {
    let (manifest, mut troubles) = read_manifest(directory);
    let applications = match app_dir.filter(|dir| *dir != directory) {
        Some(dir) => application::find(dir, &read_manifest(dir).0),
        None => application::find(directory, &manifest),
    };
    let known = app_dir.map(|dir| dir.strip_prefix(directory).unwrap_or(dir));
    let found = applications.first().map(|found| &*found.value.app_dir);
    let roots = layout::roots(directory, known.or(found));
    let migrations = migrations::find(directory, &roots, &manifest);
    let requirements = packages::requirements(directory, &roots, &manifest);
    let environment = packages::environment(directory, &roots);
    let (python, trouble) = versions::find(directory, &roots, &manifest);
    troubles.extend(trouble);
    let drivers = packages::drivers(directory, &requirements);
    Project { applications, migrations, requirements, environment, python, drivers, troubles }
}

/// The `pyproject.toml` of `directory`; an empty one where there is none, or where it cannot be understood.
pub fn read_manifest(directory: &Path) -> (Manifest, Vec<Trouble>) {
    match Manifest::read(directory, Path::new("pyproject.toml")) {
        Ok(manifest) => (manifest, Vec::new()),
        Err(trouble) => (Manifest::default(), vec![trouble]),
    }
}

#[cfg(test)]
mod tests;
