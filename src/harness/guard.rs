//! A watch over the servers that are not the tests': no process of theirs may have a session there. They are the project's
//! own, live one, and the one that its configuration attaches to.
//!
//! What tests get says where their server is, under every name that Tandem knows. An application that reads other names
//! (DB_PORT, a file of its own) still finds the live one, and would empty its tables. Such a session is ended, and the run
//! fails. One that lasts for a few milliseconds may go unseen.
//!
//! The live server is asked for its sessions. One that cannot be asked, and one that is attached to, is watched from this
//! side: by the connections to its address.
//!
//! The processes of the tests are those below this one. Where a test runner has started it ([`super::serve`]), they are the
//! runner and all below it, from the moment on at which it gets its server.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sea_orm::sqlx::{ConnectOptions, PgConnection, query_as, query_scalar, raw_sql};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::guard_words::words;
use super::watched::{Address, Server, addresses};
use crate::config::{Port, Settings};
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::process::ports;
use crate::process::sockets::{OpenSockets, Owner};
use crate::telemetry::say_aside;

/// How often it is looked for a live server, and at its sessions: one of `psql` lasts some 20 ms.
const POLL_SERVER: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(10);
/// How often it is looked whether something listens on the live server's port that is not in this state directory.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(1);
/// How long the live server may take to answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Looks at a session before it counts as another program's: one look may miss a process that was just forked.
const LOOKS: u8 = 3;

/// The watch. Dropped, it ends.
pub struct Guard {
    sighting: Rc<Sighting>,
    stop: Option<oneshot::Sender<()>>,
    watch: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Sighting {
    text: RefCell<Option<String>>,
    /// Said when the session has been ended.
    tripped: Notify,
    /// The test runner, once it is watched too.
    runner: Cell<Option<i32>>,
    /// Said to look at once, and when that is done.
    look: Notify,
    looked: Notify,
}

impl Guard {
    /// Watch the server of the project that `settings` describe, one that is started later too, and the server `other`.
    pub fn start(settings: &Settings, other: Option<&DatabaseUrl>) -> anyhow::Result<Self> {
        let home = Home::resolve(settings)?;
        let (stop, mut stopped) = oneshot::channel();
        let sighting = Rc::<Sighting>::default();
        let (told, settings, other) = (sighting.clone(), settings.clone(), other.cloned());
        let watch = tokio::task::spawn_local(async move {
            let mut watch = Watch::new(home, settings.postgres.port);
            if let Some(other) = other {
                watch.other = addresses(other).await;
            }
            let mut ended = false;
            while !ended {
                let pause = if watch.is_close() { POLL } else { POLL_SERVER };
                ended = tokio::select! {
                    _ = &mut stopped => true,
                    () = told.look.notified() => false,
                    () = sleep(pause) => false,
                };
                let is_first = watch.runner != told.runner.get();
                if is_first {
                    watch.take_in(told.runner.get());
                }
                let found = match timeout(ANSWER_LIMIT, watch.ask()).await {
                    Ok(Ok(found)) => found,
                    failed => {
                        tracing::debug!(?failed, "watch the live server");
                        watch.unanswered();
                        sleep(POLL_SERVER).await;
                        None
                    }
                };
                let found = match found {
                    None => watch.look().await,
                    found => found,
                };
                if let Some((owner, server)) = found {
                    let is_ended = watch.spared.is_none();
                    told.text.borrow_mut().get_or_insert_with(|| words(&settings, &owner, &server, is_ended));
                    told.tripped.notify_one();
                }
                if is_first {
                    watch.spared = None;
                    told.looked.notify_one();
                }
            }
        });
        Ok(Self { sighting, stop: Some(stop), watch: Some(watch) })
    }

    /// Wait until a session was found and ended; what to say of it.
    pub async fn tripped(&self) -> String {
        self.sighting.tripped.notified().await;
        self.sighting.text.borrow().clone().unwrap_or_default()
    }

