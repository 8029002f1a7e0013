//! The kernel's OOM killer: which process it kills first, and whether it has killed one.
//!
//! Blocks: never; these files of the kernel's wait for no disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::config::cgroup::{Version, memory_groups};

/// How much sooner than Tandem a worker is killed: as if it had three tenths of the machine's memory more (proc_pid_oom_score_adj(5)).
const SOONER: i32 = 300;
const SCORE_MAX: i32 = 1000;

/// The count of kills at the last look.
static LAST: Mutex<Option<u64>> = Mutex::new(None);

/// Make the kernel kill process `pid` before PostgreSQL, whose end would interrupt everything. Raising a score needs no
/// rights; lowering it again does.
pub fn take_first(pid: i32) {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse::<i32>().ok());
    let Some(own) = own else { return };
    let score = (own + SOONER).min(SCORE_MAX);
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        tracing::debug!(process.pid = pid, %error, "make the OOM killer kill it first");
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    *last = last.or_else(kills);
}

/// Whether the kernel has killed a process for want of memory since the last call, or since the first child.
pub fn has_killed() -> bool {
    let now = kills();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let grew = matches!((*last, now), (Some(before), Some(now)) if now > before);
    *last = now.or(*last);
    grew
}

/// How many processes the kernel has killed for want of memory: in this process's memory group since that was made, or on this
/// machine since it started.
pub fn kills() -> Option<u64> {
    under(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

/// The count of this process's memory group, or the machine's where there is none.
fn under(proc: &Path, cgroups: &Path) -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let groups = memory_groups(proc, cgroups).into_iter();
    let files = groups.flat_map(|group| {
        let file = match group.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        group.dirs.into_iter().map(move |dir| dir.join(file))
    });
    let all: Vec<PathBuf> = files.chain([proc.join("vmstat")]).collect();
    all.iter().find_map(|path| count(&read(path)))
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_own_count_is_taken_before_the_machines() {
        let temp = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (temp.path().join("proc"), temp.path().join("cgroup"));
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(under(&proc, &cgroups), None);
        write(&proc.join("vmstat"), "nr_free_pages 1\noom_kill 7\n");
        assert_eq!(under(&proc, &cgroups), Some(7));
        write(&proc.join("self/cgroup"), "0::/app\n");
        assert_eq!(under(&proc, &cgroups), Some(7));
        write(&cgroups.join("app/memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        assert_eq!(under(&proc, &cgroups), Some(2));
        write(&proc.join("self/cgroup"), "5:cpu,memory:/docker/abc\n1:name=systemd:/x\n");
        write(&cgroups.join("memory/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
        assert_eq!(under(&proc, &cgroups), Some(4), "the host's path, seen from inside a container");
    }
}
