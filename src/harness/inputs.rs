//! What a template was made from beside what its recipe says: the files of the project that migrations and seeds read, the
//! directories that they listed, and the variables that those files speak of. Kept beside the template, and read again
//! before it is used.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::key::Key;
use super::reads::{Reads, is_foreign};
use crate::config::Settings;

/// Files whose appearance in a directory that was listed may change what is imported or applied.
const SOURCES: [&str; 2] = ["py", "sql"];
/// Where it could not be seen what was read, all of these are taken for read.
const MAYBE_READ: [&str; 9] = ["cfg", "env", "ini", "json", "py", "sql", "toml", "yaml", "yml"];
/// The end of a variable's name that may stand for the whole, such as the field of a settings class with a prefix.
const NAME_END_MIN: usize = 4;
/// Larger files hold no names of variables.
const TEXT_MAX: u64 = 1 << 20;
/// What libraries and interpreters read, whatever the project's own files say.
const ALWAYS: [&str; 12] = [
    "ALEMBIC_",
    "APP_ENV",
    "DJANGO_",
    "ENV",
    "ENVIRONMENT",
    "FLASK_",
    "LANG",
    "LC_",
    "NODE_ENV",
    "PYTHON",
    "RAILS_ENV",
    "TZ",
];
/// What differs from terminal to terminal and from run to run, and what Tandem sets itself; with `_` or `*` at the end: all
/// that begin so.
const NEVER: [&str; 37] = [
    "CARGO*",
    "CI_*",
    "COLUMNS",
    "DATABASE_URL",
    "DBUS_*",
    "DISPLAY",
    "EDITOR",
    "GITHUB_*",
    "HOME",
    "HOSTNAME",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LINES",
    "LOGNAME",
    "MAIL",
    "OLDPWD",
    "PAGER",
    "PATH",
    "PG*",
    "POSTGRES_*",
    "PWD",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUNBUFFERED",
    "RUNNER_*",
    "RUST*",
    "SHELL",
    "SHLVL",
    "SSH_*",
    "TANDEM_*",
    "TERM*",
    "TMPDIR",
    "TMUX*",
    "USER",
    "VSCODE_*",
    "XDG_*",
    "_",
];

/// By their names below the project: a template serves every checkout of the same content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    files: BTreeSet<PathBuf>,
    listed: BTreeSet<PathBuf>,
}

impl Inputs {
    /// What `reads` says; a source that was written meanwhile is an error: nobody knows which content was read.
    ///
    /// # Errors
    /// The sources that were written.
    pub fn of(reads: &Reads, directory: &Path) -> Result<Self, Vec<PathBuf>> {
        let unclear: Vec<PathBuf> = reads.written.iter().filter(|path| has_end(path, &SOURCES)).cloned().collect();
        if !unclear.is_empty() {
            return Err(unclear);
        }
        let inside = |paths: &BTreeSet<PathBuf>| {
            paths.iter().map(|path| path.strip_prefix(directory).unwrap_or(path).to_owned()).collect()
        };
        Ok(Self { files: inside(&reads.files), listed: inside(&reads.listed) })
    }

    /// All that may have been read, where it could not be seen.
    pub fn all(settings: &Settings) -> Self {
        let directory = &settings.directory;
        let ours = |entry: &ignore::DirEntry| !entry.path().is_dir() || entry.depth() == 0 || !is_foreign(entry.path());
        let walk = ignore::WalkBuilder::new(directory).git_ignore(false).filter_entry(ours).build();
        let files = walk.flatten().map(ignore::DirEntry::into_path).filter(|path| has_end(path, &MAYBE_READ));
        let files = files.map(|path| path.strip_prefix(directory).map(Path::to_owned).unwrap_or(path)).collect();
        Self { files, listed: BTreeSet::new() }
    }

