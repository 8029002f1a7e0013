//! Compose files laid over each other: several of them, `extends`, `!reset` and `!override`; and `.env` beside the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Told;
use super::interpolate;
use super::yaml::{self, Node, Place, Value};
use crate::config::dotenv_variables;
use crate::exit::{Code, Failure};

/// Names of which Compose reads `*.override.*` too.
const USUAL: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// Services that extend each other in a circle end here.
const EXTENDS_MAX: usize = 16;

/// Lists that a later file adds to; all others it replaces.
const ADDED: [&str; 9] =
    ["ports", "expose", "volumes", "env_file", "dns", "networks", "depends_on", "profiles", "devices"];

/// All that was read.
#[derive(Debug, Default)]
pub struct Read {
    /// Files by number, as they were named.
    pub names: Vec<PathBuf>,
    /// Top-level keys but `services`.
    pub top: Vec<(String, Node)>,
    pub services: Vec<(String, Node)>,
    pub variables: BTreeMap<String, String>,
    pub told: Vec<Told>,
}

/// Read `files`, each laid over those before it.
///
/// # Errors
/// A [`Failure`] that names the file and the line.
pub fn read(files: &[PathBuf]) -> anyhow::Result<Read> {
    let mut read = Read::default();
    let Some(first) = files.first() else { return Ok(read) };
    let beside = first.parent().unwrap_or(Path::new("")).join(".env");
    if let Ok(text) = std::fs::read_to_string(&beside) {
        read.variables = dotenv_variables(&text);
    }
    let mut all = files.to_vec();
    if files.len() == 1 {
        all.extend(override_of(first));
    }
    let mut whole: Option<Node> = None;
    for file in &all {
        let root = read.file(file)?;
        whole = Some(match whole {
            Some(below) => lay(below, root, ""),
            None => root,
        });
    }
    if all.len() > files.len() {
        let what = "read too, as Compose does".to_owned();
        read.told.push(Told { place: Place { file: read.names.len() - 1, line: 1 }, key: "file".to_owned(), what });
    }
    let whole = whole.unwrap_or(Node { place: Place::default(), value: Value::Null, tag: None });
    let services = whole.get("services").map(|node| node.entries().to_vec()).unwrap_or_default();
    if services.is_empty() {
        let text = format!("{}: it has no services: is it a Compose file?", first.display());
        return Err(Failure::new(Code::Config, text).into());
    }
    read.top = whole.entries().iter().filter(|(key, _)| key != "services").cloned().collect();
    let base = first.parent().unwrap_or(Path::new("")).to_owned();
    for (name, service) in &services {
        let service = read.extended(service, &services, &base, 0)?;
        read.services.push((name.clone(), service));
    }
    Ok(read)
}

/// The file that Compose reads beside one of a usual name.
fn override_of(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str().filter(|name| USUAL.contains(name))?;
    let (stem, _) = name.rsplit_once('.')?;
    ["yaml", "yml"].iter().map(|end| file.with_file_name(format!("{stem}.override.{end}"))).find(|path| path.is_file())
}