    /// Watch the test runner `pid` too, and what it started.
    ///
    /// # Errors
    /// It has a session already; it was not ended for it, and no test has run yet.
    pub async fn take_in(&self, pid: i32) -> anyhow::Result<()> {
        self.sighting.runner.set(Some(pid));
        self.sighting.look.notify_one();
        self.sighting.looked.notified().await;
        match self.sighting.text.borrow_mut().take() {
            Some(text) => Err(Failure::new(Code::Config, text).into()),
            None => Ok(()),
        }
    }

    /// Look once more, and end the watch; what to say, if a session was found.
    pub async fn finish(mut self) -> Option<String> {
        drop(self.stop.take());
        if let Some(watch) = self.watch.take() {
            let _ = watch.await;
        }
        self.sighting.text.borrow().clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// The live server's process, and the session that asks it.
struct Live {
    postmaster: i32,
    session: PgConnection,
}

struct Watch {
    home: Home,
    /// Where the live server is, if nothing else says it.
    configured: Port,
    /// When that port was last looked at.
    looked: Option<Instant>,
    live: Option<Live>,
    /// The live server's addresses, while it cannot be asked.
    blind: Vec<Address>,
    other: Vec<Address>,
    /// The sessions that were looked at, by process and start, and how often.
    seen: HashMap<(i32, String), u8>,
    /// As `seen`, by their clients' sockets.
    seen_sockets: HashMap<u64, u8>,
    told: bool,
    /// The test runner, if it is watched.
    runner: Option<i32>,
    /// The one that is not ended for what it did before it was watched.
    spared: Option<i32>,
}

impl Watch {
    fn new(home: Home, configured: Port) -> Self {
        Self {
            home,
            configured,
            looked: None,
            live: None,
            blind: Vec::new(),
            other: Vec::new(),
            seen: HashMap::new(),
            seen_sockets: HashMap::new(),
            told: false,
            runner: None,
            spared: None,
        }
    }

    /// The next look is at `runner` too, which may have sessions that were taken for another program's; for these it is not
    /// ended.
    fn take_in(&mut self, runner: Option<i32>) {
        (self.runner, self.spared) = (runner, runner);
        self.seen.clear();
        self.seen_sockets.clear();
    }

    /// Whether there is a server to look at.
    fn is_close(&self) -> bool {
        self.live.is_some() || !self.blind.is_empty() || !self.other.is_empty()
    }

    fn watch_blindly(&mut self, ports: impl IntoIterator<Item = u16>) {
        let address =
            |port| Address { server: Server::Live { port }, ips: None, port, socket: Some(self.home.socket(port)) };
        self.blind = ports.into_iter().map(address).collect();
    }

    /// The live server did not answer: what was seen stays seen, or on a busy one it would begin anew for ever.
    fn unanswered(&mut self) {
        self.live = None;
        if let Ok(Some(running)) = running(&self.home) {
            self.watch_blindly([running.port]);
        }
    }

    /// No server runs in this state directory. One of the project's may run elsewhere: with another state directory, in a
    /// container. Where a person chose the port, what listens there counts as that one; the usual port may be anybody's.
    async fn look_elsewhere(&mut self) {
        let Port { number, chosen } = self.configured;
        if !chosen || number == 0 {
            self.blind.clear();
            return;
        }
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_ELSEWHERE) {
            self.looked = Some(Instant::now());
            let listened = tokio::task::spawn_blocking(move || ports::is_listened_to(number)).await.unwrap_or_default();
            self.watch_blindly(listened.then_some(number));
        }
    }

    /// Its data directory is another user's: nothing says whether it runs, and where.
    fn hidden(&mut self, error: &io::Error) {
        let names = std::fs::read_dir(&self.home.socket_dir).into_iter().flatten().flatten();
        let ports = names.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(".s.PGSQL.")?.parse().ok());
        let mut ports: Vec<u16> = ports.chain([self.configured.number]).filter(|port| *port != 0).collect();
        ports.sort_unstable();
        ports.dedup();
        if !self.told {
            self.told = true;
            let words = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            say_aside(&format!(
                "tandem: this project's live server cannot be asked for its sessions ({}: {error}): the tests are only kept \
                 from port {words} of this machine",
                self.home.data.display()
            ));
        }
        self.live = None;
        self.watch_blindly(ports);
    }

