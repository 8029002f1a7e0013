//! The variables that a project's code and its `.env.example` read, and which of them lead to the database.
//!
//! Python is read as text: calls such as `os.getenv("DB_HOST")`, and fields of classes that derive from `BaseSettings`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ignore::WalkBuilder;

use crate::config::{dotenv_variables, references};

/// Examples of a `.env`, and that file itself.
const EXAMPLES: [&str; 6] = [".env.example", ".env.sample", ".env.template", ".env.dist", "env.example", ".env"];

/// So many files are read, each up to so many bytes.
const FILES_MAX: usize = 2_000;
const BYTES_MAX: u64 = 512 * 1024;

/// Directories whose code does not serve.
const NOT_SERVING: [&str; 5] = ["tests", "test", "node_modules", "site-packages", "docs"];

/// Variables of a machine, not of a project.
const OF_MACHINES: [&str; 14] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TZ",
    "PWD",
    "TMPDIR",
    "SHELL",
    "TERM",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "CI",
    "HOSTNAME",
    "DJANGO_SETTINGS_MODULE",
];

/// A variable and where it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    /// `file:line`.
    pub place: String,
}

/// Names that hold the database's host end so.
const HOST_ENDS: [&str; 5] = ["HOSTNAME", "HOST", "SERVER", "ADDRESS", "ADDR"];

/// And beside them, under the same beginning, what else leads to it.
const PARTS: [(&str, &[&str]); 4] = [
    ("${PGPORT}", &["PORT"]),
    ("${PGUSER}", &["USER", "USERNAME", "LOGIN"]),
    ("${PGPASSWORD}", &["PASSWORD", "PASS", "PASSWD", "PWD"]),
    ("${PGDATABASE}", &["NAME", "DB", "DBNAME", "DATABASE"]),
];

/// Words in a name that speak of the database.
const DATABASE: [&str; 9] = ["DB", "DATABASE", "POSTGRES", "POSTGRESQL", "PG", "PSQL", "SQL", "SQLALCHEMY", "RDS"];
/// And words with which it is another one.
const ANOTHER: [&str; 14] = [
    "TEST",
    "TESTS",
    "TESTING",
    "REPLICA",
    "READ",
    "READONLY",
    "REDIS",
    "CELERY",
    "MYSQL",
    "MONGO",
    "MONGODB",
    "CLICKHOUSE",
    "OLD",
    "LEGACY",
];

/// The references that variables of a database get, by name: those that hold its host, and their like. `is_host` gets a name and
/// its value, and says of one that ends as a host's whether it is the database's.
pub fn of_database<'a>(
    variables: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    is_host: impl Fn(&str, &str) -> bool,
) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    for (name, value) in variables.clone() {
        let upper = name.to_uppercase();
        let Some(end) = HOST_ENDS.iter().find(|end| upper.ends_with(**end)) else { continue };
        if !is_host(name, value) {
            continue;
        }
        found.insert(name.to_owned(), "${PGHOST}");
        let beginning = &upper[..upper.len() - end.len()];
        for (other, _) in variables.clone() {
            let other_upper = other.to_uppercase();
            let Some(rest) = other_upper.strip_prefix(beginning).filter(|_| !beginning.is_empty()) else { continue };
            if let Some((reference, _)) = PARTS.iter().find(|(_, words)| words.contains(&rest)) {
                found.insert(other.to_owned(), reference);
            }
        }
    }
    found
}

/// The mapping for `variables`, which are known by their names alone: without those that Tandem sets anyway.
pub fn mapping(variables: &[Variable]) -> Vec<(&Variable, &'static str)> {
    let pairs = variables.iter().map(|variable| (variable.name.as_str(), ""));
    let hosts = of_database(pairs, |name, _| speaks_of_database(name));
    let reference = |variable: &Variable| {
        let upper = variable.name.to_uppercase();
        let is_url = ["URL", "URI", "DSN"].iter().any(|end| upper.ends_with(end)) && speaks_of_database(&upper);
        let known = references::NAMES.contains(&upper.as_str());
        if known { None } else { hosts.get(&variable.name).copied().or(is_url.then_some("${DATABASE_URL}")) }
    };
    variables.iter().filter_map(|variable| Some((variable, reference(variable)?))).collect()
}

