//! The restart policy of workers and their ladders. Pure.

use std::time::Duration;

use crate::config::{Stop, Workers};
use crate::plan::{KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};

/// How much longer than its drain limit, at which it ends by itself, a worker may take to retire.
const RETIRE_ROOM: Duration = Duration::from_secs(5);
/// How long a worker that was replaced may take to say that it accepts no more: it looks for the order every 100 ms.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// The same for another server, which hardly ever says so.
const CLOSE_LIMIT_UNSAID: Duration = Duration::from_secs(1);
/// How long a hung worker may take to print what its threads are doing.
const ABORT_GRACE: Duration = Duration::from_secs(2);

/// The same for one that is deaf to a stop; with [`DEAF_KILL_GRACE`], no more than SIGKILL alone would get.
const DEAF_ABORT_GRACE: Duration = Duration::from_secs(1);
/// How long the kernel gets to end a worker that printed what its threads do.
const DEAF_KILL_GRACE: Duration = Duration::from_secs(1);
/// How often a start is tried again before a worker was ever ready. What its startup fails by is a mistake, which stays, or
/// a service beside Tandem that starts at the same moment and needs a second or two.
const START_RETRIES: usize = 2;
/// The pause before the first of these tries; the second one is twice as long.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Longest time for a process: a fork off the template, or a start without it where the template does not answer.
const SPAWN_LIMIT: Duration = Duration::from_secs(25);

/// The policy of every worker.
///
/// Signals go to its whole process group, for a worker may have started processes of its own.
pub fn policy(workers: &Workers, stop: &Stop) -> Policy {
    let kill = Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE };
    let term = Rung { signal: Signal::Term, group: true, grace: stop.grace };
    let ladder = match workers.command {
        // What another server makes of SIGABRT is a core file.
        Some(_) => vec![term, kill],
        None => vec![
            term,
            Rung { signal: Signal::Abort, group: false, grace: DEAF_ABORT_GRACE },
            Rung { grace: DEAF_KILL_GRACE, ..kill },
        ],
    };
    let with_room = |limit: Duration| limit.saturating_add(RETIRE_ROOM);
    // Another server ignores SIGWINCH or means something else by it: it retires by SIGTERM, with more time. Nothing tells
    // whether it answers a request or hangs, so its time has an end.
    let (retire, close_limit) = match workers.command {
        Some(_) => {
            let grace = with_room(workers.drain.max(workers.drain_busy.unwrap_or_default()));
            (Rung { signal: Signal::Term, group: false, grace }, CLOSE_LIMIT_UNSAID)
        }
        None => (Rung { signal: Signal::Retire, group: false, grace: with_room(workers.drain) }, CLOSE_LIMIT),
    };
    Policy {
        spawn_limit: SPAWN_LIMIT,
        ready_limit: workers.ready_limit,
        // The watchdog has waited already.
        hang_limit: Some(Duration::ZERO),
        ladder,
        retire: vec![retire],
        close_limit,
        // The worker itself cuts what is left before that, and the watchdog ends one that hangs.
        drain_limit: workers.drain_busy.map_or(Duration::MAX, with_room),
        drain_firm: workers.drain,
        // Not the group: the worker's own children would only leave core files.
        hang: vec![Rung { signal: Signal::Abort, group: false, grace: ABORT_GRACE }, kill],
        // A worker that served is restarted at once: forked off a template, that takes 30 ms. Only a second failure waits.
        backoff_first: Duration::ZERO,
        backoff_step: workers.backoff_first,
        backoff_max: workers.backoff_max,
        intensity: workers.restart_intensity as usize,
        period: workers.restart_period,
        start_intensity: (workers.restart_intensity as usize).min(START_RETRIES),
        start_pause: START_PAUSE,
        rest: workers.restart_period,
        abandon_limit: workers.ready_limit,
        starved_pause: STARVED_PAUSE,
    }
}
