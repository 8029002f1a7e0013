//! The postmaster's restart policy and stop ladder. Pure.

use std::time::Duration;

use crate::config::{Postgres, Stop};
use crate::plan::{KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};

/// How long an immediate shutdown may take; PostgreSQL itself kills its children after five seconds.
const IMMEDIATE_GRACE: Duration = Duration::from_secs(6);

/// The postmaster's policy: SIGINT is its fast shutdown, SIGQUIT its immediate one (PostgreSQL documentation, "Shutting
/// Down the Server").
///
/// Signals go to the postmaster alone: its backends give the same signals other meanings. SIGKILL is the last
/// rung; what it leaves behind is cleared before the next start.
pub fn policy(postgres: &Postgres, stop: &Stop) -> Policy {
    let rung = |signal, grace| Rung { signal, group: false, grace };
    let ladder = vec![
        rung(Signal::Interrupt, stop.postgres_grace),
        rung(Signal::Quit, IMMEDIATE_GRACE),
        rung(Signal::Kill, KILL_GRACE),
    ];
    Policy {
        ready_limit: postgres.ready_limit,
        hang_limit: postgres.hang_limit,
        ladder,
        retire: Vec::new(),
        hang: Vec::new(),
        // Recovery takes a third of a second and every request waits for it: the first restart is at once.
        backoff_first: Duration::ZERO,
        backoff_step: Duration::from_millis(500),
        backoff_max: Duration::from_secs(10),
        intensity: 5,
        period: Duration::from_secs(60),
        rest: Duration::from_secs(60),
        starved_pause: STARVED_PAUSE,
    }
}
