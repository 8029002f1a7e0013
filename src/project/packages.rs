//! What a project's packages are: a lock, a list of requirements, or an environment that has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::interpreter::{Driver, Interpreter};
use super::{Found, Manifest, Seen, files};

/// What a file of requirements is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// What `uv lock` wrote.
    UvLock,
    PoetryLock,
    PdmLock,
    PipfileLock,
    /// Lines as `pip install -r` takes them.
    Lines,
    /// A project's metadata, of which `[project] dependencies` count.
    Project,
}

impl Sort {
    pub fn of(requirements: &Path) -> Self {
        match requirements.file_name().and_then(|name| name.to_str()) {
            Some("uv.lock") => Self::UvLock,
            Some("poetry.lock") => Self::PoetryLock,
            Some("pdm.lock") => Self::PdmLock,
            Some("Pipfile.lock") => Self::PipfileLock,
            Some("pyproject.toml") => Self::Project,
            _ => Self::Lines,
        }
    }

    /// Whether it holds exact versions that a tool has chosen.
    pub fn is_lock(self) -> bool {
        matches!(self, Self::UvLock | Self::PoetryLock | Self::PdmLock | Self::PipfileLock)
    }
}

/// Files of requirements, the most exact first.
const FILES: [&str; 5] = ["uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "requirements.txt"];

/// Directories that hold an environment as a rule.
const ENVIRONMENTS: [&str; 3] = [".venv", "venv", "env"];

/// What a Python environment is to be made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// From the project's directory.
    pub file: PathBuf,
    pub sort: Sort,
}

/// A Python environment that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// From the project's directory, or absolute.
    pub dir: PathBuf,
    /// Whether it has Uvicorn, which runs the workers.
    pub can_serve: bool,
}

/// The files of requirements in the `roots` of the project in `directory`, the most exact first.
pub fn requirements(directory: &Path, roots: &[PathBuf], manifest: &Manifest) -> Vec<Found<Requirements>> {
    let found = FILES.iter().flat_map(|name| roots.iter().map(move |root| root.join(name)));
    let found = found.filter(|file| directory.join(file).is_file());
    let of_project = |root: &PathBuf| {
        let file = root.join("pyproject.toml");
        let read;
        let manifest = if root.as_os_str().is_empty() {
            manifest
        } else {
            read = Manifest::read(directory, &file).unwrap_or_default();
            &read
        };
        manifest.list(&["project", "dependencies"]).is_some().then_some(file)
    };
    let found = found.chain(roots.iter().filter_map(of_project));
    let found = found.map(|file| Requirements { sort: Sort::of(&file), file: files::plain(&file) });
    found.map(|it| Found::new(it.clone(), Seen::in_file(it.file))).collect()
}

/// An environment in the `roots` of the project in `directory`.
pub fn environment(directory: &Path, roots: &[PathBuf]) -> Option<Found<Environment>> {
    let dirs = roots.iter().flat_map(|root| ENVIRONMENTS.map(|name| root.join(name)));
    let found = dirs.filter_map(|dir| {
        let environment = of_dir(directory, dir.clone())?;
        Some(Found::new(environment, Seen::in_file(dir)))
    });
    let found: Vec<_> = found.collect();
    let serving = found.iter().position(|it| it.value.can_serve).unwrap_or(0);
    found.into_iter().nth(serving)
}

/// The environment that the process environment `variables` says is active: by `activate`, or conda's.
pub fn active(directory: &Path, variables: &BTreeMap<String, String>) -> Option<Found<Environment>> {
    let mut named = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(|name| {
        let dir = variables.get(name).filter(|dir| !dir.is_empty())?;
        Some(Found::new(of_dir(directory, PathBuf::from(dir))?, Seen::Variable(name.to_owned())))
    });
    named.next()
}

/// The environment in `dir`, if there is one: its `bin/python` is there.
fn of_dir(directory: &Path, dir: PathBuf) -> Option<Environment> {
    let path = directory.join(&dir);
    let python = path.join("bin/python");
    // Conda's have no pyvenv.cfg, and neither has a container's /usr.
    let is_one = path.join("pyvenv.cfg").is_file() || path.join("conda-meta").is_dir();
    (is_one && python.is_file()).then(|| {
        let can_serve = Interpreter::of(&python, "", None, directory).has("uvicorn");
        Environment { dir: files::plain(&dir), can_serve }
    })
}

/// The drivers that the first of the `requirements` names.
pub fn drivers(directory: &Path, requirements: &[Found<Requirements>]) -> Vec<Found<Driver>> {
    let Some(first) = requirements.first() else { return Vec::new() };
    let Some(text) = files::text(&directory.join(&first.value.file)) else { return Vec::new() };
    let line_of = |driver: &Driver| {
        let names = |line: &str| {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split(|letter: char| !(letter.is_ascii_alphanumeric() || "-_.".contains(letter)));
            words.any(|word| driver.distributions().contains(&word.to_lowercase().replace('_', "-").as_str()))
        };
        text.lines().position(names).map(|at| at + 1)
    };
    let found = Driver::ALL.into_iter().filter_map(|driver| Some((driver, line_of(&driver)?)));
    found.map(|(driver, line)| Found::new(driver, Seen::at(&first.value.file, line))).collect()
}
