//! How much memory processes have, by the kernel's word. Read on request: the kernel walks a process's page tables for
//! it, which takes milliseconds, so never on the supervisor's own thread.

use std::collections::HashMap;

use procfs::WithCurrentSystemInfo;
use procfs::process::{Process, all_processes};

/// The proportional set size of one process in bytes: its own pages, and its share of those it shares. `None` when it is
/// gone, or when this kernel or its owner does not let us know.
pub fn pss(pid: i32) -> Option<u64> {
    let rollup = Process::new(pid).ok()?.smaps_rollup().ok()?;
    // procfs has the kernel's kB converted to bytes already.
    rollup.memory_map_rollup.0.first()?.extension.map.get("Pss").copied()
}

/// The resident set size of one process in bytes: shared pages in full. `None` when it is gone.
pub fn rss(pid: i32) -> Option<u64> {
    Some(Process::new(pid).ok()?.stat().ok()?.rss_bytes().get())
}

/// The memory of each of `pids` with all its descendants, in bytes; PSS where that can be read, else RSS. `None` for a
/// process that is gone.
pub fn of_families(pids: &[i32]) -> Vec<Option<u64>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for stat in all_processes().into_iter().flatten().flatten().filter_map(|process| process.stat().ok()) {
        children.entry(stat.ppid).or_default().push(stat.pid);
    }
    pids.iter().map(|&pid| of_family(pid, &children)).collect()
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

fn of_one(pid: i32) -> Option<u64> {
    pss(pid).or_else(|| rss(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_known_and_a_process_that_is_gone_has_none() {
        let own = std::process::id().cast_signed();
        let (pss, rss) = (pss(own).unwrap(), rss(own).unwrap());
        // Other tests of this process take memory meanwhile.
        assert!(pss > 100_000 && pss < 2 * rss, "PSS {pss}, RSS {rss}");
        let families = of_families(&[own, i32::MAX]);
        assert!(families[0].unwrap() > 100_000 && families[1].is_none(), "{families:?}");
    }
}
