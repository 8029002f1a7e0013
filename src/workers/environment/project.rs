//! Requirements as modern projects have them: `pyproject.toml`'s dependencies, and uv's lock. Pure.

use std::collections::BTreeSet;
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

/// The dependencies in the `pyproject.toml` that holds `text`, with those of its dependency `groups`.
///
/// # Errors
/// It is no TOML, its dependencies stand elsewhere, or it has no such group.
pub(super) fn dependencies(text: &str, file: &Path, groups: &[String]) -> Result<Vec<String>, Failure> {
    let refused = |why: String, help: &str| {
        Failure::new(Code::Config, format!("{} (`python.requirements`) {why}; {help}", file.display()))
    };
    let help = "make the environment with the project's own tool, and write python.venv = \".venv\" and \
                python.managed = false";
    let read: toml::Table =
        toml::from_str(text).map_err(|error| refused(format!("is not TOML: {}", error.message()), help))?;
    let project = read.get("project").and_then(toml::Value::as_table);
    let list = project.and_then(|project| project.get("dependencies")).and_then(toml::Value::as_array);
    let list = list.ok_or_else(|| refused("has no list `dependencies` under [project]".to_owned(), help))?;
    let mut all: Vec<String> = list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect();
    let tables = read.get("dependency-groups").and_then(toml::Value::as_table);
    let (mut next, mut seen) = (groups.to_vec(), BTreeSet::new());
    while let Some(name) = next.pop() {
        if !seen.insert(normal(&name)) {
            continue;
        }
        let found = tables.and_then(|tables| tables.iter().find(|(there, _)| normal(there) == normal(&name)));
        let Some(list) = found.and_then(|(_, group)| group.as_array()) else {
            let help = "see [dependency-groups] there, and `python.groups` in the configuration";
            return Err(refused(format!("has no dependency group {name}"), help));
        };
        for entry in list {
            let included = entry.get("include-group").and_then(toml::Value::as_str);
            next.extend(included.map(str::to_owned));
            all.extend(entry.as_str().map(str::to_owned));
        }
    }
    Ok(all)
}

/// A group's name as names of packages are compared (PEP 735, PEP 503).
fn normal(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// The options of `uv export` for these groups. `dev` is one that uv adds by itself.
pub(super) fn export(groups: &[String]) -> Vec<&str> {
    let dev = groups.iter().any(|group| normal(group) == "dev");
    let none = if dev { None } else { Some("--no-dev") };
    none.into_iter().chain(groups.iter().flat_map(|group| ["--group", group])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_dependencies_are_read_and_what_has_none_is_refused() {
        let file = Path::new("pyproject.toml");
        let text = "[project]\nname = 'x'\ndependencies = [\n  'fastapi>=0.128', # why\n  \"uvicorn[standard]\",\n]\n";
        assert_eq!(dependencies(text, file, &[]).unwrap(), ["fastapi>=0.128", "uvicorn[standard]"]);
        let poetry = dependencies("[tool.poetry.dependencies]\nfastapi = '*'\n", file, &[]).unwrap_err().to_string();
        assert!(poetry.contains("has no list `dependencies`") && poetry.contains("python.managed = false"), "{poetry}");
        assert!(dependencies("[project", file, &[]).unwrap_err().to_string().contains("is not TOML"));
        assert_eq!(Sort::of(Path::new("a/uv.lock")), Sort::UvLock);
    }
    #[test]
    fn dependency_groups_come_along_when_they_are_asked_for() {
        let file = Path::new("pyproject.toml");
        let text = "[project]\ndependencies = ['fastapi']\n[dependency-groups]\ntest = ['pytest']\n\
                    Dev_Tools = [{ include-group = 'test' }, 'ruff']\n";
        let with = |groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
            dependencies(text, file, &groups)
        };
        assert_eq!(with(&[]).unwrap(), ["fastapi"]);
        assert_eq!(with(&["dev-tools", "test"]).unwrap(), ["fastapi", "pytest", "ruff"]);
        let missing = with(&["docs"]).unwrap_err().to_string();
        assert!(missing.contains("has no dependency group docs") && missing.contains("python.groups"), "{missing}");
        assert_eq!(export(&[]), ["--no-dev"]);
        assert_eq!(export(&["test".to_owned()]), ["--no-dev", "--group", "test"]);
        assert_eq!(export(&["dev".to_owned(), "docs".to_owned()]), ["--group", "dev", "--group", "docs"]);
    }
}
