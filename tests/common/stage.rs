//! A template and the lives of its workers on an event loop of the test's own, without the rest of Tandem.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use std::cell::RefCell;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal as OsSignal;
use tandem::process::{self, InheritedFd, orphans};
use tandem::supervise::service::{Reporter, Service};
use tandem::supervise::state::{Action, Ending, Event, Intent, Rung, Signal};
use tandem::supervise::tree::{Event as TreeEvent, ServiceId};
use tandem::workers::gate::Gate;
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

use crate::common::project::{python, root};

/// Longest wait for what a process does.
pub const LIMIT: Duration = Duration::from_secs(30);
pub const TEMPLATE: ServiceId = ServiceId(0);

/// What the library logs in this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
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
pub struct Stage {
    pub template: Template,
    launch: Rc<Launch>,
    environment: Vec<(String, String)>,
    roster: Roster,
    events: UnboundedReceiver<TreeEvent>,
    sender: UnboundedSender<TreeEvent>,
    address: SocketAddr,
    pub log: Log,
    _logging: tracing::subscriber::DefaultGuard,
    _listener: Listener,
}

impl Stage {
    pub async fn new(dir: &Path, app: &str, more: &[(&str, &str)]) -> Self {
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
    pub async fn ready(app: &str, more: &[(&str, &str)]) -> Self {
        let mut stage = Self::new(&apps(), app, more).await;
        stage.template.act(Action::Spawn(Intent::Start));
        stage.until(TEMPLATE, Event::Ready).await;
        stage
    }

    fn life(&self, slot: usize) -> Life {
        Life::new(format!("worker-{slot}"), self.roster.clone(), Reporter::new(worker(slot), self.sender.clone()))
    }

    /// A forked worker on its way to ready.
    pub async fn fork(&self, slot: usize) -> Life {
        let mut environment = self.environment.clone();
        environment.push(("PGAPPNAME".into(), format!("test-worker-{slot}")));
        let forked = self.template.fork(slot, &environment).await.unwrap();
        let life = self.life(slot);
        life.begin(forked.child, forked.output, forked.gate, Intent::Start);
        life
    }

    /// A worker on its way to ready that was not forked.
    pub fn spawn(&self, slot: usize) -> Life {
        let (gate, gate_end) = Gate::new().unwrap();
        let gate_end = InheritedFd(Arc::new(gate_end));
        let listener = self.launch.listener.borrow().clone().unwrap();
        let command = life::command(&self.launch, &self.launch.launcher, &self.environment, &listener, &gate_end);
        let (child, output) = process::spawn(&command, &[listener, gate_end], OsSignal::SIGKILL).unwrap();
        let life = self.life(slot);
        life.begin(child, output, gate, Intent::Start);
        life
    }

    /// What happens next.
    pub async fn next(&mut self) -> (ServiceId, Event) {
        let event = timeout(LIMIT, self.events.recv()).await;
        match event.unwrap_or_else(|_| panic!("nothing happened within {LIMIT:?}; log:\n{}", self.log.text())) {
            Some(TreeEvent::Service(id, event)) => (id, event),
            other => panic!("{other:?}"),
        }
    }

    /// Wait for `event` of `id`; nothing may end before it.
    pub async fn until(&mut self, id: ServiceId, event: Event) {
        loop {
            let next = self.next().await;
            if next == (id, event) {
                return;
            }
            assert!(!matches!(next, (_, Event::Exited(_))), "{next:?} before {event:?}; log:\n{}", self.log.text());
        }
    }

    /// The pid that `id` reports next.
    pub async fn spawned(&mut self, id: ServiceId) -> i32 {
        loop {
            if let (found, Event::Spawned(pid)) = self.next().await
                && found == id
            {
                return pid;
            }
        }
    }

    /// The service that ends next, in any way but as one that can never start.
    pub async fn until_exited(&mut self) -> ServiceId {
        loop {
            if let (id, Event::Exited(ending)) = self.next().await {
                assert_eq!(ending, Ending::Ended);
                return id;
            }
        }
    }

    /// The pids of the next `count` workers, once they are ready.
    pub async fn all_ready(&mut self, count: usize) -> Vec<i32> {
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

    pub async fn get(&self, path: &str) -> String {
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

pub fn apps() -> PathBuf {
    root().join("tests/fixtures/apps")
}

pub fn worker(slot: usize) -> ServiceId {
    ServiceId(slot + 1)
}

pub fn term() -> Action {
    Action::Signal(Rung { signal: Signal::Term, group: true, grace: LIMIT })
}

/// The proportional set size of a process, in KiB.
pub fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Run `test` on an event loop as Tandem's: one thread, which spawns all children.
pub fn on_stage(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}
