//! One worker process without a supervisor: the launcher, a real Uvicorn, a listening socket of the test's own.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use tandem::plan::CommandLine;
use tandem::process::{self, Child, Exit, InheritedFd};
use tandem::workers::listener::{self, Listener};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::project::{python_with, root};
use super::tandem::LIMIT;

const POLL: Duration = Duration::from_millis(5);
const BACKLOG: u32 = 2048;

/// A Uvicorn that the launcher claims to run, and the event loop under it.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// `oldest` or `newest`: which of `tests/fixtures/uvicorn-*.txt`.
    pub uvicorn: &'static str,
    /// `asyncio` or `uvloop`.
    pub event_loop: &'static str,
}

impl Flavour {
    pub const OLDEST: Self = Self { uvicorn: "oldest", event_loop: "asyncio" };
    pub const NEWEST: Self = Self { uvicorn: "newest", event_loop: "uvloop" };
    pub const ALL: [Self; 3] = [Self::OLDEST, Self::NEWEST, Self { uvicorn: "newest", event_loop: "asyncio" }];

    /// The interpreter of an environment with this Uvicorn, made by the first test that asks for it.
    pub async fn python(self) -> PathBuf {
        let (name, file) = (format!("venv-{}", self.uvicorn), format!("uvicorn-{}.txt", self.uvicorn));
        python_with(&name, &file).await
    }
}

/// What the workers of one test have in common.
pub struct Stage {
    flavour: Flavour,
    python: PathBuf,
    listener: Listener,
}

impl Stage {
    pub async fn set(flavour: Flavour) -> Self {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), BACKLOG, "test", |_| None).unwrap();
        Self { flavour, python: flavour.python().await, listener }
    }

    /// Where the workers listen.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Start a worker that waits at its gate. `settings` are variables of the launcher's protocol.
    pub fn launch(&self, app: &str, settings: &[(&str, &str)]) -> Worker {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let (listener, gate) = (self.listener.inherited(), InheritedFd(Arc::new(reader)));
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let notify = InheritedFd(Arc::new(theirs.into()));
        let apps = root().join("tests/fixtures/apps");
        let mut command = CommandLine::new(&self.python)
            .arg(root().join("src/workers/launcher.py"))
            .dir(&apps)
            .env("TANDEM_APP", app)
            .env("TANDEM_APP_DIR", &apps)
            .env("TANDEM_LISTEN_FD", listener.number().to_string())
            .env("TANDEM_GATE_FD", gate.number().to_string())
            .env("TANDEM_LOOP", self.flavour.event_loop)
            .env("TANDEM_ACCESS_LOG", "0")
            .env("TANDEM_NOTIFY_FD", notify.number().to_string())
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        for (name, value) in settings {
            command = command.env(name, value);
        }
        let (child, output) = process::spawn(&command, &[listener, gate, notify], Signal::SIGKILL).unwrap();
        let said = Arc::<Mutex<String>>::default();
        let reading = vec![keep(output.stdout.unwrap(), &said), keep(output.stderr.unwrap(), &said)];
        Worker { child, gate: File::from(writer), said, reading, heard: hear(ours) }
    }

    /// Start a worker and wait until it is ready.
    pub async fn ready(&self, app: &str, settings: &[(&str, &str)]) -> Worker {
        let mut worker = self.launch(app, settings);
        worker.open_gate();
        worker.wait_for("READY=1", |worker| worker.has_said("READY=1")).await;
        worker
    }
}

/// Keep all that comes from `stream`, until it ends.
fn keep(stream: impl AsyncRead + Unpin + Send + 'static, said: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let said = Arc::clone(said);
    tokio::spawn(async move { process::lines(stream, |line| *said.lock().unwrap() += &format!("{line}\n")).await })
}

/// Keep all lines of the datagrams that come to `socket`.
fn hear(socket: UnixDatagram) -> Arc<Mutex<Vec<String>>> {
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let lines = Arc::clone(&heard);
    tokio::spawn(async move {
        let mut datagram = vec![0; 64 * 1024];
        while let Ok(length) = socket.recv(&mut datagram).await {
            let text = String::from_utf8_lossy(&datagram[..length]);
            lines.lock().unwrap().extend(text.lines().map(str::to_owned));
        }
    });
    heard
}

/// A worker process, killed with its group on drop.
pub struct Worker {
    child: Child,
    gate: File,
    said: Arc<Mutex<String>>,
    reading: Vec<JoinHandle<()>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Worker {
    pub fn signal(&self, signal: Signal) {
        process::signal(self.child.pid(), signal);
    }

    pub fn open_gate(&mut self) {
        self.gate.write_all(b"1").unwrap();
    }

    /// Everything it has printed so far.
    pub fn output(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// What it has told of itself so far, line by line.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub fn has_said(&self, line: &str) -> bool {
        self.heard().iter().any(|said| said == line)
    }

    /// Retire it, and wait until it says that it leaves.
    pub async fn retire(&self) {
        self.signal(Signal::SIGWINCH);
        self.wait_for("STOPPING=1", |worker| worker.has_said("STOPPING=1")).await;
    }

    /// Wait until `condition` holds.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}:\n{}", self.output());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Wait for its end, and for its last words.
    pub async fn end(&mut self) -> Exit {
        let all = async {
            let exit = self.child.wait().await;
            for reading in self.reading.drain(..) {
                reading.await.unwrap();
            }
            exit
        };
        let ended = tokio::time::timeout(LIMIT, all).await;
        ended.unwrap_or_else(|_| panic!("did not end within {LIMIT:?}:\n{}", self.output()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        process::signal_group(self.child.pid(), Signal::SIGKILL);
    }
}
