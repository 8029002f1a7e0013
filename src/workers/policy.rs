//! The restart policy of workers and their ladders. Pure.

use std::time::Duration;

use crate::config::{Stop, Workers};
use crate::plan::{KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};

/// How much longer than its drain limit, at which it ends by itself, a worker may take to retire.
const RETIRE_ROOM: Duration = Duration::from_secs(5);
/// How long a hung worker may take to print what its threads are doing.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// The policy of every worker.
///
/// Signals go to its whole process group, for a worker may have started processes of its own.
pub fn policy(workers: &Workers, stop: &Stop) -> Policy {
    let ladder = vec![
        Rung { signal: Signal::Term, group: true, grace: stop.grace },
        Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE },
    ];
    // Another server ignores SIGWINCH or means something else by it: it retires by SIGTERM, with more time.
    let retire = match workers.command {
        Some(_) => Rung { signal: Signal::Term, group: false, grace: workers.drain + RETIRE_ROOM },
        None => Rung { signal: Signal::Retire, group: false, grace: workers.drain + RETIRE_ROOM },
    };
    let kill = Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE };
    Policy {
        ready_limit: workers.ready_limit,
        // The watchdog has waited already.
        hang_limit: Some(Duration::ZERO),
        ladder,
        retire: vec![retire],
        // Not the group: the worker's own children would only leave core files.
        hang: vec![Rung { signal: Signal::Abort, group: false, grace: ABORT_GRACE }, kill],
        // A worker that served is restarted at once: forked off a template, that takes 30 ms. Only a second failure waits.
        backoff_first: Duration::ZERO,
        backoff_step: workers.backoff_first,
        backoff_max: workers.backoff_max,
        intensity: workers.restart_intensity as usize,
        period: workers.restart_period,
        rest: workers.restart_period,
        starved_pause: STARVED_PAUSE,
    }
}
