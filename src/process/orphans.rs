//! Processes whose parent died under us: adopt them, reap them, and leave none behind.

use std::sync::atomic::{AtomicUsize, Ordering};

use std::collections::HashMap;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::child::is_own;
use super::spawn::signal;

/// How many wait for a process that they are about to adopt.
static HOLDS: AtomicUsize = AtomicUsize::new(0);

/// While one of these lives, [`reap`] does nothing: the status of a process that ends before it could be adopted (see
/// [`super::adopt`]) is kept for whoever adopts it.
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

/// Become the parent of every descendant whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn adopt() {
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "become subreaper");
    }
}

/// Reap adopted children that have ended, and no child that somebody here waits for.
///
/// A blanket `waitpid(-1)` would steal those statuses; so peek with WNOWAIT (waitid(2)) and stop at one of our own.
pub fn reap() {
    if HOLDS.load(Ordering::Relaxed) > 0 {
        return;
    }
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = waitid(Id::All, peek) {
        if is_own(pid.as_raw()) {
            return;
        }
        // Blocks: never (WNOHANG).
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Live children of this process that it did not spawn itself.
pub fn strays() -> Vec<i32> {
    children().into_iter().filter(|&pid| !is_own(pid)).collect()
}

/// End every stray with all its descendants, and whatever they started meanwhile; at most `rounds` times.
pub fn end_strays(rounds: usize) {
    for _ in 0..rounds {
        reap();
        let strays = strays();
        if strays.is_empty() {
            return;
        }
        let families = families(&strays);
        let processes = if families.len() == 1 { "process" } else { "processes" };
        tracing::info!("end {} {processes} that the services left behind", families.len());
        // All at once: a chain of them, each in a session of its own, would otherwise go link by link.
        for &pid in &families {
            signal(pid, Signal::SIGKILL);
        }
        for pid in strays {
            // Blocks: until the kernel has ended what was killed.
            let _ = waitpid(Pid::from_raw(pid), None);
        }
    }
}

/// Every process below this one that is no zombie.
pub fn descendants() -> Vec<i32> {
    families(&[std::process::id().cast_signed()]).split_off(1)
}

/// `roots` and all their descendants.
fn families(roots: &[i32]) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, parent) in alive() {
        children.entry(parent).or_default().push(pid);
    }
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// The pids whose parent is this process, whichever thread spawned them (proc_pid_task(5)).
fn children() -> Vec<i32> {
    // Where the kernel keeps lists of them (CONFIG_PROC_CHILDREN), not all processes must be looked at.
    // Blocks: for no disk; the kernel's lists alone are read.
    let tasks = procfs::process::Process::myself().and_then(|own| own.tasks());
    let listed = tasks.and_then(|tasks| {
        let each = tasks.map(|task| task?.children()).collect::<Result<Vec<_>, _>>()?;
        Ok(each.concat().into_iter().map(u32::cast_signed).filter(|&pid| !is_zombie(pid)).collect())
    });
    // Blocks: nothing is read here.
    listed.unwrap_or_else(|_: procfs::ProcError| children_among_all())
}

fn is_zombie(pid: i32) -> bool {
    // Blocks: for no disk.
    procfs::process::Process::new(pid).and_then(|process| process.stat()).is_ok_and(|stat| stat.state == 'Z')
}

fn children_among_all() -> Vec<i32> {
    let own = std::process::id().cast_signed();
    alive().into_iter().filter(|&(_, parent)| parent == own).map(|(pid, _)| pid).collect()
}

/// Every process that is no zombie, with its parent.
fn alive() -> Vec<(i32, i32)> {
    // Blocks: for no disk; at the end of Tandem, and for what is asked elsewhere.
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let stats = processes.filter_map(Result::ok).filter_map(|process| process.stat().ok());
    stats.filter(|stat| stat.state != 'Z').map(|stat| (stat.pid, stat.ppid)).collect()
}
