//! The machine or the container: memory, limits, clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{apart, kernel_file};
use crate::config::memory;
use crate::doctor::facts::{Limit, LocalTime, Look, Machine};
use crate::doctor::subject::Subject;
use crate::process::{identity, oom};
use crate::room::FileSystem;

/// A directory and a file in it by which systemd's time service says that it has set the clock (systemd-timesyncd(8)).
const TIME_SERVICE: [&str; 2] = ["/run/systemd/timesync", "/run/systemd/timesync/synchronized"];
/// Limits of a process that has a number of its own (proc_pid_limits(5)).
const OPEN_FILES: &str = "Max open files";
const FILE_SIZE: &str = "Max file size";

/// The machine as it is for `subject`, and for its Tandem, whose process is `pid` where one runs.
pub async fn machine(subject: &Subject, pid: Option<u32>) -> Look<Machine> {
    let home = subject.home.clone().ok();
    apart("look at the machine", move || {
        let meminfo = kernel_file("/proc/meminfo").unwrap_or_default();
        let kilobytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = |name: &str| kilobytes(name).map(|count| count << 10);
        let shared = Path::new("/dev/shm");
        Machine {
            memory: memory::available(),
            memory_total: bytes("MemTotal"),
            swap_total: bytes("SwapTotal").unwrap_or(0),
            swap_free: bytes("SwapFree").unwrap_or(0),
            oom_kills: oom::kills().unwrap_or(0),
            hugepages: kernel_file("/sys/kernel/mm/transparent_hugepage/enabled"),
            shared_memory: FileSystem::of(shared).filter(|_| shared.exists()).map(|there| (there.free, there.total)),
            open_files: limit(pid, OPEN_FILES),
            file_size: limit(pid, FILE_SIZE),
            first_free_port: kernel_file("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                .and_then(|text| text.parse().ok())
                .unwrap_or(1024),
            is_root: identity::is_root(),
            unsynchronised: Path::new(TIME_SERVICE[0]).is_dir() && !Path::new(TIME_SERVICE[1]).exists(),
            newest_file: home.and_then(|home| from_the_future(&home.state, &home.data)),
            local_time: local_time(Path::new("/etc/localtime"), Path::new("/usr/share/zoneinfo")),
            system: system(),
        }
    })
    .await
}

/// The limit called `name` of process `pid`, or of this one.
fn limit(pid: Option<u32>, name: &str) -> Limit {
    let of = |place: &str| kernel_file(format!("/proc/{place}/limits"));
    let shown = pid.and_then(|pid| of(&pid.to_string())).or_else(|| of("self")).unwrap_or_default();
    let line = shown.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().ok());
    Limit { soft: numbers.next().flatten(), hard: numbers.next().flatten() }
}

/// A file of the state directory that says it was written later than now.
fn from_the_future(state: &Path, data: &Path) -> Option<(PathBuf, SystemTime)> {
    let files =
        [state.join("lock"), data.join("postmaster.pid"), data.join("PG_VERSION"), data.join("global/pg_control")];
    let stamped = files.into_iter().filter_map(|path| {
        let at = fs::metadata(&path).ok()?.modified().ok()?;
        Some((path, at))
    });
    stamped.max_by_key(|(_, at)| *at)
}

fn local_time(link: &Path, zones: &Path) -> LocalTime {
    match fs::read_link(link) {
        Ok(target) if !link.exists() => LocalTime::Dangling(target),
        _ if !zones.join("UTC").exists() => LocalTime::NoZones,
        _ => LocalTime::Usable,
    }
}

/// The operating system, its kernel and its C library, in one line.
fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("an unknown system");
    let kernel = kernel_file("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, Linux {kernel}, {}", name.trim_matches('"'), std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_zone_that_is_not_there_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        let (link, zones) = (temp.path().join("localtime"), temp.path().join("zones"));
        assert_eq!(local_time(&link, &zones), LocalTime::NoZones);
        fs::create_dir(&zones).unwrap();
        fs::write(zones.join("UTC"), "").unwrap();
        assert_eq!(local_time(&link, &zones), LocalTime::Usable);
        std::os::unix::fs::symlink(zones.join("Mars/Base"), &link).unwrap();
        assert_eq!(local_time(&link, &zones), LocalTime::Dangling(zones.join("Mars/Base")));
    }

    #[test]
    fn the_newest_file_of_the_state_is_found() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(from_the_future(temp.path(), temp.path()), None);
        fs::write(temp.path().join("PG_VERSION"), "16").unwrap();
        let file = fs::File::create(temp.path().join("lock")).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(86_400);
        file.set_modified(later).unwrap();
        assert_eq!(from_the_future(temp.path(), temp.path()).unwrap().0, temp.path().join("lock"));
    }
}
