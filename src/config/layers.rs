//! The layers: file < `.env` < environment < flags, each as entries that say where they come from, and which entry wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::credentials::{self, Said};
use super::drop_env::DropEnv;
use super::file::{self, Found};
use super::keys;
use super::problem::{Origin, Problems};
use super::processes::ProcessTable;
use super::value::{self, Raw, Typed};
use super::{Source, dotenv, foreign, references, secret_files, text};
use crate::plan::libpq;

/// The key of the variables that workers do not get.
const DROP_ENV: &str = "workers.drop_env";

/// One value as it was written in one layer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key, such as `workers.count` or `workers.env.LANG`.
    pub key: String,
    pub raw: Raw,
    pub origin: Origin,
    /// The higher one wins.
    pub rank: u8,
    /// Where a relative path in it starts.
    pub base: PathBuf,
}

impl Entry {
    /// Whether `layer` says it.
    pub fn is_of(&self, layer: Layer) -> bool {
        self.rank / 4 == layer as u8
    }
}

/// The layers. Later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Layer {
    /// What the project's own files say, and nobody wrote.
    Found,
    /// Variables that platforms set for every program. They lose against anything that was written for Tandem.
    Platform,
    File,
    /// `.env` lines that are not Tandem's: the workers' own variables.
    Workers,
    ProjectDotenv,
    Dotenv,
    Environment,
    Flags,
}

impl Layer {
    /// The rank of `key` in this layer. Within a layer Tandem's own names win over `DATABASE_URL`, which says three
    /// things at once, and that wins over the guide's other names.
    pub fn rank(self, key: &str, guide_name: bool) -> u8 {
        let within = match (key, guide_name) {
            ("postgres.url", _) => 1,
            (_, true) => 0,
            (_, false) => 2,
        };
        self as u8 * 4 + within
    }
}

/// Everything that was written, and what came up while reading it.
pub struct Gathered {
    pub entries: Vec<Entry>,
    /// The `[[process]]` tables of the file.
    pub processes: Vec<ProcessTable>,
    pub notices: Vec<String>,
    /// Whether all files could be read. If not, a missing key may be in one of them.
    pub complete: bool,
    /// Credentials for Tandem alone.
    pub own: Said,
    /// Variables of `.env` that `workers.drop_env` drops.
    pub dropped: BTreeMap<String, String>,
}

/// Read all layers.
pub fn gather(source: &Source, found: &Found, problems: &mut Problems) -> Gathered {
    let mut written = Gathered {
        entries: Vec::new(),
        processes: Vec::new(),
        notices: found.notices.clone(),
        complete: true,
        own: Said::new(),
        dropped: BTreeMap::new(),
    };
    if let (Some(file), Some(unread)) = (&found.file, &found.unread) {
        let (file, unread) = (shown(file, &source.cwd), shown(unread, &source.cwd));
        let (file, unread) = (file.display(), unread.display());
        written.notices.push(format!("{file} is read; [tool.tandem] in {unread} has no effect: keep one of them"));
    }
    if let Some(path) = &found.file {
        let shown = shown(path, &source.cwd);
        let read = match text::read(path) {
            Ok(text) => file::read(&text, &shown, &found.directory, problems),
            Err(error) => {
                problems.add_file(&shown, format!("cannot be read: {error}"), None);
                None
            }
        };
        written.complete = read.is_some();
        if let Some(file::Read { entries, processes }) = read {
            written.entries.extend(entries);
            written.processes = processes;
        }
    }
    if found.directory != source.cwd {
        written.dotenv(Layer::ProjectDotenv, &found.directory, source, problems);
    }
    // From wherever in the project: a `.env` of the directory that a command is typed in must not make another configuration.
    if !found.from_below {
        written.dotenv(Layer::Dotenv, &source.cwd, source, problems);
    }
    for (name, value) in &source.environment {
        let origin = Origin::Environment(name.clone());
        written.variable(Layer::Environment, name, value, origin, &source.cwd, problems);
    }
    written.entries.extend(foreign::entries(&source.environment, &source.cwd, problems));
    if let Some(dir) = source.environment.get("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()) {
        written.entries.extend(secret_files::credentials(Path::new(dir), problems));
    }
    secret_files::refuse_both(&written.entries, problems);
    let drop_env = written.drop_env(source);
    written.take_dropped(&drop_env);
    written.inherited(source, &drop_env);
    for flag in &source.flags {
        let origin = Origin::Flag(flag.name.clone());
        written.entry(Layer::Flags, &flag.key, &flag.value, origin, &source.cwd, false);
    }
    written
}

/// A path as messages show it: relative to the working directory when it lies below.
fn shown(path: &Path, cwd: &Path) -> PathBuf {
    path.strip_prefix(cwd).unwrap_or(path).to_path_buf()
}