    /// The key of a template that was made from this by the recipe with the key `base`, as things are now.
    pub fn key(&self, base: &str, settings: &Settings) -> String {
        let mut key = Key::of_inputs(base);
        let mut words = BTreeSet::new();
        for file in &self.files {
            let path = settings.directory.join(file);
            key.add(file.as_os_str().as_encoded_bytes());
            // Not a pipe, which might say nothing for ever.
            match path.is_file().then(|| fs::read(&path)) {
                Some(Ok(bytes)) => {
                    if bytes.len() as u64 <= TEXT_MAX {
                        words.extend(identifiers(&bytes));
                    }
                    key.add("is").add(bytes);
                }
                _ => drop(key.add("is not")),
            }
        }
        for dir in &self.listed {
            key.add(dir.as_os_str().as_encoded_bytes());
            let entries = fs::read_dir(settings.directory.join(dir)).into_iter().flatten().flatten();
            let sources: BTreeSet<PathBuf> = entries
                .map(|entry| entry.file_name().into())
                .filter(|name: &PathBuf| has_end(name, &SOURCES))
                .collect();
            for name in sources {
                key.add(name.as_os_str().as_encoded_bytes());
            }
        }
        let drop_env = &settings.workers.drop_env;
        for (name, value) in settings.inherited.0.iter().filter(|(name, _)| !drop_env.matches(name)) {
            if counts(name, &words) {
                key.add(name).add(value);
            }
        }
        key.finish()
    }
}

fn has_end(path: &Path, ends: &[&str]) -> bool {
    path.extension().is_some_and(|end| ends.iter().any(|one| end == *one))
}

/// The words of a text that could be names, in capital letters.
fn identifiers(bytes: &[u8]) -> impl Iterator<Item = String> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
    words.filter(|word| word.len() >= NAME_END_MIN).map(|word| String::from_utf8_lossy(word).to_ascii_uppercase())
}

/// Whether the value of the variable `name` may decide what the template holds: the files that were read speak of it.
fn counts(name: &str, words: &BTreeSet<String>) -> bool {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    if NEVER.iter().any(|pattern| fits(pattern)) {
        return false;
    }
    let always = |pattern: &&str| {
        if pattern.ends_with('_') || *pattern == "PYTHON" { name.starts_with(*pattern) } else { name == *pattern }
    };
    let upper = name.to_ascii_uppercase();
    let ends = upper.match_indices('_').map(|(at, _)| &upper[at + 1..]).chain([&*upper]);
    ALWAYS.iter().any(always) || ends.filter(|end| end.len() >= NAME_END_MIN).any(|end| words.contains(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Purpose, Source};

    fn settings(dir: &Path, variables: &[(&str, &str)]) -> Settings {
        let mut source = Source { cwd: dir.to_owned(), purpose: Purpose::Test, ..Source::default() };
        source.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        config::load(&source).unwrap().settings
    }

    #[test]
    fn what_was_read_decides_and_nothing_else_does() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        fs::write(path("models.py"), "prefix = os.environ['TABLE_PREFIX']").unwrap();
        fs::write(path("other.py"), "").unwrap();
        let reads = Reads {
            files: BTreeSet::from([path("models.py"), path("absent.py")]),
            listed: BTreeSet::from([temp.path().to_owned()]),
            ..Reads::default()
        };
        let inputs = Inputs::of(&reads, temp.path()).unwrap();
        let key = |variables: &[(&str, &str)]| inputs.key("base", &settings(temp.path(), variables));
        let first = key(&[]);
        let mut seen = BTreeSet::from([first.clone()]);
        let mut differs = |key: String| assert!(seen.insert(key.clone()), "{key} was there before");
        differs(key(&[("TABLE_PREFIX", "a")]));
        differs(key(&[("TABLE_PREFIX", "b")]));
        differs(key(&[("APP_TABLE_PREFIX", "b")]));
        differs(key(&[("TZ", "UTC")]));
        differs(inputs.key("another base", &settings(temp.path(), &[])));
        assert_eq!(first, key(&[("UNHEARD_OF", "1"), ("SHLVL", "3"), ("PATH", "/models")]));
        fs::write(path("other.py"), "changed").unwrap();
        fs::write(path("notes.txt"), "new").unwrap();
        assert_eq!(first, key(&[]));
        fs::write(path("absent.py"), "").unwrap();
        differs(key(&[]));
        fs::write(path("new.py"), "").unwrap();
        differs(key(&[]));
        fs::write(path("models.py"), "changed").unwrap();
        differs(key(&[]));
    }

    #[test]
    fn a_source_that_was_written_meanwhile_makes_it_unclear_what_was_read() {
        let dir = Path::new("/project");
        let reads = |name: &str| Reads { written: BTreeSet::from([dir.join(name)]), ..Reads::default() };
        assert_eq!(Inputs::of(&reads("models.py"), dir), Err(vec![dir.join("models.py")]));
        assert_eq!(Inputs::of(&reads("migrate.log"), dir), Ok(Inputs::default()));
    }
}
