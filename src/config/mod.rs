//! What the operator wrote: layers, typed settings, all errors at once.
//!
//! ```text
//! file.rs      tandem.toml      ┐
//! pyproject.rs [tool.tandem]    │
//! dotenv.rs    .env             ├─ layers.rs ─ database.rs ─ found.rs ─ values.rs ─ build.rs ─ check.rs ─> Loaded
//! environment.rs, flags         ┘  who wins    whose server   the rest   kinds       Settings   what cannot be
//!                  [[process]]  ── processes.rs ────────────────────────────┘
//! ```
//!
//! `diff.rs` compares two of them, for a reload. `every_key.rs` holds every key once, and through `keys.rs` drives all of
//! it. Problems are collected on the whole way and told together, before anything has a side effect.

mod backup;
mod build;
pub mod cgroup;
mod check;
mod compose;
mod credentials;
mod database;
mod derived;
mod diff;
mod dotenv;
mod drop_env;
mod environment;
mod every_key;
#[cfg(test)]
mod every_key_page;
mod every_name;
mod file;
mod foreign;
mod found;
pub mod json_schema;
mod keys;
mod layers;
pub mod libraries;
mod listening;
pub mod memory;
#[cfg(feature = "otlp")]
pub mod otlp;
mod own;
mod places;
mod problem;
mod processes;
mod pyproject;
pub mod references;
mod rows;
mod secret_files;
mod secrets;
mod serving;
mod settings;
#[cfg(test)]
mod tests;
mod text;
mod tls;
pub mod uvicorn;
mod value;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use backup::{
    Ack, Alarm, AtLimit, Backup, BackupFormat, CloudVariables, Compression, Disk, Pitr, Retention, Verify,
};
pub use check::{Weakness, owned_setting, weakness};
pub use compose::{Lookup, Resolver};
pub use diff::{Change, Effect, changes};
pub use dotenv::variables as dotenv_variables;
pub use drop_env::DropEnv;
pub use environment::{
    is_kept_from_children, names_kept_from_children, no_color, notify_socket, set_libpq_aside, temp_dir,
};
pub use found::{Choice, ChoiceOption};
pub use problem::Origin;
pub use rows::Row;
pub use serving::{Given, Serving, SocketFiles, Tls, TlsClient};
pub use settings::*;
pub use tls::{PostgresTls, PostgresTlsFiles};
pub use value::Room;

use crate::plan::DatabaseUrl;
use crate::plan::libpq::TEST_SOCKET;
use layers::Merged;
use problem::Problems;
use values::Values;

/// All that a configuration is read from. `Debug` shows no value of it.
#[derive(Clone, Default)]
pub struct Source {
    /// `--config`.
    pub file: Option<PathBuf>,
    pub flags: Vec<Flag>,
    pub cwd: PathBuf,
    /// The process environment; [`Source::of_process`] collects it.
    pub environment: BTreeMap<String, String>,
    pub purpose: Purpose,
    /// What looks up the name of the server in a `DATABASE_URL` that may be Docker Compose's.
    pub resolver: Resolver,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Source")
            .field("file", &self.file)
            .field("flags", &self.flags)
            .field("cwd", &self.cwd)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("purpose", &self.purpose)
            .finish()
    }
}

/// What a configuration is read for: not everything needs all of the project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    #[default]
    Serve,
    /// For tests of any code (`tandem test`): there need be no application.
    Test,
    /// To make the environment (`tandem install`), in an image before the application is copied into it: neither the
    /// application nor what lies in its directories need be there.
    Install,
}

/// A flag of the command line that sets a key. `Debug` does not show its value, which may be a password.
#[derive(Clone)]
pub struct Flag {
    /// Such as `workers.count`.
    pub key: String,
    pub value: String,
    /// What the flag is called in messages, such as `--workers`.
    pub name: String,
}

