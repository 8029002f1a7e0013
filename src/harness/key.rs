//! What a template is made from, as one digest: whatever differs in it makes another template. Reads files, runs nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ignore::WalkBuilder;
use ignore::overrides::OverrideBuilder;
use sha2::{Digest, Sha256};

use super::seed::Seed;
use crate::config::{MigrationRun, Settings};
use crate::exit::{Code, Failure};

/// Counts up when a template is made in another way.
const FORMAT: &str = "tandem template 6";
/// What looks like migrations: Alembic's, Django's and others' directories, and plain SQL.
const USUAL: [&str; 7] =
    ["alembic.ini", "**/alembic/**", "**/migrations/**", "**/migration/**", "**/versions/**", "*.sql", "**/db/**"];
/// What says which packages an application has, in several languages.
const LOCKS: [&str; 12] = [
    "Cargo.lock",
    "Gemfile.lock",
    "Pipfile.lock",
    "bun.lock",
    "composer.lock",
    "go.sum",
    "package-lock.json",
    "pdm.lock",
    "pnpm-lock.yaml",
    "poetry.lock",
    "uv.lock",
    "yarn.lock",
];
/// Hexadecimal digits of a key: names of files and directories hold it.
const LENGTH: usize = 24;

/// A digest under construction: every part with its length, so that no two lists of parts look alike.
pub struct Key(Sha256);

impl Key {
    /// The key of a cluster that holds nothing yet, of the PostgreSQL `version` that runs as user id `uid`.
    pub fn empty(version: &str, uid: u32) -> Self {
        let mut key = Self(Sha256::new());
        key.add(FORMAT).add(version).add(uid.to_string());
        key
    }

    /// Add what the settings, the migrations and the seeds consist of.
    ///
    /// # Errors
    /// A file cannot be read, or a glob is none.
    pub fn with_content(mut self, settings: &Settings, run: &MigrationRun, seeds: &[Seed]) -> anyhow::Result<Self> {
        self.add(&settings.postgres.user).add(&settings.postgres.database).add([u8::from(settings.test.superuser)]);
        for (name, value) in settings.postgres.settings.iter().chain(&settings.test.settings) {
            self.add(name).add(value);
        }
        match run {
            MigrationRun::None => {
                self.add("none");
            }
            MigrationRun::SeaOrm => {
                self.add("seaorm").add(migration::DIGEST);
            }
            MigrationRun::Sql => {
                let dir = settings.sql_dir();
                self.add("sql").files(&dir, &matching(&dir, &["*.sql"])?)?;
            }
            MigrationRun::Command(words) => {
                self.add("command").add(&settings.workers.url_scheme);
                // Where it goes and what it makes may hang on these; what refers to the server is not filled in yet.
                for (name, value) in &settings.workers.env {
                    self.add(name).add(value);
                }
                for word in words {
                    self.add(word);
                }
                self.files(&settings.directory, &inputs(settings, words)?)?;
            }
        }
        for seed in seeds {
            self.add("seed").add(seed.to_string());
            self.files(&settings.directory, &seed.files())?;
        }
        Ok(self)
    }

    /// The key of what the recipe with the key `base` made from files that it read.
    pub fn of_inputs(base: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add("inputs").add(base);
        key
    }

    /// Add what the migrations and seeds run with: the interpreter, the packages that are installed and those that are locked.
    pub fn add_tools(&mut self, settings: &Settings, python: &Path) {
        let found = [settings.search_path.as_str()].into_iter().flat_map(|path| path.split(':'));
        let mut places = found.map(|dir| Path::new(dir).join(python));
        let python = if python.is_absolute() { Some(python.to_owned()) } else { places.find(|path| path.is_file()) };
        for part in python.iter().flat_map(|python| packages(python)) {
            self.add(part);
        }
        for dir in BTreeSet::from([&settings.directory, &settings.workers.app_dir]) {
            for lock in LOCKS {
                if let Ok(bytes) = fs::read(dir.join(lock)) {
                    self.add(lock).add(bytes);
                }
            }
        }
    }

    /// The digest, in hexadecimal.
    pub fn finish(self) -> String {
        let mut text: String = self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        text.truncate(LENGTH);
        text
    }

    /// Add one part.
    pub fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
        self
    }

    fn files(&mut self, directory: &Path, paths: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
        for path in paths {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            // By its name in the project: a template serves every checkout of the same content.
            let name = path.strip_prefix(directory).unwrap_or(path);
            self.add(name.as_os_str().as_encoded_bytes()).add(bytes);
        }
        Ok(())
    }
}

