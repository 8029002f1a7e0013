//! It stays up: what happens when PostgreSQL hangs, or is killed, in whole or in part.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// What a query through `tandem psql` answers, line by line.
fn ask(project: &Project, query: &str) -> Vec<String> {
    let output = tandem::run(project, &["psql", "-AtXc", query]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Wait until another postmaster than `before` runs and everything is ready again.
fn wait_replaced(tandem: &Tandem, project: &Project, before: i32) {
    wait_for("another postmaster, and readiness", || {
        let file = std::fs::read_to_string(project.data().join("postmaster.pid")).unwrap_or_default();
        let now = file.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
        now.is_some_and(|now| now != before) && tandem.ready() == Some(true)
    });
}

#[test]
fn a_stopped_server_is_noticed_and_its_return_too() {
    let lines = "migrations.run = 'none'\npostgres.probe_interval = '200ms'\npostgres.probe_deadline = '500ms'";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());

    send(postmaster, Signal::SIGSTOP);
    wait_for("readiness withdrawn", || tandem.ready() == Some(false));
    let health = tandem.health();
    assert_eq!((&health["status"], &health["database"]["available"]), (&json!("unhealthy"), &json!(false)));
    assert_eq!(tandem.workers(), workers, "workers are kept");
    assert_eq!(tandem.get("/").unwrap().0, 200, "and serve what needs no database");

    send(postmaster, Signal::SIGCONT);
    wait_for("readiness given back", || tandem.ready() == Some(true));
    assert_eq!((tandem.postmaster(&project), tandem.workers()), (postmaster, workers));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_server_that_hangs_past_the_limit_is_replaced() {
    let lines = "migrations.run = 'none'\npostgres.probe_interval = '200ms'\npostgres.probe_deadline = '500ms'\n\
                 postgres.hang_limit = '1s'";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());
    send(postmaster, Signal::SIGSTOP);
    wait_replaced(&tandem, &project, postmaster);
    assert_eq!(tandem.workers(), workers, "workers are kept");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_stopped_server_does_not_hold_the_stop() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    send(tandem.postmaster(&project), Signal::SIGSTOP);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn killed_under_load_the_server_answers_again_and_no_acknowledged_write_is_lost() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    wait_for("four workers", || tandem.workers().len() == 4);
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());
    let (acknowledged, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let withdrawn = AtomicBool::new(false);
    let written = || acknowledged.lock().unwrap().len();

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let decision = json!({ "asset_pair": "BTCUSD", "timeframe": "1m", "confidence": 1, "decision": {} });
                while !over.load(Ordering::Relaxed) {
                    if let Some((201, body)) = tandem::post(project.app, "/decisions", &decision) {
                        let made: serde_json::Value = serde_json::from_str(&body).unwrap();
                        acknowledged.lock().unwrap().push(made["id"].as_str().unwrap().to_owned());
                    }
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                withdrawn.fetch_or(tandem.ready() == Some(false), Ordering::Relaxed);
            }
        });
        // Whatever fails in here, the threads must end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("some writes", || written() > 50);
            send(postmaster, Signal::SIGKILL);
            wait_replaced(&tandem, &project, postmaster);
            let before = written();
            wait_for("more writes", || written() > before + 50);
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });

    assert!(withdrawn.into_inner(), "readiness was withdrawn meanwhile:\n{}", tandem.log());
    assert_eq!(tandem.workers(), workers, "workers are kept");
    let there = ask(&project, "SELECT id FROM decision_cache");
    let lost: Vec<_> = acknowledged.into_inner().unwrap().into_iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_query_that_never_ends_does_not_block_the_restart() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    let mut client = tandem::command(&project)
        .args(["psql", "-Xqc", "DO $$ BEGIN LOOP END LOOP; END $$"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
    wait_for("the query", || !ask(&project, busy).is_empty());
    let backend: i32 = ask(&project, busy)[0].parse().unwrap();

    send(postmaster, Signal::SIGKILL);
    wait_replaced(&tandem, &project, postmaster);
    assert!(!tandem::lives(backend));
    assert!(!client.wait().unwrap().success(), "its client was told");
    assert!(ask(&project, busy).is_empty());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn each_process_of_the_server_may_be_killed() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());
    let find = |kind: &str| {
        let named = |process: &&tandem::Process| process.parent == postmaster && process.args.contains(kind);
        tandem.descendants().iter().find(named).map(|process| process.pid)
    };
    for kind in
        ["checkpointer", "background writer", "walwriter", "autovacuum launcher", "logical replication launcher"]
    {
        wait_for(kind, || find(kind).is_some());
        let before = find(kind).unwrap();
        send(before, Signal::SIGKILL);
        wait_for(&format!("another {kind}"), || find(kind).is_some_and(|pid| pid != before));
        // It comes before the end of the recovery, and a sample of readiness may be a second old.
        wait_for("an answer", || tandem::run(&project, &["psql", "-Xqc", "SELECT 1"]).status.success());
        wait_for("readiness", || tandem.ready() == Some(true));
    }
    assert_eq!((tandem.postmaster(&project), tandem.workers()), (postmaster, workers), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
