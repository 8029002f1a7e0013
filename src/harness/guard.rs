//! A watch over the project's own live server while tests run: no process of theirs may have a session there.
//!
//! What tests get says where their server is, under every name that Tandem knows. An application that reads other names
//! (DB_PORT, a file of its own) still finds the live one, and would empty its tables. Such a session is ended, and the run
//! fails. One that is shorter than [`POLL`] may go unseen.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use sea_orm::sqlx::{ConnectOptions, Connection as _, PgConnection, query_as, query_scalar};
use tokio::sync::{Notify, mpsc};

use crate::config::Settings;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::server::running_port;
use crate::postgres::settings::SUPERUSER;
use crate::process;
use crate::process::sockets::{self, Connection, Looker, Way};

/// How often it is looked.
const POLL: Duration = Duration::from_millis(50);
/// How long the live server may take to end a session.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The watch. Dropped, it ends.
pub struct Guard {
    verdict: Rc<Verdict>,
    stop: Option<(Sender<()>, std::thread::JoinHandle<()>)>,
    found: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Verdict {
    text: RefCell<Option<String>>,
    /// Said when the session has been ended.
    tripped: Notify,
}

/// A connection that was found, and the server's port.
struct Found(Connection, u16);

impl Guard {
    /// Watch the server of the project that `settings` describe; one that is started later too.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let home = Home::resolve(settings)?;
        let (stop, stopped) = channel::<()>();
        let (say, mut heard) = mpsc::unbounded_channel();
        let watched = home.clone();
        // A thread of its own: what is asked of the kernel may take its time.
        let thread = std::thread::Builder::new().name("tandem-guard".to_owned()).spawn(move || {
            let mut looker = Looker::default();
            loop {
                let ended = stopped.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout);
                if let Some(port) = live_port(&watched) {
                    for connection in looker.look(port, &watched.socket(port)) {
                        let _ = say.send(Found(connection, port));
                    }
                }
                if ended {
                    return;
                }
            }
        })?;
        let verdict = Rc::<Verdict>::default();
        let (told, settings) = (verdict.clone(), settings.clone());
        let found = tokio::task::spawn_local(async move {
            while let Some(found) = heard.recv().await {
                told.text.borrow_mut().get_or_insert_with(|| words(&settings, &found));
                // At once: what it has begun must not go on while its session is being ended.
                process::signal(found.0.pid, Signal::SIGKILL);
                let ended = tokio::time::timeout(END_LIMIT, end(&home, &found)).await;
                if let Err(error) = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {END_LIMIT:?}"))) {
                    tracing::warn!("end the tests' session on the live server: {error:#}");
                }
                told.tripped.notify_one();
            }
        });
        Ok(Self { verdict, stop: Some((stop, thread)), found: Some(found) })
    }

    /// Wait until a session was found and ended; what to say of it.
    pub async fn tripped(&self) -> String {
        self.verdict.tripped.notified().await;
        self.verdict.text.borrow().clone().unwrap_or_default()
    }

    /// Look once more, and end the watch; what to say, if a session was found.
    pub async fn finish(mut self) -> Option<String> {
        if let Some((stop, thread)) = self.stop.take() {
            drop(stop);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        if let Some(found) = self.found.take() {
            let _ = found.await;
        }
        self.verdict.text.borrow().clone()
    }
}

/// The port of the live server, if one runs: what a postmaster that was killed has left says nothing.
fn live_port(home: &Home) -> Option<u16> {
    let port = running_port(&home.data)?;
    let text = std::fs::read_to_string(home.data.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    match std::fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => (cwd == home.data).then_some(port),
        // Another user's, whom we may not look at.
        Err(_) => Path::new(&format!("/proc/{pid}")).exists().then_some(port),
    }
}

/// End the session.
async fn end(home: &Home, Found(connection, port): &Found) -> anyhow::Result<()> {
    let mut root: PgConnection = superuser_options(home, *port, SUPERUSER).connect().await?;
    let sessions: Vec<(i32, i32)> = query_as(
        "SELECT pid, client_port FROM pg_stat_activity WHERE client_port IS NOT NULL AND pid <> pg_backend_pid()",
    )
    .fetch_all(&mut root)
    .await?;
    for (pid, client_port) in sessions {
        let is_it = match connection.way {
            Way::Tcp(port) => client_port == i32::from(port),
            Way::Unix(inode) => client_port == -1 && sockets::holds(pid, inode),
        };
        if is_it {
            let _: bool = query_scalar("SELECT pg_terminate_backend($1)").bind(pid).fetch_one(&mut root).await?;
        }
    }
    root.close().await?;
    Ok(())
}

/// What happened, and what to do.
fn words(settings: &Settings, Found(connection, port): &Found) -> String {
    let text = port.to_string();
    let speaks = |value: &str| value == text || value.contains(&format!(":{text}"));
    let all = settings.workers.env.iter().chain(&settings.inherited.0);
    let mut names: Vec<&str> =
        all.filter(|(name, value)| !name.starts_with("PG") && speaks(value)).map(|(name, _)| name.as_str()).collect();
    names.retain(|name| !crate::config::references::NAMES.contains(name));
    names.dedup();
    let hint = match names.first() {
        Some(name) => format!("{} holds its port: write {name} = \"${{PGPORT}}\" in [workers.env]", names.join(", ")),
        None => "give it the tests' server under the names that it reads, in [workers.env]: DB_PORT = \"${PGPORT}\""
            .to_owned(),
    };
    format!(
        "a process of the tests was connected to this project's own live database (port {port}) and was ended, and the run with \
         it: process {} (`{}`). It takes the address from somewhere else than DATABASE_URL, PG* and POSTGRES_*: {hint}",
        connection.pid,
        connection.command.chars().take(120).collect::<String>()
    )
}
