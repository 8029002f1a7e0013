//! The template and the workers that it forks, without PostgreSQL: the library's own services on one event loop.

mod common;
#[path = "common/stage.rs"]
mod stage;

use std::collections::HashSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::project::root;
use nix::sys::signal::Signal as OsSignal;
use stage::{LIMIT, Stage, TEMPLATE, apps, on_stage, pss, term, worker};
use tandem::process::{self, Exit, orphans};
use tandem::supervise::service::Service;
use tandem::supervise::state::{Action, Ending, Event, Intent, Rung, Signal};
use tokio::time::timeout;

#[test]
fn forked_workers_are_children_like_any_other_and_outlive_the_template() {
    on_stage(async {
        let mut stage = Stage::ready("plain:app", &[]).await;
        let (mut lives, mut pids) = (Vec::new(), HashSet::new());
        for slot in 0..2 {
            let life = stage.fork(slot).await;
            let pid = stage.spawned(worker(slot)).await;
            stage.until(worker(slot), Event::Ready).await;
            assert!(life.is_ready());
            let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
            assert_eq!((stat.ppid, stat.pgrp), (std::process::id().cast_signed(), pid), "our child, its own group");
            lives.push(life);
            pids.insert(pid);
        }
        assert!(!orphans::strays().iter().any(|pid| pids.contains(pid)));
        assert!(pids.contains(&stage.get("/pid").await.parse().unwrap()));
        for variable in ["TANDEM_APP", "TANDEM_GATE_FD", "TANDEM_FORK_FD", "NOTIFY_SOCKET", "TANDEM_PRELOAD"] {
            assert_eq!(stage.get(&format!("/env?name={variable}")).await, "not set", "{variable}");
        }

        // One dies: how is known, and the next is forked.
        process::signal(*pids.iter().next().unwrap(), OsSignal::SIGKILL);
        stage.until_exited().await;
        let killed = lives.iter().position(|life| life.last_exit().is_some()).unwrap();
        assert_eq!(lives[killed].last_exit(), Some(Exit::Signal(9)));
        let again = stage.fork(killed).await;
        stage.until(worker(killed), Event::Ready).await;

        // The template dies: workers go on, and end as they should.
        stage.template.act(Action::Signal(Rung { signal: Signal::Kill, group: true, grace: LIMIT }));
        stage.until_exited().await;
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Signal(9)));
        assert!(!stage.template.is_ready());
        let error = stage.template.fork(5, &[]).await.unwrap_err().to_string();
        assert_eq!(error, "the template is not ready");
        again.act(term());
        stage.until_exited().await;
        assert_eq!(again.last_exit(), Some(Exit::Code(0)));
        let other = 1 - killed;
        assert_eq!(stage.get("/env?name=PGAPPNAME").await, format!("test-worker-{other}"));
        lives[other].act(term());
        stage.until_exited().await;
        assert_eq!(lives[other].last_exit(), Some(Exit::Code(0)));
    });
}

#[test]
fn the_template_waits_at_its_gate_and_ends_at_once_when_told() {
    on_stage(async {
        let mut stage = Stage::new(&apps(), "plain:app", &[]).await;
        stage.template.act(Action::Spawn(Intent::Hold));
        stage.spawned(TEMPLATE).await;
        assert!(stage.template.fork(0, &[]).await.is_err(), "it is not ready");
        stage.template.act(Action::Release);
        stage.until(TEMPLATE, Event::Ready).await;
        // A worker whose gate closes unopened goes by itself, and so does one that is through it, with its children.
        let mut unopened = stage.template.fork(0, &[]).await.unwrap();
        drop(unopened.gate);
        assert_eq!(timeout(LIMIT, unopened.child.wait()).await.unwrap(), Exit::Code(0));
        let mut opened = stage.template.fork(0, &[]).await.unwrap();
        opened.gate.open().unwrap();
        stage.get("/").await;
        drop(opened.gate);
        assert_eq!(timeout(LIMIT, opened.child.wait()).await.unwrap(), Exit::Signal(9));
        stage.template.act(term());
        stage.until_exited().await;
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(0)));
    });
}

#[test]
fn a_request_that_was_given_up_leaves_nothing_to_mistake() {
    on_stage(async {
        let mut stage = Stage::new(&apps(), "plain:app", &[]).await;
        stage.template.act(Action::Spawn(Intent::Start));
        let pid = stage.spawned(TEMPLATE).await;
        stage.until(TEMPLATE, Event::Ready).await;
        process::signal(pid, OsSignal::SIGSTOP);
        assert!(timeout(Duration::from_millis(100), stage.template.fork(0, &[])).await.is_err(), "it cannot answer");
        assert!(stage.template.fork(0, &[]).await.is_err(), "and is not asked again");
        process::signal(pid, OsSignal::SIGCONT);
        stage.until_exited().await;
    });
}

