//! Which directories of a project hold Python.

use std::path::{Path, PathBuf};

use super::files;

/// Directories in which a repository with more than Python in it keeps the Python part.
const PARTS: [&str; 4] = ["backend", "server", "api", "web"];

/// What a directory with a Python project in it has.
const MARKS: [&str; 10] = [
    "pyproject.toml",
    "requirements.txt",
    "manage.py",
    "main.py",
    "app.py",
    "alembic.ini",
    "setup.py",
    "uv.lock",
    "poetry.lock",
    "Pipfile",
];

/// The parts of `directory` that are Python projects of their own, as paths from it: not the packages of a project.
pub fn parts(directory: &Path) -> Vec<PathBuf> {
    let is_project = |name: &&&str| {
        let dir = directory.join(name);
        !dir.join("__init__.py").exists() && MARKS.iter().any(|mark| dir.join(mark).is_file())
    };
    PARTS.iter().filter(is_project).map(PathBuf::from).collect()
}

/// Where things that belong to the Python project are looked for, as paths from `directory`: where the application's imports
/// start (`app_dir`), in the part that has it, and in `directory` itself; without an application, in the only part.
pub fn roots(directory: &Path, app_dir: Option<&Path>) -> Vec<PathBuf> {
    let parts = parts(directory);
    let of_app = app_dir.and_then(|dir| parts.iter().find(|part| dir.starts_with(part)));
    let part = of_app.or(match (app_dir, parts.as_slice()) {
        (None, [only]) => Some(only),
        _ => None,
    });
    // What lies with the application is more its own.
    let mut roots: Vec<PathBuf> = app_dir.map(files::plain).into_iter().chain(part.cloned()).collect();
    roots.push(PathBuf::new());
    let mut seen = Vec::new();
    roots.retain(|root| {
        !seen.contains(root) && {
            seen.push(root.clone());
            true
        }
    });
    roots
}

/// Directories that hold no application.
const NONE: [&str; 22] = [
    "alembic",
    "benchmarks",
    "build",
    "client",
    "dist",
    "docs",
    "env",
    "examples",
    "frontend",
    "migrations",
    "node_modules",
    "notebooks",
    "scripts",
    "site",
    "static",
    "target",
    "templates",
    "test",
    "tests",
    "tools",
    "venv",
    "versions",
];

/// Packages in `root`, as names: directories of modules that can be imported from there.
pub fn packages(root: &Path) -> Vec<String> {
    let is_package = |name: &String| {
        let is_name = name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
        let dir = root.join(name);
        let has_modules = || files::names(&dir).iter().any(|name| name.ends_with(".py"));
        is_name && !NONE.contains(&name.as_str()) && dir.is_dir() && !dir.join("pyvenv.cfg").exists() && has_modules()
    };
    files::names(root).into_iter().filter(is_package).collect()
}
