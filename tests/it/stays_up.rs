//! It stays up: what happens when workers die, cannot start, or Tandem itself is killed.

use std::fs;

use crate::common::project::{Project, root};
use crate::common::tandem::{self, Tandem, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// No database work of its own, so that a test is about its workers.
const BARE: &str = "migrations.run = 'none'";

fn slay(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_killed_worker_comes_back_while_the_others_serve() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let before = tandem.workers();
    assert_eq!(before.len(), 4);

    slay(before[0]);
    wait_for("a fourth ready worker, and not the killed one", || {
        assert_eq!(tandem.get("/").map(|(status, _)| status), Some(200), "the others serve:\n{}", tandem.log());
        let now = tandem.workers();
        now.len() == 4 && !now.contains(&before[0])
    });

    let now = tandem.workers();
    assert!(before[1..].iter().all(|pid| now.contains(pid)), "the others were left alone: {before:?} {now:?}");
    let health = tandem.health();
    assert_eq!(health["status"], "healthy", "{health:#}");
    let slots = health["workers"].as_array().unwrap();
    let restarts: Vec<_> = slots.iter().map(|slot| slot["restarts"].as_u64().unwrap()).collect();
    assert_eq!(restarts, [1, 0, 0, 0], "{health:#}");
    assert!(slots[0]["last_exit"].to_string().contains("SIGKILL"), "{health:#}");
    assert!(slots[1]["last_exit"].is_null(), "{health:#}");
    assert!(tandem.log().contains("ended: SIGKILL; restart"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_worker_that_ends_by_itself_comes_back_too() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 1"));
    let mut tandem = Tandem::up(&project);
    let first = tandem.workers()[0];
    tandem.get("/exit?code=7");
    wait_for("another worker", || tandem.workers().first().is_some_and(|&pid| pid != first));
    let health = tandem.health();
    assert!(health["workers"][0]["last_exit"].to_string().contains('7'), "{health:#}");
    assert_eq!(tandem.get("/").unwrap().0, 200);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_startup_that_fails_over_and_over_trips_the_breaker() {
    let lines = format!("{BARE}\nworkers.count = 2\nworkers.restart_intensity = 2");
    let project = Project::app_with("broken_lifespan:app", &lines);
    let mut tandem = Tandem::start(&project);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    let (_, error) = log.rsplit_once("gave up").unwrap_or_else(|| panic!("no word of the end:\n{log}"));
    assert!(error.contains("broken_lifespan: the exchange refused the connection"), "its last lines:\n{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn an_app_that_cannot_be_imported_shows_its_traceback_once() {
    let project = Project::app_with("broken_import:app", BARE);
    let mut tandem = Tandem::start(&project);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    // The last word says why, wherever the traceback is by then.
    let (_, last) = log.split_once("broken_import:app cannot be imported (the traceback is above)").unwrap();
    assert!(last.starts_with(": RuntimeError: broken_import: the setting TRADING_KEY is missing"), "{log}");
    assert_eq!(log.matches("Traceback (most recent call last)").count(), 1, "{log}");
    assert!(log.contains("in load_settings") && !log.contains("launcher.py"), "the app's own frames:\n{log}");
    assert!(!log.contains("; restart in"), "it is not tried again:\n{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn one_broken_slot_rests_while_the_others_serve() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.restart_period = '1s'"));
    let apps = root().join("tests/fixtures/apps");
    let (good, broken) = ("plain.py", "broken_import.py");
    let deploy = |name: &str| project.write("app/plain.py", &fs::read_to_string(apps.join(name)).unwrap());
    deploy(good);
    let mut command = tandem::command(&project);
    command.env("TANDEM_WORKERS__APP_DIR", project.dir().join("app")).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    wait_for("four workers", || tandem.workers().len() == 4);

    deploy(broken);
    slay(tandem.workers()[2]);
    tandem.wait_log("TRADING_KEY is missing");
    wait_for("a degraded service", || {
        let health = tandem.health();
        health["status"] == "degraded" && health["workers_ready"] == 3
    });
    assert_eq!((tandem.ready(), tandem.get("/").unwrap().0), (Some(true), 200));

    deploy(good);
    wait_for("the slot's next try", || tandem.workers().len() == 4);
    assert_eq!(tandem.health()["status"], "healthy");
    assert_eq!(tandem.log().matches("RuntimeError: broken_import: the setting").count(), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn killed_with_9_tandem_leaves_no_process_behind() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let grandchild: i32 = tandem.get("/spawn").unwrap().1.parse().unwrap();
    // A worker that is stopped, and one whose event loop turns no more, die with the rest.
    kill(Pid::from_raw(tandem.workers()[0]), Signal::SIGSTOP).unwrap();
    let family = tandem.descendants();
    assert!(family.iter().any(|process| process.pid == grandchild), "{family:#?}");
    assert!(family.iter().any(|process| process.name == "postgres"), "{family:#?}");

    tandem.signal(Signal::SIGKILL);
    assert!(tandem.wait_exit().code().is_none());
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
    assert!(tandem::left_in(project.dir()).is_empty());
    assert_eq!(tandem.get("/"), None, "nobody holds the port");
}

#[test]
fn after_a_kill_9_the_next_start_is_clean_and_has_the_data() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    let decision = json!({ "asset_pair": "ETHUSD", "timeframe": "1h", "confidence": 70, "decision": {} });
    let (status, body) = tandem::post(project.app, "/decisions", &decision).unwrap();
    assert_eq!(status, 201, "{body}");
    let made: serde_json::Value = serde_json::from_str(&body).unwrap();

    // The next start comes at once, as a platform's would, and not when all of the first are gone.
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();
    let mut tandem = Tandem::up(&project);
    let (status, body) = tandem.get(&format!("/decisions/{}", made["id"].as_str().unwrap())).unwrap();
    assert_eq!(status, 200, "{body}");
    // The server gets SIGINT from the kernel when Tandem dies, and needs no recovery.
    assert!(!tandem.log().contains("was not properly shut down"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}