impl Gathered {
    fn dotenv(&mut self, layer: Layer, directory: &Path, source: &Source, problems: &mut Problems) {
        let path = directory.join(".env");
        let file = shown(&path, &source.cwd);
        let text = match text::read(&path) {
            Ok(text) => text,
            // A directory called `.env` is a virtual environment.
            Err(_) if !path.exists() || path.is_dir() => return,
            Err(error) => return problems.add_file(&file, format!("cannot be read: {error}"), None),
        };
        let outer = |name: &str| source.environment.get(name).cloned();
        let (variables, bad) = dotenv::parse(&text, &outer);
        // The same lines as children get them, whose server is known only when they are started.
        let (marked, _) = dotenv::parse(&text, &|name| references::mark_of(name).or_else(|| outer(name)));
        for bad in bad {
            problems.add(&Origin::Line { file: file.clone(), line: bad.line, name: None }, bad.message, None);
        }
        for (dotenv::Variable { name, value, line }, marked) in variables.into_iter().zip(marked) {
            let origin = Origin::Line { file: file.clone(), line, name: Some(name.clone()) };
            let taken = self.variable(layer, &name, &value, origin.clone(), directory, problems);
            // What the environment says of it is put above it later.
            let inherited = source.environment.contains_key(&name) && !is_overruled(&name);
            if !taken && !inherited {
                let value = references::literal(&marked.value);
                self.entry(Layer::Workers, &format!("workers.env.{name}"), &value, origin, directory, false);
            }
        }
    }

    /// The winning `workers.drop_env`, before the entries are merged.
    fn drop_env(&self, source: &Source) -> DropEnv {
        let flag =
            source.flags.iter().rev().find(|flag| flag.key == DROP_ENV).map(|flag| Raw::Word(flag.value.clone()));
        let entries = self.entries.iter().filter(|entry| entry.key == DROP_ENV);
        let highest = entries.max_by_key(|entry| entry.rank).map(|entry| entry.raw.clone());
        match flag.or(highest).map(|raw| value::read(keys::Kind::List, &raw)) {
            Some(Ok(Typed::List(patterns))) => DropEnv::of(&patterns),
            _ => DropEnv::default(),
        }
    }

    /// Move the variables of `.env` that `drop_env` matches out of the workers' entries. Those of `[workers.env]` stay.
    fn take_dropped(&mut self, drop_env: &DropEnv) {
        let is_dropped = |entry: &mut Entry| {
            let name = entry.key.strip_prefix("workers.env.").filter(|_| entry.is_of(Layer::Workers));
            name.is_some_and(|name| drop_env.matches(name))
        };
        for entry in self.entries.extract_if(.., is_dropped) {
            let (name, value) = (entry.key.trim_start_matches("workers.env."), entry.raw.as_text().unwrap_or_default());
            self.dropped.insert(name.to_owned(), references::marked(value));
        }
    }

    /// The environment overrules what `[workers.env]` and `.env` say of a worker's variable, for the application as for
    /// Tandem. Only what refers to the server stays: an address in somebody's shell must not lead elsewhere.
    fn inherited(&mut self, source: &Source, drop_env: &DropEnv) {
        let mut said = BTreeMap::new();
        for entry in &mut self.entries {
            let overruled = |name: &&str| is_overruled(name) && !drop_env.matches(name);
            let Some(name) = entry.key.strip_prefix("workers.env.").filter(overruled) else { continue };
            let refers = entry.raw.as_text().is_some_and(|text| references::refers(&references::marked(text)));
            *said.entry(name.to_owned()).or_insert(false) |= refers;
            if refers && entry.is_of(Layer::File) {
                entry.rank = Layer::Environment.rank(&entry.key, true) + 1;
            }
        }
        for (name, _) in said.into_iter().filter(|(_, refers)| !refers) {
            let Some(value) = source.environment.get(&name) else { continue };
            let (key, value) = (format!("workers.env.{name}"), references::literal(value));
            self.entry(Layer::Environment, &key, &value, Origin::Environment(name), &source.cwd, true);
        }
    }

    /// Take a variable of a `.env` or the environment. Returns whether it is Tandem's.
    fn variable(
        &mut self,
        layer: Layer,
        name: &str,
        value: &str,
        origin: Origin,
        base: &Path,
        problems: &mut Problems,
    ) -> bool {
        if let Some((_, key)) = keys::GUIDE_NAMES.iter().find(|(guide, _)| *guide == name) {
            // Templates of `.env` carry empty lines for what is not set.
            if !value.is_empty() {
                self.entry(layer, key, value, origin, base, true);
            }
            return true;
        }
        if let Some(key) = secret_files::key_of(name) {
            if !value.is_empty() {
                match secret_files::read(&base.join(value)) {
                    Ok(text) => self.entry(layer, key, &text, origin, base, !name.starts_with("TANDEM_")),
                    Err(why) => problems.add_to(key, &origin, format!("{name}: {why}"), None),
                }
            }
            return true;
        }
        let Some(rest) = name.strip_prefix("TANDEM_") else { return false };
        if let Some(own) = credentials::own_name(name) {
            // As everywhere, an empty line is one for what is not set.
            if !value.is_empty() {
                self.own.insert(own.to_owned(), (value.to_owned(), origin));
            }
            return true;
        }
        match key_of(rest) {
            Some(key) if !value.is_empty() => self.entry(layer, &key, value, origin, base, false),
            Some(_) => {}
            None => self.unknown(name, rest, &origin, problems),
        }
        true
    }

