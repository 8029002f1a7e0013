//! pytest fixtures whose database lives longer than one test.

use std::fs;

use crate::common::harness::Suite;
use crate::common::project::root;
use crate::common::refusal::{Refusal, said};

fn pytest(suite: &Suite, args: &[&str]) -> Refusal {
    said(suite.command(&[&["--", "pytest", "-p", "no:cacheprovider"], args].concat()).output().unwrap())
}

#[test]
fn a_class_a_file_and_a_directory_can_have_a_database_each() {
    let suite = Suite::with("");
    fs::copy(root().join("tests/fixtures/harness/test_scopes.py"), suite.path("test_scopes.py")).unwrap();
    pytest(&suite, &["test_scopes.py"]).expect(0, &[" passed"]);
    pytest(&suite, &["-n", "2", "--dist", "loadfile", "test_scopes.py"]).expect(0, &[" passed"]);
}

#[test]
fn the_database_of_a_file_is_kept_when_one_of_its_tests_failed_and_of_no_other_file() {
    let suite = Suite::with("");
    suite.write(
        "test_bad.py",
        "def test_bad(database_url_module):\n    assert False\n\ndef test_good(database_url_module):\n    pass\n",
    );
    suite.write("test_good.py", "def test_good(database_url_module):\n    pass\n\nclass TestIt:\n    def test_it(self, database_url_class):\n        pass\n");
    let run = pytest(&suite, &["test_bad.py", "test_good.py"]);
    run.expect(1, &["database_url_module of test_bad.py\n    postgresql://", "databases kept by tandem"]);
    assert_eq!(run.said.matches("\n    postgresql://").count(), 1, "{}", run.said);
}
