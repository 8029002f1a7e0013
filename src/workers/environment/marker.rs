//! What a Python environment was made from, written in it; and what state it is in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::interpreter;
use super::project::Options;
use crate::config::Python;
use crate::exit::{Code, Failure};
use crate::install::{sha256, write_whole};

pub(super) const MARKER_FILE: &str = ".tandem-environment.json";
/// What the marker holds until the environment is whole.
const BEGUN: &[u8] = b"{\"begun\": true}\n";

/// What an environment was made from. Which installer made it does not matter: the packages are the same.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub(super) struct Made {
    /// SHA-256 of the requirements, with all files that they include, and of the names of the groups and extras.
    requirements: String,
    /// The interpreter as the configuration names it.
    interpreter: String,
    /// The real path of the environment's interpreter, which names its version nearly everywhere: after an upgrade
    /// of the system's Python the packages lie in the old version's directory.
    #[serde(default)]
    real: PathBuf,
    /// The Python that the project asked for, or nothing; `None` in the marker of a Tandem that did not look for it.
    #[serde(default)]
    asked: Option<String>,
}

impl Made {
    /// What an environment has to be made from.
    pub(super) fn wanted(requirements: &Path, options: Options<'_>, python: &Python) -> anyhow::Result<Self> {
        let asked = python.wanted.as_ref().map(|wanted| wanted.value.text.clone()).unwrap_or_default();
        Ok(Self { asked: Some(asked), ..Self::of(requirements, options, &python.interpreter)? })
    }

    /// As [`Self::wanted`], of a project that asks for no Python.
    pub(super) fn of(requirements: &Path, options: Options<'_>, interpreter: &str) -> anyhow::Result<Self> {
        let mut content = content(requirements)?;
        options.groups.iter().for_each(|group| content.extend(format!("group {group}\n").into_bytes()));
        options.extras.iter().for_each(|extra| content.extend(format!("extra {extra}\n").into_bytes()));
        Ok(Self {
            requirements: sha256(&content),
            interpreter: interpreter.to_owned(),
            real: PathBuf::new(),
            asked: None,
        })
    }

    /// Mark the environment `venv` as whole.
    pub(super) fn write(mut self, venv: &Path) -> anyhow::Result<()> {
        let python = interpreter(venv);
        self.real = python.canonicalize().with_context(|| format!("look at {}", python.display()))?;
        let text = serde_json::to_vec_pretty(&self).context("write the environment's marker")?;
        write_whole(&venv.join(MARKER_FILE), &text).context("write the environment's marker")
    }
}

/// Mark the environment in the empty directory `venv` as begun by us.
pub(super) fn begin(venv: &Path) -> std::io::Result<()> {
    write_whole(&venv.join(MARKER_FILE), BEGUN)
}

/// What lies where the environment should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing, or an empty directory.
    Absent,
    /// Something that Tandem did not make.
    Foreign,
    /// An environment of ours that was not finished.
    Begun,
    /// An environment of ours.
    Made(Made),
}

impl State {
    pub(super) fn of(venv: &Path) -> Self {
        let Ok(marker) = std::fs::read(venv.join(MARKER_FILE)) else {
            let nothing =
                venv.symlink_metadata().is_err() || venv.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            return if nothing { Self::Absent } else { Self::Foreign };
        };
        serde_json::from_slice(&marker).map_or(Self::Begun, Self::Made)
    }

    /// Whether this is an environment made from what is `wanted`, whose interpreter is still the same one.
    pub(super) fn is_made(&self, venv: &Path, wanted: &Made) -> bool {
        let Self::Made(made) = self else { return false };
        made.requirements == wanted.requirements
            && made.interpreter == wanted.interpreter
            && (made.asked.is_none() || wanted.asked.is_none() || made.asked == wanted.asked)
            && interpreter(venv).canonicalize().is_ok_and(|real| real == made.real)
    }
}

/// The requirements and all files that they include (`-r`, `-c`), one after the other.
pub(super) fn content(requirements: &Path) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = vec![requirements.to_path_buf()];
    while let Some(file) = next.pop() {
        if !seen.insert(file.clone()) {
            continue;
        }
        let text = std::fs::read(&file).with_context(|| {
            Failure::new(Code::Config, format!("read the requirements {} (`python.requirements`)", file.display()))
        })?;
        let dir = file.parent().unwrap_or(Path::new("."));
        next.extend(String::from_utf8_lossy(&text).lines().filter_map(included).map(|name| dir.join(name)));
        whole.extend_from_slice(&text);
        whole.push(b'\n');
    }
    Ok(whole)
}

/// The local file that a line of requirements includes.
fn included(line: &str) -> Option<&str> {
    let line = line.trim();
    let name = ["--requirement", "--constraint", "-r", "-c"].iter().find_map(|option| line.strip_prefix(option))?;
    let name = name.trim_start_matches(['=', ' ', '\t']).split(" #").next()?.trim();
    (!name.is_empty() && !name.contains("://")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_files_count_as_content() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("requirements.txt", "-r base.txt # first\n-c https://x/y.txt\nfastapi\n");
        write("base.txt", "uvicorn==0.1\n-r requirements.txt\n");
        let with = |options| Made::of(&dir.path().join("requirements.txt"), options, "python3").unwrap();
        let wanted = || with(Options::default());
        let names = ["dev".to_owned()];
        let (groups, extras) = (Options { groups: &names, extras: &[] }, Options { groups: &[], extras: &names });
        assert!(wanted() != with(groups) && wanted() != with(extras) && with(groups) != with(extras));
        let before = wanted();
        assert_eq!(before, wanted());
        write("base.txt", "uvicorn==0.2\n-r requirements.txt\n");
        assert_ne!(before, wanted());
    }

    #[test]
    fn only_local_includes_are_followed() {
        assert_eq!(included("  --requirement=a.txt"), Some("a.txt"));
        assert_eq!(included("-ra.txt"), Some("a.txt"));
        assert_eq!(included("-c c.txt"), Some("c.txt"));
        assert_eq!(included("-r https://x/a.txt"), None);
        assert_eq!(included("requests"), None);
    }

    #[test]
    fn what_we_did_not_begin_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let venv = dir.path().join("venv");
        assert_eq!(State::of(&venv), State::Absent);
        std::fs::create_dir(&venv).unwrap();
        assert_eq!(State::of(&venv), State::Absent);
        std::fs::write(venv.join("pyvenv.cfg"), "").unwrap();
        assert_eq!(State::of(&venv), State::Foreign);
        begin(&venv).unwrap();
        assert_eq!(State::of(&venv), State::Begun);
    }
}
