//! The databases of tests, found from outside their run: for a person who wants to look into one (`tandem psql --test`).
//!
//! A run that goes on is asked over its socket; one whose server was left running has written down what it kept.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::client::Client;
use super::place::{self, MEMORY};
use super::remains;
use crate::config::{Settings, temp_dir};
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;

/// In a run's directory: whose run it is, and which databases stay with its server.
const PROJECT: &str = "project";
const DATABASES: &str = "databases.json";
/// How long a run may take to say which databases it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Most names that are shown to choose from.
const SHOWN_MAX: usize = 20;

/// A database that a test has, or had when it failed.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct OfTest {
    /// What the test calls itself, as pytest does: `tests/test_orders.py::test_total`.
    pub test: String,
    /// Password included.
    pub url: String,
    pub failed: bool,
}

impl std::fmt::Debug for OfTest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OfTest").field("test", &self.test).field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl OfTest {
    /// The test's name, as a shell reads it.
    pub fn quoted(&self) -> String {
        shlex::try_quote(&self.test).map_or_else(|_| self.test.clone(), std::borrow::Cow::into_owned)
    }
}

/// How the databases are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Census {
    /// The session's own database.
    pub url: String,
    pub ready: usize,
    pub out: usize,
    /// URLs of those that are kept.
    pub kept: Vec<String>,
    /// Those that a test has, or had when it failed, as far as tests have said their names.
    #[serde(default)]
    pub of_tests: Vec<OfTest>,
    pub max_connections: u32,
}

/// Note in the run's directory `dir` whose it is.
pub fn note_project(dir: &Path, settings: &Settings) -> anyhow::Result<()> {
    let path = dir.join(PROJECT);
    fs::write(&path, settings.directory.as_os_str().as_encoded_bytes())
        .with_context(|| format!("write {}", path.display()))
}

/// Note in the run's directory `dir` which databases stay.
///
/// # Errors
/// They cannot be written down.
pub fn note(dir: &Path, of_tests: &[OfTest]) -> anyhow::Result<()> {
    let path = dir.join(DATABASES);
    let write = || {
        // It holds passwords.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(of_tests)?)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The database of the test that `name` means, in the newest run of this project that has one. An empty name means the one
/// test that failed.
///
/// # Errors
/// There is none, or `name` means several.
pub async fn find(settings: &Settings, name: &str) -> anyhow::Result<DatabaseUrl> {
    let state = Home::resolve(settings)?.state;
    let mut all = Vec::new();
    for dir in runs(settings, &state) {
        all.push(databases(&dir).await);
    }
    match choose(&all, name) {
        Ok(of_test) => DatabaseUrl::parse(&of_test.url).context("understand the URL of the test's database"),
        Err(why) => bail!(Failure::new(Code::Failed, why)),
    }
}

/// The directories of this project's runs, the newest first.
fn runs(settings: &Settings, state: &Path) -> Vec<PathBuf> {
    let memory = settings.test.dir.clone().unwrap_or_else(|| MEMORY.into());
    let roots = [memory, temp_dir(), state.to_path_buf()];
    let all = roots.iter().flat_map(|root| place::entries(&place::base_in(root), place::RUN).collect::<Vec<_>>());
    let is_ours = |dir: &PathBuf| {
        fs::read(dir.join(PROJECT)).is_ok_and(|project| project == settings.directory.as_os_str().as_encoded_bytes())
    };
    let began = |dir: &PathBuf| dir.join(PROJECT).metadata().and_then(|meta| meta.modified()).ok();
    let mut runs: Vec<_> = all.filter(is_ours).collect();
    runs.sort_by_key(|dir| std::cmp::Reverse(began(dir)));
    runs
}

/// The tests' databases of the run in `dir`, if its server runs.
async fn databases(dir: &Path) -> Vec<OfTest> {
    if !remains::is_served(dir) {
        return Vec::new();
    }
    let socket = Home::at(dir, None).control;
    if let Ok(Ok(census)) = timeout(ANSWER_LIMIT, Client::new(socket).census()).await {
        return census.of_tests;
    }
    let noted = fs::read(dir.join(DATABASES)).unwrap_or_default();
    serde_json::from_slice(&noted).unwrap_or_default()
}

/// The one that `name` means among the databases of several runs; or what to say.
fn choose<'a>(runs: &'a [Vec<OfTest>], name: &str) -> Result<&'a OfTest, String> {
    let ends = |of_test: &OfTest| of_test.test.strip_suffix(name).is_some_and(|rest| rest.ends_with("::"));
    // What is exact comes first, then what failed.
    let ways: [&dyn Fn(&OfTest) -> bool; 3] =
        [&|of_test| of_test.test == name, &|of_test| ends(of_test), &|of_test| of_test.test.contains(name)];
    for run in runs {
        for way in &ways {
            for failed in [true, false] {
                let found: Vec<_> = run.iter().filter(|of_test| of_test.failed == failed && way(of_test)).collect();
                match found.as_slice() {
                    [] => {}
                    [one] => return Ok(one),
                    several => {
                        let names = several.iter().take(SHOWN_MAX);
                        let names: Vec<_> =
                            names.map(|of_test| format!("  tandem psql --test {}", of_test.quoted())).collect();
                        return Err(format!("several tests have a database; which one?\n{}", names.join("\n")));
                    }
                }
            }
        }
    }
    let whose = if name.is_empty() { "no test".to_owned() } else { format!("no test called {name:?}") };
    Err(format!(
        "{whose} has a database now: `tandem test --keep-on-failure`, and `pytest --tandem-keep`, keep those of failed tests when \
         the tests are over"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_meant_by_its_name_or_a_part_of_it() {
        let of = |test: &str, failed| OfTest { test: test.into(), url: test.into(), failed };
        let newest = vec![of("a/test_x.py::test_one", true), of("a/test_x.py::test_one_more", false)];
        let older = vec![of("a/test_x.py::test_two", true), of("b/test_x.py::test_two", true)];
        let runs = [newest, older];
        let chosen = |name| choose(&runs, name).map(|of_test| of_test.test.as_str());
        assert_eq!(chosen(""), Ok("a/test_x.py::test_one"), "the one that failed, in the newest run");
        assert_eq!(chosen("test_one"), Ok("a/test_x.py::test_one"));
        assert_eq!(chosen("more"), Ok("a/test_x.py::test_one_more"));
        assert_eq!(chosen("b/test_x.py::test_two"), Ok("b/test_x.py::test_two"));
        let several = chosen("test_two").unwrap_err();
        assert!(several.contains("--test a/test_x.py::test_two\n  tandem psql --test b/"), "{several}");
        assert!(chosen("test_three").unwrap_err().contains("--keep-on-failure"));
        assert_eq!(of("t.py::test[a b]", true).quoted(), "'t.py::test[a b]'");
    }
}
