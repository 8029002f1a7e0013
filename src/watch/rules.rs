//! Which directories are read, and which files count.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
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
    left_out: Arc<Vec<PathBuf>>,
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
        let mut include = OverrideBuilder::new(&root);
        for glob in globs {
            include.add(glob).map_err(Error::Glob)?;
        }
        let include = include.build().map_err(Error::Glob)?;
        // What is not there yet cannot be a symbolic link.
        let left_out = left_out.iter().map(|path| canonical(path).unwrap_or_else(|_| path.clone())).collect();
        let top = root.ancestors().position(|dir| dir.join(".git").exists());
        let above = root.ancestors().skip(1).take(top.unwrap_or(0).max(1)).map(Path::to_owned).collect();
        Ok(Self { root, include, left_out: Arc::new(left_out), above, in_repository: top.is_some() })
    }

    /// Whether a file of this name counts, if nothing ignores it.
    pub fn includes(&self, path: &Path) -> bool {
        path.starts_with(&self.root) && self.include.matched(path, false).is_whitelist()
    }

    /// Whether this file says what does not count.
    pub fn is_ignore_file(path: &Path) -> bool {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| IGNORE_FILES.contains(&name))
    }

    /// Every directory and file that is not ignored as of now.
    pub fn walk(&self) -> Walk {
        let left_out = self.left_out.clone();
        WalkBuilder::new(&self.root)
            // A `.gitignore` means the same where the code was copied without its repository.
            .require_git(false)
            // But one above the root then belongs to something else, such as a home directory.
            .parents(self.in_repository)
            .filter_entry(move |entry| entry.depth() == 0 || !is_left_out(entry, &left_out))
            .build()
    }
}

fn is_left_out(entry: &DirEntry, left_out: &[PathBuf]) -> bool {
    let path = entry.path();
    let named = || entry.file_name().to_str().is_some_and(|name| LEFT_OUT.contains(&name));
    let listed = || left_out.iter().any(|out| out == path);
    let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
    is_dir && (named() || listed() || path.join(VENV_MARKER).exists())
}
