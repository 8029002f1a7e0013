//! Processes whose parent has ended and that fell to this one: adopt them, reap them, and leave none behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use procfs::process::{Process, Stat};

use super::child::is_own;
use super::look::apart;
use super::mark::{self, Mark, RunId};
use super::stranger::{Identifier, Stranger};

/// How long the kernel gets to end what was killed. A process that is traced, or that waits for a disk, takes longer.
pub const STRAY_LIMIT: Duration = Duration::from_secs(2);
/// The name of the processes of a server of PostgreSQL.
pub(super) const SERVER: &str = "postgres";
/// Between two looks at what was killed.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How many adoptions are under way.
static HOLDS: AtomicUsize = AtomicUsize::new(0);

/// While one of these lives, [`reap`] does nothing: the status of a process that ends before it could be adopted (see
/// [`super::adopt`]) is kept for the code that adopts it.
#[derive(Debug)]
pub struct Hold(());

/// Keep the reaper from taking the status of a process that is about to be adopted.
pub fn hold() -> Hold {
    HOLDS.fetch_add(1, Ordering::Relaxed);
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        if HOLDS.fetch_sub(1, Ordering::Relaxed) == 1 {
            reap();
        }
    }
}

/// Whether this process is the parent of what its descendants leave.
static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Become the parent of every descendant whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn adopt() {
    ADOPTS.store(true, Ordering::Relaxed);
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "become subreaper");
    }
}

/// Reap adopted children that have ended, and no child that this process waits for.
///
/// A blanket `waitpid(-1)` would steal those statuses; so peek with WNOWAIT (waitid(2)) and stop at one of our own.
///
/// A process that adopts none has none to reap: what ends there belongs to whoever uses this library.
pub fn reap() {
    if HOLDS.load(Ordering::Relaxed) > 0 || !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let pid = match waitid(Id::All, peek) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
            // It was ended by a real-time signal, for which that library has no name: look for it.
            Err(nix::errno::Errno::EINVAL) => match ended_strays().next() {
                Some(pid) => Pid::from_raw(pid),
                None => return,
            },
            _ => return,
        };
        if is_own(pid.as_raw()) {
            return;
        }
        // Blocks: never (WNOHANG).
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Live children of this process that it did not spawn itself.
pub fn strays() -> Vec<i32> {
    children().into_iter().filter(|child| !is_zombie(child) && !is_own(child.pid)).map(|child| child.pid).collect()
}

/// Whether the process that `stat` shows is a child of this one that fell to it, as it is a subreaper.
pub fn is_adopted(stat: &Stat) -> bool {
    stat.ppid == std::process::id().cast_signed() && !is_own(stat.pid)
}

/// Children that have ended, which nothing waits for and nothing has reaped.
fn ended_strays() -> impl Iterator<Item = i32> {
    children().into_iter().filter(|child| is_zombie(child) && !is_own(child.pid)).map(|child| child.pid)
}

