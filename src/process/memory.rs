//! How much memory processes have, by the kernel's word.
//!
//! Read on request, and never on the event loop's thread: the kernel walks a process's page tables for it, which takes
//! milliseconds. It first waits for the lock of that process's address space (`mmap_lock`), which a process whose disk
//! hangs may hold for as long as that lasts. So each measurement is given up after [`LIMIT`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procfs::WithCurrentSystemInfo;
use procfs::process::{Process, all_processes};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long the kernel may take to say how much memory one process has.
pub const LIMIT: Duration = Duration::from_secs(2);

/// Most processes of one family that are measured cheaply.
const FAMILY_MAX: usize = 2000;

/// The kernel did not answer within the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late;

/// Measurements that have not come back yet, by process, and when the first of them began.
static OPEN: Mutex<Option<HashMap<i32, (Instant, usize)>>> = Mutex::new(None);

/// What `read` finds out about process `pid`, on another thread.
///
/// A measurement that is late holds a thread until the kernel answers, so while a process has one, no other of it is
/// begun.
///
/// # Errors
/// [`Late`] when `limit` has passed, and at once while an earlier measurement of that process is late.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    pid: i32,
    read: impl FnOnce(i32) -> T + Send + 'static,
) -> Result<T, Late> {
    let open = Open::begin(pid, limit).ok_or(Late)?;
    // Blocks: another thread, as what follows.
    let reading = spawn_blocking(move || {
        let _open = open;
        read(pid)
    });
    timeout(limit, reading).await.map_err(|_| Late)?.map_err(|_| Late)
}

/// A measurement that has not come back.
struct Open(i32);

impl Open {
    fn begin(pid: i32, limit: Duration) -> Option<Self> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = open.get_or_insert_default().entry(pid).or_insert_with(|| (Instant::now(), 0));
        if *count > 0 && since.elapsed() >= limit {
            return None;
        }
        *count += 1;
        Some(Self(pid))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        if let Some((_, count)) = open.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.0);
            }
        }
    }
}

/// The proportional set size of one process in bytes: its own pages, and its share of those it shares. `None` when it is
/// gone, or when this kernel or its owner does not let us know. May block.
pub fn pss(pid: i32) -> Option<u64> {
    let rollup = Process::new(pid).ok()?.smaps_rollup().ok()?;
    // procfs has the kernel's kB converted to bytes already.
    rollup.memory_map_rollup.0.first()?.extension.map.get("Pss").copied()
}

/// The resident set size of one process in bytes: shared pages in full. `None` when it is gone. May block.
pub fn rss(pid: i32) -> Option<u64> {
    Some(Process::new(pid).ok()?.stat().ok()?.rss_bytes().get())
}

/// The PSS of one process where that can be read, else its RSS. May block.
pub fn of_one(pid: i32) -> Option<u64> {
    pss(pid).or_else(|| rss(pid))
}

/// The memory of each of `pids` with all its descendants, in bytes; PSS where that can be read, else RSS. `None` for a
/// process that is gone, and for one that the kernel says nothing of within [`LIMIT`].
pub async fn of_families(pids: &[i32]) -> Vec<Option<u64>> {
    // Blocks: other threads.
    let children =
        Arc::new(timeout(LIMIT, spawn_blocking(children)).await.ok().and_then(Result::ok).unwrap_or_default());
    let measured = pids.iter().map(|&pid| {
        let children = Arc::clone(&children);
        // All at once: one that is late holds up no other.
        tokio::spawn(within(LIMIT, pid, move |pid| of_family(pid, &children)))
    });
    let mut families = Vec::new();
    for family in measured.collect::<Vec<_>>() {
        families.push(family.await.ok().and_then(Result::ok).flatten());
    }
    families
}

/// The resident memory of each of `pids` with its descendants, cheaply: without a walk of page tables, which for a server with
/// gigabytes of shared buffers takes seconds, and without a look at every process of the machine. What each process has to
/// itself, and what they share once. `None` for one that is gone, or that the kernel says nothing of within [`LIMIT`].
pub async fn lightly(pids: &[i32]) -> Vec<Option<u64>> {
    let measured: Vec<_> = pids.iter().map(|&pid| tokio::spawn(within(LIMIT, pid, of_sharing_family))).collect();
    let mut families = Vec::new();
    for family in measured {
        families.push(family.await.ok().and_then(Result::ok).flatten());
    }
    families
}

/// See [`lightly`]. May block.
fn of_sharing_family(pid: i32) -> Option<u64> {
    let (mut own, mut shared, mut mapped) = (0, 0, 0);
    let mut left = vec![pid];
    let mut seen = 0;
    while let Some(pid) = left.pop() {
        // One that ends meanwhile has no memory.
        let Ok(process) = Process::new(pid) else { continue };
        let Ok(status) = process.status() else { continue };
        seen += 1;
        own += status.rssanon.unwrap_or(0);
        shared = status.rssshmem.unwrap_or(0).max(shared);
        mapped = status.rssfile.unwrap_or(0).max(mapped);
        // A child belongs to the thread that made it.
        let children = process.tasks().into_iter().flatten().flatten().filter_map(|task| task.children().ok());
        left.extend(children.flatten().filter_map(|child| i32::try_from(child).ok()));
        if seen >= FAMILY_MAX {
            break;
        }
    }
    // The kernel counts in kB.
    (seen > 0).then_some((own + shared + mapped) * 1024)
}

/// Every process's children.
fn children() -> HashMap<i32, Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for stat in all_processes().into_iter().flatten().flatten().filter_map(|process| process.stat().ok()) {
        children.entry(stat.ppid).or_default().push(stat.pid);
    }
    children
}

fn of_family(pid: i32, children: &HashMap<i32, Vec<i32>>) -> Option<u64> {
    let mut total = of_one(pid)?;
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            total += of_one(child).unwrap_or(0);
            parents.push(child);
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn our_own_memory_is_known_and_a_process_that_is_gone_has_none() {
        let own = std::process::id().cast_signed();
        let (pss, rss) = (pss(own).unwrap(), rss(own).unwrap());
        // Other tests of this process take memory meanwhile.
        assert!(pss > 100_000 && pss < 2 * rss, "PSS {pss}, RSS {rss}");
        let families = of_families(&[own, i32::MAX]).await;
        assert!(families[0].unwrap() > 100_000 && families[1].is_none(), "{families:?}");
        let light = lightly(&[own, i32::MAX]).await;
        assert!(light[0].unwrap() > 100_000 && light[1].is_none(), "{light:?}");
    }

    #[tokio::test]
    async fn a_process_that_is_late_holds_one_thread_and_nobody_else_up() {
        const SHORT: Duration = Duration::from_millis(50);
        // Numbers that no process has.
        let (stuck, other) = (i32::MAX - 1, i32::MAX - 2);
        let (release, blocked) = mpsc::channel::<()>();
        let hang = move |_| {
            let _ = blocked.recv();
        };
        assert_eq!(within(SHORT, stuck, hang).await, Err(Late));
        assert_eq!(within(SHORT, stuck, |_| panic!("a second thread was taken")).await, Err::<(), _>(Late));
        assert_eq!(within(LIMIT, other, |pid| pid).await, Ok(other));
        drop(release);
        // The kernel has answered: it is measured again.
        while within(SHORT, stuck, |pid| pid).await != Ok(stuck) {
            tokio::task::yield_now().await;
        }
    }
}
