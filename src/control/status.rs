//! From a [`Picture`] and the memory of its processes to the answer of `GET /status`. Pure.

use std::time::{Duration, Instant, SystemTime};

use super::messages::{CertificateStatus, ServiceStatus, Status};
use crate::certificate;
use crate::health::picture::Service;
use crate::health::{Picture, backups};
use crate::phase::Phase;

/// Memory in bytes: of Tandem itself, and of each of [`Picture::services`] with all its descendants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub own: Option<u64>,
    pub services: Vec<Option<u64>>,
}

/// How everything is at `now`, with the long work that is `under_way`.
pub fn status(picture: &Picture, memory: &Memory, under_way: Vec<String>, now: Instant) -> Status {
    let taken = memory.services.iter().copied().chain(std::iter::repeat(None));
    let services: Vec<_> = picture.services.iter().zip(taken).map(|(one, memory)| service(one, memory, now)).collect();
    let of_services: u64 = services.iter().filter_map(|service| service.memory_bytes).sum();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        memory_bytes: memory.own,
        phase: picture.phase.name().to_owned(),
        uptime_seconds: seconds(now.saturating_duration_since(picture.started)),
        roll: picture.roll.clone(),
        // Later it is about an order, whose own words tell of it.
        under_way: if picture.phase < Phase::Serving { under_way } else { Vec::new() },
        hook: picture.hook.clone(),
        backups: backups::words(&picture.backups),
        certificates: certificates(picture, SystemTime::now()),
        services,
        memory_total_bytes: memory.own.unwrap_or(0) + of_services,
    }
}

fn certificates(picture: &Picture, now: SystemTime) -> Vec<CertificateStatus> {
    let all = [("workers", picture.certificate), ("postgres", picture.database_certificate)];
    let held = all.into_iter().filter_map(|(of, not_after)| Some((of, not_after?)));
    let shown = held.map(|(of, not_after)| CertificateStatus {
        of: of.to_owned(),
        not_after: humantime::format_rfc3339_seconds(not_after).to_string(),
        days_left: certificate::days_left(not_after, now),
    });
    shown.collect()
}

fn service(service: &Service, memory: Option<u64>, now: Instant) -> ServiceStatus {
    let age = |since| seconds(now.saturating_duration_since(since));
    ServiceStatus {
        name: service.name.clone(),
        kind: service.kind.to_owned(),
        pid: service.pid,
        state: service.state.to_owned(),
        state_seconds: age(service.since),
        role: service.role.to_owned(),
        uptime_seconds: service.pid.and(service.started).map(age),
        restarts: service.restarts,
        last_reason: service.last_reason.clone(),
        requests: service.counts.map(|counts| counts.requests),
        connections: service.counts.map(|counts| counts.connections),
        in_flight: service.counts.map(|counts| counts.in_flight),
        unfinished: service.unfinished.clone(),
        memory_bytes: memory,
    }
}

/// Whole milliseconds, as seconds.
fn seconds(duration: Duration) -> f64 {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::picture::{Backups, Database, Disk, Migrations};
    use crate::http::Counts;

    fn picture(now: Instant) -> Picture {
        let started = now.checked_sub(Duration::from_millis(90_500)).unwrap();
        let counts = Counts { requests: 12, connections: 3, in_flight: 1, loop_lag_ms: Some(4) };
        let worker = Service {
            name: "worker-0".into(),
            kind: "worker",
            pid: Some(41),
            state: "ready",
            role: "standing",
            since: now,
            started: Some(started),
            restarts: 2,
            last_reason: Some("SIGKILL".into()),
            counts: Some(counts),
            unfinished: None,
            memory_bytes: None,
        };
        let resting = Service { pid: None, state: "backoff", counts: None, name: "worker-1".into(), ..worker.clone() };
        Picture {
            deployment: "shop-1".into(),
            phase: Phase::Serving,
            started,
            database: Database { sample: None, sample_age_max: Duration::ZERO, pool_size: 1 },
            workers: vec![],
            workers_wanted: 2,
            workers_min: 1,
            migrations: Migrations::default(),
            hook: None,
            certificate: None,
            database_certificate: None,
            sorted_otherwise: Vec::new(),
            backups: Backups::default(),
            disk: Disk::default(),
            backup_disk: Disk::default(),
            services: vec![worker, resting],
            roll: Some("replacing worker-0".into()),
            details: Default::default(),
        }
    }

    #[test]
    fn every_service_is_there_with_its_age_its_counts_and_its_memory() {
        let now = Instant::now();
        let memory = Memory { own: Some(5_000), services: vec![Some(40_000), None] };
        let status = status(&picture(now), &memory, vec!["work".into()], now);
        assert_eq!((status.phase.as_str(), status.uptime_seconds), ("serving", 90.5));
        assert_eq!((status.memory_bytes, status.memory_total_bytes), (Some(5_000), 45_000));
        assert_eq!(status.roll.as_deref(), Some("replacing worker-0"));
        assert!(status.under_way.is_empty(), "it serves: {status:#?}");
        let [worker, resting] = &status.services[..] else { panic!("{status:#?}") };
        assert_eq!((worker.uptime_seconds, worker.memory_bytes), (Some(90.5), Some(40_000)));
        assert_eq!((worker.requests, worker.connections, worker.in_flight), (Some(12), Some(3), Some(1)));
        assert_eq!((worker.restarts, worker.last_reason.as_deref()), (2, Some("SIGKILL")));
        // What has no process has no age of one, whatever its place remembers.
        assert_eq!((resting.uptime_seconds, resting.memory_bytes, resting.requests), (None, None, None));
    }

    #[test]
    fn memory_that_was_not_sampled_is_unknown_and_a_clock_behind_is_zero() {
        let now = Instant::now();
        let mut picture = picture(now);
        picture.started = now + Duration::from_secs(5);
        picture.phase = Phase::Installing;
        let status = status(&picture, &Memory::default(), vec!["work".into()], now);
        assert_eq!(status.under_way, ["work"]);
        assert_eq!((status.uptime_seconds, status.memory_total_bytes), (0.0, 0));
        assert_eq!(status.services.len(), 2);
    }
}
