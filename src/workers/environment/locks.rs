//! Locks of uv, Poetry, PDM and Pipenv as lines that pip takes: exact versions with their hashes, no dependency left out and
//! none resolved anew. Pure.
//!
//! What a lock says in a way that cannot be carried over (a package from a git repository, a fork of versions) is refused: then
//! the tool's own exporter has to do it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::project::{Options, normal};
use crate::exit::{Code, Failure};
use crate::project::{Manifest, Sort};

/// A package in a lock.
#[derive(Clone, Debug, Default)]
pub(super) struct Package {
    /// As names are compared.
    pub name: String,
    pub version: String,
    hashes: Vec<String>,
    /// When it is needed, as the lock itself says it.
    marker: Option<String>,
    /// The groups that need it, where the lock says it.
    groups: Option<Vec<String>>,
    dependencies: Vec<Edge>,
    extras: BTreeMap<String, Vec<Edge>>,
    /// Where it comes from, if not from an index.
    elsewhere: Option<String>,
    index: Option<String>,
    /// Whether it is the project itself.
    is_project: bool,
}

/// A dependency of one package on another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Edge {
    name: String,
    marker: Option<String>,
    extras: Vec<String>,
}

/// What a lock says.
#[derive(Clone, Debug)]
pub(super) struct Locked {
    sort: Sort,
    pub packages: Vec<Package>,
    /// What the project itself needs, where the lock does not say it: from its `pyproject.toml`.
    direct: Vec<Edge>,
    /// More indexes of packages.
    indexes: BTreeSet<String>,
}

/// Read the lock that `text` is.
///
/// # Errors
/// It is none that is known.
pub(super) fn read(sort: Sort, file: &Path, text: &str, manifest: &Manifest) -> Result<Locked, Failure> {
    let refused = |why: &str| {
        Failure::new(Code::Config, format!("{} (`python.requirements`) cannot be read: {why}", file.display()))
    };
    let mut locked = Locked { sort, packages: Vec::new(), direct: Vec::new(), indexes: BTreeSet::new() };
    if sort == Sort::PipfileLock {
        let json: serde_json::Value = serde_json::from_str(text).map_err(|error| refused(&error.to_string()))?;
        locked.pipfile(&json);
        return Ok(locked);
    }
    let lock = Manifest::of(file, text).map_err(|trouble| refused(&trouble.message))?;
    let packages = lock.get(&["package"]).ok_or_else(|| refused("it has no [[package]]"))?;
    locked.packages = packages.list().iter().map(|item| package(sort, item)).collect();
    if sort == Sort::PoetryLock {
        // Before Poetry 1.5 the hashes stood apart.
        for package in locked.packages.iter_mut().filter(|package| package.hashes.is_empty()) {
            let files = lock.get(&["metadata", "files", &package.name]).map_or(&[][..], |files| files.list());
            package.hashes = files.iter().filter_map(|file| Some(file.text_at(&["hash"])?.to_owned())).collect();
        }
    }
    locked.direct = direct(manifest).into_iter().map(|it| it.0).collect();
    Ok(locked)
}

type Item = crate::project::Item;

