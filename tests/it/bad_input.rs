//! What goes wrong at three in the morning: each mistake gets an exit code and words that help.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem};
use crate::common::{ports, refusal};

/// One worker is enough for everything here.
fn project() -> Project {
    Project::app_with("plain:app", "workers.count = 1")
}

fn hold(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
}

/// How the holder of a port is named: this very process.
fn ourselves() -> String {
    format!("(pid {})", std::process::id())
}

#[test]
fn a_taken_application_port_names_its_holder() {
    let project = project();
    let _held = hold(project.app);
    let port = format!("port {} is taken by", project.app);
    refusal::up(&project).expect(75, &[&port, &ourselves(), "workers.listen"]);
}

#[test]
fn a_taken_health_port_names_its_holder() {
    let project = project();
    let _held = hold(project.health);
    let port = format!("port {} is taken by", project.health);
    refusal::up(&project).expect(75, &[&port, &ourselves(), "health.listen"]);
}

#[test]
fn postgres_moves_from_its_default_port_and_says_so() {
    let project = project().without("postgres.port");
    // Somebody else may have it already; taken it is, either way.
    let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, 5432));
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    let told = log.lines().find(|line| line.contains("port 5432 is taken")).expect(&log);
    let (_, rest) = told.split_once("PostgreSQL listens on ").expect(told);
    let port = rest.split_whitespace().next().unwrap();
    assert_ne!(port, "5432");
    let url = refusal::run(&project, &["url"]);
    url.expect(0, &[&format!("127.0.0.1:{port}/")]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_postgres_port_that_was_chosen_does_not_move() {
    let project = project();
    let _held = hold(project.postgres);
    let taken = format!("port {} is taken by", project.postgres);
    refusal::up(&project).expect(75, &[&taken, &ourselves(), "postgres.port"]);

    // The environment is a choice as well.
    let other = ports::free_port();
    let _other = hold(other);
    let mut command = tandem::command(&project);
    command.env("POSTGRES_PORT", other.to_string());
    refusal::up_as(&project, command).expect(75, &[&format!("port {other} is taken by")]);
}

#[test]
fn every_mistyped_key_is_told_at_once_with_its_line() {
    let project = project();
    project.write(
        "tandem.toml",
        "[workers]\napp = 'plain:app'\ncuont = 4\nready_limit = 'soon'\n\n[postgers]\nport = 5432\n\n[health]\nlisten = 8001.5\n",
    );
    let refused = refusal::up(&project);
    refused.expect(
        78,
        &["tandem.toml:3", "workers.count", "tandem.toml:4", "soon", "tandem.toml:6", "[postgres]", "tandem.toml:10"],
    );
    assert_eq!(refusal::names(&project.state()), [""; 0], "a wrong configuration has no side effect");
    refusal::run(&project, &["check"]).expect(78, &["tandem.toml:3", "tandem.toml:6"]);
}

#[test]
fn a_file_that_is_not_toml_is_told_by_its_line_and_never_quoted() {
    let project = project();
    project.write("tandem.toml", "[postgres]\npassword = \"hunter2\n[workers\n");
    let refused = refusal::up(&project);
    refused.expect(78, &["tandem.toml:2", "not TOML"]);
    assert!(!refused.said.contains("hunter2"), "{}", refused.said);
}

#[test]
fn bad_usage_is_64_and_a_missing_file_78() {
    let project = project();
    refusal::run(&project, &["upp"]).expect(64, &["upp"]);
    refusal::run(&project, &["up", "--wrokers", "3"]).expect(64, &["--wrokers"]);
    refusal::run(&project, &["--set", "postgres.port", "check"]).expect(64, &["KEY=VALUE"]);
    refusal::run(&project, &["--config", "absent.toml", "check"]).expect(78, &["absent.toml"]);
}

#[test]
fn a_second_up_is_told_who_holds_the_state_directory() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let host = nix::unistd::gethostname().unwrap();
    let holder = format!("pid {} on host {}, `tandem up`, since 20", tandem.pid(), host.display());
    let mut second = Tandem::start(&project);
    assert_eq!(second.wait_code(), 73, "{}", second.log());
    assert!(second.log().contains(&holder), "{}", second.log());
    assert_eq!(tandem.ready(), Some(true), "the first did not notice");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_missing_interpreter_is_named_with_its_key() {
    let project = project().without("python.venv");
    project.configure("python.interpreter = '/nowhere/python3'");
    refusal::up(&project).expect(78, &["/nowhere/python3", "python.interpreter"]);
}

#[test]
fn a_broken_requirements_file_is_quoted_and_leaves_no_environment() {
    let project = project().without("python.venv").without("python.requirements");
    project.configure("python.requirements = 'requirements.txt'");
    project.write("requirements.txt", "fastapi ===== what\n");
    let refused = refusal::up(&project);
    assert_ne!(refused.code, 0);
    assert!(refused.said.contains("requirements.txt"), "{}", refused.said);
    assert!(!project.state().join("venv").exists(), "{:?}", refusal::names(&project.state()));

    let project = self::project().without("python.requirements");
    project.configure("python.requirements = 'absent.txt'");
    refusal::up(&project).expect(78, &["absent.txt", "python.requirements"]);
}

#[test]
fn a_damaged_password_file_says_what_to_do() {
    let project = project();
    project.write(".tandem/run/password", "");
    for damage in [&b"\xff\xfe\x00"[..], b"half a passw"] {
        fs::write(project.state().join("run/password"), damage).unwrap();
        refusal::up(&project).expect(73, &["run/password", "remove it"]);
    }
    // As it says.
    fs::remove_file(project.state().join("run/password")).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