impl std::fmt::Debug for Flag {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Flag").field("key", &self.key).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A sound configuration, and how it came to be.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub settings: Settings,
    pub origins: BTreeMap<String, Origin>,
    /// Warnings for the operator. They never contain secrets.
    pub notices: Vec<String>,
    /// What is good to know once, and changes nothing: `tandem check` and `tandem up` tell it, no other command does.
    pub remarks: Vec<String>,
    /// What is wrong with the credentials for copies.
    of_copies: Problems,
    /// What nobody wrote and the project's own files say, in words: what it is, and its value with its place.
    pub found: Vec<(&'static str, String)>,
    rows: Vec<Row>,
    meanings: diff::Meanings,
}

/// Read the configuration.
///
/// # Errors
/// A [`crate::exit::Failure`] with code 78 that tells everything that is wrong, with file, line and what to do.
pub fn load(source: &Source) -> anyhow::Result<Loaded> {
    load_with(source, memory::available())
}

/// The server that `source` attaches to, whatever is wrong with the rest of it. Inside a `tandem test` it is the test's own.
pub fn attached(source: &Source) -> Option<DatabaseUrl> {
    let source = Source { purpose: Purpose::Test, ..source.clone() };
    let loaded = load(&source).ok()?;
    loaded.settings.postgres.url.filter(|_| !source.environment.contains_key(TEST_SOCKET))
}

/// What in the project may be meant in more than one way, and nobody has said.
///
/// # Errors
/// A file was named that is not there.
pub fn choices(source: &Source) -> anyhow::Result<Vec<Choice>> {
    let (mut problems, mut notices) = (Problems::default(), Vec::new());
    let found = file::find(source)?;
    let gathered = layers::gather(source, &found, &mut problems);
    let mut merged = Merged::new(gathered.entries, &mut notices);
    if !gathered.complete {
        return Ok(Vec::new());
    }
    Ok(found::settle(&mut merged, source, &found.directory, &mut problems).choices)
}

/// The directory that a configuration belongs to, whatever is wrong with it.
///
/// # Errors
/// A file was named that is not there.
pub fn directory(source: &Source) -> anyhow::Result<PathBuf> {
    Ok(file::find(source)?.directory)
}

/// As much of the configuration as can be used whatever is wrong with it: a value that cannot be used is its default. `None`
/// where a file cannot be read at all, and what it says is not known.
pub fn load_despite(source: &Source) -> Option<Loaded> {
    let (loaded, problems, complete) = settle(source, memory::available()).ok()?;
    (complete || problems.is_empty()).then_some(loaded)
}

fn load_with(source: &Source, memory: u64) -> anyhow::Result<Loaded> {
    let (loaded, problems, _) = settle(source, memory)?;
    problems.into_result()?;
    Ok(loaded)
}

/// The configuration, what is wrong with it, and whether every file could be read.
fn settle(source: &Source, memory: u64) -> anyhow::Result<(Loaded, Problems, bool)> {
    let mut problems = Problems::default();
    let found = file::find(source)?;
    let layers::Gathered { entries, processes, mut notices, complete, own, dropped } =
        layers::gather(source, &found, &mut problems);
    let mut merged = Merged::new(entries, &mut notices);
    own::settle(&mut merged, &found.directory, &mut problems, &mut notices);
    let mut database = database::settle(&mut merged, (source, &found.directory), &mut problems, &mut notices);
    // In a test the server is the tests' own, whatever makes the connection to another one safe.
    if let Some(url) = database.url.as_mut().filter(|_| !source.environment.contains_key(TEST_SOCKET)) {
        database::secure(url, &merged, &source.environment, &mut problems);
    }
    let looked = match complete {
        true => found::settle(&mut merged, source, &found.directory, &mut problems),
        // What a file says that cannot be read is not to be guessed.
        false => found::Looked::default(),
    };
    let is_chosen = looked.choices.is_empty();
    let values = Values::read(merged, &found.directory, &mut problems);
    let companions = processes::settings(&processes, &found.directory, &mut problems);
    if source.purpose != Purpose::Install {
        processes::check_dirs(&processes, &companions, &mut problems);
    }
    // What lets into the places for copies may be taken away at any time: that fails the copies, and neither the backups here
    // nor the start.
    let mut of_copies = Problems::default();
    let own = credentials::read(source, own, &values, &mut of_copies);
    let clouds = build::Clouds { own: &own, dropped };
    let mut settings = build::settings(
        &values,
        found.file.clone(),
        &found.directory,
        database,
        companions,
        &source.environment,
        clouds,
    );
    settings.python.wanted = looked.python;
    settings.choose_max_connections(memory);
    let wrong: Vec<String> = of_copies.sentences().collect();
    notices.extend(wrong.iter().map(|why| format!("copies of backups to a cloud will fail: {why}")));
    settings.credentials_refused = (!wrong.is_empty()).then(|| wrong.join("; "));
    notices.extend(foreign::notices(&source.environment, &settings, &values));
    notices.extend(check::shared_credentials(&settings, &own));
    let mut remarks = looked.remarks;
    remarks.extend(found.from_below.then(|| match &found.file {
        Some(file) => format!("the configuration is {}", file.display()),
        None => format!("the project is {}", found.directory.display()),
    }));
    check::check(
        &settings,
        &values,
        (source.purpose, complete && is_chosen),
        &mut problems,
        &mut notices,
        &mut remarks,
    );
    if !problems.is_empty() {
        // It may be what is missing.
        found.notices.iter().for_each(|notice| problems.add(&Origin::Default, notice.clone(), None));
    }
    let mut rows = rows::rows(&values, &settings);
    rows.extend(rows::libpq(&source.environment, &values, &settings));
    rows.extend(credentials::rows(&own));
    rows.extend(
        std::iter::zip(&settings.processes, &processes).flat_map(|(settings, it)| processes::rows(settings, it)),
    );
    let meanings = diff::Meanings::of(&values, &settings);
    let origins = rows::origins(&values);
    let loaded = Loaded { origins, settings, notices, remarks, of_copies, found: looked.told, rows, meanings };
    Ok((loaded, problems, complete))
}

impl Loaded {
    /// Every key with its value and origin, secrets hidden.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The rows, the sum of connections and the notices as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let budget = self.settings.budget();
        serde_json::json!({
            "file": self.settings.file,
            "directory": self.settings.directory,
            "keys": self.rows,
            "connections": { "total": budget.total(), "max": budget.max_connections },
            "notices": self.notices.iter().chain(&self.remarks).collect::<Vec<_>>(),
        })
    }

