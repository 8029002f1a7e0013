//! The template and the workers that it forks, without PostgreSQL: the library's own services on one event loop.

mod common;

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::project::{python, root};
use nix::sys::signal::Signal as OsSignal;
use tandem::process::{self, Exit, InheritedFd, orphans};
use tandem::supervise::service::{Reporter, Service};
use tandem::supervise::state::{Action, Ending, Event, Intent, Rung, Signal};
use tandem::supervise::tree::{Event as TreeEvent, ServiceId};
use tandem::workers::life::{self, Life, Roster};
use tandem::workers::listener::{self, Listener};
use tandem::workers::notify::NotifySocket;
use tandem::workers::pool::Launch;
use tandem::workers::template::Template;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Longest wait for what a process does.
const LIMIT: Duration = Duration::from_secs(30);
const TEMPLATE: ServiceId = ServiceId(0);

/// What the library logs in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A template, the lives of its workers, and what is needed around them.
struct Stage {
    template: Template,
    launch: Rc<Launch>,
    environment: Vec<(String, String)>,
    roster: Roster,
    events: UnboundedReceiver<TreeEvent>,
    sender: UnboundedSender<TreeEvent>,
    address: SocketAddr,
    log: Log,
    _logging: tracing::subscriber::DefaultGuard,
    _listener: Listener,
}

impl Stage {
    async fn new(dir: &Path, app: &str, more: &[(&str, &str)]) -> Self {
        let log = Log::default();
        let writer = log.clone();
        let logging = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish();
        let logging = tracing::subscriber::set_default(logging);
        orphans::adopt();
        let python = python().await;
        let listener = listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), 128, "workers.listen", |_| None).unwrap();
        let notify = NotifySocket::open().unwrap();
        let settings = [
            ("NOTIFY_SOCKET", notify.name()),
            ("TANDEM_APP", app),
            ("TANDEM_APP_DIR", dir.to_str().unwrap()),
            ("TANDEM_ACCESS_LOG", "0"),
            ("PGAPPNAME", "test-template"),
            ("DATABASE_URL", "postgresql+psycopg2://ffe_user@127.0.0.1:1/ffe"),
        ];
        let environment: Vec<(String, String)> =
            settings.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let launch = Rc::new(Launch {
            python: Rc::new(RefCell::new(python)),
            launcher: root().join("src/workers/launcher.py"),
            listener: RefCell::new(Some(listener.inherited())),
            dir: dir.to_owned(),
            environment: Vec::new(),
            identity: Rc::default(),
        });
        let roster = Roster::default();
        tokio::task::spawn_local(life::listen(notify, roster.clone()));
        let (sender, events) = unbounded_channel();
        let reporter = Reporter::new(TEMPLATE, sender.clone());
        let template = Template::new(launch.clone(), environment.clone(), roster.clone(), reporter);
        let address = listener.address();
        Self {
            template,
            launch,
            environment,
            roster,
            events,
            sender,
            address,
            log,
            _logging: logging,
            _listener: listener,
        }
    }

    /// A stage whose template has imported one of the applications of the fixtures.
    async fn ready(app: &str, more: &[(&str, &str)]) -> Self {
        let mut stage = Self::new(&apps(), app, more).await;
        stage.template.act(Action::Spawn(Intent::Start));
        stage.until(TEMPLATE, Event::Ready).await;
        stage
    }

    fn life(&self, slot: usize) -> Life {
        Life::new(format!("worker-{slot}"), self.roster.clone(), Reporter::new(worker(slot), self.sender.clone()))
    }

    /// A forked worker on its way to ready.
    async fn fork(&self, slot: usize) -> Life {
        let mut environment = self.environment.clone();
        environment.push(("PGAPPNAME".into(), format!("test-worker-{slot}")));
        let forked = self.template.fork(slot, &environment).await.unwrap();
        let life = self.life(slot);
        life.begin(forked.child, forked.output, forked.gate, Intent::Start);
        life
    }

    /// A worker on its way to ready that was not forked.
    fn spawn(&self, slot: usize) -> Life {
        let (gate, gate_end) = tandem::workers::gate::Gate::new().unwrap();
        let gate_end = InheritedFd(Arc::new(gate_end));
        let listener = self.launch.listener.borrow().clone().unwrap();
        let command = life::command(&self.launch, &self.launch.launcher, &self.environment, &listener, &gate_end);
        let (child, output) = process::spawn(&command, &[listener, gate_end], OsSignal::SIGKILL).unwrap();
        let life = self.life(slot);
        life.begin(child, output, gate, Intent::Start);
        life
    }

    async fn next(&mut self) -> (ServiceId, Event) {
        let event = timeout(LIMIT, self.events.recv()).await;
        match event.unwrap_or_else(|_| panic!("nothing happened within {LIMIT:?}; log:\n{}", self.log.text())) {
            Some(TreeEvent::Service(id, event)) => (id, event),
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, id: ServiceId, event: Event) {
        loop {
            let next = self.next().await;
            if next == (id, event) {
                return;
            }
            assert!(!matches!(next, (_, Event::Exited(_))), "{next:?} before {event:?}; log:\n{}", self.log.text());
        }
    }

    /// The pid that `id` reports next, and how long it takes from there to ready.
    async fn spawned(&mut self, id: ServiceId) -> i32 {
        loop {
            if let (found, Event::Spawned(pid)) = self.next().await
                && found == id
            {
                return pid;
            }
        }
    }

    async fn get(&self, path: &str) -> String {
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer.split_once("\r\n\r\n").unwrap().1.to_owned()
        };
        timeout(LIMIT, asked).await.unwrap()
    }
}

fn apps() -> PathBuf {
    root().join("tests/fixtures/apps")
}

fn worker(slot: usize) -> ServiceId {
    ServiceId(slot + 1)
}

fn term() -> Action {
    Action::Signal(Rung { signal: Signal::Term, group: true, grace: LIMIT })
}

/// The proportional set size of a process, in KiB.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Run `test` on an event loop as Tandem's: one thread, which spawns all children.
fn on_stage(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn forked_workers_are_children_like_any_other_and_outlive_the_template() {
    on_stage(async {
        let mut stage = Stage::ready("plain:app", &[]).await;
        let lives = [stage.fork(0).await, stage.fork(1).await];
        let mut pids = HashSet::new();
        for (slot, life) in lives.iter().enumerate() {
            let pid = stage.spawned(worker(slot)).await;
            stage.until(worker(slot), Event::Ready).await;
            assert!(life.is_ready());
            let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
            assert_eq!((stat.ppid, stat.pgrp), (std::process::id().cast_signed(), pid), "our child, its own group");
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

impl Stage {
    async fn until_exited(&mut self) -> ServiceId {
        loop {
            if let (id, Event::Exited(ending)) = self.next().await {
                assert_eq!(ending, Ending::Ended);
                return id;
            }
        }
    }
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

impl Stage {
    /// The pids of the next `count` workers, once they are ready.
    async fn all_ready(&mut self, count: usize) -> Vec<i32> {
        let (mut pids, mut ready) = (Vec::new(), 0);
        while ready < count {
            match self.next().await.1 {
                Event::Spawned(pid) => pids.push(pid),
                Event::Ready => ready += 1,
                other => panic!("{other:?}; log:\n{}", self.log.text()),
            }
        }
        pids
    }
}