fn package(sort: Sort, item: &Item) -> Package {
    let text = |path: &[&str]| item.text_at(path).map(str::to_owned);
    let hashes = |path: &[&str]| {
        let files = item.get(path).map_or(&[][..], |files| files.list());
        files.iter().filter_map(|file| Some(file.text_at(&["hash"])?.to_owned())).collect::<Vec<_>>()
    };
    let mut package = Package {
        name: normal(item.text_at(&["name"]).unwrap_or_default()),
        version: text(&["version"]).unwrap_or_default(),
        marker: text(&["marker"]).or_else(|| text(&["markers"])),
        groups: item
            .get(&["groups"])
            .map(|groups| groups.list().iter().filter_map(|group| Some(group.text()?.to_owned())).collect()),
        ..Package::default()
    };
    let tables = |path: &[&str]| item.get(path).and_then(|it| it.table()).into_iter().flatten();
    match sort {
        Sort::UvLock => {
            package.hashes = hashes(&["wheels"]);
            package.hashes.extend(text(&["sdist", "hash"]));
            package.dependencies = edges(item.get(&["dependencies"]));
            let extras = tables(&["optional-dependencies"]).chain(tables(&["dev-dependencies"]));
            package.extras = extras.map(|(name, list)| (normal(name), edges(Some(list)))).collect();
            let source = |kind: &str| text(&["source", kind]);
            package.is_project = ["virtual", "editable"].iter().any(|kind| source(kind).as_deref() == Some("."));
            let kinds = ["git", "url", "path", "directory", "editable", "virtual"];
            package.elsewhere = kinds.into_iter().find_map(|kind| Some(format!("{kind} {}", source(kind)?)));
            package.index = source("registry").filter(|url| url.contains("://") && !url.contains("pypi.org"));
        }
        Sort::PoetryLock => {
            package.hashes = hashes(&["files"]);
            package.dependencies =
                tables(&["dependencies"]).flat_map(|(name, item)| poetry_edges(name, item)).collect();
            package.extras = tables(&["extras"]).map(|(name, list)| (normal(name), edges(Some(list)))).collect();
            let kind = text(&["source", "type"]);
            package.elsewhere = kind
                .clone()
                .filter(|kind| kind != "legacy")
                .map(|kind| format!("{kind} {}", item.text_at(&["source", "url"]).unwrap_or_default()));
            package.index = text(&["source", "url"]).filter(|_| kind.as_deref() == Some("legacy"));
        }
        _ => {
            package.hashes = hashes(&["files"]);
            package.dependencies = edges(item.get(&["dependencies"]));
            let kinds = ["git", "url", "path"];
            package.elsewhere = kinds.into_iter().find_map(|kind| Some(format!("{kind} {}", text(&[kind])?)));
        }
    }
    package
}

/// Dependencies as a list: of tables (uv), or of requirements (PDM, and Poetry's extras).
fn edges(list: Option<&Item>) -> Vec<Edge> {
    let edge = |item: &Item| match item.text() {
        Some(requirement) => Some(requirement_edge(requirement).0),
        None => Some(Edge {
            name: normal(item.text_at(&["name"])?),
            marker: item.text_at(&["marker"]).map(str::to_owned),
            extras: item
                .get(&["extra"])
                .map_or(&[][..], |it| it.list())
                .iter()
                .filter_map(|it| Some(it.text()?.to_owned()))
                .collect(),
        }),
    };
    list.map_or(&[][..], |list| list.list()).iter().filter_map(edge).collect()
}

/// A dependency as Poetry writes it: a version, a table, or a list of tables.
fn poetry_edges(name: &str, item: &Item) -> Vec<Edge> {
    let edge = |item: &Item| {
        let is_optional =
            matches!(item.get(&["optional"]).map(|it| &it.value), Some(crate::project::Value::Boolean(true)));
        let extras = item.get(&["extras"]).map_or(&[][..], |it| it.list());
        let extras = extras.iter().filter_map(|it| Some(it.text()?.to_owned())).collect();
        (!is_optional).then(|| Edge {
            name: normal(name),
            marker: item.text_at(&["markers"]).map(str::to_owned),
            extras,
        })
    };
    match item.list() {
        [] => edge(item).into_iter().collect(),
        list => list.iter().filter_map(edge).collect(),
    }
}