impl Read {
    /// Read one file and replace its variables.
    fn file(&mut self, path: &Path) -> anyhow::Result<Node> {
        let wrong = |line: Option<usize>, why: &str| {
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            Failure::new(Code::Config, format!("{}{line}: {why}", path.display()))
        };
        let bytes = std::fs::read(path).map_err(|error| wrong(None, &error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong(None, "it is not UTF-8"))?;
        let number = self.names.len();
        let mut root = yaml::parse(&text, number).map_err(|bad| wrong(Some(bad.line), &bad.message))?;
        self.names.push(path.to_owned());
        let mut missing = BTreeMap::new();
        replace(&mut root, &self.variables, &mut missing).map_err(|(line, why)| wrong(Some(line), &why))?;
        for (name, place) in missing {
            let what = format!("{name} has no value in .env beside the file: read as nothing");
            self.told.push(Told { place, key: format!("${{{name}}}"), what });
        }
        if !matches!(root.value, Value::Map(_)) {
            return Err(wrong(None, "it is no Compose file: it holds no map of keys").into());
        }
        Ok(root)
    }

    /// `service` with what it `extends` under it.
    fn extended(
        &mut self,
        service: &Node,
        services: &[(String, Node)],
        base: &Path,
        depth: usize,
    ) -> anyhow::Result<Node> {
        let Some(extends) = service.get("extends") else { return Ok(service.clone()) };
        let place = extends.place;
        let file = self.names.get(place.file).cloned().unwrap_or_default();
        let wrong =
            |why: String| Failure::new(Code::Config, format!("{}:{}: extends: {why}", file.display(), place.line));
        if depth >= EXTENDS_MAX {
            return Err(wrong("the services extend each other in a circle".to_owned()).into());
        }
        let name = extends.text().or_else(|| extends.get("service").and_then(Node::text));
        let Some(name) = name else { return Err(wrong("it names no service".to_owned()).into()) };
        let other = extends.get("file").and_then(Node::text).map(|file| base.join(file));
        let (others, base) = match &other {
            Some(path) => {
                let root = self.file(path)?;
                let others = root.get("services").map(|node| node.entries().to_vec()).unwrap_or_default();
                (others, path.parent().unwrap_or(Path::new("")).to_owned())
            }
            None => (services.to_vec(), base.to_owned()),
        };
        let Some((_, below)) = others.iter().find(|(other, _)| other == name) else {
            return Err(wrong(format!("there is no service {name}")).into());
        };
        let mut below = self.extended(below, &others, &base, depth + 1)?;
        let mut own = service.clone();
        for node in [&mut below, &mut own] {
            if let Value::Map(entries) = &mut node.value {
                entries.retain(|(key, _)| key != "extends");
            }
        }
        Ok(lay(below, own, ""))
    }
}

/// Replace the variables in every text of `node`.
fn replace(
    node: &mut Node,
    variables: &BTreeMap<String, String>,
    missing: &mut BTreeMap<String, Place>,
) -> Result<(), (usize, String)> {
    match &mut node.value {
        Value::Scalar { text, raw, uses } => {
            let replaced = interpolate::replace(text, variables).map_err(|why| (node.place.line, why))?;
            for name in replaced.missing {
                missing.entry(name).or_insert(node.place);
            }
            *raw = std::mem::replace(text, replaced.text);
            *uses = replaced.uses;
            Ok(())
        }
        Value::List(items) => items.iter_mut().try_for_each(|item| replace(item, variables, missing)),
        Value::Map(entries) => entries.iter_mut().try_for_each(|(_, node)| replace(node, variables, missing)),
        Value::Null => Ok(()),
    }
}

/// `over` laid over `below`, where both stand at `key`.
fn lay(below: Node, over: Node, key: &str) -> Node {
    match over.tag.as_deref() {
        Some("reset") => return Node { value: Value::Null, ..over },
        Some("override") => return over,
        _ => {}
    }
    let (below, over) = match key {
        "environment" | "labels" => (as_map(below), as_map(over)),
        _ => (below, over),
    };
    let place = over.place;
    let value = match (below.value, over.value) {
        (Value::Map(mut entries), Value::Map(more)) => {
            for (key, node) in more {
                match entries.iter().position(|(name, _)| *name == key) {
                    Some(at) => {
                        let (name, below) = entries.remove(at);
                        let laid = lay(below, node, &name);
                        if !matches!((&laid.value, laid.tag.as_deref()), (Value::Null, Some("reset"))) {
                            entries.insert(at, (name, laid));
                        }
                    }
                    None => entries.push((key, node)),
                }
            }
            Value::Map(entries)
        }
        (Value::List(mut items), Value::List(more)) if ADDED.contains(&key) => {
            for item in more {
                if !items.iter().any(|known| known.value == item.value) {
                    items.push(item);
                }
            }
            Value::List(items)
        }
        (_, over) => over,
    };
    Node { place, value, tag: over.tag }
}

/// `NAME=value` in a list, as a map.
pub fn as_map(node: Node) -> Node {
    let Value::List(items) = node.value else { return node };
    let pairs = items.into_iter().filter_map(|item| {
        let Value::Scalar { text, raw, uses } = item.value else { return None };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => {
                let raw = raw.split_once('=').map_or(String::new(), |(_, raw)| raw.to_owned());
                (name.to_owned(), Value::Scalar { text: value.to_owned(), raw, uses })
            }
            None => (text, Value::Null),
        };
        Some((name, Node { place: item.place, value, tag: None }))
    });
    Node { place: node.place, value: Value::Map(pairs.collect()), tag: node.tag }
}
