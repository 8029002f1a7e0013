//! pytest under `tandem test`, with nothing installed: `tests/fixtures/harness` holds the suites.

use std::fs;

use crate::common::harness::Suite;
use crate::common::project::root;
use crate::common::refusal::{Refusal, said};

/// A project with the suites of `tests/fixtures/harness`.
fn suite() -> Suite {
    let suite = Suite::with("");
    for entry in fs::read_dir(root().join("tests/fixtures/harness")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), suite.path(&entry.file_name().to_string_lossy())).unwrap();
        }
    }
    suite
}

/// `tandem test` with pytest and these arguments.
fn pytest(suite: &Suite, args: &[&str]) -> Refusal {
    said(suite.command(&[&["--", "pytest", "-p", "no:cacheprovider"], args].concat()).output().unwrap())
}

#[test]
fn each_pytest_test_has_a_fresh_database_and_the_read_only_ones_share_one() {
    let suite = suite();
    let files = ["test_isolation.py", "test_shared.py", "test_session.py", "test_engine.py"];
    let run = pytest(&suite, &[&["--strict-markers"], &files[..]].concat());
    run.expect(0, &["tandem: PostgreSQL at 127.0.0.1:", " passed"]);
    assert!(!run.said.contains("failed") && !run.said.contains("error"), "{}", run.said);
}

#[test]
fn without_a_command_pytest_runs_in_the_projects_environment() {
    let suite = Suite::with("");
    suite.write("test_one.py", "def test_one(database_url):\n    assert database_url.startswith('postgresql://')\n");
    said(suite.command(&[]).output().unwrap()).expect(0, &["1 passed"]);
    suite.write("test_two.py", "def test_two():\n    assert False\n");
    said(suite.command(&[]).output().unwrap()).expect(1, &["1 failed, 1 passed"]);
}

#[test]
fn xdist_workers_share_one_server() {
    let suite = suite();
    let run =
        pytest(&suite, &["-n", "3", "test_isolation.py", "test_shared.py", "test_session.py", "test_unittest.py"]);
    run.expect(0, &["3 workers", " passed"]);
}

#[test]
fn asynchronous_and_unittest_tests_have_databases_too() {
    let suite = suite();
    pytest(&suite, &["test_async.py", "test_unittest.py"]).expect(0, &[" passed"]);
}

#[test]
fn the_database_of_a_failed_pytest_test_is_kept_and_its_url_printed() {
    let suite = suite();
    for workers in ["0", "2"] {
        let run = pytest(&suite, &["-n", workers, "test_failing.py"]);
        run.expect(1, &["database kept: postgresql://", "databases kept by tandem", "--keep"]);
    }
    let run = said(suite.command(&["--keep-on-failure", "--", "pytest", "test_failing.py"]).output().unwrap());
    run.expect(1, &["of a failed test: postgresql://", "end it:  kill"]);
    let line = |start: &str| run.said.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap().to_owned();
    let (kept, end) = (line("of a failed test: "), line("end it:  "));
    let bare = Suite::bare();
    bare.run(&[], &format!("psql -XAtc 'SELECT count(*) > 0 FROM api_keys' '{kept}'")).expect(0, &["t\n"]);
    bare.run(&[], &end).expect(0, &[]);
}

#[test]
fn outside_tandem_test_the_fixtures_say_how_to_start_it() {
    let suite = suite();
    let script = "unset TANDEM_TEST_SOCKET; pytest -p no:cacheprovider -o tandem=false test_isolation.py";
    suite.run(&[], script).expect(1, &["start the tests with `tandem test -- pytest"]);
    suite.write("test_plain.py", "def test_plain():\n    pass\n");
    suite.run(&[], &script.replace("test_isolation", "test_plain")).expect(0, &["1 passed"]);
    let wrong = pytest(&suite, &["wrong_marker.py"]);
    wrong.expect(2, &["the only argument is shared=True"]);
}
