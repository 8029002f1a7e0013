//! What a Python interpreter can import, looked up in its directories: no interpreter is started for it.

use std::fs;
use std::path::{Path, PathBuf};

use super::files;

/// A database driver for PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driver {
    Psycopg2,
    Psycopg,
    Asyncpg,
}

impl Driver {
    /// The first that is there is taken.
    pub const ALL: [Self; 3] = [Self::Psycopg2, Self::Psycopg, Self::Asyncpg];

    /// The module that it is imported as.
    pub fn module(self) -> &'static str {
        match self {
            Self::Psycopg2 => "psycopg2",
            Self::Psycopg => "psycopg",
            Self::Asyncpg => "asyncpg",
        }
    }

    /// SQLAlchemy's scheme for it.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Psycopg2 => "postgresql+psycopg2",
            Self::Psycopg => "postgresql+psycopg",
            Self::Asyncpg => "postgresql+asyncpg",
        }
    }

    /// Names that it has in requirements.
    pub(super) fn distributions(self) -> &'static [&'static str] {
        match self {
            Self::Psycopg2 => &["psycopg2", "psycopg2-binary"],
            Self::Psycopg => &["psycopg", "psycopg-binary", "psycopg-c"],
            Self::Asyncpg => &["asyncpg"],
        }
    }
}

/// An interpreter's directories of packages.
#[derive(Clone, Debug, Default)]
pub struct Interpreter(Vec<PathBuf>);

impl Interpreter {
    /// Of `python`, a path, or a name that is looked up in `search_path`. `home` is the user's, who may have packages too.
    pub fn of(python: &Path, search_path: &str, home: Option<&Path>, directory: &Path) -> Self {
        let python = match python.components().count() {
            1 => search_path.split(':').map(|bin| Path::new(bin).join(python)).find(|path| path.is_file()),
            _ => Some(python.to_path_buf()),
        };
        let Some(python) = python else { return Self::default() };
        let python = behind_shim(&python, directory).unwrap_or(python);
        let prefix = |program: &Path| program.parent().and_then(Path::parent).map(Path::to_path_buf);
        let Some(own) = prefix(&python) else { return Self::default() };
        let mut prefixes = vec![own.clone()];
        match fs::read_to_string(own.join("pyvenv.cfg")) {
            Ok(text) => {
                let value = |wanted: &str| {
                    let pairs = text.lines().filter_map(|line| line.split_once('='));
                    pairs.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == wanted)
                };
                if value("include-system-site-packages").is_some_and(|(_, word)| word.eq_ignore_ascii_case("true")) {
                    prefixes
                        .extend(value("home").and_then(|(_, home)| Path::new(home).parent().map(Path::to_path_buf)));
                }
            }
            Err(_) => {
                prefixes.extend(python.canonicalize().ok().as_deref().and_then(prefix));
                prefixes.extend(home.map(|home| home.join(".local")));
            }
        }
        Self(prefixes.iter().flat_map(|prefix| below(prefix)).collect())
    }

    /// Whether it can import the package or module `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|place| place.join(name).is_dir() || place.join(name).with_extension("py").is_file())
    }

    /// The scheme of `DATABASE_URL` for an application that this interpreter runs. With SQLAlchemy it names the driver that
    /// is there: SQLAlchemy takes the plain scheme for psycopg2 up to 2.0, for psycopg 3 since 2.1. Without, it is the plain
    /// one, which all other libraries know.
    pub fn scheme(&self) -> &'static str {
        let driver = Driver::ALL.into_iter().find(|driver| self.has("sqlalchemy") && self.has(driver.module()));
        driver.map_or("postgresql", Driver::scheme)
    }
}

/// The directories for packages below `prefix`, as Python and Debian lay them out.
fn below(prefix: &Path) -> Vec<PathBuf> {
    let libs = ["lib", "lib64", "local/lib"].map(|lib| prefix.join(lib));
    let entries = libs.iter().flat_map(|lib| fs::read_dir(lib).into_iter().flatten().flatten());
    let versions = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
    versions.flat_map(|entry| ["site-packages", "dist-packages"].map(|name| entry.path().join(name))).collect()
}

/// The interpreter that the script of pyenv's at `python` runs in `directory`: the version is that of the nearest
/// `.python-version`, else pyenv's own.
fn behind_shim(python: &Path, directory: &Path) -> Option<PathBuf> {
    let shims = python.parent().filter(|dir| dir.ends_with("shims"))?;
    let pyenv = shims.parent()?;
    let near = directory.ancestors().map(|dir| dir.join(".python-version"));
    let text = near.chain([pyenv.join("version")]).find_map(|file| files::text(&file))?;
    let installed = files::names(&pyenv.join("versions"));
    let is_it = |name: &&String, version: &str| **name == version || name.starts_with(&format!("{version}."));
    let named = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let found = named.filter_map(|version| installed.iter().rev().find(|name| is_it(name, version)));
    let name = python.file_name()?;
    let mut programs = found.map(|version| pyenv.join("versions").join(version).join("bin").join(name));
    programs.find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_that_of_the_driver_that_is_installed() {
        let temp = tempfile::tempdir().unwrap();
        let venv = temp.path().join("venv");
        let site = venv.join("lib/python3.13/site-packages");
        fs::create_dir_all(&site).unwrap();
        fs::write(venv.join("pyvenv.cfg"), "home = /nowhere/bin\ninclude-system-site-packages = false\n").unwrap();
        let scheme = || Interpreter::of(&venv.join("bin/python"), "", None, temp.path()).scheme();
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

    #[test]
    fn pyenvs_scripts_are_looked_behind() {
        let temp = tempfile::tempdir().unwrap();
        let (pyenv, project) = (temp.path().join("pyenv"), temp.path().join("project/sub"));
        for version in ["3.11.7", "3.12.1"] {
            let site = pyenv.join("versions").join(version).join("lib/python3.1/site-packages");
            fs::create_dir_all(site.join(format!("of{}", &version[2..4]))).unwrap();
            fs::create_dir_all(pyenv.join("versions").join(version).join("bin")).unwrap();
            fs::write(pyenv.join("versions").join(version).join("bin/python3"), "").unwrap();
        }
        fs::create_dir_all(&project).unwrap();
        fs::create_dir_all(pyenv.join("shims")).unwrap();
        fs::write(pyenv.join("shims/python3"), "#!/bin/sh\n").unwrap();
        fs::write(pyenv.join("version"), "3.12.1\n3.11.7\n").unwrap();
        let path = pyenv.join("shims").display().to_string();
        let has = |name: &str| Interpreter::of(Path::new("python3"), &path, None, &project).has(name);
        assert!(has("of12") && !has("of11"));
        fs::write(temp.path().join("project/.python-version"), "3.11\n").unwrap();
        assert!(has("of11") && !has("of12"));
    }
}
