//! The configuration file: where it is found, and its keys with their lines.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Source;
use super::environment::effective_user;
use super::keys;
use super::layers::{Entry, Layer};
use super::problem::{Origin, Problems};
use super::value::Raw;
use super::{processes, pyproject};
use crate::exit::{Code, Failure};

/// The file, if there is one, and the directory that its relative paths start from.
pub struct Found {
    pub file: Option<PathBuf>,
    pub directory: PathBuf,
    /// A `pyproject.toml` beside the file whose `[tool.tandem]` is not read, because of the file.
    pub unread: Option<PathBuf>,
    /// Whether the project was found from a directory in it.
    pub from_below: bool,
    pub notices: Vec<String>,
}

/// The configuration file of a directory: `tandem.toml`, `config/tandem.toml`, or a `pyproject.toml` with `[tool.tandem]`.
fn in_directory(directory: &Path) -> Option<PathBuf> {
    let names = ["tandem.toml", "config/tandem.toml"].into_iter().map(|name| directory.join(name));
    names.into_iter().find(|file| file.is_file()).or_else(|| pyproject::beside(directory))
}

/// Find the configuration file: `--config`, `TANDEM_CONFIG`, or what [`in_directory`] finds in the working directory or the
/// nearest one above it.
///
/// # Errors
/// A file was named that is not there.
pub fn find(source: &Source) -> anyhow::Result<Found> {
    let named = source.file.clone().map(|file| (file, "--config")).or_else(|| {
        let file = source.environment.get("TANDEM_CONFIG").filter(|file| !file.is_empty())?;
        Some((PathBuf::from(file), "TANDEM_CONFIG"))
    });
    let is_named = named.is_some();
    let file = match named {
        Some((file, by)) => {
            let file = source.cwd.join(file);
            if !file.is_file() {
                let message = format!("{by} names {}, which is not a file", file.display());
                return Err(Failure::new(Code::Config, message).into());
            }
            Some(file)
        }
        None => match in_directory(&source.cwd) {
            Some(file) => Some(file),
            None => return Ok(above(source)),
        },
    };
    let directory = file.as_deref().map_or_else(|| source.cwd.clone(), project_directory);
    let unread = file.as_deref().filter(|_| !is_named).and_then(|file| unread(file, &directory));
    Ok(Found { file, directory, unread, from_below: false, notices: Vec::new() })
}

/// The nearest project above the working directory: one with a configuration file, or one that Tandem ran in without one. Not
/// past the user's home or the file system, and none that another user could have put there: a configuration says what is run.
fn above(source: &Source) -> Found {
    let directory = source.cwd.clone();
    let here = Found { file: None, directory, unread: None, from_below: false, notices: Vec::new() };
    if has_state(&source.cwd) {
        return here;
    }
    let device = |dir: &Path| dir.metadata().map(|meta| meta.dev()).ok();
    let home = source.environment.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let past_home = home.as_deref().filter(|home| source.cwd.starts_with(home)).and_then(Path::parent);
    let reachable = source.cwd.ancestors().skip(1);
    let reachable = reachable.take_while(|dir| Some(*dir) != past_home && device(dir) == device(&source.cwd));
    for dir in reachable {
        let file = in_directory(dir);
        if file.is_none() && !has_state(dir) {
            continue;
        }
        let named = file.clone().unwrap_or_else(|| dir.join(STATE));
        if is_open_to_others(dir) || is_open_to_others(&named) {
            let notice = format!(
                "{} is passed over, because another user could have put it there: run Tandem in {} itself, or name the file \
                 with --config",
                named.display(),
                dir.display()
            );
            return Found { notices: vec![notice], ..here };
        }
        let directory = file.as_deref().map_or_else(|| dir.to_path_buf(), project_directory);
        let unread = file.as_deref().and_then(|file| unread(file, &directory));
        return Found { file, directory, unread, from_below: true, notices: Vec::new() };
    }
    here
}

/// A `pyproject.toml` beside `file` that configures Tandem too.
fn unread(file: &Path, directory: &Path) -> Option<PathBuf> {
    pyproject::beside(directory).filter(|_| !pyproject::is_one(file))
}

/// Where Tandem keeps its state, if nothing else is said.
const STATE: &str = ".tandem";

/// Whether Tandem ran in `dir`.
fn has_state(dir: &Path) -> bool {
    dir.join(STATE).join("run").is_dir()
}

/// Whether somebody could change `path` who is neither the user that Tandem runs as nor root.
fn is_open_to_others(path: &Path) -> bool {
    let is_closed = |meta: Metadata| (meta.uid() == effective_user() || meta.uid() == 0) && meta.mode() & 0o002 == 0;
    !path.metadata().is_ok_and(is_closed)
}

/// The project that a configuration file belongs to: its directory, or the parent of a directory called `config`.
fn project_directory(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    let mut directory = file.parent().unwrap_or(Path::new("/")).to_path_buf();
    // Only a path with `..` is resolved: a symbolic link such as `current`, which the next deployment moves, must stay.
    if directory.components().any(|part| part == Component::ParentDir) {
        directory = directory.canonicalize().unwrap_or(directory);
    }
    match directory.parent() {
        Some(project) if directory.file_name().is_some_and(|name| name == "config") => project.to_path_buf(),
        _ => directory,
    }
}

/// What a file says.
pub struct Read {
    pub entries: Vec<Entry>,
    pub processes: Vec<processes::ProcessTable>,
}

