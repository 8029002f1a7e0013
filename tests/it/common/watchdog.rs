//! A limit for whatever a test waits for in a process that it started: its end, its output, an answer. Beyond it the process is
//! killed, and the test fails instead of holding up all others.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tandem::processes;

/// Longest life of a child of this program: all tests together take no more than twice as long.
pub const LIFE: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

static WATCHDOG: LazyLock<mpsc::Sender<()>> = LazyLock::new(|| {
    let (open, end) = mpsc::channel();
    std::thread::Builder::new().name("watchdog".into()).spawn(move || watch(&end)).unwrap();
    open
});

/// To be called before the first process.
pub fn start() {
    LazyLock::force(&WATCHDOG);
}

fn watch(end: &mpsc::Receiver<()>) {
    let own = std::process::id().cast_signed();
    let mut seen = HashMap::new();
    while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let children: HashMap<i32, String> = processes()
            .into_iter()
            // The servers of tests in Rust, which several tests use, and what cleans up after them.
            .filter(|it| it.parent == own && it.name != "postgres" && !it.args.contains("tandem-janitor"))
            .map(|it| (it.pid, it.args))
            .collect();
        for (pid, args) in overdue(&mut seen, &children, Instant::now()) {
            eprintln!("killed after {LIFE:?}: {args}");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Which of the `children` there are `now` have lived too long; `seen` is when each was there first.
pub fn overdue(seen: &mut HashMap<i32, Instant>, children: &HashMap<i32, String>, now: Instant) -> Vec<(i32, String)> {
    // Another process may get its number.
    seen.retain(|pid, _| children.contains_key(pid));
    let mut late = children.clone();
    late.retain(|pid, _| now.duration_since(*seen.entry(*pid).or_insert(now)) > LIFE);
    late.into_iter().collect()
}
