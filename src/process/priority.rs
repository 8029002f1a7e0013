//! How far Tandem's own work stands behind that of others.

use std::fs;

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// The threads of this process.
const THREADS: &str = "/proc/self/task";

/// Let this process, and all that it starts from now on, wait for the processor behind others (nice(2)), by `nice` or by as
/// much as it does already. Its turns at the disk follow: a thread that has set no I/O priority has that of its niceness
/// (ioprio_get(2)).
///
/// Best effort: what cannot be set stays as it is.
pub fn stand_back(nice: i32) {
    // Blocks: /proc waits for no disk.
    let threads = fs::read_dir(THREADS).into_iter().flatten().flatten();
    // On Linux each thread has a niceness of its own, which those that it starts take over.
    for thread in threads.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)) {
        at_least(thread, nice);
    }
}

/// How far this thread stands back.
pub fn own() -> i32 {
    getpriority_process(None).unwrap_or(0)
}

/// Let the process `pid`, which has one thread, stand as far back. Best effort.
pub fn stand_back_too(pid: i32, nice: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        at_least(pid, nice);
    }
}

/// Less than a thread has would undo what whoever started Tandem has said.
fn at_least(thread: Pid, nice: i32) {
    if getpriority_process(Some(thread)).is_ok_and(|own| own < nice) {
        let _ = setpriority_process(Some(thread), nice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_back_never_comes_forward_again() {
        // In a thread of its own, which ends: the others are other tests'.
        let (before, after) = std::thread::spawn(|| {
            let own = Pid::from_raw(nix::unistd::gettid().as_raw()).unwrap();
            let before = getpriority_process(Some(own)).unwrap();
            at_least(own, before + 1);
            at_least(own, before);
            let of_a_new_thread = std::thread::spawn(|| getpriority_process(None).unwrap());
            (before, of_a_new_thread.join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(after, before + 1);
    }
}
