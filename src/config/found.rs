//! What nobody wrote and the project's own files say: the application, the migrations, the Python environment.
//!
//! Each finding is an entry of the lowest layer, with the place where it was seen as its origin. What is found more than once
//! is a [`Choice`], which a person makes; nothing is guessed.

use std::path::{Path, PathBuf};

use super::layers::{Entry, Layer, Merged};
use super::problem::{Origin, Problems};
use super::value::Raw;
use super::{Purpose, Source};
use crate::project::{
    self, Application, Environment, Found, Interface, Interpreter, Migration, Project, Requirements, Tool, Wanted,
};

/// Something that may be meant in more than one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Such as "application".
    pub what: &'static str,
    pub options: Vec<ChoiceOption>,
}

/// One of the ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceOption {
    /// For a person, with the place where it was seen.
    pub shown: String,
    /// The keys that say it, with their values as `--set` takes them.
    pub sets: Vec<(&'static str, String)>,
}

impl ChoiceOption {
    /// The flags that say it.
    pub fn flags(&self) -> String {
        let flag = |(key, value): &(&str, String)| {
            let pair = format!("{key}={value}");
            let is_plain = pair.chars().all(|letter| letter.is_ascii_alphanumeric() || "=:._-/".contains(letter));
            let quoted = || shlex::try_quote(&pair).map_or(pair.clone(), std::borrow::Cow::into_owned);
            format!("--set {}", if is_plain { pair.clone() } else { quoted() })
        };
        self.sets.iter().map(flag).collect::<Vec<_>>().join(" ")
    }
}

/// What came of looking.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// What was found, in words: what it is, and its value with the place.
    pub told: Vec<(&'static str, String)>,
    pub choices: Vec<Choice>,
    /// The Python that the project asks for, where the configuration names no interpreter.
    pub python: Option<Found<Wanted>>,
    pub remarks: Vec<String>,
}

/// Look at the project in `directory` for what is not in `merged`, and add what is found there.
pub fn settle(merged: &mut Merged, source: &Source, directory: &Path, problems: &mut Problems) -> Looked {
    let app_dir = path_of(merged, "workers.app_dir");
    let project = project::look_in(directory, app_dir.as_deref());
    let mut finder = Finder { merged, source, directory, project, looked: Looked::default() };
    let has_app = finder.application(problems);
    finder.migrations(problems);
    finder.packages(has_app, problems);
    finder.looked
}

/// The path that `key` is given, if it is.
fn path_of(merged: &Merged, key: &str) -> Option<PathBuf> {
    let entry = merged.get(key)?;
    Some(entry.base.join(entry.raw.as_text()?).components().collect())
}

struct Finder<'a> {
    merged: &'a mut Merged,
    source: &'a Source,
    directory: &'a Path,
    project: Project,
    looked: Looked,
}

