//! The stop that is told is the stop that happens: one sum for `tandem check`, the notice and the log, and no stop is longer.

use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, get, wait_for};
use nix::sys::signal::Signal;

/// What a slow machine may take beyond the limits of the stop itself: to start a program, to reap a process.
const SLACK: Duration = Duration::from_secs(20);

/// Ignores SIGTERM.
const DEAF: &str = "trap '' TERM; echo deaf; while :; do sleep 1; done";

fn check(project: &Project) -> serde_json::Value {
    let output = tandem::run(project, &["check", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_hook_a_deaf_companion_and_a_blocked_worker_take_no_longer_than_is_told() {
    let lines = "migrations.run = 'none'\nworkers.count = 1\nworkers.watchdog = 'never'\nstop.grace = '1s'\n\
                 stop.platform_grace = '10s'\nhooks.before_stop = ['sleep', '2']\nhooks.limit = '3s'";
    let project = Project::app_with("plain:app", lines);
    let companion = format!("[[process]]\nname = 'deaf'\ncommand = ['sh', '-c', \"{DEAF}\"]\nstop_grace = '2s'");
    project.reconfigure(|text| format!("{text}\n{companion}\n"));
    let told = check(&project);
    // 3 s for the hook, 2 + 2 for the companion, 2 + 2 for a worker that hangs, 10 + 6 + 2 for PostgreSQL, 2 + 1 + 1 for what
    // they left behind, the keeper and the note of the run.
    assert_eq!(told["stop"]["seconds"], 33.0, "{told}");
    let notice = "hooks.before_stop 3s + processes 4s + workers 4s + PostgreSQL 18s + what they left 4s = 33s, longer than \
                  the platform's 10s";
    assert!(told["notices"].to_string().contains(notice), "{told}");
    assert!(refusal::run(&project, &["check"]).said.contains(notice));

    let mut tandem = Tandem::up(&project);
    tandem.wait_log("deaf");
    let port = tandem.app();
    std::thread::spawn(move || get(port, "/block"));
    wait_for("a blocked loop", || probe(port).is_none());
    let began = Instant::now();
    tandem.signal(Signal::SIGTERM);
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    let took = began.elapsed();
    let log = tandem.log();
    assert!(
        took >= Duration::from_secs(5),
        "2 s for the hook, 2 for the companion, 1 for the worker, and it took {took:?}"
    );
    assert!(took < Duration::from_secs(33) + SLACK, "{took:?}:\n{log}");
    assert!(log.contains("still serving; in 33s at most"), "{log}");
    assert!(log.contains("did not end within 2s after SIGTERM: it gets SIGKILL"), "the companion:\n{log}");
    assert!(log.contains("did not end within 1s after SIGTERM: it gets SIGABRT"), "the worker:\n{log}");
    assert!(log.contains("in block_the_loop"), "and what it did:\n{log}");
    let measured = log.rsplit("stopped in ").next().unwrap().split('s').next().unwrap();
    assert!(measured.parse::<f64>().unwrap() >= 4.0, "the hook is a part of the stop:\n{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}

/// Whether the application answers within a second.
fn probe(port: u16) -> Option<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    write!(stream, "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    stream.read_exact(&mut [0]).ok()
}

#[test]
fn a_template_ends_with_its_workers_and_another_server_gets_no_sigabrt() {
    let project = Project::app_with("plain:app", "workers.preload = true");
    let stop = &check(&project)["stop"];
    assert_eq!(stop["seconds"], 34.0, "{stop}");
    assert_eq!(stop["orderly_seconds"], 22.0, "the defaults fit into the platform's 30 s: {stop}");
    assert!(!check(&project)["notices"].to_string().contains("an orderly stop"));
    let command = "workers.command = ['gunicorn', 'plain:app']\nstop.drain_delay = '5s'\nstop.grace = '4s'";
    let project = Project::app_with("plain:app", command);
    assert_eq!(check(&project)["stop"]["seconds"], 33.0, "5 + 4 + 2 + 18 + 4");
}

#[test]
fn a_limit_of_centuries_is_refused() {
    let project = Project::app("plain:app");
    for key in ["workers.ready_limit", "workers.watchdog", "postgres.hang_limit", "hooks.limit"] {
        let set = format!("{key}=9223372036854775807");
        refusal::run(&project, &["check", "--set", &set]).expect(78, &[key, "no more than a year"]);
    }
}

#[test]
fn a_stop_that_does_not_come_is_told_when_its_limits_have_passed() {
    let lines = "migrations.run = 'none'\nworkers.count = 1\nstop.grace = '0s'\nstop.postgres_grace = '0s'\n\
                 hooks.before_stop = ['sh', '-c', 'sleep 1; echo the hook; sleep 1']\nhooks.limit = '2s'";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    let seconds = check(&project)["stop"]["seconds"].as_f64().unwrap();
    let began = Instant::now();
    let stop = control::start(&project, &["stop"]);
    // The order was answered a second before.
    tandem.wait_log("the hook");
    tandem.signal(Signal::SIGSTOP);
    let pid = tandem.pid();
    let next = format!("`kill -9 {pid}` ends it");
    control::said(stop).expect(75, &["has not ended within", "longer than its own stop may take", &next]);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs_f64(seconds), "{took:?} of {seconds} s");
    assert!(took < Duration::from_secs_f64(seconds) + 2 * SLACK, "{took:?} of {seconds} s");
    tandem.signal(Signal::SIGCONT);
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}
