//! Run a server over a laid-out base backup until it has recovered and promoted itself, look at it, and stop it.
//!
//! It listens on the unix socket alone, which only its user and root may enter, and archives nothing: until its data is in
//! place nobody may take it for the cluster.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use sea_orm::sqlx::{ConnectOptions, Connection, query_as};

use super::subscriptions::{self, Disabled};
use super::tablespaces::PREVENTED;
use super::target::Target;
use super::wal::Lsn;
use crate::config::{Settings, memory};
use crate::exit::{Code, Failure, with_disk_full};
use crate::plan::CommandLine;
use crate::postgres::binaries::Installation;
use crate::postgres::home::Home;
use crate::postgres::log_message::Messages;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::{self, Archiving, Inputs, Purpose, SUPERUSER};
use crate::postgres::{cluster, server, shared_memory};
use crate::process::{self, Exit};
use crate::telemetry::{self, Stream};

/// The service's name in the log.
const NAME: &str = "postgres";
/// A recovery that says nothing for so long does not go on: each segment that it gets is a line.
const SILENCE_LIMIT: Duration = Duration::from_secs(1800);
const LOOK: Duration = Duration::from_secs(1);
/// How long the recovered server may take to answer, and to stop: it writes out all that it has changed.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(1800);
/// How many of its last lines are kept.
const LINES_MAX: usize = 200;
/// What it says last of a recovery that did not get to its target (PostgreSQL's xlogrecovery.c).
const TOO_SHORT: &str = "recovery ended before configured recovery target was reached";
const LAST_TRANSACTION: &str = "last completed transaction was at log time ";

/// What is recovered, and how far.
pub struct Recovery<'a> {
    /// With the laid-out directory as its data directory.
    pub home: &'a Home,
    pub settings: &'a Settings,
    pub installation: &'a Installation,
    pub restore_command: String,
    pub target: Target,
    /// The timeline to follow.
    pub timeline: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The new timeline.
    pub timeline: u32,
    /// Where it began.
    pub lsn: Lsn,
    /// When the last transaction in it was committed, if WAL was replayed that says so.
    pub last_transaction: Option<String>,
    /// The subscriptions that it had.
    pub disabled: Vec<Disabled>,
}

/// Recover, promote, look, stop.
///
/// # Errors
/// The target lies behind the end of the WAL, a segment is damaged, or the server fails otherwise; with what it said.
pub async fn recover(recovery: &Recovery<'_>) -> anyhow::Result<Recovered> {
    recover_and(recovery, async |_port| Ok(())).await.map(|(recovered, ())| recovered)
}

