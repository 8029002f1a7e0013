//! What began and ended between two pictures, as spans. Pure but for the random identifiers.

use std::time::{Duration, Instant, SystemTime};

use crate::health::picture::Picture;
use crate::metrics::Family;
use crate::metrics::names::{DEPLOYMENTS, ROLLS};
use crate::phase::Phase;

/// Something that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: [u8; 16],
    pub id: [u8; 8],
    pub parent: Option<[u8; 8]>,
    pub name: String,
    pub began: SystemTime,
    pub ended: SystemTime,
    /// Why it failed.
    pub error: Option<String>,
    pub attributes: Vec<(&'static str, String)>,
    /// What happened meanwhile.
    pub events: Vec<(SystemTime, String)>,
}

impl Span {
    fn root(name: &str, began: SystemTime, ended: SystemTime) -> Self {
        Self {
            trace: rand::random(),
            id: rand::random(),
            parent: None,
            name: name.to_owned(),
            began,
            ended,
            error: None,
            attributes: Vec::new(),
            events: Vec::new(),
        }
    }

    fn child(&self, name: &str, began: SystemTime, ended: SystemTime) -> Self {
        Self { trace: self.trace, parent: Some(self.id), ..Self::root(name, began, ended) }
    }
}

/// How many rolls and deployments have failed: by these counts a span learns how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Failures {
    rolls: f64,
    deployments: f64,
}

/// The failures among `families`.
pub fn failures(families: &[Family]) -> Failures {
    let failed = |name: &str| {
        let samples = families.iter().filter(|family| family.name == name).flat_map(|family| &family.samples);
        samples.filter(|(labels, _)| !labels.contains("\"done\"")).map(|(_, value)| value).sum()
    };
    Failures { rolls: failed(ROLLS.name), deployments: failed(DEPLOYMENTS.name) }
}

/// What is under way.
#[derive(Debug, Default)]
pub struct Tracker {
    is_booted: bool,
    roll: Option<SystemTime>,
    deployment: Option<(SystemTime, Vec<(SystemTime, String)>)>,
    backup: Option<SystemTime>,
    failures: Failures,
}

impl Tracker {
    /// The spans that ended with `picture`, which was drawn at `now` and `wall`.
    pub fn step(&mut self, picture: &Picture, failures: Failures, now: Instant, wall: SystemTime) -> Vec<Span> {
        let mut ended = self.boot(picture, now, wall);
        match (self.roll, &picture.roll) {
            (None, Some(_)) => self.roll = Some(wall),
            (Some(began), None) => {
                self.roll = None;
                let error = (failures.rolls > self.failures.rolls).then(|| "the roll was given up".to_owned());
                ended.push(Span { error, ..Span::root("roll", began, wall) });
            }
            _ => {}
        }
        match (&mut self.deployment, &picture.details.deployment) {
            (None, Some(step)) => self.deployment = Some((wall, vec![(wall, step.clone())])),
            (Some((_, events)), Some(step)) if events.last().is_none_or(|(_, last)| last != step) => {
                events.push((wall, step.clone()));
            }
            (Some((began, events)), None) => {
                let failed = failures.deployments > self.failures.deployments;
                let error = failed.then(|| "the deployment failed".to_owned());
                ended.push(Span { error, events: std::mem::take(events), ..Span::root("deployment", *began, wall) });
                self.deployment = None;
            }
            _ => {}
        }
        ended.extend(self.backup(picture, wall));
        self.failures = failures;
        ended
    }

    /// The boot with its steps, once it is over; or as far as it came, when a stop ends it.
    fn boot(&mut self, picture: &Picture, now: Instant, wall: SystemTime) -> Vec<Span> {
        if self.is_booted || picture.phase < Phase::Serving {
            return Vec::new();
        }
        self.is_booted = true;
        let at = |instant: Instant| before(wall, now.saturating_duration_since(instant));
        let mut root = Span::root("boot", at(picture.started), wall);
        root.attributes.push(("tandem.application", picture.details.application.clone()));
        if picture.phase != Phase::Serving {
            root.error = Some("a stop came first".to_owned());
        }
        let steps = picture.details.boot.iter().filter_map(|step| {
            let began = at(step.began?);
            Some(root.child(step.name, began, step.ended.map_or(wall, at)))
        });
        let mut all: Vec<Span> = steps.collect();
        // It ends with its last step, and not when the next picture was drawn.
        root.ended = all.iter().map(|step| step.ended).max().unwrap_or(wall);
        all.insert(0, root);
        all
    }

    fn backup(&mut self, picture: &Picture, wall: SystemTime) -> Option<Span> {
        if picture.backups.running {
            self.backup.get_or_insert(wall);
            return None;
        }
        let began = self.backup.take()?;
        let run = picture.backups.last.as_ref().filter(|run| run.finished >= began)?;
        let mut span = Span::root("backup", run.started, run.finished);
        span.error.clone_from(&run.error);
        span.attributes.push(("tandem.backup.verified", run.verified.to_string()));
        span.attributes.extend(run.name.clone().map(|name| ("tandem.backup.name", name)));
        span.attributes.extend(run.size_bytes.map(|size| ("tandem.backup.bytes", size.to_string())));
        Some(span)
    }
}

fn before(wall: SystemTime, time: Duration) -> SystemTime {
    wall.checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