    /// Refuse credentials for copies that cannot be used. `tandem check` does; all else goes on without these copies.
    ///
    /// # Errors
    /// A [`crate::exit::Failure`] with code 78 that tells all that is wrong with them.
    pub fn check_credentials(&self) -> anyhow::Result<()> {
        self.of_copies.clone().into_result()
    }

    /// The error for values that turn out to be wrong later, each with its key, what is wrong and what to do.
    pub fn refusal(&self, wrong: Vec<(String, String, Option<String>)>) -> anyhow::Error {
        let mut problems = Problems::default();
        for (key, message, help) in wrong {
            let written = |name: &&String| match name.strip_prefix("workers.uvicorn.") {
                Some(name) if !name.starts_with("headers.") => {
                    format!("workers.uvicorn.{}", uvicorn::name(name)) == key
                }
                _ => **name == key || name.starts_with(&format!("{key}.")),
            };
            let origin = self.origins.keys().find(written).and_then(|name| self.origins.get(name));
            let origin = origin.unwrap_or(&Origin::Default);
            problems.add_to(&key, origin, format!("{}: {message}", origin.name_of(&key)), help);
        }
        match problems.into_result() {
            Err(error) => error,
            Ok(()) => anyhow::anyhow!("the configuration has a problem"),
        }
    }

    /// The connection budget, in words.
    pub fn connections(&self) -> String {
        let (sum, chosen) = (self.settings.budget().arithmetic(), self.settings.why_so_many_connections());
        format!("connections: {sum}{chosen}\n")
    }

    /// The rows as aligned text; many variables of the workers in one line, unless `all`.
    pub fn table(&self, all: bool) -> String {
        if all { rows::table(&self.rows) } else { rows::table(&rows::folded(&self.rows)) }
    }

    /// Keep only the rows of what something sets; the rest are defaults.
    pub fn only_changed(&mut self) {
        self.rows.retain(|row| row.origin != Origin::Default.to_string());
    }

    /// How many keys something sets.
    pub fn changed(&self) -> usize {
        self.rows.iter().filter(|row| row.origin != Origin::Default.to_string()).count()
    }
}
