//! Which database driver a Python environment has, looked up in its directories: no interpreter is started for it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Settings;

/// SQLAlchemy's drivers for PostgreSQL, the first that is there taken, by the package that each needs.
const DRIVERS: [(&str, &str); 3] =
    [("psycopg2", "postgresql+psycopg2"), ("psycopg", "postgresql+psycopg"), ("asyncpg", "postgresql+asyncpg")];

/// The scheme of `DATABASE_URL` for an application in the environment of `python`. With SQLAlchemy it names the driver that
/// is there: SQLAlchemy takes the plain scheme for psycopg2 up to 2.0, for psycopg 3 since 2.1. Without, it is the plain
/// one, which all other libraries know.
pub fn scheme(python: &Path, settings: &Settings) -> &'static str {
    let places = places(python, settings);
    let has = |package: &str| places.iter().any(|place| place.join(package).is_dir());
    let driver = DRIVERS.into_iter().find(|(package, _)| has("sqlalchemy") && has(package));
    driver.map_or("postgresql", |(_, scheme)| scheme)
}

/// Where the packages of `python` are.
fn places(python: &Path, settings: &Settings) -> Vec<PathBuf> {
    let found = |bin: &str| Path::new(bin).join(python);
    let python = match python.components().count() {
        1 => settings.search_path.split(':').map(found).find(|path| path.is_file()),
        _ => Some(python.to_path_buf()),
    };
    let Some(python) = python else { return Vec::new() };
    let prefix = |program: &Path| program.parent().and_then(Path::parent).map(Path::to_path_buf);
    let Some(own) = prefix(&python) else { return Vec::new() };
    let mut prefixes = vec![own.clone()];
    match fs::read_to_string(own.join("pyvenv.cfg")) {
        Ok(text) => {
            let value = |wanted: &str| {
                let pairs = text.lines().filter_map(|line| line.split_once('='));
                pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == wanted)
            };
            if value("include-system-site-packages").is_some_and(|(_, word)| word.eq_ignore_ascii_case("true")) {
                prefixes.extend(value("home").and_then(|(_, home)| Path::new(home).parent().map(Path::to_path_buf)));
            }
        }
        Err(_) => {
            prefixes.extend(python.canonicalize().ok().as_deref().and_then(prefix));
            prefixes.extend(settings.inherited.0.get("HOME").map(|home| Path::new(home).join(".local")));
        }
    }
    prefixes.iter().flat_map(|prefix| below(prefix)).collect()
}

/// The directories for packages below `prefix`, as Python and Debian lay them out.
fn below(prefix: &Path) -> Vec<PathBuf> {
    let libs = ["lib", "lib64", "local/lib"].map(|lib| prefix.join(lib));
    let entries = libs.iter().flat_map(|lib| fs::read_dir(lib).into_iter().flatten().flatten());
    let versions = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
    versions.flat_map(|entry| ["site-packages", "dist-packages"].map(|name| entry.path().join(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Purpose, Source};

    #[test]
    fn the_scheme_is_that_of_the_driver_that_is_installed() {
        let temp = tempfile::tempdir().unwrap();
        let source = Source { cwd: temp.path().to_owned(), purpose: Purpose::Test, ..Source::default() };
        let settings = config::load(&source).unwrap().settings;
        let venv = temp.path().join("venv");
        let site = venv.join("lib/python3.13/site-packages");
        fs::create_dir_all(&site).unwrap();
        fs::write(venv.join("pyvenv.cfg"), "home = /nowhere/bin\ninclude-system-site-packages = false\n").unwrap();
        let scheme = || scheme(&venv.join("bin/python"), &settings);
        fs::create_dir(site.join("asyncpg")).unwrap();
        assert_eq!(scheme(), "postgresql", "asyncpg itself knows no other");
        for (package, expected) in [
            ("sqlalchemy", "postgresql+asyncpg"),
            ("psycopg", "postgresql+psycopg"),
            ("psycopg2", "postgresql+psycopg2"),
        ] {
            fs::create_dir(site.join(package)).unwrap();
            assert_eq!(scheme(), expected);
        }
    }
}
