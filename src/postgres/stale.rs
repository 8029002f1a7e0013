//! What an earlier server left behind: its processes, `postmaster.pid`, socket locks.
//!
//! A server of another pid namespace, such as a container with the same volume, is refused and never touched. Callers hold
//! the [`super::lock::StateLock`] and the data directory, so no other Tandem runs a server here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::cluster_processes::{ClusterProcess, ClusterProcesses, namespace_of};
use super::files::read_if_there;
use super::home::Home;
use crate::durable;
use crate::exit::{Code, Failure};
use crate::process::lease;
use crate::process::look::{RIGHT, apart};
use crate::telemetry::UnderWay;

/// How long a leftover server may take for a fast shutdown, rollback and a checkpoint, where no configuration says it
/// (`stop.postgres_grace`).
pub const FAST_GRACE: Duration = Duration::from_secs(10);
/// How long an immediate shutdown may take: the postmaster itself kills what is left after 5 s.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(6);
/// How long the backends of a dead postmaster get to notice its end; those in a long query never do.
const NOTICE_LIMIT: Duration = Duration::from_millis(50);
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
/// How long a server of another namespace gets to end before it is refused: its container may be stopping.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const ELSEWHERE_POLL: Duration = Duration::from_millis(100);

/// Make the way free for a new postmaster of `home`; returns what its environment must hold. A server of an earlier run gets
/// `grace` for its fast shutdown.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when processes of an earlier server cannot be ended, with [`Code::CannotCreate`] when
/// a server of another namespace works here.
pub async fn clear(home: &Home, grace: Duration) -> anyhow::Result<Vec<(String, String)>> {
    let recorded = recorded(&home.data)?.and_then(|text| pid_in(&text));
    let found = refuse_foreign(&home.data).await?;
    let postmaster =
        |one: &&ClusterProcess| recorded == Some(one.pid()) || found.iter().any(|other| other.parent == one.pid());
    for orphan in found.iter().filter(postmaster) {
        stop_orphan(&home.data, orphan, grace).await?;
    }
    if !found.is_empty() {
        end_orphaned_backends(&home.data).await?;
    }
    let left = recorded_now(home).await?;
    clear_sockets(&home.socket_dir)?;
    let Some(text) = left else { return Ok(Vec::new()) };
    match pid_in(&text) {
        // Left in place for the interlock on shared memory that its other lines give. PostgreSQL takes a process with
        // this pid for its own, unless that is an ancestor: so it is told that it is (as Patroni does).
        Some(pid) => Ok(vec![("PG_GRANDPARENT_PID".into(), pid.to_string())]),
        None => {
            tracing::warn!("postmaster.pid in {} is damaged; moving it aside", home.data.display());
            let lock_file = home.data.join("postmaster.pid");
            durable::rename(&lock_file, &home.data.join("postmaster.pid.damaged"))
                .context("move postmaster.pid aside")?;
            Ok(Vec::new())
        }
    }
}

/// What postmaster.pid in `data` says, if it is there.
fn recorded(data: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let lock_file = data.join("postmaster.pid");
    read_if_there(&lock_file).map_err(|error| match error.kind() {
        io::ErrorKind::IsADirectory => {
            let shown = lock_file.display();
            let text = format!("{shown} is a directory, where PostgreSQL keeps a file: move it away, and start again");
            Failure::new(Code::CannotCreate, text).into()
        }
        _ => anyhow::Error::new(error).context(format!("read {}", lock_file.display())),
    })
}

/// What postmaster.pid says once no server that can be seen works here: a server that cannot be seen may, and then it has
/// files of the cluster open.
async fn recorded_now(home: &Home) -> anyhow::Result<Option<Vec<u8>>> {
    let (begun, mut shown) = (Instant::now(), None);
    loop {
        let Some(text) = recorded(&home.data)? else { return Ok(None) };
        let Some(open) = lease::open_for_writing(files_of_a_server(&home.data), home.server_uid()).await else {
            return Ok(Some(text));
        };
        if begun.elapsed() > ELSEWHERE_LIMIT {
            let (data, open) = (home.data.display(), open.display());
            let pid = pid_in(&text).map(|pid| format!(" (pid {pid} there)")).unwrap_or_default();
            let what = format!(
                "a PostgreSQL server that cannot be seen from here{pid} works in {data}: it has {open} open. It runs in \
                 another container or namespace of this machine: stop it first"
            );
            bail!(Failure::new(Code::CannotCreate, format!("{what}; two servers would destroy the data")));
        }
        shown.get_or_insert_with(|| UnderWay::begin(wait_for_elsewhere(&home.data)));
        tokio::time::sleep(ELSEWHERE_POLL).await;
    }
}

/// As long work that is under way.
fn wait_for_elsewhere(data: &Path) -> String {
    format!("waiting for the end of a PostgreSQL server of another container or namespace in {}", data.display())
}

