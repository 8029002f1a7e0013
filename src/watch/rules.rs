//! Which directories are read, and which files count.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ignore::overrides::{Override, OverrideBuilder};
use ignore::{DirEntry, Walk, WalkBuilder};

use super::Error;

/// Directories of dependencies and of generated code. Each watch counts against the user's limit.
const LEFT_OUT: [&str; 2] = ["__pycache__", "node_modules"];
/// A directory with this file is a virtual environment (PEP 405).
const VENV_MARKER: &str = "pyvenv.cfg";
/// Files that name files which do not count.
const IGNORE_FILES: [&str; 2] = [".gitignore", ".ignore"];

/// What counts below one directory.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The directory, without symbolic links in its name: events name paths below it so too.
    pub root: PathBuf,
    include: Override,
    /// Those of the globs that name hidden files.
    hidden: Option<Override>,
    /// Hidden directories that globs name.
    pub named_dirs: Vec<PathBuf>,
    left_out: Arc<Vec<PathBuf>>,
    /// Whether only the files right in the root count.
    flat: bool,
    /// From the root's parent up to the git repository's top, if it is in one: their ignore files count as well.
    pub above: Vec<PathBuf>,
    in_repository: bool,
}

impl Rules {
    /// Let files below `root` count that match one of `globs`, which are read as lines of a `.gitignore` are; none in
    /// the directories `left_out`.
    ///
    /// # Errors
    /// A glob that is none; no such directory.
    pub fn new(root: &Path, globs: &[String], left_out: &[PathBuf]) -> Result<Self, Error> {
        let canonical = |path: &Path| path.canonicalize();
        let root = canonical(root).map_err(|error| Error::Directory { dir: root.into(), why: error.to_string() })?;
        let include = matcher(&root, globs.iter())?;
        let hidden = globs.iter().any(|glob| names_hidden(glob));
        let hidden =
            hidden.then(|| matcher(&root, globs.iter().filter(|glob| names_hidden(glob) || is_negative(glob))));
        // What is not there yet cannot be a symbolic link.
        let left_out = left_out.iter().map(|path| canonical(path).unwrap_or_else(|_| path.clone())).collect();
        let top = root.ancestors().position(|dir| dir.join(".git").exists());
        let above = root.ancestors().skip(1).take(top.unwrap_or(0).max(1)).map(Path::to_owned).collect();
        Ok(Self {
            named_dirs: globs.iter().filter_map(|glob| hidden_dir(&root, glob)).collect(),
            root,
            include,
            hidden: hidden.transpose()?,
            left_out: Arc::new(left_out),
            flat: false,
            above,
            in_repository: top.is_some(),
        })
    }

    /// As [`Rules::new`], of the hidden files alone that lie in `dir` itself and that `globs` name; `None`: they name none.
    ///
    /// # Errors
    /// As [`Rules::new`].
    pub fn of_hidden(dir: &Path, globs: &[String]) -> Result<Option<Self>, Error> {
        let globs: Vec<String> = globs.iter().filter(|glob| names_hidden(glob) || is_negative(glob)).cloned().collect();
        if globs.iter().all(|glob| is_negative(glob)) {
            return Ok(None);
        }
        Ok(Some(Self { flat: true, named_dirs: Vec::new(), ..Self::new(dir, &globs, &[])? }))
    }

    /// Whether a file of this name counts, if nothing ignores it.
    pub fn includes(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        if !self.include.matched(path, false).is_whitelist() || (self.flat && below.components().count() > 1) {
            return false;
        }
        let dir_is_named = || self.named_dirs.iter().any(|dir| path.starts_with(dir));
        let in_hidden_dir = below.parent().is_some_and(|dir| dir.components().any(is_hidden));
        !is_hidden_name(path) && (!in_hidden_dir || dir_is_named()) || self.names(path)
    }

    /// Whether a glob names the hidden file `path`: then no ignore file takes it out, for `.env` stands in most of them.
    pub fn names(&self, path: &Path) -> bool {
        let named = |hidden: &Override| is_hidden_name(path) && hidden.matched(path, false).is_whitelist();
        self.hidden.as_ref().is_some_and(named)
    }

    /// Whether any hidden file counts.
    pub fn name_hidden_files(&self) -> bool {
        self.hidden.is_some()
    }