impl Finder<'_> {
    fn has(&self, key: &str) -> bool {
        self.merged.get(key).is_some()
    }

    fn add(&mut self, key: &str, raw: Raw, seen: &project::Seen) {
        let (origin, rank) = (Origin::Found(seen.clone()), Layer::Found.rank(key, false));
        let entry = Entry { key: key.to_owned(), raw, origin, rank, base: self.directory.to_path_buf() };
        self.merged.0.insert(key.to_owned(), entry);
    }

    fn text(&mut self, key: &str, text: impl Into<String>, seen: &project::Seen) {
        self.add(key, Raw::Text(text.into()), seen);
    }

    /// Files that cannot be understood, and that might have said more.
    fn troubles(&self, problems: &mut Problems) {
        for trouble in &self.project.troubles {
            let origin = Origin::Found(trouble.seen.clone());
            let help = "mend it, or write what Tandem looks for there: workers.app and python.requirements";
            problems.add(&origin, trouble.message.clone(), Some(help.to_owned()));
        }
    }

    /// Whether there is an application, written or found.
    fn application(&mut self, problems: &mut Problems) -> bool {
        if self.has("workers.app") || self.has("workers.command") {
            return true;
        }
        if self.source.purpose == Purpose::Serve {
            self.troubles(problems);
        }
        match self.project.applications.as_slice() {
            [] => false,
            [only] => {
                let Found { value, seen } = only.clone();
                for (key, text) in of_application(&value) {
                    if !self.has(key) {
                        self.text(key, text, &seen);
                    }
                }
                self.looked.told.push(("application", format!("{} ({seen})", in_words(&value))));
                true
            }
            several => {
                let option = |it: &Found<Application>| ChoiceOption {
                    shown: format!("{} ({})", in_words(&it.value), it.seen),
                    sets: of_application(&it.value),
                };
                let choice = Choice { what: "application", options: several.iter().map(option).collect() };
                if self.source.purpose == Purpose::Serve {
                    let help = "or write app = \"module:attribute\" under [workers] in tandem.toml";
                    refuse(&choice, help, problems);
                    self.looked.choices.push(choice);
                }
                true
            }
        }
    }

    fn migrations(&mut self, problems: &mut Problems) {
        const KEY: &str = "migrations.run";
        let word = self.merged.get(KEY).map(|entry| entry.raw.as_text().unwrap_or_default());
        if word.is_some_and(|word| word != "auto") {
            return;
        }
        match self.project.migrations.as_slice() {
            [] => self.looked.told.push(("migrations", "none".to_owned())),
            [only] => {
                let Found { value, seen } = only.clone();
                self.migration(&value, &seen);
            }
            several => {
                let option = |it: &Found<Migration>| {
                    let run = Raw::List(it.value.command()).to_string();
                    let mut sets = vec![(KEY, run)];
                    sets.extend(dir_of(&it.value));
                    ChoiceOption { shown: format!("{} ({})", it.value.tool.name(), it.seen), sets }
                };
                let choice = Choice { what: "migration tool", options: several.iter().map(option).collect() };
                if self.source.purpose != Purpose::Install {
                    refuse(&choice, "or write `run` under [migrations] in tandem.toml", problems);
                    self.looked.choices.push(choice);
                }
            }
        }
    }

    fn migration(&mut self, migration: &Migration, seen: &project::Seen) {
        match migration.tool {
            Tool::Sql => {
                let dir = migration.dir.display();
                self.looked.remarks.push(format!(
                    "{dir} has SQL files, and nothing says what runs them: write migrations.run, or \"none\" if they are no \
                     migrations"
                ));
                self.looked.told.push(("migrations", format!("none ({dir} has SQL files, which nothing runs)")));
            }
            Tool::NumberedSql => {
                let dir = migration.dir.display().to_string();
                self.looked.told.push(("migrations", format!("the numbered SQL files of {dir}")));
                self.text("migrations.run", "sql", seen);
                if !self.has("migrations.dir") {
                    self.text("migrations.dir", dir, seen);
                }
            }
            Tool::BuiltIn => {
                self.text("migrations.run", "seaorm", seen);
                self.looked.told.push(("migrations", format!("the built-in ones ({seen})")));
            }
            Tool::Alembic | Tool::Django | Tool::Yoyo => {
                let command = migration.command();
                let shown = if migration.tool == Tool::Yoyo { "yoyo apply".to_owned() } else { command.join(" ") };
                self.looked.told.push(("migrations", format!("{shown} ({seen})")));
                self.add("migrations.run", Raw::List(command), seen);
                let dir = dir_of(migration).filter(|(key, _)| !self.has(key));
                match dir {
                    Some((key, dir)) => self.text(key, dir, seen),
                    // Else it would run in workers.dir.
                    None if self.has("workers.dir") && !self.has("migrations.dir") => {
                        self.text("migrations.dir", ".", seen)
                    }
                    None => {}
                }
            }
        }
    }

    /// What the Python environment is: a person's word, an environment that can be used, or what one is made from.
    fn packages(&mut self, has_app: bool, problems: &mut Problems) {
        if !self.has("python.interpreter") {
            self.looked.python = self.project.python.clone();
        }
        let is_written = ["python.requirements", "python.venv", "python.managed", "workers.command"];
        if is_written.iter().any(|key| self.has(key)) {
            return;
        }
        let serves = self.source.purpose != Purpose::Test;
        let fits = |it: &Found<Environment>| it.value.can_serve || !serves;
        let active = project::packages::active(self.directory, &self.source.environment);
        let there = [active, self.project.environment.clone()];
        if let Some(environment) = there.iter().flatten().find(|it| fits(it)) {
            return self.environment(environment);
        }
        if let Some(place) = self.interpreter_that_serves() {
            self.looked.told.push(("packages", format!("those of {place}")));
            return;
        }
        let first = self.project.requirements.first().filter(|_| has_app || self.source.purpose == Purpose::Install);
        if let Some(Found { value, seen }) = first.cloned() {
            if self.source.purpose == Purpose::Install {
                self.troubles(problems);
            }
            return self.requirements(&value, &seen);
        }
        if let Some(environment) = there.iter().flatten().next() {
            self.environment(environment);
        }
    }

    fn environment(&mut self, found: &Found<Environment>) {
        let Found { value, seen } = found;
        self.text("python.venv", value.dir.display().to_string(), seen);
        self.looked.told.push(("packages", format!("those of {} as they are ({seen})", value.dir.display())));
    }

    fn requirements(&mut self, requirements: &Requirements, seen: &project::Seen) {
        self.text("python.requirements", requirements.file.display().to_string(), seen);
        let python = self.looked.python.as_ref();
        let python = python.map(|it| format!(", with Python {} ({})", it.value.text, it.seen)).unwrap_or_default();
        self.looked
            .told
            .push(("packages", format!("{}, in an environment of Tandem's{python}", requirements.file.display())));
    }

    /// The interpreter that is used where nothing is said, if it can run the workers as it is: in an image, where packages
    /// were installed for all.
    fn interpreter_that_serves(&self) -> Option<String> {
        let word = self.merged.get("python.interpreter").and_then(|entry| {
            let text = entry.raw.as_text()?;
            Some(if text.contains('/') { entry.base.join(text) } else { PathBuf::from(text) })
        });
        let python = word.unwrap_or_else(|| PathBuf::from("python3"));
        let variable = |name: &str| self.source.environment.get(name);
        let (path, home) = (variable("PATH").cloned().unwrap_or_default(), variable("HOME").map(Path::new));
        let interpreter = Interpreter::of(&python, &path, home, self.directory);
        let enough: &[&str] = if self.source.purpose == Purpose::Test { &["uvicorn", "pytest"] } else { &["uvicorn"] };
        enough.iter().any(|name| interpreter.has(name)).then(|| python.display().to_string())
    }
}

