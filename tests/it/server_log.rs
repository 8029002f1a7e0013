//! The lines of PostgreSQL's log in Tandem's: with the levels that they have for Tandem.

use serde_json::Value;

use crate::common::backups::as_superuser;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};

fn up(lines: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", &format!("workers.count = 1\nmigrations.run = 'none'\n{lines}"));
    let mut tandem = Tandem::start_with(&project, tandem::command(&project), &["up", "--log-format", "json"]);
    tandem.wait_ready();
    (project, tandem)
}

/// The level of the server's message with these words, in itself or in what belongs to it, once it is there.
fn level(tandem: &Tandem, words: &str) -> String {
    let mut found = None;
    wait_for(words, || {
        let lines: Vec<Value> = tandem.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of_server = |line: &&Value| {
            line["target"] == "output" && line["service.name"] == "postgres" && line.to_string().contains(words)
        };
        found = lines.iter().find(of_server).map(|line| line["level"].as_str().unwrap().to_owned());
        found.is_some()
    });
    found.unwrap()
}

/// What a client of the application's does wrong.
fn wrong(project: &Project, statement: &str) {
    assert!(!tandem::run(project, &["psql", "-Xqc", statement]).status.success());
}

#[test]
fn an_error_of_a_client_is_no_error_of_the_server_and_what_belongs_to_a_line_has_its_level() {
    let (project, mut tandem) = up("");
    wrong(&project, "SELECT 1/0 AS one");
    assert_eq!(level(&tandem, "division by zero"), "WARN");
    assert_eq!(level(&tandem, "\"postgres.statement\":\"SELECT 1/0 AS one\""), "WARN", "it belongs to the message");
    wrong(&project, "DO $$ BEGIN\nRAISE EXCEPTION 'FATAL:  forged' USING DETAIL = 'more', HINT = 'so';\nEND $$");
    let parts = [r#"postgres.detail":"more""#, r#"postgres.hint":"so""#, r#"postgres.context":"PL"#, "RAISE EXCEPTION"];
    for part in [&["FATAL:  forged"][..], &parts].concat() {
        assert_eq!(level(&tandem, part), "WARN", "{part}");
    }
    let refused = tandem::run(&project, &["psql", "-Xqc", "SELECT 1", "-d", "nosuch"]);
    assert!(!refused.status.success());
    assert_eq!(level(&tandem, "database \\\"nosuch\\\" does not exist"), "ERROR", "a session did not come to be");
    as_superuser(&project, "postgres", "DO $$ BEGIN RAISE LOG 'a word'; RAISE WARNING 'careful'; END $$");
    assert_eq!((level(&tandem, "\"a word\""), level(&tandem, "\"careful\"")), ("INFO".into(), "WARN".into()));
    assert!(!tandem.log().contains("00000"), "the SQLSTATE of a success is not worth a word:\n{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_prefix_and_a_place_of_the_operators_own_hold_and_are_told() {
    let (project, mut tandem) = up("postgres.settings.log_line_prefix = 'mine %p %u@%d '");
    assert!(tandem.log().contains("log_line_prefix = \\\"mine %p %u@%d \\\" holds"), "{}", tandem.log());
    wrong(&project, "SELECT 1/0 AS one");
    assert_eq!(level(&tandem, "division by zero"), "WARN");
    assert!(tandem.log().contains("mine "), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let (project, mut tandem) =
        up("postgres.settings.logging_collector = 'on'\npostgres.settings.log_destination = 'jsonlog'");
    assert!(tandem.log().contains("sends the server's log elsewhere"), "{}", tandem.log());
    wrong(&project, "SELECT 1/0 AS one");
    let written = || {
        let files = std::fs::read_dir(project.data().join("log")).unwrap().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default()).collect::<String>()
    };
    wait_for("the line in the file", || written().contains("division by zero"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
