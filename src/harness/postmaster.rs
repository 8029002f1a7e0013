//! The throwaway server: start it on a free port, start it again should it die, and say what it last logged.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::Settings;
use crate::exit::{Code, Failure, in_words};
use crate::postgres::binaries::Installation;
use crate::postgres::home::Home;
use crate::postgres::settings::{self, Inputs, Purpose};
use crate::postgres::{cluster, server, stale};
use crate::process::{self, Child, Streams, ports};

/// How long the server may take until it accepts connections.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at whether it does.
const READY_POLL: Duration = Duration::from_millis(1);
/// A port that was free may be taken before the server binds it.
const PORT_TRIES: usize = 5;
/// How often a server that dies is started again.
const RESTARTS_MAX: usize = 10;
/// The last line of a start.
const STARTED: &str = "database system is ready to accept connections";
/// How much of the end of the log is looked at, in bytes.
const TAIL_SIZE: u64 = 64 * 1024;
/// What the settings' arithmetic takes for the machine's memory, in bytes: tests need little.
const MEMORY: u64 = 1 << 30;

/// What a server is started with.
pub struct Spec {
    pub home: Home,
    pub installation: Installation,
    pub settings: Rc<Settings>,
    /// Whether it outlives this process.
    pub lasting: bool,
}

/// A server that answers.
pub struct Postmaster {
    pub port: u16,
    spec: Rc<Spec>,
    pid: Rc<Cell<Option<i32>>>,
    off: Rc<Notify>,
    keeping: JoinHandle<()>,
}

impl Postmaster {
    /// Write the configuration of the data directory in `spec.home`, and start its server.
    ///
    /// # Errors
    /// [`Failure`] with what the server said when it does not come up.
    pub async fn start(spec: Spec) -> anyhow::Result<Self> {
        let mut tried = 0;
        let (port, child) = loop {
            tried += 1;
            let port = ports::free().context("find a free port")?;
            configure(&spec, port)?;
            match launch(&spec).await {
                Ok(child) => break (port, child),
                Err(error) if tried < PORT_TRIES && port_is_taken(&spec.home) => {
                    tracing::debug!("port {port} was taken meanwhile: {}", in_words(&error));
                    // What the next attempt logs is to be its own.
                    let _ = fs::remove_file(log(&spec.home));
                }
                Err(error) => return Err(error),
            }
        };
        let (spec, pid) = (Rc::new(spec), Rc::new(Cell::new(Some(child.pid()))));
        let off = Rc::new(Notify::new());
        let keeping = tokio::task::spawn_local(keep(spec.clone(), pid.clone(), off.clone(), child));
        Ok(Self { port, spec, pid, off, keeping })
    }

    /// What ends the server at once and for good, also while it is started again.
    pub fn off_switch(&self) -> Rc<Notify> {
        self.off.clone()
    }

    /// The server's process, while there is one: afterwards its number could be another's.
    pub fn pid(&self) -> Option<i32> {
        self.pid.get()
    }

    /// The last `count` lines of the server's log, without what it says of its start.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let tail = tail(&self.spec.home);
        let since = tail.rsplit_once(STARTED).map_or(&*tail, |(_, since)| since);
        let lines: Vec<&str> = since.lines().filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|&line| line.to_owned()).collect()
    }

    /// Whether the server refused connections because too many were open.
    pub fn was_full(&self) -> bool {
        let tail = tail(&self.spec.home);
        tail.contains("too many clients already") || tail.contains("remaining connection slots are reserved")
    }

    /// Shut it down in an orderly way, so that its data directory can be copied.
    ///
    /// # Errors
    /// It does not end.
    pub async fn shut_down(mut self) -> anyhow::Result<()> {
        // While it is still kept.
        if let Some(pid) = self.pid.get() {
            process::signal(pid, Signal::SIGINT);
        }
        self.keeping.abort();
        let _ = (&mut self.keeping).await;
        let data = &self.spec.home.data;
        let gone = async {
            while !stale::orphaned_backends(data).is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(READY_LIMIT, gone).await.context("wait for the end of the template's server")
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        // When the janitor ends it, it is not to be started again.
        self.keeping.abort();
    }
}