/// As [`recover`], and do `work` with the recovered server, which listens on its socket under this port, before it is stopped.
///
/// # Errors
/// As [`recover`], or what `work` says.
pub async fn recover_and<T>(
    recovery: &Recovery<'_>,
    work: impl AsyncFnOnce(u16) -> anyhow::Result<T>,
) -> anyhow::Result<(Recovered, T)> {
    let home = recovery.home;
    configure(recovery)?;
    // On the command line too: what ALTER SYSTEM has set wins over postgresql.conf.
    let own = |command: CommandLine, (name, value)| command.arg("-c").arg(format!("{name}={value}"));
    let command = settings_of(recovery).into_iter().fold(server::command(home, recovery.installation, &[]), own);
    let (mut child, output) = process::spawn(&command, &[], Signal::SIGINT).context("start PostgreSQL")?;
    let pid = child.pid();
    let mut killer = Killer(Some(pid));
    let said = Rc::new(RefCell::new(Said { lines: Vec::new(), last: Instant::now() }));
    let (told, progress) = (said.clone(), telemetry::progress(format!("Recovering to {}", recovery.target)));
    let reading = tokio::task::spawn_local(async move {
        let Some(stderr) = output.stderr else { return };
        let messages = Messages::of(NAME);
        let hear = |line: &str| {
            messages.take(Stream::Stderr, line);
            told.borrow_mut().hear(line);
        };
        tokio::select! {
            () = process::lines(stderr, hear) => messages.log(),
            never = messages.log_in_time() => match never {},
        }
    });
    let is_working = Cell::new(false);
    let recovered = async {
        server::wait_ready(&home.data, pid).await;
        let looked = tokio::time::timeout(ANSWER_LIMIT, look(recovery)).await;
        let recovered = looked.context("the recovered server does not answer")??;
        let port = server::running_port(&home.data).context("the recovered server has no port")?;
        is_working.set(true);
        // Boxed, as it may be a whole dump: the future of this one would not fit on the stack of a debug build.
        anyhow::Ok((recovered, Box::pin(work(port)).await?))
    };
    let outcome = tokio::select! {
        recovered = recovered => recovered,
        exit = child.wait() => {
            killer.0 = None;
            // What it said last tells why.
            let _ = tokio::time::timeout(ANSWER_LIMIT, reading).await;
            return Err(failure(recovery, exit, &said.borrow().lines));
        }
        () = silence(&said, &is_working) => bail!("the recovery said nothing for {SILENCE_LIMIT:?}"),
    };
    drop(progress);
    let (mut recovered, done) = outcome?;
    process::signal(pid, Signal::SIGINT);
    let exit = tokio::time::timeout(STOP_LIMIT, child.wait()).await.context("the recovered server does not stop")?;
    killer.0 = None;
    if !exit.success() {
        bail!("the recovered server ended with {exit}: {}", said.borrow().lines.join("\n"));
    }
    let _ = tokio::time::timeout(ANSWER_LIMIT, reading).await;
    recovered.last_transaction = last_transaction(&said.borrow().lines);
    Ok((recovered, done))
}

/// A server that does not outlive what it was started for; `None` once it has ended.
struct Killer(Option<i32>);

impl Drop for Killer {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Its backends end with it; what it leaves is removed.
            process::signal(pid, Signal::SIGQUIT);
        }
    }
}

/// What the server said, and when last.
struct Said {
    lines: Vec<String>,
    last: Instant,
}

impl Said {
    fn hear(&mut self, line: &str) {
        self.last = Instant::now();
        if self.lines.len() >= LINES_MAX {
            self.lines.remove(0);
        }
        self.lines.push(line.to_owned());
    }
}

async fn silence(said: &RefCell<Said>, is_working: &Cell<bool>) {
    while is_working.get() || said.borrow().last.elapsed() < SILENCE_LIMIT {
        tokio::time::sleep(LOOK).await;
    }
}

fn configure(recovery: &Recovery<'_>) -> anyhow::Result<()> {
    // What it would archive waits until its data is in place: the next start archives it.
    let archiving = Archiving { command: String::new(), timeout: Duration::ZERO };
    let more = settings_of(recovery);
    let port = recovery.settings.postgres.port.number;
    let files = settings::render(&Inputs {
        postgres: &recovery.settings.postgres,
        socket_dir: &recovery.home.socket_dir,
        // Part of the socket's name, and nothing else.
        port: if port == 0 { 5432 } else { port },
        memory: memory::available(),
        shared: shared_memory::available(recovery.home.server.as_ref()),
        trusted_users: &recovery.home.trusted_users()?,
        archiving: Some(&archiving),
        statements: recovery.installation.has_statements(),
        // It is reached over its socket alone.
        tls: None,
        purpose: Purpose::Recovery(&more),
    })?;
    cluster::configure(recovery.home, &files)
}

