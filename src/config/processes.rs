//! `[[process]]`: more processes beside the workers, each a table of the file with keys of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::build::is_name_letter;
use super::keys::{self, Key, Kind, PROCESS_KEYS};
use super::layers::Entry;
use super::problem::{Origin, Problems};
use super::rows::{HIDDEN, Row};
use super::settings::ProcessSettings;
use super::value::Typed;
use super::{references, values};
use crate::plan::libpq::says_where;

/// What the list of tables is called.
pub const SECTION: &str = "process";

/// The key whose own keys are free.
pub const ENV: &str = "process.env";

/// One `[[process]]`, as it was written.
#[derive(Clone, Debug)]
pub struct ProcessTable {
    /// Where its header stands.
    pub origin: Origin,
    /// Keys such as `process.name` and `process.env.LANG`.
    pub entries: Vec<Entry>,
}

/// Whether Tandem's own services may be called `name`, in the log and in `tandem status`.
fn is_reserved(name: &str) -> bool {
    let slot = name.strip_prefix("worker-").is_some_and(|slot| slot.chars().all(|digit| digit.is_ascii_digit()));
    slot || ["postgres", "template", "tandem", "workers", "migrate"].contains(&name)
}

/// Read all tables. Problems are reported, and the rest of a table is still read, to find more of them.
pub fn settings(written: &[ProcessTable], directory: &Path, problems: &mut Problems) -> Vec<ProcessSettings> {
    let mut names = BTreeSet::new();
    let read = written.iter().map(|process| {
        let settings = read(process, directory, problems);
        if !settings.name.is_empty() {
            check_name(process, &settings.name, names.insert(settings.name.clone()), problems);
        }
        settings
    });
    read.collect()
}

fn read(process: &ProcessTable, directory: &Path, problems: &mut Problems) -> ProcessSettings {
    let mut typed = BTreeMap::new();
    let mut env = BTreeMap::new();
    for entry in &process.entries {
        if let Some(name) = variable_name(entry) {
            variable(name, entry, &mut env, problems);
        } else if let Some(key) = find(&entry.key) {
            if let Some(value) = value(key, entry, problems) {
                typed.insert(key.name, value);
            }
        } else {
            let help = keys::closest_among(PROCESS_KEYS.iter(), &entry.key)
                .map(|key| format!("did you mean `{}`?", last(key)));
            let message = format!("unknown key `{}` of a [[process]]", last_of(entry));
            problems.add_to(&entry.key, &entry.origin, message, help);
        }
    }
    let get =
        |name: &str| typed.get(name).cloned().unwrap_or_else(|| find(name).map_or(Typed::Nothing, values::default));
    for key in PROCESS_KEYS.iter().filter(|key| matches!(key.name, "process.name" | "process.command")) {
        if !process.entries.iter().any(|entry| entry.key == key.name) {
            let help = match key.name {
                "process.name" => "write name = \"frontend\", for its lines in the log",
                _ => "write command = [\"npm\", \"run\", \"dev\"]",
            };
            let message = format!("this [[process]] has no `{}`", last(key.name));
            problems.add_to(key.name, &process.origin, message, Some(help.into()));
        }
    }
    ProcessSettings {
        name: match get("process.name") {
            Typed::Text(name) => name,
            _ => String::new(),
        },
        command: match get("process.command") {
            Typed::List(command) => command,
            _ => Vec::new(),
        },
        dir: match get("process.dir") {
            // Collecting the components drops every `.` but keeps `..`, which may follow a symbolic link.
            Typed::Text(dir) => directory.join(dir).components().collect(),
            _ => directory.to_path_buf(),
        },
        env,
        stop_grace: match get("process.stop_grace") {
            Typed::Duration(Some(grace)) => grace,
            _ => std::time::Duration::ZERO,
        },
    }
}

fn find(name: &str) -> Option<&'static Key> {
    PROCESS_KEYS.iter().find(|key| key.name == name)
}

/// What was written in the table in place of a key.
fn last_of(entry: &Entry) -> &str {
    entry.key.strip_prefix("process.").unwrap_or(&entry.key)
}

/// A key as it stands in the table.
fn last(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, last)| last)
}

