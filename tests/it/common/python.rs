//! Python environments with some packages and without others, as a user has them, and the pytest in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::project::{python_with, root, venv_of};
use super::tandem::command_as;

/// An environment with the packages of `tests/fixtures/pytest.txt`, made by the first test that asks.
fn everything() -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(python_with("pytest", "pytest.txt"));
    venv_of("pytest")
}

/// An environment with what drives a browser.
pub fn browser() -> PathBuf {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(python_with("browser", "browser.txt"));
    venv_of("browser")
}

/// The YAML document at `path`.
pub async fn yaml(path: &Path) -> serde_json::Value {
    let python = python_with("kubernetes", "kubernetes.txt").await;
    let program = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    #[expect(clippy::disallowed_methods, reason = "a test reads a file")]
    let output = Command::new(python).args(["-c", program]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Make a virtual environment in `venv` that has all packages but `without`, and what the wheel installs: the binary, and the
/// plugin with its entry point.
pub fn environment_without(venv: &Path, without: &[&str]) {
    let all = everything();
    fs::create_dir_all(venv.join("bin")).unwrap();
    fs::copy(all.join("pyvenv.cfg"), venv.join("pyvenv.cfg")).unwrap();
    symlink(all.join("bin/python").canonicalize().unwrap(), venv.join("bin/python")).unwrap();
    symlink(env!("CARGO_BIN_EXE_tandem"), venv.join("bin/tandem")).unwrap();
    let lib = all.join("lib").read_dir().unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    let site = venv.join("lib").join(lib.file_name().unwrap()).join("site-packages");
    fs::create_dir_all(&site).unwrap();
    for entry in lib.join("site-packages").read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let is_of = |package: &&str| {
            name.strip_prefix(*package).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
        };
        if !without.iter().any(is_of) {
            symlink(entry.path(), site.join(entry.file_name())).unwrap();
        }
    }
    install_plugin(&site);
}

/// What an installer makes of the wheel's part for pytest.
fn install_plugin(site: &Path) {
    let package = site.join("pytest_tandem");
    fs::create_dir(&package).unwrap();
    for entry in root().join("src/harness/python/pytest_tandem").read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, package.join(path.file_name().unwrap())).unwrap();
        }
    }
    let about = site.join("tandem_wheel-1.dist-info");
    fs::create_dir(&about).unwrap();
    fs::write(about.join("METADATA"), "Metadata-Version: 2.1\nName: tandem-wheel\nVersion: 1\n").unwrap();
    fs::write(about.join("entry_points.txt"), "[pytest11]\npytest_tandem = pytest_tandem\n").unwrap();
    fs::write(about.join("RECORD"), "pytest_tandem/__init__.py,,\n").unwrap();
}

/// `python -m pytest` of the environment `venv` in the directory `dir`, as an editor starts it: nothing is activated.
pub fn pytest(venv: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = command_as(&venv.join("bin/python").display().to_string(), dir);
    command.args(["-m", "pytest", "-p", "no:cacheprovider"]).args(args);
    command
}
