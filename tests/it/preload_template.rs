//! The template and the workers that it forks, without PostgreSQL: the library's own services on one event loop.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::alone::alone;
use crate::common::project::{python, root};
use nix::sys::signal::Signal as OsSignal;
use tandem::config::{Flag, Source};
use tandem::plan::{DatabaseUrl, Ladder, Rung, Signal};
use tandem::process::{self, Exit, orphans};
use tandem::service::Reporter;
use tandem::supervise::state::{ChildAction, ChildEvent, Ending, Generation, Intent, ProcessEvent};
use tandem::supervise::tree::{ServiceId, TreeEvent};
use tandem::workers::launch::{self, Launch};
use tandem::workers::life::{Life, Roster};
use tandem::workers::listener::{self, Listener};
use tandem::workers::slot::Slot;
use tandem::workers::surroundings::Variables;
use tandem::workers::template::Template;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Longest wait for what a process does.
const LIMIT: Duration = Duration::from_secs(30);
const TEMPLATE: ServiceId = ServiceId(0);
/// The port of a database that nobody asks for.
const NOWHERE: u16 = 1;

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
    _run: tempfile::TempDir,
    roster: Roster,
    events: UnboundedReceiver<TreeEvent>,
    sender: UnboundedSender<TreeEvent>,
    address: SocketAddr,
    log: Log,
    _logging: tracing::subscriber::DefaultGuard,
    _listener: Listener,
}