    /// Ask the live server for its sessions, if one runs, and end the first that is a descendant's.
    async fn ask(&mut self) -> anyhow::Result<Option<(Owner, Server)>> {
        let Running { postmaster, port, listen } = match running(&self.home) {
            Ok(Some(running)) => running,
            Ok(None) => {
                self.live = None;
                self.look_elsewhere().await;
                return Ok(None);
            }
            Err(error) => {
                self.hidden(&error);
                return Ok(None);
            }
        };
        if self.live.as_ref().is_none_or(|live| live.postmaster != postmaster) {
            let mut session = superuser_options(&self.home, port, SUPERUSER).connect().await?;
            // A session that is to be ended may have ended by itself, which the server would warn of.
            raw_sql("SET client_min_messages = error").execute(&mut session).await?;
            self.live = Some(Live { postmaster, session });
        }
        let Some(live) = &mut self.live else { return Ok(None) };
        type Row = (i32, String, Option<String>, i32);
        let rows: Vec<Row> = query_as(
            "SELECT pid, backend_start::text, host(client_addr), client_port FROM pg_stat_activity
             WHERE client_port IS NOT NULL AND backend_start IS NOT NULL AND pid <> pg_backend_pid()
             ORDER BY backend_start DESC",
        )
        .fetch_all(&mut live.session)
        .await?;
        self.blind.clear();
        let there: HashSet<(i32, String)> = rows.iter().map(|(pid, start, ..)| (*pid, start.clone())).collect();
        self.seen.retain(|session, _| there.contains(session));
        let mut sessions = Vec::new();
        for (pid, start, address, client_port) in rows {
            let looks = self.seen.entry((pid, start)).or_default();
            if *looks < LOOKS {
                *looks += 1;
                let at = || Some(SocketAddr::new(address?.parse().ok()?, u16::try_from(client_port).ok()?));
                sessions.push((pid, at()));
            }
        }
        if sessions.is_empty() {
            return Ok(None);
        }
        let socket = self.home.socket(port);
        let (runner, spared) = (self.runner, self.spared);
        // On another thread: what is asked of the kernel may take its time.
        let find = move || {
            let snapshot = OpenSockets::take(runner);
            sessions.into_iter().find_map(|(pid, client)| {
                // It is mostly where the client is, too.
                let servers = client.iter().flat_map(|client| listen.into_iter().chain([client.ip()]));
                let servers: Vec<SocketAddr> = servers.map(|address| SocketAddr::new(address, port)).collect();
                let owner = match client {
                    Some(client) => snapshot.owner_over_tcp(client, &servers),
                    None => snapshot.owner_over_unix(&socket, pid),
                };
                // At once: what it has begun must not go on while its session is being ended.
                owner.inspect(|owner| end(owner, spared)).map(|owner| (owner, pid))
            })
        };
        let found = tokio::task::spawn_blocking(find).await.context("look for a session's owner")?;
        let Some((owner, pid)) = found else { return Ok(None) };
        if self.spared.is_some() {
            return Ok(Some((owner, Server::Live { port })));
        }
        let ended = query_scalar::<_, bool>("SELECT pg_terminate_backend($1)").bind(pid).fetch_one(&mut live.session);
        // Its client is dead already, and what was found must be told.
        if let Err(error) = ended.await {
            tracing::debug!(%error, "end a session");
        }
        Ok(Some((owner, Server::Live { port })))
    }