fn speaks_of_database(name: &str) -> bool {
    let upper = name.to_uppercase();
    let mut words = upper.split('_').filter(|word| !word.is_empty());
    let has = |list: &[&str]| upper.split('_').any(|word| list.contains(&word));
    words.any(|word| DATABASE.contains(&word)) && !has(&ANOTHER)
}

/// Whether a project sets this variable for itself, and not the machine or Tandem.
pub fn is_own(name: &str) -> bool {
    !OF_MACHINES.contains(&name) && !references::NAMES.contains(&name) && !name.starts_with("PG")
}

/// The variables that the project in `dir` reads, each at its first place, in the order of their names.
pub fn read_by(dir: &Path) -> Vec<Variable> {
    let mut found = BTreeMap::new();
    let mut add = |name: String, place: String| {
        found.entry(name).or_insert(place);
    };
    for example in EXAMPLES {
        let Ok(text) = fs::read_to_string(dir.join(example)) else { continue };
        for name in dotenv_variables(&text).into_keys() {
            let line = text.lines().position(|line| line.trim_start().trim_start_matches("export ").starts_with(&name));
            add(name, format!("{example}:{}", line.map_or(1, |line| line + 1)));
        }
    }
    let serving = |entry: &ignore::DirEntry| {
        let name = entry.file_name().to_string_lossy();
        !NOT_SERVING.contains(&&*name) && !entry.path().join("pyvenv.cfg").exists()
    };
    let walk = WalkBuilder::new(dir).max_depth(Some(8)).filter_entry(serving).build();
    let is_python = |entry: &ignore::DirEntry| entry.path().extension().is_some_and(|end| end == "py");
    let files = walk.flatten().filter(is_python).take(FILES_MAX);
    for file in files.filter(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= BYTES_MAX)) {
        let Ok(text) = fs::read_to_string(file.path()) else { continue };
        let shown = file.path().strip_prefix(dir).unwrap_or(file.path()).display().to_string();
        for (name, line) in in_python(&text) {
            add(name, format!("{shown}:{line}"));
        }
    }
    found.into_iter().map(|(name, place)| Variable { name, place }).collect()
}

/// The variables that a Python file reads, and in which line.
fn in_python(text: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (at, _) in line.match_indices(['(', '[']) {
            if reads_environment(&line[..at])
                && let Some(name) = quoted_name(&line[at + 1..])
            {
                found.push((name, number));
            }
        }
    }
    found.extend(of_settings(text));
    found
}

/// Whether the code before a bracket is a function or a map of the environment: `os.environ.get`, `env.str`, `getenv`, the
/// `config` of decouple and Starlette, a project's own `envint`.
fn reads_environment(before: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '.';
    let word = before.rsplit(|letter| !is_word(letter)).next().unwrap_or_default();
    word == "config" || word.to_lowercase().contains("env")
}

/// The name in quotes that `text` begins with, if it is one of a variable.
fn quoted_name(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|letter| "\"'".contains(*letter))?;
    let name = text[1..].split(quote).next()?;
    let is_name =
        name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    is_name.then(|| name.to_owned())
}

/// A class as its lines tell it.
struct Class<'a> {
    name: &'a str,
    bases: &'a str,
    /// Field, annotation and line.
    fields: Vec<(&'a str, &'a str, usize)>,
    prefix: &'a str,
    nested: Option<&'a str>,
}

/// The variables that classes of pydantic-settings read: the fields' names, with prefix, nested ones with their delimiter.
fn of_settings(text: &str) -> Vec<(String, usize)> {
    let classes = classes(text);
    let mut found = Vec::new();
    for class in classes.iter().filter(|class| class.bases.contains("BaseSettings")) {
        for (field, annotation, line) in &class.fields {
            let inside = classes.iter().find(|other| other.name == *annotation && !other.fields.is_empty());
            match inside.zip(class.nested) {
                Some((inside, delimiter)) => {
                    let names =
                        inside.fields.iter().map(|(name, ..)| format!("{}{field}{delimiter}{name}", class.prefix));
                    found.extend(names.map(|name| (name.to_uppercase(), *line)));
                }
                None => found.push((format!("{}{field}", class.prefix).to_uppercase(), *line)),
            }
        }
    }
    found
}

