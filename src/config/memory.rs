//! How much memory this process may use: the machine's, or less where a container's limit says so.

use std::fs;
use std::path::Path;

use super::cgroup::{Version, memory_groups};

/// Taken where the system does not say (no `/proc`).
const UNKNOWN: u64 = 2 * 1024 * 1024 * 1024;

/// Bytes that this process and its children may use in all.
pub fn available() -> u64 {
    under(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn under(proc: &Path, cgroups: &Path) -> u64 {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let groups = memory_groups(proc, cgroups).into_iter();
    let limits = groups.filter_map(|group| {
        let file = match group.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        group.dirs.iter().filter_map(|dir| read(&dir.join(file)).trim().parse::<u64>().ok()).min()
    });
    limits.chain(total(&read(&proc.join("meminfo")))).min().unwrap_or(UNKNOWN)
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let temp = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (temp.path().join("proc"), temp.path().join("cgroup"));
        let write = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(under(&proc, &cgroups), UNKNOWN);
        write(&proc.join("meminfo"), "MemTotal:       16000 kB\nMemFree: 1 kB\n");
        write(&proc.join("self/cgroup"), "0::/app.slice/tandem.service\n");
        assert_eq!(under(&proc, &cgroups), 16_384_000);
        write(&cgroups.join("app.slice/tandem.service/memory.max"), "max\n");
        write(&cgroups.join("app.slice/memory.max"), "1000000\n");
        assert_eq!(under(&proc, &cgroups), 1_000_000);
        write(&proc.join("self/cgroup"), "11:cpu,memory:/docker/abc\n1:name=systemd:/x\n");
        write(&cgroups.join("memory/memory.limit_in_bytes"), "2000000\n");
        assert_eq!(under(&proc, &cgroups), 2_000_000, "the host's path, seen from inside a container");
        write(&cgroups.join("memory/memory.limit_in_bytes"), "9223372036854771712\n");
        assert_eq!(under(&proc, &cgroups), 16_384_000, "no limit, as version 1 writes it");
    }
}