/// A requirement (PEP 508) as an edge, and what its version must be.
fn requirement_edge(requirement: &str) -> (Edge, Option<String>) {
    let (rest, marker) = match requirement.split_once(';') {
        Some((rest, marker)) => (rest.trim(), Some(marker.trim().to_owned())),
        None => (requirement.trim(), None),
    };
    let end =
        rest.find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_.".contains(letter))).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let (extras, versions) = match rest.trim().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((extras, versions)) => (extras.split(',').map(|it| it.trim().to_owned()).collect(), versions),
        None => (Vec::new(), rest),
    };
    let versions = versions.trim().trim_start_matches('(').trim_end_matches(')').trim();
    // `name @ https://…` names no version.
    let versions = (!versions.is_empty() && !versions.starts_with('@')).then(|| versions.to_owned());
    (Edge { name: normal(name), marker, extras }, versions)
}

/// What the project itself needs, with the versions that it asks for: `[project]`, else Poetry's own table.
fn direct(manifest: &Manifest) -> Vec<(Edge, Option<String>)> {
    if let Some(list) = manifest.list(&["project", "dependencies"]) {
        return list.iter().map(|it| requirement_edge(&it.value)).collect();
    }
    let table = manifest.get(&["tool", "poetry", "dependencies"]).and_then(|it| it.table()).into_iter().flatten();
    let each = table.filter(|(name, _)| !name.eq_ignore_ascii_case("python")).flat_map(|(name, item)| {
        let versions = item.text().or_else(|| item.text_at(&["version"])).and_then(crate::project::versions::caret);
        poetry_edges(name, item).into_iter().map(move |edge| (edge, versions.clone()))
    });
    each.collect()
}

/// What `manifest` asks for with its versions, without what is needed only sometimes.
pub(super) fn asked_for(manifest: &Manifest) -> Vec<(String, Option<String>)> {
    let always = direct(manifest).into_iter().filter(|(edge, _)| edge.marker.is_none());
    always.map(|(edge, versions)| (edge.name, versions)).collect()
}

impl Locked {
    fn pipfile(&mut self, json: &serde_json::Value) {
        let sources = json["_meta"]["sources"].as_array().into_iter().flatten();
        let urls = sources.filter_map(|source| source["url"].as_str()).filter(|url| !url.contains("pypi.org"));
        self.indexes.extend(urls.map(str::to_owned));
        for (group, section) in [("default", "default"), ("dev", "develop")] {
            for (name, entry) in json[section].as_object().into_iter().flatten() {
                let texts = |key: &str| entry[key].as_array().into_iter().flatten().filter_map(|it| it.as_str());
                let kinds = ["git", "path", "file"];
                self.packages.push(Package {
                    name: normal(name),
                    version: entry["version"].as_str().unwrap_or_default().trim_start_matches('=').to_owned(),
                    hashes: texts("hashes").map(str::to_owned).collect(),
                    marker: entry["markers"].as_str().map(str::to_owned),
                    groups: Some(vec![group.to_owned()]),
                    elsewhere: kinds.into_iter().find_map(|kind| Some(format!("{kind} {}", entry[kind].as_str()?))),
                    ..Package::default()
                });
            }
        }
    }

