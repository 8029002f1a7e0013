//! `[tool.tandem]` in `pyproject.toml`.

use std::fs;

use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::Tandem;

/// A project whose configuration is in `pyproject.toml`, beside what others have there.
fn project() -> Project {
    let project = Project::app("plain:app");
    let file = project.dir().join("tandem.toml");
    let keys = fs::read_to_string(&file).unwrap();
    fs::remove_file(file).unwrap();
    project.write("pyproject.toml", &format!("{OTHERS}[tool.tandem]\n{keys}workers.count = 1\n"));
    project
}

/// Six lines of no interest to Tandem.
const OTHERS: &str =
    "[project]\nname = \"shop\"\nversion = \"1\"\n[tool.ruff]\nline-length = 100\n[tool.pytest.ini_options]\n";

#[test]
fn a_project_runs_from_its_pyproject() {
    let project = project();
    let companion = "[[tool.tandem.process]]\nname = \"clock\"\ncommand = [\"sleep\", \"1000\"]\n";
    let file = project.dir().join("pyproject.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + companion).unwrap();
    refusal::run(&project, &["check"]).expect(0, &["pyproject.toml:", "process.clock.command"]);
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.workers().len(), 1);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_mistake_there_is_told_with_its_line_and_its_headers() {
    let project = project();
    project.write("pyproject.toml", &format!("{OTHERS}[tool.tandem.workers]\ncuont = 2\n[tool.tandem.worker]\n"));
    let words =
        ["pyproject.toml:8: unknown key `workers.cuont`", "pyproject.toml:9: unknown section [tool.tandem.worker]"];
    let refused = refusal::run(&project, &["check"]);
    refused.expect(78, &words);
    refused.expect(78, &["did you mean [tool.tandem.workers]?", "under [tool.tandem.workers]"]);
}

#[test]
fn tandem_toml_wins_and_names_the_other() {
    let project = project();
    project.write("tandem.toml", "workers.app = 'plain:app'\n");
    let checked = refusal::run(&project, &["check"]);
    checked.expect(0, &["tandem.toml is read; [tool.tandem] in pyproject.toml has no effect"]);
    // Others' tables are nothing to speak of.
    project.write("pyproject.toml", OTHERS);
    let checked = refusal::run(&project, &["check"]);
    checked.expect(0, &[]);
    assert!(!checked.said.contains("pyproject"), "{}", checked.said);
}

#[test]
fn a_broken_pyproject_is_an_error_only_where_tandem_is_in_it() {
    let project = project();
    project.write("pyproject.toml", "[project\nname = shop\n[tool.tandem.workers]\napp = 'plain:app'\n");
    refusal::run(&project, &["check"]).expect(78, &["pyproject.toml:1: not TOML"]);
    project.write("tandem.toml", "workers.app = 'plain:app'\n");
    project.write("pyproject.toml", "[project\nname = shop\n");
    refusal::run(&project, &["check"]).expect(0, &["workers.app"]);
}

#[test]
fn a_pyproject_that_is_named_must_have_the_table() {
    let project = project();
    project.write("pyproject.toml", OTHERS);
    let refused = refusal::run(&project, &["check", "--config", "pyproject.toml"]);
    refused.expect(78, &["pyproject.toml: has no table [tool.tandem]"]);
}
