//! A watch over the project's own live server while tests run: no process of theirs may have a session there.
//!
//! What tests get says where their server is, under every name that Tandem knows. An application that reads other names
//! (DB_PORT, a file of its own) still finds the live one, and would empty its tables. Such a session is ended, and the run
//! fails. One that lasts for a few milliseconds may go unseen.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use sea_orm::sqlx::{ConnectOptions, PgConnection, query_as, query_scalar};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use crate::config::Settings;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::process;
use crate::process::sockets::{self, Owner};

/// How often it is looked for a live server, and at its sessions: one of `psql` lasts some 20 ms.
const POLL_SERVER: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(10);
/// How long the live server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Looks at a session before it is known to be somebody else's: a process that was just forked may be missed.
const LOOKS: u8 = 3;

/// The watch. Dropped, it ends.
pub struct Guard {
    verdict: Rc<Verdict>,
    stop: Option<oneshot::Sender<()>>,
    watch: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Verdict {
    text: RefCell<Option<String>>,
    /// Said when the session has been ended.
    tripped: Notify,
}

impl Guard {
    /// Watch the server of the project that `settings` describe; one that is started later too.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let home = Home::resolve(settings)?;
        let (stop, mut stopped) = oneshot::channel();
        let verdict = Rc::<Verdict>::default();
        let (told, settings) = (verdict.clone(), settings.clone());
        let watch = tokio::task::spawn_local(async move {
            let mut live = None;
            let mut ended = false;
            while !ended {
                let pause = if live.is_some() { POLL } else { POLL_SERVER };
                ended = timeout(pause, &mut stopped).await.is_ok();
                match timeout(ANSWER_LIMIT, look(&home, &mut live)).await {
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some((owner, port)))) => {
                        told.text.borrow_mut().get_or_insert_with(|| words(&settings, &owner, port));
                        told.tripped.notify_one();
                    }
                    failed => {
                        tracing::debug!(?failed, "watch the live server");
                        live = None;
                        sleep(POLL_SERVER).await;
                    }
                }
            }
        });
        Ok(Self { verdict, stop: Some(stop), watch: Some(watch) })
    }

    /// Wait until a session was found and ended; what to say of it.
    pub async fn tripped(&self) -> String {
        self.verdict.tripped.notified().await;
        self.verdict.text.borrow().clone().unwrap_or_default()
    }

    /// Look once more, and end the watch; what to say, if a session was found.
    pub async fn finish(mut self) -> Option<String> {
        drop(self.stop.take());
        if let Some(watch) = self.watch.take() {
            let _ = watch.await;
        }
        self.verdict.text.borrow().clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// The live server, and the session that asks it.
struct Live {
    postmaster: i32,
    session: PgConnection,
    /// The sessions that were looked at, by process and start, and how often.
    seen: HashMap<(i32, String), u8>,
}

/// Look at the sessions of the live server of `home`, if one runs, and end the first that is a descendant's.
async fn look(home: &Home, live: &mut Option<Live>) -> anyhow::Result<Option<(Owner, u16)>> {
    let Some((postmaster, port, listen)) = running(home) else {
        *live = None;
        return Ok(None);
    };
    if live.as_ref().is_none_or(|live| live.postmaster != postmaster) {
        let session = superuser_options(home, port, SUPERUSER).connect().await?;
        *live = Some(Live { postmaster, session, seen: HashMap::new() });
    }
    let Some(live) = live else { return Ok(None) };
    type Row = (i32, String, Option<String>, i32);
    let rows: Vec<Row> = query_as(
        "SELECT pid, backend_start::text, host(client_addr), client_port FROM pg_stat_activity
         WHERE client_port IS NOT NULL AND backend_start IS NOT NULL AND pid <> pg_backend_pid()",
    )
    .fetch_all(&mut live.session)
    .await?;
    let there: Vec<(i32, String)> = rows.iter().map(|(pid, start, ..)| (*pid, start.clone())).collect();
    live.seen.retain(|session, _| there.contains(session));
    for (pid, start, address, client_port) in rows {
        let looks = live.seen.entry((pid, start)).or_default();
        if *looks >= LOOKS {
            continue;
        }
        *looks += 1;
        let socket = home.socket(port);
        let client =
            address.and_then(|address| Some(SocketAddr::new(address.parse().ok()?, u16::try_from(client_port).ok()?)));
        // It is mostly where the client is, too.
        let servers = client.iter().flat_map(|client| listen.into_iter().chain([client.ip()]));
        let servers: Vec<SocketAddr> = servers.map(|address| SocketAddr::new(address, port)).collect();
        // On another thread: what is asked of the kernel may take its time.
        let owner = tokio::task::spawn_blocking(move || match client {
            Some(client) => sockets::owner_over_tcp(client, &servers),
            None => sockets::owner_over_unix(&socket, pid),
        });
        let Some(owner) = owner.await.context("look for a session's owner")? else { continue };
        // At once: what it has begun must not go on while its session is being ended.
        process::signal(owner.pid, Signal::SIGKILL);
        let _: bool = query_scalar("SELECT pg_terminate_backend($1)").bind(pid).fetch_one(&mut live.session).await?;
        return Ok(Some((owner, port)));
    }
    Ok(None)
}

/// The postmaster of the live server, its port and where it listens: what one that was killed has left says nothing.
fn running(home: &Home) -> Option<(i32, u16, Option<IpAddr>)> {
    let text = std::fs::read_to_string(home.data.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let (pid, port) = (lines.first()?.parse().ok()?, lines.get(3)?.parse().ok()?);
    let lives = match std::fs::read_link(format!("/proc/{pid}/cwd")) {
        Ok(cwd) => cwd == home.data,
        // Another user's, which we may not look at.
        Err(_) => Path::new(&format!("/proc/{pid}")).exists(),
    };
    lives.then(|| (pid, port, lines.get(5).and_then(|address| address.parse().ok())))
}

/// What happened, and what to do.
fn words(settings: &Settings, owner: &Owner, port: u16) -> String {
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
        owner.pid,
        owner.command.chars().take(120).collect::<String>()
    )
}
