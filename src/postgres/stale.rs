//! What an earlier server left: its processes, `postmaster.pid`, socket locks.
//!
//! A PostgreSQL process works in its data directory (its cwd), and nothing else has that directory as its cwd: by this
//! mark they are found. Callers hold the [`super::lock::StateLock`], so no other Tandem runs a server here.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::files::read_if_there;
use super::home::Home;
use crate::exit::{Code, Failure};
use crate::process::signal;

/// How long an orphaned server may take for a fast shutdown: rollback and a checkpoint.
const FAST_LIMIT: Duration = Duration::from_secs(10);
/// How long for an immediate one: the postmaster itself kills what is left after 5 s.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(6);
/// How long backends of a dead postmaster get to notice; those in a long query never do.
const NOTICE_LIMIT: Duration = Duration::from_millis(50);
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);

/// Make the way free for a new postmaster of `home`; returns what its environment must hold.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when processes of an earlier server cannot be ended.
pub async fn clear(home: &Home) -> anyhow::Result<Vec<(String, String)>> {
    let lock_file = home.data.join("postmaster.pid");
    let recorded = read_if_there(&lock_file).context("read postmaster.pid")?.and_then(|text| pid_in(&text));
    let found = members(&home.data);
    let postmaster =
        |member: &&Member| recorded == Some(member.pid) || found.iter().any(|other| other.parent == member.pid);
    for orphan in found.iter().filter(postmaster) {
        stop_orphan(&home.data, orphan.pid).await?;
    }
    end_orphaned_backends(&home.data).await?;
    clear_sockets(&home.socket_dir)?;
    let Some(text) = read_if_there(&lock_file).context("read postmaster.pid")? else { return Ok(Vec::new()) };
    match pid_in(&text) {
        // Left in place for the interlock on shared memory that its other lines give. PostgreSQL takes a process with
        // this pid for its own, unless that is an ancestor: so it is told that it is (as Patroni does).
        Some(pid) => Ok(vec![("PG_GRANDPARENT_PID".into(), pid.to_string())]),
        None => {
            tracing::warn!("postmaster.pid in {} is damaged; moving it aside", home.data.display());
            fs::rename(&lock_file, home.data.join("postmaster.pid.damaged")).context("move postmaster.pid aside")?;
            Ok(Vec::new())
        }
    }
}

/// End the server of an earlier run, should one still work here; costs nothing after a clean stop.
///
/// # Errors
/// As [`clear`].
pub async fn end_leftover(home: &Home) -> anyhow::Result<()> {
    if home.data.join("postmaster.pid").exists() { clear(home).await.map(drop) } else { Ok(()) }
}

/// Processes that work in the data directory `data`; once the postmaster is dead, its orphaned backends.
pub fn orphaned_backends(data: &Path) -> Vec<i32> {
    members(data).into_iter().map(|member| member.pid).collect()
}

/// After the postmaster of `data` died: wait for its backends to notice, and kill those that do not.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when one cannot be ended.
pub async fn end_orphaned_backends(data: &Path) -> anyhow::Result<()> {
    let left = orphaned_backends(data);
    if left.is_empty() || gone(data, &left, NOTICE_LIMIT).await {
        return Ok(());
    }
    for &pid in left.iter().filter(|&&pid| works_in(pid, data)) {
        tracing::warn!(process.pid = pid, "killing a backend that outlived its postmaster");
        signal(pid, Signal::SIGKILL);
    }
    if gone(data, &left, KILL_LIMIT).await {
        return Ok(());
    }
    let message = format!("processes {left:?} of an earlier PostgreSQL still work in {}", data.display());
    bail!(Failure::new(Code::Temporary, format!("{message} and cannot be ended; is its disk hanging?")))
}

async fn stop_orphan(data: &Path, pid: i32) -> anyhow::Result<()> {
    let shown = data.display();
    tracing::warn!(process.pid = pid, "a PostgreSQL server of an earlier run still works in {shown}; stopping it");
    for (request, limit) in [(Signal::SIGINT, FAST_LIMIT), (Signal::SIGQUIT, IMMEDIATE_LIMIT)] {
        signal(pid, request);
        // A stopped process handles no signal until it is continued.
        signal(pid, Signal::SIGCONT);
        if gone(data, &[pid], limit).await {
            return Ok(());
        }
    }
    tracing::warn!(process.pid = pid, "it did not stop; killing it");
    signal(pid, Signal::SIGKILL);
    if gone(data, &[pid], KILL_LIMIT).await {
        return Ok(());
    }
    bail!(Failure::new(Code::Temporary, format!("the PostgreSQL server {pid} in {shown} cannot be stopped")))
}

/// Wait until none of `pids` works in `data`; `false` when `limit` passed first.
async fn gone(data: &Path, pids: &[i32], limit: Duration) -> bool {
    let begun = Instant::now();
    while pids.iter().any(|&pid| works_in(pid, data)) {
        if begun.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

struct Member {
    pid: i32,
    parent: i32,
}

fn members(data: &Path) -> Vec<Member> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stats = pids.filter(|&pid| works_in(pid, data)).filter_map(|pid| {
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        // A shell that somebody left in the data directory is not ours to end.
        (stat.comm == "postgres").then_some(Member { pid, parent: stat.ppid })
    });
    stats.collect()
}

/// Whether `pid` lives with `data` as its working directory. A zombie has none.
fn works_in(pid: i32, data: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
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