impl Stage {
    async fn new(dir: &Path, app: &str, database: u16, more: &[(&str, &str)]) -> Self {
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
        let flag =
            |(key, value): &(&str, &str)| Flag { key: (*key).into(), value: (*value).into(), name: "--set".into() };
        let own = [("name", "test"), ("workers.app", app), ("workers.app_dir", dir.to_str().unwrap())];
        let flags = own.iter().chain(more).map(flag).collect();
        let run = tempfile::tempdir().unwrap();
        let source = Source { flags, cwd: run.path().to_owned(), ..Source::default() };
        let settings = tandem::config::load(&source).unwrap().settings;
        launch::write_files(run.path()).unwrap();
        let launch = Rc::new(Launch {
            settings: Rc::new(settings),
            url: DatabaseUrl::parse(&format!("postgresql://ffe_user@localhost:{database}/ffe")).unwrap(),
            run: run.path().to_owned(),
            notify: run.path().join("notify"),
            listeners: Rc::new(RefCell::new(vec![listener.inherited()])),
            python: Rc::new(RefCell::new(python)),
            identity: Rc::default(),
        });
        let roster = Roster::default();
        let (sender, events) = unbounded_channel();
        let reporter = Reporter::new(TEMPLATE, sender.clone());
        let template = Template::new(launch.clone(), roster.clone(), reporter);
        let address = listener.address();
        Self {
            template,
            launch,
            _run: run,
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
    async fn ready(app: &str, database: u16, more: &[(&str, &str)]) -> Self {
        let mut stage = Self::new(&apps(), app, database, more).await;
        stage.template.act(ChildAction::Spawn(Generation(1), Intent::Start));
        stage.until(TEMPLATE, ProcessEvent::Ready).await;
        stage
    }

    /// A forked worker on its way to ready.
    fn fork(&self, slot: usize) -> Life {
        let reporter = Reporter::new(worker(slot), self.sender.clone());
        let template = Some(self.template.clone());
        let slot = Slot::new(slot, self.launch.clone(), template, self.roster.clone(), reporter);
        slot.act(ChildAction::Spawn(Generation(1), Intent::Start));
        slot.life().clone()
    }

    async fn next(&mut self) -> (ServiceId, ProcessEvent) {
        let event = timeout(LIMIT, self.events.recv()).await;
        match event.unwrap_or_else(|_| panic!("nothing happened within {LIMIT:?}; log:\n{}", self.log.text())) {
            Some(TreeEvent::Service(id, ChildEvent::Process(_, event))) => (id, event),
            other => panic!("{other:?}"),
        }
    }

    async fn until(&mut self, id: ServiceId, event: ProcessEvent) {
        loop {
            let next = self.next().await;
            if next == (id, event) {
                return;
            }
            assert!(
                !matches!(next, (_, ProcessEvent::Exited(_))),
                "{next:?} before {event:?}; log:\n{}",
                self.log.text()
            );
        }
    }

    /// The pid that `id` reports next, and how long it takes from there to ready.
    async fn spawned(&mut self, id: ServiceId) -> i32 {
        loop {
            if let (found, ProcessEvent::Spawned(pid)) = self.next().await
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

fn tell(life: &Life, signal: Signal) {
    let rung = Rung { signal, group: true, grace: LIMIT };
    let pid = life.pid().unwrap();
    life.act(ChildAction::Signal { pid, rung, ladder: Ladder::Stop, passed: None });
}

/// Run the test called `name` on an event loop as Tandem's: one thread, which spawns all children. In a process of its own,
/// which adopts and reaps as Tandem does: other tests' children are not its.
fn on_stage(name: &str, test: impl Future<Output = ()>) {
    alone(&format!("preload_template::{name}"), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    });
}

#[test]
fn forked_workers_are_children_like_any_other_and_outlive_the_template() {
    on_stage("forked_workers_are_children_like_any_other_and_outlive_the_template", async {
        let mut stage = Stage::ready("plain:app", NOWHERE, &[]).await;
        let (mut lives, mut pids) = (Vec::new(), HashSet::new());
        for slot in 0..2 {
            let life = stage.fork(slot);
            let pid = stage.spawned(worker(slot)).await;
            stage.until(worker(slot), ProcessEvent::Ready).await;
            assert!(life.is_ready());
            let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
            assert_eq!((stat.ppid, stat.pgrp), (std::process::id().cast_signed(), pid), "our child, its own group");
            lives.push(life);
            pids.insert(pid);
        }
        assert!(!orphans::strays().iter().any(|pid| pids.contains(pid)));
        assert!(pids.contains(&stage.get("/pid").await.parse().unwrap()));
        for variable in ["TANDEM_APP", "TANDEM_GATE_FD", "TANDEM_FORK_FD", "TANDEM_NOTIFY_FD", "TANDEM_PRELOAD"] {
            assert_eq!(stage.get(&format!("/env?name={variable}")).await, "not set", "{variable}");
        }

        // One dies: how is known, and the next is forked.
        process::signal(*pids.iter().next().unwrap(), OsSignal::SIGKILL);
        stage.until_exited().await;
        let killed = lives.iter().position(|life| life.last_exit().is_some()).unwrap();
        assert_eq!(lives[killed].last_exit(), Some(Exit::Signal(9)));
        let again = stage.fork(killed);
        stage.until(worker(killed), ProcessEvent::Ready).await;

        // The template dies: workers go on, and end as they should.
        tell(stage.template.life(), Signal::Kill);
        stage.until_exited().await;
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Signal(9)));
        assert!(!stage.template.is_ready());
        let error = stage.template.fork(5, Variables::default()).await.unwrap_err().to_string();
        assert_eq!(error, "the template is not ready");
        tell(&again, Signal::Term);
        stage.until_exited().await;
        assert_eq!(again.last_exit(), Some(Exit::Code(0)));
        let other = 1 - killed;
        assert_eq!(stage.get("/env?name=PGAPPNAME").await, format!("test-worker-{other}"));
        tell(&lives[other], Signal::Term);
        stage.until_exited().await;
        assert_eq!(lives[other].last_exit(), Some(Exit::Code(0)));
    });
}

impl Stage {
    async fn until_exited(&mut self) -> ServiceId {
        loop {
            if let (id, ProcessEvent::Exited(ending)) = self.next().await {
                assert_eq!(ending, Ending::Ended);
                return id;
            }
        }
    }
}

#[test]
fn the_template_waits_at_its_gate_and_ends_at_once_when_told() {
    on_stage("the_template_waits_at_its_gate_and_ends_at_once_when_told", async {
        let mut stage = Stage::new(&apps(), "plain:app", NOWHERE, &[]).await;
        stage.template.act(ChildAction::Spawn(Generation(1), Intent::Hold));
        stage.spawned(TEMPLATE).await;
        assert!(stage.template.fork(0, Variables::default()).await.is_err(), "it is not ready");
        stage.template.act(ChildAction::Release);
        stage.until(TEMPLATE, ProcessEvent::Ready).await;
        // A worker whose gate closes unopened goes by itself, and so does one that is through it, with its children.
        let mut unopened = stage.template.fork(0, Variables::default()).await.unwrap();
        drop(unopened.gate);
        assert_eq!(timeout(LIMIT, unopened.child.wait()).await.unwrap(), Exit::Code(0));
        let mut opened = stage.template.fork(0, Variables::default()).await.unwrap();
        opened.gate.as_mut().unwrap().open().unwrap();
        stage.get("/").await;
        drop(opened.gate);
        assert_eq!(timeout(LIMIT, opened.child.wait()).await.unwrap(), Exit::Signal(9));
        tell(stage.template.life(), Signal::Term);
        stage.until_exited().await;
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(0)));
    });
}

