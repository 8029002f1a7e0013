//! Which spans end when.

use super::*;
use crate::health::overview::tests::picture;
use crate::health::picture::{BackupRun, BootStep};

/// A picture with nothing under way, and a clock for it.
fn serving() -> (Picture, Instant, SystemTime) {
    let mut picture = picture();
    (picture.phase, picture.roll, picture.details.deployment) = (Phase::Serving, None, None);
    picture.backups.running = false;
    let now = picture.started + Duration::from_secs(100);
    (picture, now, SystemTime::UNIX_EPOCH + Duration::from_secs(1000))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_boot_is_a_trace_with_its_steps_and_is_told_once() {
    let (mut picture, now, wall) = serving();
    let at = |second| Some(picture.started + Duration::from_secs(second));
    picture.details.boot = vec![
        BootStep { name: "cluster", began: at(1), ended: at(3) },
        BootStep { name: "workers", began: at(3), ended: at(7) },
        BootStep { name: "companions", began: None, ended: None },
    ];
    let mut tracker = Tracker::default();
    picture.phase = Phase::Migrating;
    assert!(tracker.step(&picture, Failures::default(), now, wall).is_empty());
    picture.phase = Phase::Serving;
    let spans = tracker.step(&picture, Failures::default(), now, wall);
    assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["boot", "cluster", "workers"]);
    assert_eq!((seconds(spans[0].began), seconds(spans[0].ended)), (900.0, 907.0));
    assert_eq!((seconds(spans[1].began), seconds(spans[1].ended)), (901.0, 903.0));
    assert!(spans[1..].iter().all(|span| span.parent == Some(spans[0].id) && span.trace == spans[0].trace));
    assert_eq!(spans[0].error, None);
    assert!(tracker.step(&picture, Failures::default(), now, wall).is_empty());
}

#[test]
fn rolls_deployments_and_backups_end_with_how_they_went() {
    let (mut picture, now, wall) = serving();
    let mut tracker = Tracker::default();
    let mut failures = Failures::default();
    tracker.step(&picture, failures, now, wall);
    let mut step =
        |picture: &Picture, failures, second| tracker.step(picture, failures, now, wall + Duration::from_secs(second));
    picture.roll = Some("0 of 2".into());
    picture.details.deployment = Some("migrations".into());
    picture.backups.running = true;
    assert!(step(&picture, failures, 1).is_empty());
    picture.roll = Some("1 of 2".into());
    picture.details.deployment = Some("workers".into());
    assert!(step(&picture, failures, 2).is_empty());
    (picture.roll, picture.details.deployment, picture.backups.running) = (None, None, false);
    failures.rolls += 1.0;
    let run = BackupRun {
        started: wall + Duration::from_secs(1),
        finished: wall + Duration::from_secs(3),
        name: Some("app.sql.gz".into()),
        size_bytes: Some(7),
        verified: true,
        error: None,
    };
    picture.backups.last = Some(run);
    let spans = step(&picture, failures, 3);
    let told: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.error.is_some(), span.events.len())).collect();
    assert_eq!(told, [("roll", true, 0), ("deployment", false, 2), ("backup", false, 0)]);
    assert_eq!((seconds(spans[0].began), seconds(spans[0].ended)), (1001.0, 1003.0));
    assert!(spans[2].attributes.contains(&("tandem.backup.verified", "true".into())), "{:?}", spans[2]);
    assert!(step(&picture, failures, 4).is_empty());
}

#[test]
fn a_failure_is_what_did_not_end_well() {
    let family = |name: &'static str, samples: &[(&str, f64)]| {
        samples.iter().fold(Family::new(name, "", crate::metrics::Kind::Counter), |family, (outcome, value)| {
            family.with(&[("outcome", outcome)], *value)
        })
    };
    let families = [
        family("tandem_rolls", &[("done", 4.0), ("aborted", 2.0), ("interrupted", 1.0)]),
        family("tandem_deployments", &[]),
    ];
    assert_eq!(failures(&families), Failures { rolls: 3.0, deployments: 0.0 });
}
