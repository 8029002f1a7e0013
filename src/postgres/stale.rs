//! What an earlier server left: its processes, `postmaster.pid`, socket locks.
//!
//! A PostgreSQL process works in its data directory (its cwd), and nothing else has that directory as its cwd: by this
//! mark they are found, whatever path the directory has in their mount namespace. A server of another pid namespace, such
//! as a container with the same volume, is refused and never touched. Callers hold the [`super::lock::StateLock`] and the data directory, so no
//! other Tandem runs a server here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::files::read_if_there;
use super::home::Home;
use crate::durable;
use crate::exit::{Code, Failure};
use crate::process::{lease, signal};

/// How long an orphaned server may take for a fast shutdown: rollback and a checkpoint.
const FAST_LIMIT: Duration = Duration::from_secs(10);
/// How long for an immediate one: the postmaster itself kills what is left after 5 s.
const IMMEDIATE_LIMIT: Duration = Duration::from_secs(6);
/// How long backends of a dead postmaster get to notice; those in a long query never do.
const NOTICE_LIMIT: Duration = Duration::from_millis(50);
/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
/// How long a server elsewhere gets to end before it is refused: its container may be stopping just now.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks for it.
const ELSEWHERE_POLL: Duration = Duration::from_millis(100);

/// Make the way free for a new postmaster of `home`; returns what its environment must hold.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when processes of an earlier server cannot be ended, with [`Code::CannotCreate`] when
/// a server of another namespace works here.
pub async fn clear(home: &Home) -> anyhow::Result<Vec<(String, String)>> {
    let recorded = recorded(&home.data)?.and_then(|text| pid_in(&text));
    let found = refuse_foreign(&home.data).await?;
    let postmaster =
        |member: &&Member| recorded == Some(member.pid) || found.iter().any(|other| other.parent == member.pid);
    for orphan in found.iter().filter(postmaster) {
        stop_orphan(&home.data, orphan.pid).await?;
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
    let begun = Instant::now();
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
        tokio::time::sleep(ELSEWHERE_POLL).await;
    }
}

/// Files of which a server that runs has some open for writing at any time: its launchers keep catalogs in `global`, its
/// WAL writer keeps a segment.
fn files_of_a_server(data: &Path) -> Vec<PathBuf> {
    let entries = |dir: &str| fs::read_dir(data.join(dir)).into_iter().flatten().flatten();
    entries("global").chain(entries("pg_wal")).map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Wait a little for the end of servers of other pid namespaces that work in `data`, then refuse; returns our namespace's.
async fn refuse_foreign(data: &Path) -> anyhow::Result<Vec<Member>> {
    let begun = Instant::now();
    loop {
        let found = members(data);
        let Some(foreign) = found.iter().find(|member| member.foreign) else { return Ok(found) };
        if begun.elapsed() > ELSEWHERE_LIMIT {
            let (data, pid) = (data.display(), foreign.pid);
            let namespace = namespace_of(&pid.to_string()).unwrap_or_default();
            let what = format!(
                "a PostgreSQL server of another container or namespace (process {pid}, namespace {}) works in {data}: stop \
                 it where it was started",
                namespace.display()
            );
            bail!(Failure::new(Code::CannotCreate, format!("{what}; two servers would destroy the data")));
        }
        tokio::time::sleep(ELSEWHERE_POLL).await;
    }
}

/// End the server of an earlier run, should one still work here; costs nothing after a clean stop.
///
/// # Errors
/// As [`clear`].
pub async fn end_leftover(home: &Home) -> anyhow::Result<()> {
    if home.data.join("postmaster.pid").exists() { clear(home).await.map(drop) } else { Ok(()) }
}

/// Our namespace's processes that work in the data directory `data`; once the postmaster is dead, its orphaned backends.
pub fn orphaned_backends(data: &Path) -> Vec<i32> {
    members(data).into_iter().filter(|member| !member.foreign).map(|member| member.pid).collect()
}

/// Whether a server works in `data`, in whatever namespace.
pub fn is_worked_in(data: &Path) -> bool {
    !members(data).is_empty()
}

/// After the postmaster of `data` died: wait for its backends to notice, and kill those that do not.
///
/// # Errors
/// [`Failure`] with [`Code::Temporary`] when one cannot be ended, with [`Code::CannotCreate`] for a server of another
/// namespace.
pub async fn end_orphaned_backends(data: &Path) -> anyhow::Result<()> {
    let left: Vec<i32> = refuse_foreign(data).await?.into_iter().map(|member| member.pid).collect();
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
    /// Whether it lives in another pid namespace than Tandem.
    foreign: bool,
}

/// The PostgreSQL processes that work in `data`. One that may not be looked at (a container's root lacks CAP_SYS_PTRACE)
/// is not among them.
fn members(data: &Path) -> Vec<Member> {
    let (Ok(entries), Some(place)) = (fs::read_dir("/proc"), Place::of(data)) else { return Vec::new() };
    let own = namespace_of("self");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter_map(|pid| {
        // A shell that somebody left in the data directory is not ours to end. Its name comes first: a look at the
        // directory of some other process could wait for a disk that hangs.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if name.trim_end() != "postgres" || Place::of_process(pid) != Some(place) {
            return None;
        }
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        let foreign = matches!((&own, namespace_of(&pid.to_string())), (Some(own), Some(theirs)) if *own != theirs);
        Some(Member { pid, parent: stat.ppid, foreign })
    });
    found.collect()
}

/// A directory, by whatever path: bind mounts and other mount namespaces show the same one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(directory: &Path) -> Option<Self> {
        let meta = fs::metadata(directory).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino() })
    }

    /// Where `pid` works. A zombie works nowhere.
    fn of_process(pid: i32) -> Option<Self> {
        Self::of(Path::new(&format!("/proc/{pid}/cwd")))
    }
}

/// The pid namespace of a process, as the kernel writes it (namespaces(7)).
fn namespace_of(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Whether `pid` lives with `data` as its working directory.
fn works_in(pid: i32, data: &Path) -> bool {
    Place::of_process(pid).is_some_and(|place| Place::of(data) == Some(place))
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