/// The server's log.
pub fn log(home: &Home) -> PathBuf {
    home.state.join("server.log")
}

fn configure(spec: &Spec, port: u16) -> anyhow::Result<()> {
    let mut postgres = spec.settings.postgres.clone();
    postgres.listen = Ipv4Addr::LOCALHOST.into();
    postgres.max_connections = spec.settings.test.max_connections;
    postgres.shared_buffers = None;
    let files = settings::render(&Inputs {
        postgres: &postgres,
        socket_dir: &spec.home.socket_dir,
        port,
        memory: MEMORY,
        shared: None,
        trusted_users: &spec.home.trusted_users()?,
        archiving: None,
        statements: false,
        tls: None,
        purpose: Purpose::Throwaway(&spec.settings.test.settings),
    })?;
    cluster::configure(&spec.home, &files)
}

/// Start the server and wait until it accepts connections.
async fn launch(spec: &Spec) -> anyhow::Result<Child> {
    let home = &spec.home;
    let log = log(home);
    let streams = Streams::to_log(&log).with_context(|| format!("write {}", log.display()))?;
    // Looking through all processes takes longer than anything else here; in a new directory there is nothing to find.
    let used = home.data.join("postmaster.pid").exists();
    let environment = if used { stale::clear(home, stale::FAST_GRACE).await? } else { Vec::new() };
    let command = server::command(home, &spec.installation, &environment);
    // Nothing in it is worth an orderly shutdown.
    let death = (!spec.lasting).then_some(Signal::SIGQUIT);
    let mut child = process::spawn_with(&command, death, streams).context("start PostgreSQL")?;
    let pid = child.pid();
    tokio::select! {
        ready = timeout(READY_LIMIT, wait_ready(&home.data, pid)) => {
            if ready.is_err() {
                process::signal(pid, Signal::SIGKILL);
                bail!(failure(home, &format!("did not accept connections within {READY_LIMIT:?}")));
            }
        }
        exit = child.wait() => bail!(failure(home, &format!("ended as it started ({exit})"))),
    }
    Ok(child)
}

/// As [`server::wait_ready`], for callers that wait for nothing else.
async fn wait_ready(data: &Path, pid: i32) {
    while !server::ready(data, pid) {
        tokio::time::sleep(READY_POLL).await;
    }
}

fn failure(home: &Home, what: &str) -> Failure {
    let said = last_lines(home, 5);
    let said = if said.is_empty() { String::new() } else { format!("; the last it said:\n  {}", said.join("\n  ")) };
    Failure::new(Code::Failed, format!("the tests' PostgreSQL {what}{said}"))
}

/// Start the server again whenever it dies: what it holds is whole, for only the machine's crash could harm it.
async fn keep(spec: Rc<Spec>, pid: Rc<Cell<Option<i32>>>, off: Rc<Notify>, mut child: Child) {
    for _ in 0..RESTARTS_MAX {
        let exit = tokio::select! {
            biased;
            () = off.notified() => {
                process::signal(child.pid(), Signal::SIGQUIT);
                child.wait().await;
                return pid.set(None);
            }
            exit = child.wait() => exit,
        };
        pid.set(None);
        tracing::warn!("the tests' PostgreSQL ended ({exit}) and is started again; what used it meanwhile has failed");
        let ready = async {
            stale::end_orphaned_backends(&spec.home.data).await?;
            launch(&spec).await
        };
        match ready.await {
            Ok(new) => {
                pid.set(Some(new.pid()));
                child = new;
            }
            Err(error) => return tracing::error!("{}", in_words(&error)),
        }
    }
    child.wait().await;
    pid.set(None);
    tracing::error!("the tests' PostgreSQL ended {RESTARTS_MAX} times, and stays down");
}

fn port_is_taken(home: &Home) -> bool {
    let tail = tail(home);
    tail.contains("could not bind") || tail.contains("could not create any TCP/IP sockets")
}

fn last_lines(home: &Home, count: usize) -> Vec<String> {
    let tail = tail(home);
    let lines: Vec<&str> = tail.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|&line| line.to_owned()).collect()
}

/// The end of the log.
fn tail(home: &Home) -> String {
    let read = |path: &Path| -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_SIZE)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read(&log(home)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