#[test]
fn a_request_that_was_given_up_leaves_nothing_to_mistake() {
    on_stage("a_request_that_was_given_up_leaves_nothing_to_mistake", async {
        let mut stage = Stage::new(&apps(), "plain:app", NOWHERE, &[]).await;
        stage.template.act(ChildAction::Spawn(Generation(1), Intent::Start));
        let pid = stage.spawned(TEMPLATE).await;
        stage.until(TEMPLATE, ProcessEvent::Ready).await;
        process::signal(pid, OsSignal::SIGSTOP);
        assert!(
            timeout(Duration::from_millis(100), stage.template.fork(0, Variables::default())).await.is_err(),
            "it cannot answer"
        );
        assert!(stage.template.fork(0, Variables::default()).await.is_err(), "and is not asked again");
        process::signal(pid, OsSignal::SIGCONT);
        stage.until_exited().await;
    });
}

#[test]
fn an_application_that_cannot_be_imported_is_told_with_its_traceback() {
    on_stage("an_application_that_cannot_be_imported_is_told_with_its_traceback", async {
        let mut stage = Stage::new(&apps(), "broken_import:app", NOWHERE, &[]).await;
        stage.template.act(ChildAction::Spawn(Generation(1), Intent::Start));
        stage.spawned(TEMPLATE).await;
        assert_eq!(stage.next().await, (TEMPLATE, ProcessEvent::Exited(Ending::Unstartable)));
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(3)));
        let log = stage.log.text();
        assert!(log.contains("the setting TRADING_KEY is missing") && log.contains("in load_settings"), "{log}");
        assert!(!log.contains("template.py") && !log.contains("launcher.py"), "{log}");
    });
}

#[test]
fn what_does_not_come_through_a_fork_is_named_and_refused_where_asked() {
    on_stage("what_does_not_come_through_a_fork_is_named_and_refused_where_asked", async {
        let (database, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [&database, &other].map(|listener| listener.local_addr().unwrap().port());
        let other_port = ports[1].to_string();
        let more = [("workers.preload", "true"), ("workers.env.OTHER_PORT", other_port.as_str())];
        let named = [
            "thread \"price-feed\"".to_owned(),
            format!("database connection to 127.0.0.1:{}", ports[0]),
            format!("connection to 127.0.0.1:{}", ports[1]),
        ];

        let mut stage = Stage::ready("fork_unsafe:app", ports[0], &more).await;
        for slot in 0..2 {
            stage.fork(slot);
            stage.until(worker(slot), ProcessEvent::Ready).await;
        }
        let log = stage.log.text();
        for name in &named {
            assert!(log.contains(name), "{name}:\n{log}");
        }
        assert_eq!(log.matches("not safe to fork").count(), 1, "said once, not with every fork:\n{log}");
        drop(stage);

        let strict = [&more[1..], &[("workers.preload", "strict")]].concat();
        let mut stage = Stage::new(&apps(), "fork_unsafe:app", ports[0], &strict).await;
        stage.template.act(ChildAction::Spawn(Generation(1), Intent::Start));
        stage.spawned(TEMPLATE).await;
        assert_eq!(stage.next().await, (TEMPLATE, ProcessEvent::Exited(Ending::Unstartable)));
        assert_eq!(stage.template.life().last_exit(), Some(Exit::Code(3)));
        let log = stage.log.text();
        for name in &named {
            assert!(log.contains(name), "{name}:\n{log}");
        }

        let mut stage = Stage::ready("plain:app", NOWHERE, &[("workers.preload", "strict")]).await;
        stage.fork(0);
        stage.until(worker(0), ProcessEvent::Ready).await;
    });
}