    /// Whether this file says what does not count.
    pub fn is_ignore_file(path: &Path) -> bool {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| IGNORE_FILES.contains(&name))
    }

    /// Whether the directory that a symbolic link leads to is looked into.
    pub fn follows(&self, target: &Path) -> bool {
        !self.flat && !self.root.starts_with(target) && !is_left_out(target, &self.left_out)
    }

    /// Whether files count that lie in a directory so deep below the root.
    pub fn looks_into(&self, depth: usize) -> bool {
        !self.flat || depth == 0
    }

    /// Every directory and file below `dir` that is not ignored as of now: the root, or where a symbolic link in it leads to.
    pub fn walk(&self, dir: &Path) -> Walk {
        let left_out = self.left_out.clone();
        let mut walk = WalkBuilder::new(dir);
        if dir == self.root {
            for dir in self.named_dirs.iter().filter(|dir| dir.is_dir()) {
                walk.add(dir);
            }
        }
        walk
            // A `.gitignore` means the same where the code was copied without its repository.
            .require_git(false)
            // But one above the root then belongs to something else, such as a home directory.
            .parents(self.in_repository && dir == self.root)
            .max_depth(self.flat.then_some(1))
            .filter_entry(move |entry| entry.depth() == 0 || !is_dir_left_out(entry, &left_out))
            .build()
    }
}

fn matcher<'a>(root: &Path, globs: impl Iterator<Item = &'a String>) -> Result<Override, Error> {
    let mut matcher = OverrideBuilder::new(root);
    for glob in globs {
        matcher.add(glob).map_err(Error::Glob)?;
    }
    matcher.build().map_err(Error::Glob)
}

fn is_negative(glob: &str) -> bool {
    glob.starts_with('!')
}

/// Whether the glob says by its dot that it means hidden files.
fn names_hidden(glob: &str) -> bool {
    !is_negative(glob) && glob.rsplit('/').next().is_some_and(|name| name.starts_with('.'))
}

/// The hidden directory that the glob begins with, such as `.config/*.py`.
fn hidden_dir(root: &Path, glob: &str) -> Option<PathBuf> {
    let (dirs, _) = glob.trim_start_matches('/').rsplit_once('/')?;
    let plain: PathBuf = dirs.split('/').take_while(|part| !part.contains(['*', '?', '[', '{'])).collect();
    (!is_negative(glob) && plain.components().any(is_hidden)).then(|| root.join(plain))
}

fn is_hidden(part: Component<'_>) -> bool {
    matches!(part, Component::Normal(name) if name.as_encoded_bytes().starts_with(b"."))
}

fn is_hidden_name(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_dir_left_out(entry: &DirEntry, left_out: &[PathBuf]) -> bool {
    entry.file_type().is_some_and(|kind| kind.is_dir()) && is_left_out(entry.path(), left_out)
}

fn is_left_out(dir: &Path, left_out: &[PathBuf]) -> bool {
    let named = || dir.file_name().and_then(OsStr::to_str).is_some_and(|name| LEFT_OUT.contains(&name));
    named() || left_out.iter().any(|out| out == dir) || dir.join(VENV_MARKER).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_files_count_where_a_glob_names_them() {
        let temp = tempfile::tempdir().unwrap();
        let globs = ["*.py", ".env*", "!.env.example", ".config/*.py", "conf/.secret"].map(str::to_owned);
        let rules = Rules::new(temp.path(), &globs, &[]).unwrap();
        let table = [
            ("main.py", true),
            (".env", true),
            ("sub/.env.local", true),
            (".env.example", false),
            (".#main.py", false),
            (".main.py.swp", false),
            (".hidden/main.py", false),
            (".config/main.py", true),
            ("conf/.secret", true),
            ("other/.secret", false),
            ("main.txt", false),
        ];
        for (name, counts) in table {
            assert_eq!(rules.includes(&rules.root.join(name)), counts, "{name}");
        }
        let flat = Rules::of_hidden(temp.path(), &globs).unwrap().unwrap();
        for (name, counts) in [(".env", true), ("sub/.env", false), ("main.py", false), (".env.example", false)] {
            assert_eq!(flat.includes(&flat.root.join(name)), counts, "{name}");
        }
        assert!(Rules::of_hidden(temp.path(), &["*.py".into(), "!.env".into()]).unwrap().is_none());
    }
}
