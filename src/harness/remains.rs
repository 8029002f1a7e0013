//! What a dead run may leave: its server's processes, the kernel's shared memory, its directory.
//!
//! The janitor does the same in the shell's words, for it must do it after this process has gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::plan::CommandLine;
use crate::postgres::stale;
use crate::process::{self, Streams};

/// How long the removal goes on while killed processes still end.
const TRIES: usize = 50;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The data directory of the run in `dir`, as [`crate::postgres::home::Home::at`] lays it out.
pub fn data(dir: &Path) -> PathBuf {
    dir.join("postgres/16")
}

/// Whether a server works in the run's directory `dir`.
pub fn is_served(dir: &Path) -> bool {
    stale::is_worked_in(&data(dir))
}

/// End what works in the run's directory `dir`, and remove it.
pub async fn remove(dir: &Path) {
    let data = data(dir);
    let segment = segment(&data);
    for _ in 0..TRIES {
        let working = stale::orphaned_backends(&data);
        working.iter().for_each(|server| server.signal(Signal::SIGKILL));
        // Not before the last process has gone, which could still write.
        if !stale::is_worked_in(&data) && fs::remove_dir_all(dir).is_ok() || !dir.exists() {
            break;
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
    if let Some(segment) = segment {
        let command = CommandLine::new("ipcrm").args(["--shmem-id", &segment]);
        let _ = process::spawn_with(&command, Some(Signal::SIGKILL), Streams::none());
    }
}

/// The shared memory of a server that did not end in an orderly way: the kernel keeps it for ever, and only line 7 of
/// postmaster.pid says which it is (PostgreSQL's src/include/utils/pidfile.h: key, then id).
fn segment(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let id = text.lines().nth(6)?.split_whitespace().nth(1)?;
    id.bytes().all(|byte| byte.is_ascii_digit()).then(|| id.to_owned())
}
