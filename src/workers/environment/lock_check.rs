//! Whether a lock still belongs to its project: what `pyproject.toml` asks for is in it, in a version that fits.
//!
//! Each tool has a digest of its own for that, which changes with its versions. What a person sees is a dependency that was
//! added and is not installed: that is looked for.

use std::path::Path;

use super::locks::{self, Locked};
use super::project::normal;
use crate::exit::{Code, Failure};
use crate::project::{Manifest, Sort, versions};

/// Look whether the lock in the file `requirements`, if it is one, belongs to the project beside it.
///
/// # Errors
/// It does not, with the command that mends it; or it cannot be read.
pub(super) fn check(requirements: &Path) -> Result<(), Failure> {
    let sort = Sort::of(requirements);
    let Some(command) = mending(sort) else { return Ok(()) };
    let directory = requirements.parent().unwrap_or(Path::new(""));
    let manifest = manifest(sort, directory)?;
    if !manifest.is_there() {
        return Ok(());
    }
    let text = std::fs::read_to_string(requirements).unwrap_or_default();
    let locked = locks::read(sort, requirements, &text, &manifest)?;
    let asked = match sort {
        Sort::PipfileLock => of_pipfile(&manifest),
        _ => locks::asked_for(&manifest),
    };
    let Some(why) = asked.iter().find_map(|(name, versions)| lacks(&locked, name, versions.as_deref())) else {
        return Ok(());
    };
    let message = format!(
        "{} does not match {}: it asks for {why}; run `{command}`",
        requirements.display(),
        directory.join(manifest.file()).display()
    );
    Err(Failure::new(Code::Config, message))
}

/// What brings a lock up to date.
fn mending(sort: Sort) -> Option<&'static str> {
    match sort {
        Sort::UvLock => Some("uv lock"),
        Sort::PoetryLock => Some("poetry lock"),
        Sort::PdmLock => Some("pdm lock"),
        Sort::PipfileLock => Some("pipenv lock"),
        Sort::Lines | Sort::Project => None,
    }
}

/// The project's file, which a lock was made from.
pub(super) fn manifest(sort: Sort, directory: &Path) -> Result<Manifest, Failure> {
    let name = if sort == Sort::PipfileLock { "Pipfile" } else { "pyproject.toml" };
    Manifest::read(directory, Path::new(name)).map_err(|trouble| {
        let place = directory.join(trouble.seen.to_string());
        Failure::new(Code::Config, format!("{}: {}", place.display(), trouble.message))
    })
}

/// The packages of a Pipfile with their versions; `*` is any.
fn of_pipfile(pipfile: &Manifest) -> Vec<(String, Option<String>)> {
    let packages = pipfile.get(&["packages"]).and_then(|it| it.table()).into_iter().flatten();
    let always = packages.filter(|(_, item)| item.get(&["markers"]).is_none() && item.get(&["sys_platform"]).is_none());
    always
        .map(|(name, item)| {
            let versions = item.text().or_else(|| item.text_at(&["version"])).filter(|text| *text != "*");
            (normal(name), versions.map(str::to_owned))
        })
        .collect()
}

/// What of this the lock lacks, in words.
fn lacks(locked: &Locked, name: &str, versions: Option<&str>) -> Option<String> {
    let asked = format!("{name}{}", versions.unwrap_or_default());
    let mut found = locked.packages.iter().filter(|package| package.name == name).peekable();
    if found.peek().is_none() {
        return Some(format!("{asked}, which the lock lacks"));
    }
    let is_other = |version: &str| versions.is_some_and(|asked| versions::fits(asked, version) == Some(false));
    let others: Vec<&str> = found.map(|package| package.version.as_str()).collect();
    let all = others.iter().all(|version| is_other(version));
    all.then(|| format!("{asked}, and the lock has {}", others.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_that_a_lock_lacks_is_told_with_what_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let check = |name: &str| check(&dir.path().join(name)).map_err(|error| error.to_string());
        write(
            "uv.lock",
            "[[package]]\nname = 'fastapi'\nversion = '0.128.0'\n[[package]]\nname = 'x'\nversion = '1.5'\n",
        );
        assert_eq!(check("uv.lock"), Ok(()), "there is no project beside it");
        let project =
            |dependencies: &str| write("pyproject.toml", &format!("[project]\ndependencies = {dependencies}\n"));
        project("['FastAPI[all]>=0.100', \"tzdata; sys_platform == 'win32'\", 'x']");
        assert_eq!(check("uv.lock"), Ok(()));
        project("['fastapi', 'httpx>=0.28']");
        let said = check("uv.lock").unwrap_err();
        assert!(said.contains("asks for httpx>=0.28, which the lock lacks; run `uv lock`"), "{said}");
        project("['fastapi', 'x>=2']");
        let said = check("uv.lock").unwrap_err();
        assert!(said.contains("asks for x>=2, and the lock has 1.5; run `uv lock`"), "{said}");
        project("[fastapi");
        assert!(check("uv.lock").unwrap_err().contains("pyproject.toml:2: not TOML"));

        write("Pipfile", "[packages]\nfastapi = '*'\nhttpx = '>=0.28'\n");
        write("Pipfile.lock", "{\"default\": {\"fastapi\": {\"version\": \"==0.1\"}}}");
        assert!(check("Pipfile.lock").unwrap_err().contains("run `pipenv lock`"));
        write("requirements.txt", "x\n");
        assert_eq!(check("requirements.txt"), Ok(()));
    }
}
