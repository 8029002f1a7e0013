//! How a worker is kept: its restart policy and its stop ladder. Pure.

use crate::config::{Stop, Workers};
use crate::plan::{KILL_GRACE, Policy, Rung, Signal};

/// The policy of every worker.
///
/// Signals go to its whole process group, for a worker may have started processes of its own.
pub fn policy(workers: &Workers, stop: &Stop) -> Policy {
    let ladder = vec![
        Rung { signal: Signal::Term, group: true, grace: stop.grace },
        Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE },
    ];
    Policy {
        ready_limit: workers.ready_limit,
        hang_limit: None,
        ladder,
        backoff_first: workers.backoff_first,
        backoff_step: workers.backoff_first.saturating_mul(2),
        backoff_max: workers.backoff_max,
        intensity: workers.restart_intensity as usize,
        period: workers.restart_period,
        rest: workers.restart_period,
    }
}
