//! Wait for the end of a process that is no child of this one.

use std::time::Duration;

use procfs::process::{Process, Stat};
use tokio::time::sleep;

/// How often the process is looked at: the kernel tells only its parent of its end.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Wait until process `pid` has ended, reaped or not. Returns at once when there is no such process.
pub async fn ended(pid: i32) {
    let Some(first) = look(pid) else { return };
    // With another start time the number belongs to another process.
    while look(pid).is_some_and(|now| now.starttime == first.starttime) {
        sleep(LOOK_AGAIN).await;
    }
}

fn look(pid: i32) -> Option<Stat> {
    let stat = Process::new(pid).ok()?.stat().ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::CommandLine;
    use crate::process::{signal, spawn};
    use nix::sys::signal::Signal;
    use tokio::time::timeout;

    #[tokio::test]
    async fn the_end_is_noticed_before_anybody_reaps_it() {
        let (child, _output) = spawn(&CommandLine::new("sleep").arg("1000"), &[], Signal::SIGKILL).unwrap();
        let pid = child.pid();
        assert!(timeout(5 * LOOK_AGAIN, ended(pid)).await.is_err(), "it lives");
        signal(pid, Signal::SIGKILL);
        timeout(Duration::from_secs(5), ended(pid)).await.unwrap();
        ended(i32::MAX).await;
    }
}
