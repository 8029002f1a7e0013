//! The pytest plugin. It needs no installation: it is written beside the server's socket, and named in the environment.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The module, and the file it comes from.
const MODULE: &str = "tandem_pytest";
const TEXT: &str = include_str!("tandem_pytest.py");

/// Write the plugin below `run`; the directory to import it from.
///
/// # Errors
/// It cannot be written.
pub fn write(run: &Path) -> anyhow::Result<PathBuf> {
    let dir = run.join("pytest");
    let path = dir.join(format!("{MODULE}.py"));
    let written = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, TEXT));
    written.with_context(|| format!("write {}", path.display()))?;
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
    fn what_the_user_has_in_the_environment_stays() {
        let of = |name: &str| (name == "PYTEST_PLUGINS").then(|| "theirs".to_owned());
        let [path, plugins] = variables(Path::new("/run/pytest"), of);
        assert_eq!(path, ("PYTHONPATH", "/run/pytest".to_owned()));
        assert_eq!(plugins, ("PYTEST_PLUGINS", "tandem_pytest,theirs".to_owned()));
        let [_, again] = variables(Path::new("/run/pytest"), |_| Some("a,tandem_pytest".to_owned()));
        assert_eq!(again.1, "a,tandem_pytest");
    }
}