fn value(key: &'static Key, entry: &Entry, problems: &mut Problems) -> Option<Typed> {
    if key.kind == Kind::SecretTable {
        let help = "write env = { NAME = \"value\" }";
        problems.add_to(key.name, &entry.origin, format!("`{}` is a table", last(key.name)), Some(help.into()));
        return None;
    }
    values::read(key, entry, problems)
}

/// The name of a variable in the table's `env`.
fn variable_name(entry: &Entry) -> Option<&str> {
    entry.key.strip_prefix(ENV)?.strip_prefix('.')
}

fn variable(name: &str, entry: &Entry, env: &mut BTreeMap<String, String>, problems: &mut Problems) {
    if name.contains(['=', '\0']) || name.is_empty() {
        problems.add_to(&entry.key, &entry.origin, format!("{name:?} is not a variable's name"), None);
    } else if says_where(name) {
        let help = "it follows from [postgres]; leave it out".to_owned();
        problems.add_to(&entry.key, &entry.origin, format!("a [[process]] gets {name} from Tandem"), Some(help));
    } else if let (Some(key), Some(value)) = (find(ENV), entry.raw.to_plain()) {
        if values::read(key, entry, problems).is_some() {
            env.insert(name.to_owned(), references::marked(&value));
        }
    } else if let Some(key) = find(ENV) {
        values::read(key, entry, problems);
    }
}

fn check_name(process: &ProcessTable, name: &str, new: bool, problems: &mut Problems) {
    let origin = origin_of(process, "process.name");
    if !name.chars().all(is_name_letter) || name.starts_with(['.', '-']) {
        let message = format!("process.name: {name:?} may hold letters, digits, `-`, `_` and `.`");
        problems.add_to("process.name", origin, message, None);
    } else if is_reserved(name) {
        let help = "the names of Tandem's own services are postgres, template, workers, worker-0 and so on";
        problems.add_to("process.name", origin, format!("process.name: `{name}` is Tandem's own"), Some(help.into()));
    } else if !new {
        let help = "each process has a name of its own, for the log and for `tandem restart NAME`";
        let message = format!("process.name: there is a `{name}` already");
        problems.add_to("process.name", origin, message, Some(help.into()));
    }
}

/// Note every directory that is not there.
pub fn check_dirs(tables: &[ProcessTable], companions: &[ProcessSettings], problems: &mut Problems) {
    for (process, settings) in std::iter::zip(tables, companions).filter(|(_, settings)| !settings.dir.is_dir()) {
        let origin = origin_of(process, "process.dir");
        let message = format!("process.dir: {} is not a directory", settings.dir.display());
        problems.add_to("process.dir", origin, message, None);
    }
}

/// Where `key` was written, or else the table's header.
fn origin_of<'a>(process: &'a ProcessTable, key: &str) -> &'a Origin {
    process.entries.iter().find(|entry| entry.key == key).map_or(&process.origin, |entry| &entry.origin)
}

/// The keys of one process with their values and origins; its variables' values are hidden.
pub fn rows(settings: &ProcessSettings, written: &ProcessTable) -> Vec<Row> {
    let row = |key: &Key, free: Option<&str>, value: String, origin: &Origin| Row {
        key: [SECTION, &settings.name, last(key.name)].into_iter().chain(free).collect::<Vec<_>>().join("."),
        value,
        origin: origin.to_string(),
        doc: key.doc,
    };
    let mut rows = Vec::new();
    for key in PROCESS_KEYS {
        let entry = written.entries.iter().find(|entry| entry.key == key.name);
        let origin = entry.map_or(&Origin::Default, |entry| &entry.origin);
        let value = match key.name {
            "process.name" => continue,
            "process.command" => format!("{:?}", settings.command),
            "process.dir" => entry.and_then(|entry| entry.raw.to_plain()).unwrap_or_else(|| ".".to_owned()),
            "process.stop_grace" => humantime::format_duration(settings.stop_grace).to_string(),
            _ if settings.env.is_empty() => "(none)".to_owned(),
            _ => continue,
        };
        rows.push(row(key, None, value, origin));
    }
    for entry in &written.entries {
        if let (Some(name), Some(key)) = (variable_name(entry), find(ENV)) {
            rows.push(row(key, Some(name), HIDDEN.to_owned(), &entry.origin));
        }
    }
    rows
}