#[test]
fn an_application_that_cannot_be_imported_is_told_with_its_traceback() {
    on_stage(async {
        let mut stage = Stage::new(&apps(), "broken_import:app", &[]).await;
        stage.template.act(Action::Spawn(Intent::Start));
        stage.spawned(TEMPLATE).await;
        assert_eq!(stage.next().await, (TEMPLATE, Event::Exited(Ending::Unstartable)));
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(3)));
        let log = stage.log.text();
        assert!(log.contains("the setting TRADING_KEY is missing") && log.contains("in load_settings"), "{log}");
        assert!(!log.contains("template.py") && !log.contains("launcher.py"), "{log}");
    });
}

#[test]
fn what_does_not_come_through_a_fork_is_named_and_refused_where_asked() {
    on_stage(async {
        let (database, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [&database, &other].map(|listener| listener.local_addr().unwrap().port().to_string());
        let more = [("PGHOST", "localhost"), ("PGPORT", ports[0].as_str()), ("OTHER_PORT", ports[1].as_str())];
        let named = [
            "thread \"price-feed\"".to_owned(),
            format!("database connection to 127.0.0.1:{}", ports[0]),
            format!("connection to 127.0.0.1:{}", ports[1]),
        ];

        let mut stage = Stage::ready("fork_unsafe:app", &more).await;
        for slot in 0..2 {
            stage.fork(slot).await;
            stage.until(worker(slot), Event::Ready).await;
        }
        let log = stage.log.text();
        for name in &named {
            assert!(log.contains(name), "{name}:\n{log}");
        }
        assert_eq!(log.matches("not safe to fork").count(), 1, "said once, not with every fork:\n{log}");
        drop(stage);

        let strict = [&more[..], &[("TANDEM_PRELOAD", "strict")]].concat();
        let mut stage = Stage::new(&apps(), "fork_unsafe:app", &strict).await;
        stage.template.act(Action::Spawn(Intent::Start));
        stage.spawned(TEMPLATE).await;
        assert_eq!(stage.next().await, (TEMPLATE, Event::Exited(Ending::Unstartable)));
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(3)));
        let log = stage.log.text();
        for name in &named {
            assert!(log.contains(name), "{name}:\n{log}");
        }

        let mut stage = Stage::ready("plain:app", &[("TANDEM_PRELOAD", "strict")]).await;
        stage.fork(0).await;
        stage.until(worker(0), Event::Ready).await;
    });
}

#[test]
fn forked_workers_are_ready_at_once_and_share_memory() {
    on_stage(async {
        const WORKERS: usize = 4;
        let mut stage = Stage::new(&root().join("examples/backend"), "app:app", &[]).await;

        // Spawned first: the files are in the page cache then, for both.
        let mut spawned = Vec::new();
        for slot in 0..WORKERS {
            spawned.push(stage.spawn(slot));
        }
        let pids = stage.all_ready(WORKERS).await;
        for _ in 0..400 {
            stage.get("/docs").await;
        }
        let apart: u64 = pids.iter().copied().map(pss).sum();
        for life in spawned {
            life.act(term());
            stage.until_exited().await;
        }

        let began = Instant::now();
        stage.template.act(Action::Spawn(Intent::Start));
        let template = stage.spawned(TEMPLATE).await;
        stage.until(TEMPLATE, Event::Ready).await;
        let imported = began.elapsed();
        let mut times = Vec::new();
        let mut pids = vec![template];
        let mut forked = Vec::new();
        for slot in 0..WORKERS {
            let began = Instant::now();
            forked.push(stage.fork(slot).await);
            pids.extend(stage.all_ready(1).await);
            times.push(began.elapsed());
        }
        for _ in 0..400 {
            stage.get("/docs").await;
        }
        let shared: u64 = pids.iter().copied().map(pss).sum();
        let own: Vec<u64> = pids.iter().copied().map(pss).collect();
        eprintln!("PSS of {WORKERS} workers: spawned {apart} KiB, preloaded with the template {shared} KiB {own:?}");
        eprintln!("template ready after {imported:?}; each worker from request to ready: {times:?}");
        assert!(shared < apart * 3 / 4, "{shared} KiB shared, {apart} KiB apart");
        times.sort();
        // The goal is 50 ms on an idle machine; tests have company.
        assert!(times[0] < Duration::from_millis(250), "{times:?}");
    });
}