/// Read `text`, which messages call `shown`. Returns `None` when it is not TOML at all.
pub fn read(text: &str, shown: &Path, directory: &Path, problems: &mut Problems) -> Option<Read> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let origin = |offset: usize| Origin::Line { file: shown.to_path_buf(), line: line_of(text, offset), name: None };
    for error in &errors {
        // Only the message: the library's full report quotes the line, which may hold a password.
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        problems.add(&origin(error.span().map_or(0, |span| span.start)), format!("not TOML: {message}"), None);
    }
    if !errors.is_empty() {
        return None;
    }
    let is_pyproject = pyproject::is_one(shown);
    let own = if is_pyproject { pyproject::own_table(table.get_ref()) } else { Some(table.get_ref()) };
    let Some(own) = own else {
        problems.add_file(shown, "has no table [tool.tandem]", Some("write [tool.tandem.workers] above app".into()));
        return None;
    };
    let above = if is_pyproject { pyproject::ABOVE } else { "" };
    let mut reader = Reader { origin: &origin, directory, problems, above, entries: Vec::new(), processes: Vec::new() };
    reader.table("", own);
    Some(Read { entries: reader.entries, processes: reader.processes })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

struct Reader<'a> {
    origin: &'a dyn Fn(usize) -> Origin,
    directory: &'a Path,
    problems: &'a mut Problems,
    /// What stands before the name of a section in its header.
    above: &'static str,
    entries: Vec<Entry>,
    processes: Vec<processes::ProcessTable>,
}

impl Reader<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        // The library sorts by name; people read from top to bottom.
        let mut items: Vec<_> = table.iter().collect();
        items.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in items {
            let name =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            self.item(&name, &(self.origin)(key.span().start), value.get_ref());
        }
    }

    fn item(&mut self, name: &str, origin: &Origin, value: &DeValue<'_>) {
        if name == processes::SECTION {
            return self.processes(origin, value);
        }
        let known = keys::find(name);
        let is_table_key = known.is_some_and(|key| key.kind.is_table());
        match (value, known) {
            (DeValue::Table(table), Some(_)) if is_table_key => self.table(name, table),
            (DeValue::Table(table), None) if keys::is_section(name) => self.table(name, table),
            (DeValue::Table(table), None) if keys::find_table(name).is_some() => self.table(name, table),
            (_, Some(_)) if is_table_key => {
                let help = format!("write [{}{name}] above its lines", self.above);
                self.problems.add_to(name, origin, format!("`{name}` is a table"), Some(help));
            }
            (_, Some(_)) => self.entry(name, origin, value),
            (_, None) if keys::find_table(name).is_some() => self.entry(name, origin, value),
            (_, None) if keys::is_section(name) => {
                let help = format!("write [{}{name}] above its keys", self.above);
                self.problems.add_to(name, origin, format!("`{name}` is a section"), Some(help));
            }
            (DeValue::Table(_), None) => self.unknown_section(name, origin),
            (DeValue::Array(list), None) if list.iter().any(|item| item.get_ref().is_table()) => {
                self.unknown_section(name, origin);
            }
            (_, None) => {
                let help = keys::closest(name).map(|key| format!("did you mean `{key}`?"));
                self.problems.add_to(name, origin, format!("unknown key `{name}`"), help);
            }
        }
    }

    fn unknown_section(&mut self, name: &str, origin: &Origin) {
        let help = match keys::closest_section(name) {
            Some(processes::SECTION) => format!("did you mean [[{}process]]?", self.above),
            Some(section) => format!("did you mean [{}{section}]?", self.above),
            None => format!("the sections are {}, and any number of [[process]]", keys::sections().join(", ")),
        };
        self.problems.add_to(name, origin, format!("unknown section [{}{name}]", self.above), Some(help));
    }

    fn entry(&mut self, name: &str, origin: &Origin, value: &DeValue<'_>) {
        let entry = self.written(name, origin, value);
        self.entries.push(entry);
    }

    fn written(&self, name: &str, origin: &Origin, value: &DeValue<'_>) -> Entry {
        let (key, raw, origin) = (name.to_owned(), raw(value), origin.clone());
        let rank = Layer::File.rank(name, false);
        Entry { key, raw, origin, rank, base: self.directory.to_path_buf() }
    }

    /// The tables of `[[process]]`, each with its keys and the entries of its `env`, whatever they are called.
    fn processes(&mut self, origin: &Origin, value: &DeValue<'_>) {
        let wrong = "`process` is a list of tables";
        let help = Some(format!("write [[{}process]] above the keys of each process", self.above));
        let name = processes::SECTION;
        let DeValue::Array(list) = value else { return self.problems.add_to(name, origin, wrong, help) };
        for item in list.iter() {
            let origin = (self.origin)(item.span().start);
            let DeValue::Table(table) = item.get_ref() else {
                self.problems.add_to(name, &origin, wrong, help.clone());
                continue;
            };
            let mut entries = Vec::new();
            for (key, value) in table.iter() {
                let (name, origin) = (format!("process.{}", key.get_ref()), (self.origin)(key.span().start));
                match value.get_ref() {
                    DeValue::Table(free) if name == processes::ENV => {
                        for (key, value) in free.iter() {
                            let (name, origin) = (format!("{name}.{}", key.get_ref()), (self.origin)(key.span().start));
                            entries.push(self.written(&name, &origin, value.get_ref()));
                        }
                    }
                    value => entries.push(self.written(&name, &origin, value)),
                }
            }
            self.processes.push(processes::ProcessTable { origin, entries });
        }
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number beyond 64 bits"), Raw::Integer),
        DeValue::Float(number) => number.as_str().parse().map_or(Raw::Other("a number"), Raw::Float),
        DeValue::Boolean(boolean) => Raw::Boolean(*boolean),
        DeValue::Array(list) => {
            let texts: Option<Vec<_>> = list.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            texts.map_or(Raw::Other("a list that holds more than texts"), Raw::List)
        }
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}
