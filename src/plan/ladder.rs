//! The stop ladder: the rungs of an orderly stop, each with its limit. Pure.

use std::fmt;
use std::time::Duration;

/// One rung: what happens, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    pub name: &'static str,
    pub limit: Duration,
}

/// The rungs in the order in which a stop climbs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopLadder {
    pub rungs: Vec<Rung>,
    /// What the platform grants in all before it kills.
    pub platform_grace: Duration,
}

impl StopLadder {
    /// The ladder with these limits. Without a server of our own (`postgres_grace` is `None`) its rung is missing.
    pub fn new(drain_delay: Duration, grace: Duration, postgres_grace: Option<Duration>, platform: Duration) -> Self {
        let mut rungs = vec![
            Rung { name: "serve on while load balancers look away", limit: drain_delay },
            Rung { name: "workers finish what they have (SIGTERM, then SIGKILL)", limit: grace },
        ];
        let server = postgres_grace.map(|limit| Rung { name: "PostgreSQL stops (SIGINT, then SIGQUIT)", limit });
        rungs.extend(server);
        rungs.retain(|rung| !rung.limit.is_zero());
        Self { rungs, platform_grace: platform }
    }

    /// The longest an orderly stop may take.
    pub fn total(&self) -> Duration {
        self.rungs.iter().map(|rung| rung.limit).sum()
    }

    /// What to tell the operator when the platform would kill before the ladder ends.
    pub fn notice(&self) -> Option<String> {
        (self.total() > self.platform_grace).then(|| {
            format!(
                "an orderly stop may take {self}, longer than the platform's {}: lower stop.grace, or raise the platform's \
                 limit (Kubernetes terminationGracePeriodSeconds, Docker --stop-timeout, systemd TimeoutStopSec) and \
                 stop.platform_grace with it",
                humantime::format_duration(self.platform_grace)
            )
        })
    }
}

/// The sum, as a person would write it: `0s + 10s + 10s = 20s`.
impl fmt::Display for StopLadder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<_> = self.rungs.iter().map(|rung| humantime::format_duration(rung.limit).to_string()).collect();
        write!(formatter, "{} = {}", terms.join(" + "), humantime::format_duration(self.total()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_ladder_longer_than_the_platforms_patience_is_named() {
        let seconds = Duration::from_secs;
        let ladder = StopLadder::new(seconds(0), seconds(10), Some(seconds(10)), seconds(30));
        assert_eq!((ladder.total(), ladder.notice()), (seconds(20), None));
        let ladder = StopLadder::new(seconds(5), seconds(60), Some(seconds(10)), seconds(30));
        expect![[r#"an orderly stop may take 5s + 1m + 10s = 1m 15s, longer than the platform's 30s: lower stop.grace, or raise the platform's limit (Kubernetes terminationGracePeriodSeconds, Docker --stop-timeout, systemd TimeoutStopSec) and stop.platform_grace with it"#]]
            .assert_eq(&ladder.notice().unwrap());
        assert_eq!(StopLadder::new(seconds(0), seconds(10), None, seconds(30)).rungs.len(), 1);
    }
}
