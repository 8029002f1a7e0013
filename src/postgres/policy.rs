//! The postmaster's restart policy and stop ladder. Pure.

use std::time::Duration;

use crate::config::{Postgres, Stop};
use crate::plan::{KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};

/// How long an immediate shutdown may take; PostgreSQL itself kills its children after five seconds.
const IMMEDIATE_GRACE: Duration = Duration::from_secs(6);

/// What follows the fast shutdown of a server that does not end by it.
pub const LAST_RESORT: Duration = IMMEDIATE_GRACE.saturating_add(KILL_GRACE);

/// What may have to be done before a postmaster can be started, beside the fast shutdown of one that was left: its
/// immediate shutdown, the end of its backends, a wait for a server of another container that is just stopping.
const SPAWN_ROOM: Duration = Duration::from_secs(30);
/// How long an abandoned postmaster may still be there, where nothing says how long one may hang.
const ABANDON_LIMIT: Duration = Duration::from_secs(30);

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
        spawn_limit: stop.postgres_grace.saturating_add(SPAWN_ROOM),
        ready_limit: postgres.ready_limit,
        hang_limit: postgres.hang_limit,
        ladder,
        retire: Vec::new(),
        // It never retires.
        close_limit: Duration::ZERO,
        drain_limit: Duration::ZERO,
        drain_firm: Duration::ZERO,
        hang: Vec::new(),
        // Recovery takes a third of a second and every request waits for it: the first restart is at once.
        backoff_first: Duration::ZERO,
        backoff_step: Duration::from_millis(500),
        backoff_max: Duration::from_secs(10),
        intensity: 5,
        period: Duration::from_secs(60),
        start_intensity: 5,
        start_pause: Duration::ZERO,
        rest: Duration::from_secs(60),
        abandon_limit: postgres.hang_limit.unwrap_or(ABANDON_LIMIT),
        starved_pause: STARVED_PAUSE,
    }
}
