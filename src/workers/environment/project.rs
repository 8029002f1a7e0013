//! Requirements as modern projects have them: `pyproject.toml`'s dependencies, and uv's lock. Pure.

use std::collections::BTreeSet;
use std::path::Path;

use crate::config::Python;
use crate::exit::{Code, Failure};
pub(super) use crate::project::Sort;

/// What a configuration asks for beside a project's dependencies, by name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options<'a> {
    /// `[dependency-groups]`.
    pub groups: &'a [String],
    /// `[project.optional-dependencies]`.
    pub extras: &'a [String],
}

impl<'a> Options<'a> {
    pub(super) fn of(python: &'a Python) -> Self {
        Self { groups: &python.groups, extras: &python.extras }
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(self) -> bool {
        self.groups.is_empty() && self.extras.is_empty()
    }
}

/// A list of requirements in a `pyproject.toml`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum List {
    Group(String),
    Extra(String),
}

impl List {
    /// The table that has it, its name, and the key of the configuration that asks for it.
    fn place(&self) -> (&'static str, &str, &'static str) {
        match self {
            Self::Group(name) => ("[dependency-groups]", name, "python.groups"),
            Self::Extra(name) => ("[project.optional-dependencies]", name, "python.extras"),
        }
    }
}

/// The dependencies in the `pyproject.toml` that holds `text`, with those that `options` name.
///
/// # Errors
/// It is no TOML, its dependencies stand elsewhere, or it has no such group or extra.
pub(super) fn dependencies(text: &str, file: &Path, options: Options<'_>) -> Result<Vec<String>, Failure> {
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
    let own_name = project.and_then(|project| project.get("name")).and_then(toml::Value::as_str).unwrap_or_default();
    let groups = read.get("dependency-groups").and_then(toml::Value::as_table);
    let extras = project.and_then(|project| project.get("optional-dependencies")).and_then(toml::Value::as_table);
    let (mut next, mut seen) = (Vec::new(), BTreeSet::new());
    next.extend(options.groups.iter().map(|name| List::Group(normal(name))));
    next.extend(options.extras.iter().map(|name| List::Extra(normal(name))));
    while let Some(wanted) = next.pop() {
        if !seen.insert(wanted.clone()) {
            continue;
        }
        let table = match &wanted {
            List::Group(_) => groups,
            List::Extra(_) => extras,
        };
        let (place, name, key) = wanted.place();
        let found = table.and_then(|table| table.iter().find(|(there, _)| normal(there) == name));
        let Some(list) = found.and_then(|(_, list)| list.as_array()) else {
            let help = format!("see {place} there, and `{key}` in the configuration");
            return Err(refused(format!("has no {name} under {place}"), &help));
        };
        for entry in list {
            let included = entry.get("include-group").and_then(toml::Value::as_str);
            next.extend(included.map(|name| List::Group(normal(name))));
            match entry.as_str().map(|entry| (entry, own_extras(entry, own_name))) {
                Some((_, Some(own))) => next.extend(own),
                Some((entry, None)) => all.push(entry.to_owned()),
                None => {}
            }
        }
    }
    Ok(all)
}

/// The extras that `requirement` asks for of the project `own_name` itself, as `shop[test,docs]` does in shop's own lists.
fn own_extras(requirement: &str, own_name: &str) -> Option<Vec<List>> {
    let (name, rest) = requirement.split_once('[')?;
    let (extras, _) = rest.split_once(']')?;
    let is_own = !own_name.is_empty() && normal(name.trim()) == normal(own_name);
    is_own.then(|| extras.split(',').map(|extra| List::Extra(normal(extra.trim()))).collect())
}

/// The name of a group, an extra or a project as such names are compared (PEP 735, PEP 685, PEP 503).
pub(super) fn normal(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// The arguments of `uv export` for these groups and extras. `dev` is a group that uv adds by itself.
pub(super) fn export(options: Options<'_>) -> Vec<&str> {
    let dev = options.groups.iter().any(|group| normal(group) == "dev");
    let none = if dev { None } else { Some("--no-dev") };
    let groups = options.groups.iter().flat_map(|group| ["--group", group]);
    let extras = options.extras.iter().flat_map(|extra| ["--extra", extra]);
    none.into_iter().chain(groups).chain(extras).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projects_dependencies_are_read_and_what_has_none_is_refused() {
        let file = Path::new("pyproject.toml");
        let text = "[project]\nname = 'x'\ndependencies = [\n  'fastapi>=0.128', # why\n  \"uvicorn[standard]\",\n]\n";
        assert_eq!(dependencies(text, file, Options::default()).unwrap(), ["fastapi>=0.128", "uvicorn[standard]"]);
        let poetry = dependencies("[tool.poetry.dependencies]\nfastapi = '*'\n", file, Options::default())
            .unwrap_err()
            .to_string();
        assert!(poetry.contains("has no list `dependencies`") && poetry.contains("python.managed = false"), "{poetry}");
        assert!(dependencies("[project", file, Options::default()).unwrap_err().to_string().contains("is not TOML"));
        assert_eq!(Sort::of(Path::new("a/uv.lock")), Sort::UvLock);
    }

    #[test]
    fn dependency_groups_and_extras_come_along_when_they_are_asked_for() {
        let file = Path::new("pyproject.toml");
        let text = "[project]\nname = 'My.Shop'\ndependencies = ['fastapi']\n\
                    [project.optional-dependencies]\npdf = ['weasyprint']\nall = ['my-shop[pdf, Dev_Tools]', 'orjson']\n\
                    dev_tools = ['pytest-cov', 'other[pdf]']\n\
                    [dependency-groups]\ntest = ['pytest']\nDev_Tools = [{ include-group = 'test' }, 'ruff']\n";
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<String>>();
        let with = |groups: &[&str], extras: &[&str]| {
            dependencies(text, file, Options { groups: &names(groups), extras: &names(extras) })
        };
        assert_eq!(with(&[], &[]).unwrap(), ["fastapi"]);
        assert_eq!(with(&["dev-tools", "test"], &[]).unwrap(), ["fastapi", "pytest", "ruff"]);
        assert_eq!(with(&[], &["dev.tools"]).unwrap(), ["fastapi", "pytest-cov", "other[pdf]"]);
        assert_eq!(with(&[], &["all"]).unwrap(), ["fastapi", "orjson", "pytest-cov", "other[pdf]", "weasyprint"]);
        let missing = with(&["pdf"], &[]).unwrap_err().to_string();
        assert!(
            missing.contains("has no pdf under [dependency-groups]") && missing.contains("python.groups"),
            "{missing}"
        );
        let missing = with(&[], &["test"]).unwrap_err().to_string();
        assert!(
            missing.contains("under [project.optional-dependencies]") && missing.contains("python.extras"),
            "{missing}"
        );

        let with = |groups: &[&str], extras: &[&str]| {
            let (groups, extras) = (names(groups), names(extras));
            export(Options { groups: &groups, extras: &extras }).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(with(&[], &[]), ["--no-dev"]);
        assert_eq!(with(&["test"], &["dev"]), ["--no-dev", "--group", "test", "--extra", "dev"]);
        assert_eq!(with(&["dev", "docs"], &[]), ["--group", "dev", "--group", "docs"]);
    }
}