    fn unknown(&mut self, name: &str, rest: &str, origin: &Origin, problems: &mut Problems) {
        let help = |key| format!("did you mean {}?", keys::variable(key));
        if rest.contains("__") {
            let key = rest.to_lowercase().replace("__", ".");
            if key.starts_with("process.") {
                let help = "a [[process]] is written in the configuration file";
                return problems.add(origin, format!("{name} cannot be said here"), Some(help.into()));
            }
            problems.add(origin, format!("{name} names no key of the configuration"), keys::closest(&key).map(help));
        } else if name == "TANDEM_CONFIG" && !matches!(origin, Origin::Environment(_)) {
            self.notices.push(format!("{name} ({}) has no effect there: set it in the environment", origin.place()));
        } else if let Some(key) = keys::all().find(|key| key.name.replace('.', "_") == rest.to_lowercase()) {
            // Kubernetes adds variables of its own for a service called `tandem`: only a near miss is worth a word.
            self.notices.push(format!("{name} ({}) has no effect: {}", origin.place(), help(key.name)));
        }
    }

    fn entry(&mut self, layer: Layer, key: &str, value: &str, origin: Origin, base: &Path, guide_name: bool) {
        let rank = layer.rank(key, guide_name);
        let raw = Raw::Word(value.to_owned());
        self.entries.push(Entry { key: key.to_owned(), raw, origin, rank, base: base.to_path_buf() });
    }
}

/// Whether the environment may overrule what is said of a worker's variable `name`: not a PATH or LANG, which every process
/// has and nobody said for the workers, and not what says where the database is.
fn is_overruled(name: &str) -> bool {
    !keys::is_ambient(name)
        && !keys::INJECTED_NAMES.contains(&name)
        && !references::NAMES.contains(&name)
        && !libpq::is_libpq(name)
}

/// The key that the variable `TANDEM_<rest>` sets.
fn key_of(rest: &str) -> Option<String> {
    let key = rest.to_lowercase().replace("__", ".");
    if keys::find(&key).is_some_and(|known| !known.kind.is_table()) {
        return Some(key);
    }
    let tables = keys::all().filter(|key| key.kind.is_table());
    tables.into_iter().find_map(|table| {
        let written = format!("TANDEM_{rest}");
        let free =
            written.strip_prefix(&keys::variable(table.name))?.strip_prefix("__").filter(|free| !free.is_empty())?;
        // Names of variables keep their case; PostgreSQL's settings have none, and a dot in some.
        let free = if table.name == "workers.env" { free.to_owned() } else { free.to_lowercase().replace("__", ".") };
        Some(format!("{}.{free}", table.name))
    })
}

/// For each key the entry that wins.
#[derive(Debug, Default)]
pub struct Merged(pub BTreeMap<String, Entry>);

impl Merged {
    /// Let the entries compete. Two that differ within one layer are worth a notice.
    pub fn new(entries: Vec<Entry>, notices: &mut Vec<String>) -> Self {
        let mut merged = Self::default();
        for entry in entries {
            merged.add(entry, notices);
        }
        merged
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.0.get(key)
    }

    /// Let one more entry compete.
    pub fn add(&mut self, entry: Entry, notices: &mut Vec<String>) {
        if let Some(other) = self.0.get(&entry.key) {
            let (winner, loser) = if other.rank > entry.rank { (other, &entry) } else { (&entry, other) };
            if winner.rank != loser.rank && winner.rank / 4 == loser.rank / 4 && winner.raw != loser.raw {
                let (key, winner, loser) = (&entry.key, &winner.origin, &loser.origin);
                let (won, lost) = (winner.name_of(key), loser.name_of(key));
                notices.push(format!("{won} ({}) and {lost} ({}) differ: {won} wins", winner.place(), loser.place()));
            }
            if entry.key.starts_with("workers.env.") && winner.rank / 4 != loser.rank / 4 {
                let differ = winner.raw.to_plain() != loser.raw.to_plain();
                let (winner, loser) = (&winner.origin, &loser.origin);
                let (name, lost) = (winner.name_of(&entry.key), loser.name_of(&entry.key));
                if differ {
                    notices.push(format!("{name} ({}) wins over {lost} ({})", winner.place(), loser.place()));
                }
            }
            if other.rank > entry.rank {
                return;
            }
        }
        self.0.insert(entry.key.clone(), entry);
    }
}
