//! What the tests would leave in the machine's memory, which goes when the test program ends: spare data directories of
//! `tandem test`, which serve a user's next run, and the shared memory of servers that a test killed with SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Instant;

use nix::unistd::Uid;

use super::refusal::names;
use super::tandem::{LIMIT, pause};

const MEMORY: &str = "/dev/shm";
/// Where throwaway servers live, one directory for each user.
const PLACE: &str = "tandem-test-";
/// System V's segments (proc_sysvipc_shm(5)).
const SEGMENTS: &str = "/proc/sysvipc/shm";

/// What was there before the tests.
struct Before {
    shared: BTreeSet<String>,
    segments: BTreeSet<String>,
}

static BEFORE: LazyLock<Before> = LazyLock::new(|| {
    at_the_end();
    Before { shared: shared().collect(), segments: unused_segments().collect() }
});

/// What is in the memory, by its path below [`MEMORY`]: with what is in users' places, which may have been there before.
fn shared() -> impl Iterator<Item = String> {
    let inside = |name: String| {
        let place = Path::new(MEMORY).join(&name);
        let inner = if name.starts_with(PLACE) { names(&place) } else { Vec::new() };
        let inner = inner.into_iter().map({
            let name = name.clone();
            move |inner| format!("{name}/{inner}")
        });
        std::iter::once(name).chain(inner)
    };
    names(Path::new(MEMORY)).into_iter().flat_map(inside)
}

/// To be called before the first server.
pub fn go_at_the_end() {
    LazyLock::force(&BEFORE);
    super::watchdog::start();
}

#[expect(unsafe_code, reason = "libtest has no hook after the last test, and atexit(3) has no safe door")]
fn at_the_end() {
    // SAFETY: the function is a plain one that lives as long as the program.
    unsafe { nix::libc::atexit(remove) };
}

extern "C" fn remove() {
    let places = Path::new(MEMORY).join(format!("{PLACE}{}", Uid::effective()));
    let begun = Instant::now();
    // A janitor outlives its run for a moment.
    let busy = |name: &String| ["run-", "making-", "gone-"].iter().any(|prefix| name.starts_with(prefix));
    while names(&places).iter().any(busy) && begun.elapsed() < LIMIT / 8 {
        pause();
    }
    // So does the server of the last test, whose Tandem was killed.
    let begun = Instant::now();
    while another_server_runs() && begun.elapsed() < LIMIT / 16 {
        pause();
    }
    let new: Vec<_> = shared().filter(|name| !BEFORE.shared.contains(name)).collect();
    for name in new {
        let path = Path::new(MEMORY).join(&name);
        // Those of other users too: as root, some tests run as them. A server that still works in there is another test
        // program's.
        if name.starts_with(PLACE) {
            if !is_worked_in(&path) && !is_held(&path) {
                let _ = fs::remove_dir_all(path);
            }
        } else if name.starts_with("PostgreSQL.") && !is_mapped(&path) && !another_server_runs()
            || name.starts_with("sem.mp-") && !is_mapped(&path)
        {
            let _ = fs::remove_file(path);
        }
    }
    for segment in unused_segments().filter(|segment| !BEFORE.segments.contains(segment)) {
        #[expect(clippy::disallowed_methods, reason = "a test cleans up")]
        let _ = Command::new("ipcrm").args(["-m", &segment]).output();
    }
}

/// Whether a process works in the directory `path` or below it.
fn is_worked_in(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path().join("cwd"));
    processes.filter_map(|cwd| fs::read_link(cwd).ok()).any(|cwd| cwd.starts_with(path))
}

/// Whether a run holds the directory: a process of another PID namespace is not seen, but its lock is.
fn is_held(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path.join("lock")) else { return false };
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_err()
}

/// Whether any server runs: what it keeps for sessions to come need not be in the memory of one of its processes. Those that
/// have ended and that nobody has waited for yet, such as orphans of killed programs, have no program any more.
fn another_server_runs() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let is_server = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let has_ended = || fs::read_link(process.join("exe")).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        name.trim_end() == "postgres" && !has_ended()
    };
    processes.into_iter().any(|process| is_server(&process))
}

/// Whether a process has the file at `path` in its memory.
fn is_mapped(path: &Path) -> bool {
    let text = path.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path().join("maps"));
    processes.filter_map(|maps: PathBuf| fs::read_to_string(maps).ok()).any(|maps| maps.contains(&text))
}

/// The identifiers of the segments that no process is attached to.
fn unused_segments() -> impl Iterator<Item = String> {
    let text = fs::read_to_string(SEGMENTS).unwrap_or_default();
    let rows: Vec<Vec<String>> =
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    // key, shmid, perms, size, cpid, lpid, nattch
    rows.into_iter().filter(|row| row.get(6).is_some_and(|attached| attached == "0")).map(|mut row| row.swap_remove(1))
}