/// End every stray with all its descendants, and whatever they start meanwhile, within [`STRAY_LIMIT`]; the log names
/// what is left then.
pub async fn end_strays() {
    let began = Instant::now();
    let mut told = 0;
    loop {
        reap();
        // One that is traced stays until its tracer lets go of it, and cannot be reaped before.
        let left = apart("look at the processes that services left behind", || {
            let count = kill(families(&strays())).len();
            let left = children().into_iter().filter(|child| !is_own(child.pid));
            let (left, others): (Vec<Stat>, Vec<Stat>) = left.partition(|child| is_within_reach(child.pid));
            (count, left, others)
        });
        let Some((count, left, others)) = left.await else { return };
        if left.is_empty() {
            if !others.is_empty() {
                tracing::info!("left alone, since they are another user's: {}", listed(&others));
            }
            return;
        }
        if count > told {
            let processes = if count == 1 { "process" } else { "processes" };
            tracing::info!("end {count} {processes} that the services left behind");
            told = count;
        }
        if began.elapsed() > STRAY_LIMIT {
            let names = listed(&left);
            tracing::error!("killed, and not gone after {STRAY_LIMIT:?}: {names}; a debugger or a disk holds it");
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn listed(processes: &[Stat]) -> String {
    processes.iter().map(|stat| format!("{} (pid {})", stat.comm, stat.pid)).collect::<Vec<_>>().join(", ")
}

/// Whether this process may signal `pid`: of what falls to the first process of a container some is another user's, as what
/// `docker exec --user 0` left behind (kill(2), EPERM).
fn is_within_reach(pid: i32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::EPERM)
}

/// End what the child with `mark` left behind when it ended: descendants that are in other process groups, and whose
/// parents have ended too. `name` is the child's, for the log.
pub async fn end_left_by(mark: Mark, name: String) {
    let began = Instant::now();
    let mut ended = BTreeMap::new();
    while began.elapsed() < STRAY_LIMIT {
        let of_it = mark.clone();
        let left = apart("look at the marks of processes", move || {
            let is_of_it = |&pid: &i32| mark::of(pid).is_ok_and(|mark| mark.as_ref() == Some(&of_it));
            let roots: Vec<i32> = strays().into_iter().filter(is_of_it).collect();
            kill(families(&roots))
        });
        let left = left.await.unwrap_or_default();
        if left.is_empty() {
            break;
        }
        ended.extend(left);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    if !ended.is_empty() {
        tracing::info!({ service.name = %name }, "ended what it left behind: {}", named(&ended));
    }
}

/// End what runs in the same place left that are over, and name it in the log. A server of PostgreSQL is left alone, with
/// all that is below it: it ends in its own time, and the start of another one sees to it.
pub async fn end_earlier(run: RunId) {
    let is_earlier = move |mark: &Mark| mark.run.place == run.place && mark.run.id != run.id;
    let ended = apart("look for processes of earlier runs", move || {
        // Whoever starts a server ends the one that is there; what such a server left behind when it ended is nobody's.
        let is_spared = |mark: &Mark, stat: &Stat| mark.orderly && (stat.comm == SERVER || !is_earlier(mark));
        end_marked(&is_earlier, is_spared, &[], STRAY_LIMIT)
    });
    let ended = ended.await.unwrap_or_default();
    if !ended.is_empty() {
        tracing::warn!("a run of Tandem that was killed left processes behind, which are ended: {}", named(&ended));
    }
}

fn named(processes: &BTreeMap<i32, String>) -> String {
    processes.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect::<Vec<_>>().join(", ")
}

/// End every process that carries a mark for which `is_meant` says yes, with all its descendants, and each of `seen`;
/// until there has been none for a while, or `limit` has passed. The names of all that were found. Blocks.
///
/// What `is_spared` says yes for is left alone, with its descendants.
pub(super) fn end_marked(
    is_meant: impl Fn(&Mark) -> bool,
    is_spared: impl Fn(&Mark, &Stat) -> bool,
    seen: &[Identifier],
    limit: Duration,
) -> BTreeMap<i32, String> {
    const QUIET: usize = 5;
    let began = Instant::now();
    let (mut ended, mut quiet) = (BTreeMap::new(), 0);
    while quiet < QUIET && began.elapsed() < limit {
        let all = alive();
        let own = std::process::id().cast_signed();
        let mut roots = Vec::new();
        let mut spared = Vec::new();
        for stat in all.iter().filter(|stat| stat.pid != own) {
            match mark::of(stat.pid) {
                Ok(Some(mark)) if is_spared(&mark, stat) => spared.push(stat.pid),
                Ok(Some(mark)) if is_meant(&mark) => roots.push(stat.pid),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) if seen.contains(&Identifier::of(stat)) => roots.push(stat.pid),
                Ok(None) | Err(_) => {}
            }
        }
        let spared = below(&all, &spared);
        let found: Vec<Identifier> =
            below(&all, &roots).into_iter().filter(|id| id.pid != own && !spared.contains(id)).collect();
        let killed = kill(found);
        quiet = if killed.is_empty() { quiet + 1 } else { 0 };
        ended.extend(killed);
        // A pause of this length; there is nothing to wait for but the time.
        let _ = nix::poll::poll(&mut [], 10_u8);
    }
    ended
}

/// Kill each of `processes` that is still the same and within reach; their pids and names.
pub(super) fn kill(processes: Vec<Identifier>) -> BTreeMap<i32, String> {
    let mut killed = BTreeMap::new();
    // All at once: a chain of them, each in a session of its own, would otherwise go link by link.
    let within_reach = processes.into_iter().filter(|process| is_within_reach(process.pid));
    let held: Vec<Stranger> = within_reach.filter_map(Stranger::hold_this).collect();
    for process in held {
        let name = Process::new(process.pid()).and_then(|process| process.stat()).map(|stat| stat.comm);
        process.signal(Signal::SIGKILL);
        killed.insert(process.pid(), name.unwrap_or_default());
    }
    killed
}

/// Every process below this one that is no zombie.
pub fn descendants() -> Vec<Identifier> {
    let own = std::process::id().cast_signed();
    families(&[own]).into_iter().filter(|id| id.pid != own).collect()
}

/// The process `root` and every process below it or below this one, without this one and zombies.
pub fn family(root: i32) -> Vec<Identifier> {
    let own = std::process::id().cast_signed();
    families(&[own, root]).into_iter().filter(|id| id.pid != own).collect()
}

/// `roots` and all their descendants that are no zombies.
fn families(roots: &[i32]) -> Vec<Identifier> {
    if roots.is_empty() { Vec::new() } else { below(&alive(), roots) }
}

/// Those of `all` that are among `roots` or descend from them.
pub(super) fn below(all: &[Stat], roots: &[i32]) -> Vec<Identifier> {
    let mut children: HashMap<i32, Vec<Identifier>> = HashMap::new();
    for stat in all {
        children.entry(stat.ppid).or_default().push(Identifier::of(stat));
    }
    let mut found: Vec<Identifier> = all.iter().filter(|stat| roots.contains(&stat.pid)).map(Identifier::of).collect();
    let mut next = 0;
    while let Some(&id) = found.get(next) {
        let below = children.remove(&id.pid).unwrap_or_default();
        found.extend(below.into_iter().filter(|id| !roots.contains(&id.pid)));
        next += 1;
    }
    found
}

/// The processes below `root`, as far as the kernel lists them without a look at every process (proc_pid_task(5)).
pub(super) fn listed_below(root: i32) -> Vec<Stat> {
    let mut found: Vec<Stat> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        let children = listed_children(parent).unwrap_or_default();
        parents.extend(children.iter().map(|child| child.pid));
        found.extend(children);
    }
    found
}

/// The processes whose parent is `parent`, whichever thread spawned them, zombies included.
// Blocks: for no disk.
fn listed_children(parent: i32) -> procfs::ProcResult<Vec<Stat>> {
    // These files of the kernel's wait for nothing.
    let tasks = Process::new(parent)?.tasks()?;
    let each = tasks.map(|task| task?.children()).collect::<Result<Vec<_>, _>>()?;
    let stat = |pid: u32| Process::new(pid.cast_signed()).and_then(|process| process.stat()).ok();
    Ok(each.concat().into_iter().filter_map(stat).collect())
}

/// The children of this process, zombies included.
fn children() -> Vec<Stat> {
    let own = std::process::id().cast_signed();
    // Where the kernel keeps lists of them (CONFIG_PROC_CHILDREN), not all processes must be looked at.
    let listed = listed_children(own);
    listed.unwrap_or_else(|_| everything().filter(|stat| stat.ppid == own).collect())
}

fn is_zombie(stat: &Stat) -> bool {
    stat.state == 'Z'
}

/// Every process that is no zombie.
pub(super) fn alive() -> Vec<Stat> {
    everything().filter(|stat| !is_zombie(stat)).collect()
}

fn everything() -> impl Iterator<Item = Stat> {
    // Blocks: for no disk; it takes milliseconds, and is for `apart`, or for kernels that list no children.
    let processes = procfs::process::all_processes().into_iter().flatten();
    processes.filter_map(Result::ok).filter_map(|process| process.stat().ok())
}
