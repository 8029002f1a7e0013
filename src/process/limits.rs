//! How many files a process may have open (RLIMIT_NOFILE, `ulimit -n`): Tandem as many as the system lets it, its workers
//! many, and every other child as many as Tandem was started with.
//!
//! systemd starts services with a limit of 1024 that they may raise: select(2) knows no higher descriptors, and a program
//! that uses it all the same writes beyond its memory. A worker has a descriptor for every connection, waits for them with
//! epoll, and would refuse the 1025th client; Python's own `select` raises an error. What else is started, PostgreSQL and
//! people's commands, may be such a program.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// What a worker may have open: more than its clients ever are, and no number up to which closing all descriptors one
/// after another, as old programs do at their start, takes long.
const OF_WORKERS: rlim_t = 65_536;

/// What this process was started with.
static GIVEN: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Let this process have as many files open as the system allows. This changes the whole process: it is for the program,
/// not for a library.
pub fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        let _ = GIVEN.set((soft, hard));
    }
}

/// How many files this process may have open.
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Set a child's limit, one with `many_files` or another. Async-signal-safe: a child calls it between fork and exec.
pub(super) fn restore(many_files: bool) {
    if let Some(&(soft, hard)) = GIVEN.get() {
        let limit = if many_files { soft.max(hard.min(OF_WORKERS)) } else { soft };
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limit, hard);
    }
}
