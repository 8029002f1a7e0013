//! An environment that is made beside the one in use, and takes its place when workers run in it (`tandem deploy`).
//!
//! The environment of running workers must not change under them: they import modules as late as in a request. So the next
//! one gets a directory of its own, `venv.1`, and a file beside them (`.venv.current`) names the one in use, if it is not
//! `venv`. The one before it stays, for the workers that still leave and for the way back.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::make::{self, beside};
use super::marker::{Made, State};
use super::project::Options;
use super::{cannot_create, interpreter};
use crate::config::Python;
use crate::durable::{self, WriteOptions};
use crate::exit::{Code, code_of};
use crate::install::lock;

/// The environment in use, where `base` is the one of the configuration.
pub(super) fn in_use(base: &Path) -> PathBuf {
    let named = std::fs::read_to_string(beside(base, "current")).unwrap_or_default();
    let place = base.with_file_name(named.trim());
    let is_there = number(base, &place).is_some() && matches!(State::of(&place), State::Made(_));
    if is_there { place } else { base.to_owned() }
}

/// The number of the environment in `place`, if it is one beside `base`.
fn number(base: &Path, place: &Path) -> Option<u32> {
    let (first, name) = (base.file_name()?.to_str()?, place.file_name()?.to_str()?);
    if place.parent() != base.parent() {
        return None;
    }
    name.strip_prefix(first)?.strip_prefix('.')?.parse().ok()
}

/// The environments beside `base`, whole or begun.
fn others(base: &Path) -> Vec<PathBuf> {
    let entries = base.parent().and_then(|dir| dir.read_dir().ok()).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| number(base, path).is_some()).collect();
    found.sort();
    found
}

/// An environment for the requirements as they are now, whole and not in use yet.
#[derive(Clone, Debug)]
pub struct Next {
    base: PathBuf,
    place: PathBuf,
}

/// The requirements that the environment in use was not made from, if Tandem makes it and they have changed.
///
/// # Errors
/// The requirements cannot be read.
pub fn changed(python: &Python, state_dir: &Path, directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let base = super::base(python, state_dir, directory);
    let Some(requirements) = python.requirements.as_ref().map(|file| directory.join(file)) else { return Ok(None) };
    let (place, wanted) = (in_use(&base), Made::wanted(&requirements, Options::of(python), python)?);
    let state = State::of(&place);
    let is_ours = python.managed && state != State::Foreign;
    Ok((is_ours && !state.is_made(&place, &wanted)).then_some(requirements))
}

/// Make the environment for the requirements as they are now, beside the one in use; one that was made before is taken.
///
/// # Errors
/// As [`super::ensure`]; the one in use is as it was.
pub async fn make_next(python: &Python, state_dir: &Path, directory: &Path) -> anyhow::Result<Next> {
    let directory = &std::path::absolute(directory).context("find the current directory")?;
    let state_dir = std::path::absolute(state_dir).context("find the current directory")?;
    let base = super::base(python, &state_dir, directory);
    let requirements = python.requirements.as_ref().map(|file| directory.join(file)).context("no requirements")?;
    let wanted = Made::wanted(&requirements, Options::of(python), python)?;
    let locked = lock(&beside(&base, "lock"), "make the Python environment", python.limit).await;
    let _lock = locked.map_err(|error| match code_of(&error) {
        Code::CannotCreate => error.context(cannot_create(base.parent().unwrap_or(directory))),
        _ => error,
    })?;
    let used = in_use(&base);
    let mut there = others(&base);
    there.push(base.clone());
    if let Some(place) = there.iter().find(|place| **place != used && State::of(place).is_made(place, &wanted)) {
        return Ok(Next { place: place.clone(), base });
    }
    // What a deployment that was killed left.
    for begun in there.iter().filter(|place| **place != used && State::of(place) == State::Begun) {
        make::recover(begun).with_context(|| cannot_create(begun))?;
    }
    let highest = there.iter().filter_map(|place| number(&base, place)).max().unwrap_or(0);
    let mut name = base.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", highest + 1));
    let place = base.with_file_name(name);
    make::make(python, &place, &requirements, wanted, directory).await?;
    Ok(Next { base, place })
}

impl Next {
    pub fn python(&self) -> PathBuf {
        interpreter(&self.place)
    }

    /// Let it be the one in use from now on, after a restart too. Of the others the last one stays, and where not all workers
    /// have `moved` into this one, all do.
    ///
    /// # Errors
    /// The file that names it cannot be written; then the one before is still the one in use.
    pub fn adopt(self, moved: bool) -> io::Result<()> {
        let before = in_use(&self.base);
        let pointer = beside(&self.base, "current");
        if self.place == self.base {
            durable::remove(&pointer)?;
        } else {
            let name = self.place.file_name().unwrap_or_default().to_string_lossy();
            durable::replace(&pointer, format!("{name}\n").as_bytes(), &WriteOptions::default().mode(0o644))?;
        }
        for old in others(&self.base).iter().chain([&self.base]).filter(|_| moved) {
            let is_ours = matches!(State::of(old), State::Made(_) | State::Begun);
            if *old != before && *old != self.place && is_ours {
                make::discard(old)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::marker;
    use super::*;

    #[test]
    fn the_environment_in_use_is_the_one_that_is_named_and_whole() {
        let temp = tempfile::tempdir().unwrap();
        let base = temp.path().join("venv");
        let make = |name: &str| {
            let place = temp.path().join(name);
            std::fs::create_dir_all(place.join("bin")).unwrap();
            std::fs::write(place.join("bin/python"), "").unwrap();
            std::fs::write(temp.path().join("requirements.txt"), "uvicorn\n").unwrap();
            Made::of(&temp.path().join("requirements.txt"), Options::default(), "python3")
                .unwrap()
                .write(&place)
                .unwrap();
            Next { base: base.clone(), place }
        };
        assert_eq!(in_use(&base), base);
        let (first, one, two) = (make("venv"), make("venv.1"), make("venv.2"));
        one.clone().adopt(true).unwrap();
        assert_eq!(in_use(&base), one.place);
        assert!(base.exists() && !two.place.exists(), "the last one stays, and no other");
        let three = make("venv.3");
        three.clone().adopt(true).unwrap();
        assert!(in_use(&base) == three.place && one.place.exists() && !base.exists());
        // The way back, and to the first place.
        one.clone().adopt(true).unwrap();
        assert_eq!(in_use(&base), one.place);
        drop(first);
        make("venv").adopt(true).unwrap();
        assert_eq!(in_use(&base), base);
        // What is named is not whole, or is none.
        for (named, begun) in
            [("venv.7", true), ("venv.8", false), ("elsewhere", true), ("../venv.1", false), ("", false)]
        {
            std::fs::write(beside(&base, "current"), named).unwrap();
            if begun {
                std::fs::create_dir_all(base.with_file_name(named)).unwrap();
                marker::begin(&base.with_file_name(named)).unwrap();
            }
            assert_eq!(in_use(&base), base, "{named}");
        }
        assert_eq!(others(&base).len(), 2);
    }
}