fn settings_of(recovery: &Recovery<'_>) -> Vec<(&'static str, String)> {
    let mut more = vec![
        ("listen_addresses", String::new()),
        ("restore_command", recovery.restore_command.clone()),
        ("recovery_target_timeline", recovery.timeline.to_string()),
        ("recovery_target_action", "promote".into()),
        ("recovery_target_inclusive", if matches!(recovery.target, Target::Before(_)) { "off" } else { "on" }.into()),
        // Nobody is to read from it before it is promoted, and without readers no limit of the old server binds.
        ("hot_standby", "off".into()),
        // Neither subscriptions nor an extension's jobs: they would act for a cluster that is not in place.
        ("max_worker_processes", "0".into()),
    ];
    // What the cluster was told to run when it archives or recovers is for the cluster in its place: it may remove WAL.
    let commands = ["archive_command", "archive_library", "archive_cleanup_command", "recovery_end_command"];
    // PostgreSQL refuses a second target, which an earlier restore by another program may have left.
    let targets = ["recovery_target", "recovery_target_name"];
    let none = String::new;
    let (time, lsn, transaction) = match recovery.target {
        Target::Time(_) => (recovery.target.to_string(), none(), none()),
        Target::Lsn(lsn) | Target::Before(lsn) => (none(), lsn.to_string(), none()),
        Target::Transaction(id) => (none(), none(), id.to_string()),
        Target::End => (none(), none(), none()),
    };
    more.extend(commands.into_iter().chain(targets).map(|name| (name, String::new())));
    let mut times =
        [("recovery_target_time", time), ("recovery_target_lsn", lsn), ("recovery_target_xid", transaction)];
    // The empty ones first: they would take the other back.
    times.sort_by_key(|(_, target)| !target.is_empty());
    more.extend(times);
    more
}

/// Ask the promoted server where it is.
async fn look(recovery: &Recovery<'_>) -> anyhow::Result<Recovered> {
    let port = server::running_port(&recovery.home.data).context("the recovered server has no port")?;
    let mut connection = superuser_options(recovery.home, port, SUPERUSER).connect().await.context("connect")?;
    let row: (bool, String, String) = query_as(
        "SELECT pg_is_in_recovery(), pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_lsn()::text
         FROM (SELECT count(*) FROM pg_database) AS readable",
    )
    .fetch_one(&mut connection)
    .await
    .context("ask the recovered server where it is")?;
    let (in_recovery, file, lsn) = row;
    if in_recovery {
        bail!("the server accepts connections and is not promoted");
    }
    let disabled = subscriptions::disable(recovery.home, port, &mut connection).await?;
    connection.close().await.context("close the connection")?;
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    Ok(Recovered {
        timeline: timeline.with_context(|| format!("{file} is no segment's name"))?,
        lsn: lsn.parse()?,
        last_transaction: None,
        disabled,
    })
}

fn last_transaction(lines: &[String]) -> Option<String> {
    lines.iter().rev().find_map(|line| Some(line.split_once(LAST_TRANSACTION)?.1.trim().to_owned()))
}

fn failure(recovery: &Recovery<'_>, exit: Exit, lines: &[String]) -> anyhow::Error {
    if lines.iter().any(|line| line.contains(TOO_SHORT)) {
        let last = last_transaction(lines);
        let last =
            last.map_or_else(|| "no transaction is in it".into(), |time| format!("its last transaction is of {time}"));
        let (target, timeline) = (recovery.target, recovery.timeline);
        let text = format!("the WAL ends before {target}: {last}; `--to-end --timeline {timeline}` restores all of it");
        return Failure::new(Code::Failed, text).into();
    }
    if lines.iter().any(|line| line.contains(PREVENTED)) {
        let text = format!(
            "a recovery to {} would make a tablespace, in the directory that may hold the present data. Nothing was changed; \
             restore to a moment before CREATE TABLESPACE",
            recovery.target
        );
        return Failure::new(Code::Failed, text).into();
    }
    let fatal = |line: &&String| ["FATAL", "PANIC", "ERROR", "tandem wal"].iter().any(|word| line.contains(word));
    let mut why: Vec<&str> = lines.iter().filter(fatal).map(String::as_str).collect();
    if why.is_empty() {
        why = lines.iter().rev().take(5).rev().map(String::as_str).collect();
    }
    let why = why.join("\n  ");
    with_disk_full(anyhow::anyhow!("the recovery failed ({exit}):\n  {why}"), &why)
}
