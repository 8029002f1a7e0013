//! The pytest plugin, a Python package. It needs no installation: it is written beside the server's socket, and named in the
//! environment. The wheel installs the same package, for a pytest that `tandem test` did not start.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The package, which is also what the wheel's entry point is called: pytest loads no name twice.
const MODULE: &str = "pytest_tandem";
const FILES: [(&str, &str); 6] = [
    ("__init__.py", include_str!("python/pytest_tandem/__init__.py")),
    ("asynchronous.py", include_str!("python/pytest_tandem/asynchronous.py")),
    ("fixtures.py", include_str!("python/pytest_tandem/fixtures.py")),
    ("harness.py", include_str!("python/pytest_tandem/harness.py")),
    ("postgresql.py", include_str!("python/pytest_tandem/postgresql.py")),
    ("starting.py", include_str!("python/pytest_tandem/starting.py")),
];

/// Write the plugin below `run`; the directory to import it from.
///
/// # Errors
/// It cannot be written.
pub fn write(run: &Path) -> anyhow::Result<PathBuf> {
    let dir = run.join("pytest");
    let package = dir.join(MODULE);
    let write = || {
        std::fs::create_dir_all(&package)?;
        FILES.iter().try_for_each(|(name, text)| std::fs::write(package.join(name), text))
    };
    write().with_context(|| format!("write {}", package.display()))?;
    Ok(dir)
}

/// The variables by which pytest finds the plugin in `dir`, before what `inherited` says already.
pub fn variables(dir: &Path, inherited: impl Fn(&str) -> Option<String>) -> [(&'static str, String); 2] {
    let before = |own: String, name: &str, separator: &str| match inherited(name).filter(|value| !value.is_empty()) {
        // Inside another `tandem test` it stands there already.
        Some(value) if value.split(separator).any(|part| part == own) => value,
        Some(value) => format!("{own}{separator}{value}"),
        None => own,
    };
    [
        ("PYTHONPATH", before(dir.display().to_string(), "PYTHONPATH", ":")),
        ("PYTEST_PLUGINS", before(MODULE.to_owned(), "PYTEST_PLUGINS", ",")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_package_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            entries.filter(|name| name != "__pycache__").collect::<std::collections::BTreeSet<_>>()
        };
        let package = write(temp.path()).unwrap().join(MODULE);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/harness/python").join(MODULE);
        assert_eq!(names(&package), names(&source));
    }

    #[test]
    fn what_the_user_has_in_the_environment_stays() {
        let of = |name: &str| (name == "PYTEST_PLUGINS").then(|| "theirs".to_owned());
        let [path, plugins] = variables(Path::new("/run/pytest"), of);
        assert_eq!(path, ("PYTHONPATH", "/run/pytest".to_owned()));
        assert_eq!(plugins, ("PYTEST_PLUGINS", "pytest_tandem,theirs".to_owned()));
        let [_, again] = variables(Path::new("/run/pytest"), |_| Some("a,pytest_tandem".to_owned()));
        assert_eq!(again.1, "a,pytest_tandem");
    }
}