fn classes(text: &str) -> Vec<Class<'_>> {
    let mut classes: Vec<Class<'_>> = Vec::new();
    let (mut inside, mut indent) = (false, None);
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let depth = line.len() - content.len();
        if let Some(rest) = line.strip_prefix("class ") {
            let (name, bases) = rest.split_once(['(', ':']).unwrap_or((rest, ""));
            classes.push(Class { name: name.trim(), bases, fields: Vec::new(), prefix: "", nested: None });
            (inside, indent) = (true, None);
            continue;
        }
        inside &= depth > 0;
        let Some(class) = classes.last_mut().filter(|_| inside) else { continue };
        for (word, is_prefix) in [("env_prefix", true), ("env_nested_delimiter", false)] {
            let value = content.split_once(word).and_then(|(_, rest)| rest.split(['"', '\'']).nth(1));
            match value {
                Some(value) if is_prefix => class.prefix = value,
                Some(value) => class.nested = Some(value),
                None => {}
            }
        }
        if depth != *indent.get_or_insert(depth) {
            continue;
        }
        if let Some((name, rest)) = content.split_once(':') {
            let is_field = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if is_field && name != "model_config" && !rest.trim_start().starts_with("ClassVar") {
                class.fields.push((name, rest.split('=').next().unwrap_or_default().trim(), number));
            }
        }
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(names: &[&str]) -> String {
        let variables: Vec<Variable> =
            names.iter().map(|name| Variable { name: (*name).to_owned(), place: String::new() }).collect();
        mapping(&variables)
            .iter()
            .map(|(it, reference)| format!("{}={reference}", it.name))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn names_that_lead_to_the_database_are_known_and_others_left_alone() {
        assert_eq!(
            mapped(&["DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME", "DB_ECHO", "REDIS_HOST", "REDIS_PORT"]),
            "DB_HOST=${PGHOST} DB_PORT=${PGPORT} DB_USER=${PGUSER} DB_PASSWORD=${PGPASSWORD} DB_NAME=${PGDATABASE}"
        );
        assert_eq!(mapped(&["DATABASE__HOST", "DATABASE__PORT"]), "DATABASE__HOST=${PGHOST} DATABASE__PORT=${PGPORT}");
        assert_eq!(mapped(&["SQLALCHEMY_DATABASE_URI", "SENTRY_DSN"]), "SQLALCHEMY_DATABASE_URI=${DATABASE_URL}");
        // Tandem sets these, and another database is not this one.
        assert_eq!(
            mapped(&["DATABASE_URL", "POSTGRES_SERVER", "POSTGRES_PORT", "TEST_DATABASE_URL", "REPLICA_DB_HOST"]),
            ""
        );
    }

    #[test]
    fn variables_are_found_in_calls_and_in_settings_classes() {
        let text = "import os\nHOST = os.getenv('DB_HOST', 'x')\nA = os.environ[\"API_KEY\"]; b = my_config('NOT_ME') + envint(\"WORKERS\", 4)\n\
                    class Database(BaseModel):\n    host: str\n    port: int = 5432\n\n\
                    class Settings(BaseSettings):\n    \"\"\"Words: of it.\"\"\"\n    database: Database\n    secret_key: str = Field(\n\
                    \u{20}       default='x: y',\n    )\n    model_config = SettingsConfigDict(env_prefix='APP_', env_nested_delimiter='__')\n\n\
                    def other():\n    local: int = 1\n";
        let found: Vec<String> = in_python(text).into_iter().map(|(name, line)| format!("{name}:{line}")).collect();
        assert_eq!(
            found,
            [
                "DB_HOST:2",
                "API_KEY:3",
                "WORKERS:3",
                "APP_DATABASE__HOST:10",
                "APP_DATABASE__PORT:10",
                "APP_SECRET_KEY:11"
            ]
        );
    }
}
