//! `tandem up --reload`: a saved source is a roll, and nobody notices but by what answers.

use std::fs;

use crate::common::project::{Project, root};
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1";

/// The application, which answers `/env` with its variables: `body` tells one version from another.
fn source(body: &str) -> String {
    let text = fs::read_to_string(root().join("tests/fixtures/apps/plain.py")).unwrap();
    text.replace("status, body = 200, \"ok\"", &format!("status, body = 200, \"{body}\""))
}

fn start(first: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", BARE);
    project.write("app/plain.py", first);
    project.write("app/.gitignore", "generated/\n");
    let mut command = tandem::command(&project);
    command.env("TANDEM_WORKERS__APP_DIR", project.dir().join("app")).env_remove("PYTHONDONTWRITEBYTECODE");
    let tandem = Tandem::start_with(&project, command, &["up", "--reload", "--log-format", "text"]);
    (project, tandem)
}

fn answers(tandem: &Tandem, body: &str) {
    wait_for(&format!("every answer {body:?}"), || {
        (0..6).all(|_| tandem.get("/").is_some_and(|(status, said)| (status, said.as_str()) == (200, body)))
    });
}

#[test]
fn a_saved_source_is_served_and_nobody_is_refused() {
    let (project, mut tandem) = start(&source("one"));
    tandem.wait_ready();
    answers(&tandem, "one");
    let members = [(Habit::Close, 2), (Habit::Busy, 1), (Habit::Idle, 2)];
    let crowd = Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", None, &members);
    project.write("app/plain.py", &source("two"));
    answers(&tandem, "two");

    // Not a source, and ignored: neither rolls, so that the next roll is the next change's.
    let rolls = || tandem.log().matches("changed: the workers are replaced").count();
    assert_eq!(rolls(), 1, "{}", tandem.log());
    project.write("app/notes.txt", "nothing");
    project.write("app/generated/model.py", "nothing = 1\n");
    // An editor's way: written beside, then renamed.
    project.write("app/.plain.py.swp", &source("three"));
    fs::rename(project.dir().join("app/.plain.py.swp"), project.dir().join("app/plain.py")).unwrap();
    answers(&tandem, "three");
    assert_eq!(rolls(), 2, "{}", tandem.log());

    // Saved again and again: the last one is what serves.
    for body in ["four", "five", "six"] {
        project.write("app/plain.py", &source(body));
    }
    answers(&tandem, "six");
    assert_eq!(crowd.finish().failures(), Vec::<String>::new(), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_syntax_error_keeps_the_old_code_and_prints_the_traceback() {
    let (project, mut tandem) = start(&source("good"));
    tandem.wait_ready();
    answers(&tandem, "good");
    let crowd = Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", Some("good"), &[(Habit::Close, 2)]);
    project.write("app/plain.py", "def app(:\n");
    tandem.wait_log("the roll is given up");
    let log = tandem.log();
    assert!(log.contains("SyntaxError") && log.contains("plain.py\", line 1"), "{log}");
    answers(&tandem, "good");
    assert_eq!(crowd.finish().failures(), Vec::<String>::new(), "{}", tandem.log());
    project.write("app/plain.py", &source("mended"));
    answers(&tandem, "mended");
    assert_eq!(tandem.log().matches("SyntaxError").count(), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_first_start_with_a_syntax_error_waits_for_the_mended_file() {
    let (project, mut tandem) = start("def app(:\n");
    tandem.wait_log("SyntaxError");
    project.write("app/plain.py", &source("mended"));
    tandem.wait_ready();
    answers(&tandem, "mended");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}
