//! Requirements as modern projects have them: `pyproject.toml`'s dependencies, and uv's lock. Pure.

use std::path::Path;

use crate::exit::{Code, Failure};

/// What a file of requirements is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Lines as `pip install -r` takes them.
    Lines,
    /// A project's metadata, of which `[project] dependencies` count.
    Project,
    /// What `uv lock` wrote: exact versions, which only uv reads.
    UvLock,
}

impl Sort {
    pub(super) fn of(requirements: &Path) -> Self {
        match requirements.file_name().and_then(|name| name.to_str()) {
            Some("pyproject.toml") => Self::Project,
            Some("uv.lock") => Self::UvLock,
            _ => Self::Lines,
        }
    }
}

/// The dependencies in the `pyproject.toml` that holds `text`.
///
/// # Errors
/// It is no TOML, or its dependencies stand elsewhere.
pub(super) fn dependencies(text: &str, file: &Path) -> Result<Vec<String>, Failure> {
    let refused = |why: String| {
        let help = "make the environment with the project's own tool, and write python.venv = \".venv\" and \
                    python.managed = false";
        Failure::new(Code::Config, format!("{} (`python.requirements`) {why}; {help}", file.display()))
    };
    let read: toml::Table =
        toml::from_str(text).map_err(|error| refused(format!("is not TOML: {}", error.message())))?;
    let project = read.get("project").and_then(toml::Value::as_table);
    let list = project.and_then(|project| project.get("dependencies")).and_then(toml::Value::as_array);
    let list = list.ok_or_else(|| refused("has no list `dependencies` under [project]".to_owned()))?;
    Ok(list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_dependencies_are_read_and_what_has_none_is_refused() {
        let file = Path::new("pyproject.toml");
        let text = "[project]\nname = 'x'\ndependencies = [\n  'fastapi>=0.128', # why\n  \"uvicorn[standard]\",\n]\n";
        assert_eq!(dependencies(text, file).unwrap(), ["fastapi>=0.128", "uvicorn[standard]"]);
        let poetry = dependencies("[tool.poetry.dependencies]\nfastapi = '*'\n", file).unwrap_err().to_string();
        assert!(poetry.contains("has no list `dependencies`") && poetry.contains("python.managed = false"), "{poetry}");
        assert!(dependencies("[project", file).unwrap_err().to_string().contains("is not TOML"));
        assert_eq!(Sort::of(Path::new("a/uv.lock")), Sort::UvLock);
    }
}
