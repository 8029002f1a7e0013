//! Environments made with the real venv, pip and package index; each test in a directory of its own.

use std::path::PathBuf;
use std::time::Duration;

use super::choose::Way;
use super::*;
use crate::config::Installer;
use crate::exit::code_of;
use crate::forks::script;

/// A project with requirements and the settings that make its environment.
struct Project {
    dir: tempfile::TempDir,
    python: Python,
}

impl Project {
    fn new(requirements: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("requirements.txt"), requirements).unwrap();
        let python = Python {
            interpreter: "python3".into(),
            requirements: Some("requirements.txt".into()),
            venv: None,
            groups: Vec::new(),
            extras: Vec::new(),
            managed: true,
            installer: Installer::Pip,
            limit: Duration::from_secs(300),
            wanted: None,
        };
        Self { dir, python }
    }

    async fn ensure(&self) -> anyhow::Result<Environment> {
        ensure(&self.python, &self.state(), self.dir.path()).await
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join(".tandem")
    }

    fn venv(&self) -> PathBuf {
        self.state().join("venv")
    }

    fn require(&self, requirements: &str) {
        std::fs::write(self.dir.path().join("requirements.txt"), requirements).unwrap();
    }

    /// Names beside the environment, without the lock.
    fn beside(&self) -> Vec<String> {
        let names = self.state().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| ![".gitignore", ".venv.lock", "venv"].contains(&&**name)).collect()
    }
}

/// A wheel that is called uvicorn, so that tests need no index; `module` is what `import uvicorn` runs.
fn local_uvicorn(project: &Project, module: &str) {
    const INFO: &str = "uvicorn-0.dist-info";
    let file = std::fs::File::create(project.dir.path().join("uvicorn-0-py3-none-any.whl")).unwrap();
    let mut wheel = zip::ZipWriter::new(file);
    for (name, content) in [
        ("uvicorn.py".to_owned(), module),
        (format!("{INFO}/METADATA"), "Metadata-Version: 2.1\nName: uvicorn\nVersion: 0\n"),
        (format!("{INFO}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{INFO}/RECORD"), ""),
    ] {
        wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut wheel, content.as_bytes()).unwrap();
    }
    wheel.finish().unwrap();
}

#[tokio::test]
async fn made_once_by_two_starts_at_once_then_reused_then_remade_when_requirements_change() {
    let project = Project::new("uvicorn==0.30.0\n");
    let (one, two) = tokio::join!(project.ensure(), project.ensure());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(one.made != two.made, "one makes, the other waits for it");
    assert_eq!(one.python, project.venv().join("bin/python"));

    let extra = project.venv().join("extra");
    std::fs::write(&extra, "only here as long as nobody touches the environment").unwrap();
    let begin = std::time::Instant::now();
    let again = project.ensure().await.unwrap();
    eprintln!("reuse: {:?}", begin.elapsed());
    assert!(!again.made && extra.exists());

    // A change that cannot be installed: an error, and the old environment is as it was.
    project.require("uvicorn==0.30.0\nno-such-package-of-tandem==1\n");
    let error = project.ensure().await.unwrap_err();
    assert_eq!(code_of(&error), Code::Config, "{error:#}");
    assert!(error.to_string().contains("no-such-package-of-tandem"), "{error}");
    assert!(extra.exists() && project.beside().is_empty(), "{:?}", project.beside());
    project.require("uvicorn==0.30.0\n");
    assert!(!project.ensure().await.unwrap().made);

    project.require("uvicorn==0.30.1\n");
    assert!(project.ensure().await.unwrap().made);
    assert!(!extra.exists() && project.beside().is_empty());
}

