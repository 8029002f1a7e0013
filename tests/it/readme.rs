//! What the README says is so: its commands, its promises and its paths.

use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

#[test]
fn every_promise_has_a_test_of_its_name() {
    let tests: Vec<String> = fs::read_dir(root().join("tests/it"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let text = readme();
    let (_, promises) = text.split_once("## What is promised").unwrap();
    let (promises, _) = promises.split_once("\n## ").unwrap_or((promises, ""));
    let rows = promises.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut count = 0;
    for row in rows {
        let names = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            let here = tests.iter().any(|text| text.contains(&format!("fn {name}()")));
            assert!(here, "the README promises `{name}`, which is no test");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} promises were read");
}

#[test]
fn continuous_integration_runs_the_readmes_test_command() {
    let text = readme();
    let command = text.lines().find(|line| line.starts_with("cargo test")).unwrap();
    let command = command.split('#').next().unwrap().trim();
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.lines().any(|line| line == command), ".ci/run does not run `{command}`");
}

#[test]
fn every_link_leads_to_a_file() {
    let text = readme();
    let links: Vec<&str> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() >= 4, "{links:?}");
    for link in links {
        assert!(root().join(link).exists(), "the README links to {link}, which is not there");
    }
}
