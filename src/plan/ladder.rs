//! The stop as it is told: how long each part of it may take, and the sum of them. Pure.

use std::fmt;
use std::time::Duration;

/// One part of the stop, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopTerm {
    /// What is done, or what is ended.
    pub what: &'static str,
    pub limit: Duration,
}

/// The parts in the order in which a stop goes through them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopLadder {
    pub terms: Vec<StopTerm>,
    /// How much of its end only a server needs that does not end by its fast shutdown, and what services left behind.
    pub last_resort: Duration,
    /// What the platform grants in all before it kills.
    pub platform_grace: Duration,
}

impl StopLadder {
    /// The longest the stop may take.
    pub fn total(&self) -> Duration {
        self.terms.iter().fold(Duration::ZERO, |sum, term| sum.saturating_add(term.limit))
    }

    /// The longest until PostgreSQL has had its time for a fast shutdown. What follows ends a server that did not use it, and
    /// what is left of other services: the platform's SIGKILL does that too.
    pub fn orderly(&self) -> Duration {
        self.total().saturating_sub(self.last_resort)
    }

    /// What to tell the operator when the platform would kill before PostgreSQL has had its time.
    pub fn notice(&self) -> Option<String> {
        (self.orderly() > self.platform_grace).then(|| {
            format!(
                "the stop may take {self}, longer than the platform's {}: lower the limits under [stop], or raise the \
                 platform's limit (Kubernetes terminationGracePeriodSeconds, Docker --stop-timeout, systemd \
                 TimeoutStopSec) and stop.platform_grace with it",
                humantime::format_duration(self.platform_grace)
            )
        })
    }
}

/// What `docker stop` grants unless it is told otherwise (Docker's documentation).
const DOCKER_GRACE: Duration = Duration::from_secs(10);

impl StopLadder {
    /// What to tell who runs a container whose first process Tandem is, and has not said what the platform grants. Whether that
    /// platform is Docker is not known; Kubernetes grants the default.
    pub fn notice_of_first_process(&self) -> Option<String> {
        (self.orderly() > DOCKER_GRACE).then(|| {
            format!(
                "Tandem is process 1 of its container, and its stop may take {}: `docker stop` kills after {} unless it is told \
                 otherwise (--stop-timeout; stop_grace_period in Compose). Where stop.platform_grace says what is granted, this \
                 is not said again",
                humantime::format_duration(self.orderly()),
                humantime::format_duration(DOCKER_GRACE)
            )
        })
    }
}

/// The sum, as a person would write it: `workers 12s + PostgreSQL 18s = 30s`.
impl fmt::Display for StopLadder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let term = |StopTerm { what, limit }: &StopTerm| format!("{what} {}", humantime::format_duration(*limit));
        let terms: Vec<_> = self.terms.iter().map(term).collect();
        write!(formatter, "{} = {}", terms.join(" + "), humantime::format_duration(self.total()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_stop_longer_than_the_platforms_patience_is_named() {
        let ladder = |terms: &[(&'static str, u64)]| StopLadder {
            terms: terms
                .iter()
                .map(|&(what, seconds)| StopTerm { what, limit: Duration::from_secs(seconds) })
                .collect(),
            last_resort: Duration::from_secs(8),
            platform_grace: Duration::from_secs(30),
        };
        let fits = ladder(&[("workers", 12), ("PostgreSQL", 18)]);
        assert_eq!((fits.total().as_secs(), fits.notice()), (30, None));
        let fits_but_for_a_deaf_server = ladder(&[("workers", 20), ("PostgreSQL", 18)]);
        assert_eq!((fits_but_for_a_deaf_server.orderly().as_secs(), fits_but_for_a_deaf_server.notice()), (30, None));
        let long = ladder(&[("hooks.before_stop", 5), ("workers", 62), ("PostgreSQL", 18)]);
        expect![[r#"the stop may take hooks.before_stop 5s + workers 1m 2s + PostgreSQL 18s = 1m 25s, longer than the platform's 30s: lower the limits under [stop], or raise the platform's limit (Kubernetes terminationGracePeriodSeconds, Docker --stop-timeout, systemd TimeoutStopSec) and stop.platform_grace with it"#]]
            .assert_eq(&long.notice().unwrap());
    }
}