#[tokio::test]
async fn what_a_killed_making_left_is_made_from_scratch() {
    let project = Project::new("./uvicorn-0-py3-none-any.whl\n");
    local_uvicorn(&project, "");
    let site = project.venv().join("lib/half");
    std::fs::create_dir_all(&site).unwrap();
    marker::begin(&project.venv()).unwrap();
    std::fs::create_dir_all(project.state().join(".venv.removed/lib")).unwrap();
    assert!(project.ensure().await.unwrap().made);
    assert!(!site.exists() && project.beside().is_empty());

    // Killed while the old one stood aside: it comes back, and is what was wanted.
    crate::durable::rename(&project.venv(), &project.state().join(".venv.previous")).unwrap();
    std::fs::create_dir(project.venv()).unwrap();
    marker::begin(&project.venv()).unwrap();
    assert!(!project.ensure().await.unwrap().made);
    assert!(project.beside().is_empty());

    // An interpreter that went away, as after an upgrade of the system: made anew.
    std::fs::remove_file(project.venv().join("bin/python")).unwrap();
    assert!(project.ensure().await.unwrap().made);
}

#[tokio::test]
async fn without_uvicorn_the_error_says_so() {
    let project = Project::new("./uvicorn-0-py3-none-any.whl\n");
    local_uvicorn(&project, "import no_such_module_of_tandem\n");
    let error = project.ensure().await.unwrap_err();
    assert_eq!(code_of(&error), Code::Config);
    assert!(error.to_string().contains("no_such_module_of_tandem"), "{error}");
    assert!(!project.venv().exists() && project.beside().is_empty());
}

#[tokio::test]
async fn somebody_else_s_environment_is_never_touched() {
    let mut project = Project::new("uvicorn\n");
    project.python.venv = Some("theirs".into());
    let theirs = project.dir.path().join("theirs");
    std::fs::create_dir_all(theirs.join("bin")).unwrap();
    std::fs::write(theirs.join("pyvenv.cfg"), "").unwrap();
    assert_eq!(code_of(&project.ensure().await.unwrap_err()), Code::Config, "no bin/python");
    std::fs::write(theirs.join("bin/python"), "").unwrap();
    let expected = Environment { python: theirs.join("bin/python"), made: false };
    assert_eq!(project.ensure().await.unwrap(), expected);
    project.python.requirements = None;
    assert_eq!(project.ensure().await.unwrap(), expected);
    assert_eq!(theirs.read_dir().unwrap().count(), 2);
}

#[tokio::test]
async fn with_nothing_to_install_the_interpreter_itself_is_used() {
    let mut project = Project::new("");
    project.python.requirements = None;
    assert_eq!(project.ensure().await.unwrap().python, PathBuf::from("python3"));
    project.python.interpreter = "env/bin/python".into();
    assert_eq!(project.ensure().await.unwrap().python, project.dir.path().join("env/bin/python"));
    project.python.venv = Some("absent".into());
    assert_eq!(code_of(&project.ensure().await.unwrap_err()), Code::Config);
}

#[test]
fn the_way_is_what_the_interpreter_can() {
    let way = |said, uv| choose::judge(said, "python3", uv).unwrap();
    assert_eq!(way("3 11 False", true), Way::Uv);
    let outside = Way::PipOutside("/lib/pip/__pip-runner__.py".into());
    assert_eq!(way("3 11 False\n/lib/pip/__pip-runner__.py\n", false), outside);
    assert_eq!(way("3 11 True\n", false), Way::PipInside);
    choose::judge("3 11 False\n", "python3", false).unwrap_err();
}

#[tokio::test]
async fn interpreters_that_will_not_do_are_refused_in_words() {
    let mut project = Project::new("uvicorn\n");
    project.python.interpreter = "/nowhere/python".into();
    assert!(project.ensure().await.unwrap_err().to_string().contains("no Python interpreter"));

    project.python.interpreter = "./python".into();
    for (said, word) in [("3 8 True", "Python 3.8"), ("3 11 False", "python3.11-venv"), ("hello", "does not answer")] {
        script(&project.dir.path().join("python"), &format!("#!/bin/sh\necho {said}"));
        let error = project.ensure().await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(code_of(&error), Code::Config);
    }
    project.python.requirements = Some("absent.txt".into());
    assert_eq!(code_of(&project.ensure().await.unwrap_err()), Code::Config);
}