    /// The lines for pip, of the project's packages with those that `options` ask for.
    ///
    /// # Errors
    /// Something cannot be said in such lines.
    pub(super) fn lines(&self, file: &Path, options: Options<'_>) -> Result<String, Failure> {
        let refused = |why: String| Failure::new(Code::Config, format!("{}: {why}", file.display()));
        let wanted = match self.sort == Sort::UvLock || self.packages.iter().any(|it| it.groups.is_none()) {
            true => self.reached(options),
            false => self.of_groups(options),
        };
        let (mut text, mut seen) = (String::new(), BTreeMap::new());
        for index in
            self.indexes.iter().chain(self.packages.iter().filter_map(|it| it.index.as_ref())).collect::<BTreeSet<_>>()
        {
            text.push_str(&format!("--extra-index-url {index}\n"));
        }
        for package in &self.packages {
            let Some(marker) = wanted.get(&package.name).filter(|_| !package.is_project) else { continue };
            if let Some(elsewhere) = &package.elsewhere {
                return Err(refused(format!("{} comes from {elsewhere}, not from an index", package.name)));
            }
            match seen.insert(&package.name, &package.version) {
                // PDM lists a package once more for its extras.
                Some(version) if *version == package.version => continue,
                Some(_) => return Err(refused(format!("it has more than one version of {}", package.name))),
                None => {}
            }
            if package.version.is_empty() || package.hashes.is_empty() {
                return Err(refused(format!("it has no version or no hashes for {}", package.name)));
            }
            text.push_str(&format!("{}=={}", package.name, package.version));
            if let Some(marker) = package.marker.as_ref().or(marker.as_ref()) {
                text.push_str(&format!(" ; {marker}"));
            }
            for hash in &package.hashes {
                text.push_str(&format!(" \\\n    --hash={hash}"));
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// The packages of the groups that are asked for.
    fn of_groups(&self, options: Options<'_>) -> BTreeMap<String, Option<String>> {
        let own = ["main", "default"].into_iter().map(str::to_owned);
        let asked: Vec<String> =
            own.chain(options.groups.iter().chain(options.extras).map(|name| normal(name))).collect();
        let is_wanted = |package: &&Package| {
            let groups = package.groups.iter().flatten();
            // What an extra alone needs says so in its marker.
            let extra = package.marker.as_ref().is_some_and(|marker| marker.contains("extra =="));
            let is_asked =
                |extra: &String| package.marker.as_ref().is_some_and(|marker| marker.contains(&format!("\"{extra}\"")));
            groups.into_iter().any(|group| asked.contains(&normal(group)))
                && (!extra || options.extras.iter().any(is_asked))
        };
        self.packages.iter().filter(is_wanted).map(|package| (package.name.clone(), None)).collect()
    }

    /// The packages that the project's own dependencies lead to, each with the marker under which it is needed: none if it is
    /// needed in any case.
    fn reached(&self, options: Options<'_>) -> BTreeMap<String, Option<String>> {
        let project = self.packages.iter().find(|package| package.is_project);
        let mut next: Vec<(Edge, Option<String>)> = Vec::new();
        let direct = project.map_or(&self.direct, |project| &project.dependencies);
        next.extend(direct.iter().map(|edge| (edge.clone(), edge.marker.clone())));
        for name in options.groups.iter().chain(options.extras) {
            let more = project.and_then(|project| project.extras.get(&normal(name))).into_iter().flatten();
            next.extend(more.map(|edge| (edge.clone(), edge.marker.clone())));
        }
        let mut found: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut extras: BTreeSet<(String, String)> = BTreeSet::new();
        while let Some((edge, marker)) = next.pop() {
            let Some(package) = self.packages.iter().find(|package| package.name == edge.name) else { continue };
            let new: Vec<&String> =
                edge.extras.iter().filter(|extra| extras.insert((edge.name.clone(), normal(extra)))).collect();
            let (is_news, marker) = match (found.get(&edge.name), marker) {
                (None, marker) => (true, marker),
                (Some(None), _) => (false, None),
                (Some(Some(_)), None) => (true, None),
                (Some(Some(known)), Some(marker)) if known.contains(&marker) => (false, Some(known.clone())),
                (Some(Some(known)), Some(marker)) => (true, Some(format!("({known}) or ({marker})"))),
            };
            found.insert(edge.name.clone(), marker.clone());
            let below = |edge: &Edge| {
                let both = match (&marker, &edge.marker) {
                    (Some(above), Some(own)) if above != own => Some(format!("({above}) and ({own})")),
                    (above, own) => above.clone().or_else(|| own.clone()),
                };
                // What is needed sometimes by something that is needed sometimes: once is enough to know.
                (edge.clone(), both.filter(|text| text.len() < 2000))
            };
            if is_news {
                next.extend(package.dependencies.iter().map(below));
            }
            next.extend(new.into_iter().filter_map(|extra| package.extras.get(&normal(extra))).flatten().map(below));
        }
        found
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