    /// Look at the connections to the servers that are not asked, and end the first descendant that has one.
    async fn look(&mut self) -> Option<(Owner, Server)> {
        if self.blind.is_empty() && self.other.is_empty() {
            return None;
        }
        let addresses = [&self.blind[..], &self.other].concat();
        let mut seen = std::mem::take(&mut self.seen_sockets);
        let (runner, spared) = (self.runner, self.spared);
        let find = move || {
            let found = addresses.into_iter().flat_map(|address| {
                let clients = address.clients();
                clients.into_iter().map(move |inode| (inode, address.server.clone()))
            });
            let found: HashMap<u64, Server> = found.collect();
            seen.retain(|inode, _| found.contains_key(inode));
            let fresh: Vec<_> =
                found.iter().filter(|(inode, _)| seen.get(*inode).is_none_or(|looks| *looks < LOOKS)).collect();
            fresh.iter().for_each(|(inode, _)| *seen.entry(**inode).or_default() += 1);
            let snapshot = (!fresh.is_empty()).then(|| OpenSockets::take(runner));
            let owned = fresh.into_iter().find_map(|(inode, server)| {
                let owner = snapshot.as_ref()?.owner(*inode)?;
                end(&owner, spared);
                Some((owner, server.clone()))
            });
            (owned, seen)
        };
        let (owned, seen) = tokio::task::spawn_blocking(find).await.ok()?;
        self.seen_sockets = seen;
        owned
    }
}

/// End the process that has a session, unless its runner has not been told of any server yet.
fn end(owner: &Owner, spared: Option<i32>) {
    if spared.is_none() {
        owner.kill();
    }
}

/// The live server's process, its port and where it listens.
struct Running {
    postmaster: i32,
    port: u16,
    listen: Option<IpAddr>,
}

/// The live server, if one runs: what one that was killed has left says nothing. An error where that cannot be known.
fn running(home: &Home) -> io::Result<Option<Running>> {
    let text = match std::fs::read_to_string(home.data.join("postmaster.pid")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        Err(_) => return Ok(None),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let number = |line: usize| lines.get(line).and_then(|text| text.parse::<i32>().ok());
    let Some((postmaster, port)) = number(0).zip(number(3).and_then(|port| port.try_into().ok())) else {
        return Ok(None);
    };
    let lives = match std::fs::read_link(format!("/proc/{postmaster}/cwd")) {
        Ok(cwd) => cwd == home.data,
        // Another user's, which we may not look at.
        Err(_) => Path::new(&format!("/proc/{postmaster}")).exists(),
    };
    let listen = lines.get(5).and_then(|address| address.parse().ok());
    Ok(lives.then_some(Running { postmaster, port, listen }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::process::ExitStatusExt;

    #[tokio::test]
    async fn a_live_server_that_cannot_be_asked_is_watched_by_its_port() {
        let temp = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let chosen = Port { number: port, chosen: true };
        let mut watch = Watch::new(Home::at(temp.path(), None), chosen);
        assert!(watch.look().await.is_none());
        watch.hidden(&io::ErrorKind::PermissionDenied.into());
        assert!(watch.is_close() && watch.look().await.is_none());
        #[expect(clippy::disallowed_methods, reason = "a process that is ended")]
        let mut command = std::process::Command::new("bash");
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -u 3");
        let forking = crate::forks::begin();
        let mut child = command.args(["-c", &script]).spawn().unwrap();
        drop(forking);
        let _end = listener.accept().unwrap();
        let (owner, server) = watch.look().await.unwrap();
        assert_eq!((owner.pid, owner.program.as_str()), (child.id().cast_signed(), "bash"));
        assert_eq!(server, Server::Live { port });
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        // One that does not run in this state directory, where its port was chosen.
        let mut watch = Watch::new(Home::at(temp.path(), None), chosen);
        assert!(watch.ask().await.unwrap().is_none() && watch.is_close());
        let mut usual = Watch::new(Home::at(temp.path(), None), Port { chosen: false, ..chosen });
        assert!(usual.ask().await.unwrap().is_none() && !usual.is_close());
        // The server that is attached to: by its name, and only there.
        let found = addresses(DatabaseUrl::parse(&format!("postgres://localhost:{port}/x")).unwrap()).await;
        assert!(found[0].ips.as_ref().unwrap().contains(&"127.0.0.1".parse().unwrap()));
    }
}