/// Files of which a server that runs has some open for writing at any time: its launchers keep catalogs in `global`, its
/// WAL writer keeps a segment.
fn files_of_a_server(data: &Path) -> Vec<PathBuf> {
    let entries = |dir: &str| fs::read_dir(data.join(dir)).into_iter().flatten().flatten();
    entries("global").chain(entries("pg_wal")).map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Wait a little for the end of servers of other pid namespaces that work in `data`, then refuse; returns our namespace's.
async fn refuse_foreign(data: &Path) -> anyhow::Result<Vec<ClusterProcess>> {
    let (begun, mut shown) = (Instant::now(), None);
    loop {
        let place = data.to_owned();
        let all = apart("look for PostgreSQL's processes", move || ClusterProcesses::of(&place))
            .await
            .context("look at the processes of this machine")?;
        let Some(foreign) = all.found.iter().find(|process| process.foreign) else {
            tell_of_unseen(data, &all.unseen);
            return Ok(all.found);
        };
        if begun.elapsed() > ELSEWHERE_LIMIT {
            let (data, pid) = (data.display(), foreign.pid());
            let namespace = namespace_of(pid).unwrap_or_default();
            let what = format!(
                "a PostgreSQL server of another container or namespace (process {pid}, namespace {}) works in {data}: stop \
                 it where it was started",
                namespace.display()
            );
            bail!(Failure::new(Code::CannotCreate, format!("{what}; two servers would destroy the data")));
        }
        shown.get_or_insert_with(|| UnderWay::begin(wait_for_elsewhere(data)));
        tokio::time::sleep(ELSEWHERE_POLL).await;
    }
}

/// A server that cannot be seen is not taken for none.
fn tell_of_unseen(data: &Path, unseen: &[i32]) {
    if !unseen.is_empty() {
        tracing::warn!(
            "cannot see where the PostgreSQL processes {unseen:?} work, for want of {RIGHT}: if one of them works in {}, the \
             next start of PostgreSQL fails until it is ended",
            data.display()
        );
    }
}

/// End the server of an earlier run if one still works here, as [`clear`] does; costs nothing after a clean stop.
///
/// # Errors
/// As [`clear`].
pub async fn end_leftover(home: &Home, grace: Duration) -> anyhow::Result<()> {
    if home.data.join("postmaster.pid").exists() { clear(home, grace).await.map(drop) } else { Ok(()) }
}

/// Our namespace's processes that work in the data directory `data`; once the postmaster is dead, its orphaned backends.
/// Blocks.
pub fn orphaned_backends(data: &Path) -> Vec<ClusterProcess> {
    ClusterProcesses::of(data).found.into_iter().filter(|process| !process.foreign).collect()
}

/// Whether a server works in `data`, in whatever namespace. Blocks.
pub fn is_worked_in(data: &Path) -> bool {
    !ClusterProcesses::of(data).found.is_empty()
}

/// The processes of PostgreSQL that work in `data`: those of this pid namespace, and one of another if there is one. Blocks.
pub fn working_in(data: &Path) -> (Vec<i32>, Option<i32>) {
    let found = ClusterProcesses::of(data).found;
    let foreign = found.iter().find(|process| process.foreign).map(ClusterProcess::pid);
    (found.iter().filter(|process| !process.foreign).map(ClusterProcess::pid).collect(), foreign)
}

/// After the postmaster of `data` died: wait for its backends to notice, and kill those that do not.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when one cannot be ended, with [`Code::CannotCreate`] for a server of another
/// namespace.
pub async fn end_orphaned_backends(data: &Path) -> anyhow::Result<()> {
    let left = refuse_foreign(data).await?;
    if gone(&left, NOTICE_LIMIT).await {
        return Ok(());
    }
    for process in left.iter().filter(|process| process.is_there()) {
        tracing::warn!(process.pid = process.pid(), "killing a backend that outlived its postmaster");
        process.signal(Signal::SIGKILL);
    }
    if gone(&left, KILL_LIMIT).await {
        return Ok(());
    }
    let left: Vec<i32> = left.iter().filter(|process| process.is_there()).map(ClusterProcess::pid).collect();
    let message = format!("processes {left:?} of an earlier PostgreSQL still work in {}", data.display());
    bail!(Failure::new(Code::Temporary, format!("{message} and cannot be ended; is its disk hanging?")))
}

async fn stop_orphan(data: &Path, server: &ClusterProcess, grace: Duration) -> anyhow::Result<()> {
    let (shown, pid) = (data.display(), server.pid());
    let what = format!("a PostgreSQL server of an earlier run still works in {shown}");
    tracing::warn!(process.pid = pid, "{what}; stopping it, within {grace:?} (stop.postgres_grace)");
    let _shown = UnderWay::begin(format!("{what} (process {pid}): it is stopped, within {grace:?}"));
    for (request, limit) in [(Signal::SIGINT, grace), (Signal::SIGQUIT, IMMEDIATE_LIMIT)] {
        server.signal(request);
        // A stopped process handles no signal until it is continued.
        server.signal(Signal::SIGCONT);
        if gone(std::slice::from_ref(server), limit).await {
            return Ok(());
        }
    }
    tracing::warn!(process.pid = pid, "it did not stop; killing it");
    server.signal(Signal::SIGKILL);
    if gone(std::slice::from_ref(server), KILL_LIMIT).await {
        return Ok(());
    }
    bail!(Failure::new(Code::Temporary, format!("the PostgreSQL server {pid} in {shown} cannot be stopped")))
}

/// Wait until `processes` have ended; `false` when `limit` passed first.
async fn gone(processes: &[ClusterProcess], limit: Duration) -> bool {
    let begun = Instant::now();
    while processes.iter().any(ClusterProcess::is_there) {
        if begun.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// The pid in the first line of a postmaster.pid; a standalone backend writes its own negated.
fn pid_in(text: &[u8]) -> Option<i32> {
    let line = text.split(|&byte| byte == b'\n').next()?;
    let pid: i32 = std::str::from_utf8(line).ok()?.trim().parse().ok()?;
    pid.checked_abs().filter(|&pid| pid != 0)
}

/// Remove the sockets and socket locks of servers that are gone: the directory is this cluster's alone.
fn clear_sockets(dir: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(".s.PGSQL.")) {
        fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