/// The interpreter `python`, and the packages that it can import.
fn packages(python: &Path) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    if let Ok(real) = python.canonicalize() {
        parts.extend(real.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    let Some(prefix) = python.parent().and_then(Path::parent) else { return parts };
    let about = fs::read_to_string(prefix.join("pyvenv.cfg")).unwrap_or_default();
    parts.extend(about.lines().filter(|line| line.starts_with("version")).map(str::to_owned));
    let versions = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let versions = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
    let dirs = versions.flat_map(|entry| ["site-packages", "dist-packages"].map(|name| entry.path().join(name)));
    for entry in dirs.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if [".dist-info", ".egg-info"].iter().any(|end| name.ends_with(end)) {
            // The same version may have been installed from elsewhere.
            let files = entry.path().join("RECORD").metadata().map_or(0, |meta| meta.len());
            let origin = fs::read_to_string(entry.path().join("direct_url.json")).unwrap_or_default();
            parts.insert(format!("{name} {files} {origin}"));
        }
    }
    parts
}

/// The files that the migration command `words` consists of.
fn inputs(settings: &Settings, words: &[String]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let directory = &settings.directory;
    let globs: Vec<&str> = match &settings.test.inputs {
        Some(globs) => globs.iter().map(String::as_str).collect(),
        None => USUAL.to_vec(),
    };
    let mut found = matching(directory, &globs)?;
    // A script that the command names is part of it.
    found.extend(words.iter().map(|word| settings.migrations_dir().join(word)).filter(|path| path.is_file()));
    Ok(found)
}

/// The files below `directory` that one of `globs` fits and no `.gitignore` excludes.
fn matching(directory: &Path, globs: &[&str]) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut overrides = OverrideBuilder::new(directory);
    for glob in globs {
        overrides.add(glob).with_context(|| Failure::new(Code::Config, format!("test.inputs: {glob:?} is no glob")))?;
    }
    let overrides = overrides.build().context("read test.inputs")?;
    let walk = WalkBuilder::new(directory)
        .filter_entry(|entry| !matches!(entry.file_name().to_str(), Some("__pycache__" | "node_modules" | "target")))
        .overrides(overrides)
        .build();
    let files = walk.filter_map(Result::ok).filter(|entry| entry.file_type().is_some_and(|kind| kind.is_file()));
    Ok(files.map(ignore::DirEntry::into_path).filter(|path| path.extension().is_none_or(|ext| ext != "pyc")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Purpose, Source};

    fn settings(dir: &Path) -> Settings {
        let source = Source { cwd: dir.to_owned(), purpose: Purpose::Test, ..Source::default() };
        config::load(&source).unwrap().settings
    }

    fn key(settings: &Settings, run: &MigrationRun, seeds: &[Seed]) -> String {
        Key::empty("16.15", 7).with_content(settings, run, seeds).unwrap().finish()
    }

    #[test]
    fn every_difference_makes_another_key_and_nothing_else_does() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = temp.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("alembic/versions/001.py", "one");
        write("app.py", "app");
        write("seed.sql", "insert");
        let settings = settings(temp.path());
        let command = MigrationRun::Command(vec!["alembic".into(), "upgrade".into(), "head".into()]);
        let seeds = [Seed::parse("seed.sql", temp.path()).unwrap()];
        let now = |seeds: &[Seed]| key(&settings, &command, seeds);
        let first = now(&[]);
        assert_eq!(first, now(&[]));

        let mut seen = BTreeSet::from([first.clone()]);
        let mut differs = |key: String| assert!(seen.insert(key.clone()), "{key} was there before");
        differs(key(&settings, &MigrationRun::None, &[]));
        differs(key(&settings, &MigrationRun::SeaOrm, &[]));
        differs(now(&seeds));
        let mut other = settings.clone();
        other.test.settings.insert("work_mem".into(), "8MB".into());
        differs(key(&other, &command, &[]));
        differs(Key::empty("16.16", 7).with_content(&settings, &command, &[]).unwrap().finish());
        write("app.py", "another app");
        write("alembic/versions/__pycache__/001.pyc", "compiled");
        assert_eq!(first, now(&[]), "the application is not the schema");
        write("alembic/versions/002.py", "two");
        differs(now(&[]));
        write("seed.sql", "update");
        differs(now(&seeds));
    }

    #[test]
    fn globs_of_ones_own_take_the_place_of_the_usual_ones() {
        let temp = tempfile::tempdir().unwrap();
        for (name, text) in [("schema/a.py", "a"), ("migrations/b.py", "b"), ("migrate.py", "m")] {
            fs::create_dir_all(temp.path().join(name).parent().unwrap()).unwrap();
            fs::write(temp.path().join(name), text).unwrap();
        }
        let mut settings = settings(temp.path());
        settings.test.inputs = Some(vec!["schema/**".into()]);
        let words = ["python".to_owned(), "migrate.py".to_owned()];
        let found = inputs(&settings, &words).unwrap();
        assert_eq!(found, BTreeSet::from([temp.path().join("schema/a.py"), temp.path().join("migrate.py")]));
        settings.test.inputs = Some(vec!["a[".into()]);
        assert!(inputs(&settings, &words).unwrap_err().to_string().contains("test.inputs"));
    }
}