/// The application in words.
fn in_words(application: &Application) -> String {
    let Application { app, app_dir, framework, .. } = application;
    let place = if app_dir.as_os_str().is_empty() { String::new() } else { format!(" in {}", app_dir.display()) };
    format!("{app}{place}, {}", framework.name())
}

/// The keys that an application comes to.
fn of_application(application: &Application) -> Vec<(&'static str, String)> {
    let mut keys = vec![("workers.app", application.app.clone())];
    if !application.app_dir.as_os_str().is_empty() {
        keys.push(("workers.app_dir", application.app_dir.display().to_string()));
    }
    if application.interface == Interface::Wsgi {
        keys.push(("workers.interface", "wsgi".to_owned()));
    }
    keys
}

/// Where the migrations run, unless that is the project's directory.
fn dir_of(migration: &Migration) -> Option<(&'static str, String)> {
    let dir = &migration.dir;
    (!dir.as_os_str().is_empty()).then(|| ("migrations.dir", dir.display().to_string()))
}

/// Note that a person must choose.
fn refuse(choice: &Choice, help: &str, problems: &mut Problems) {
    let options: Vec<&str> = choice.options.iter().map(|option| option.shown.as_str()).collect();
    let message = format!("more than one {} may be meant: {}", choice.what, options.join("; "));
    let flags: Vec<String> = choice.options.iter().map(|option| format!("`{}`", option.flags())).collect();
    problems.add(&Origin::Default, message, Some(format!("choose with {}, {help}", flags.join(" or "))));
}
