//! What happened last, for the status page and `tandem top`: found by comparing a picture with the one before. Pure.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::picture::{Fault, Picture, Service};
use crate::phase::Phase;

/// So many events are kept.
const EVENTS_MAX: usize = 60;

/// The last events, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(VecDeque<Event>);

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub time: SystemTime,
    /// Whether something failed, or ended that should not have.
    pub is_bad: bool,
    pub words: String,
}

impl History {
    /// The events, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.0.iter()
    }

    fn note(&mut self, time: SystemTime, is_bad: bool, words: String) {
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Event { time, is_bad, words });
    }
}

/// As much of a picture as events are found by.
#[derive(Debug)]
pub struct Marks {
    phase: Phase,
    roll: bool,
    deployment: Option<String>,
    /// `None`: it was not asked yet.
    database: Option<Option<Fault>>,
    /// Whether one is being taken, and when the last one ended.
    backup: (bool, Option<SystemTime>),
    services: Vec<ServiceMark>,
}

#[derive(Debug)]
struct ServiceMark {
    name: String,
    role: &'static str,
    pid: Option<i32>,
    state: &'static str,
    restarts: u32,
}

impl Marks {
    /// Those of `picture`.
    pub fn of(picture: &Picture) -> Self {
        let mark = |service: &Service| ServiceMark {
            name: service.name.clone(),
            role: service.role,
            pid: service.pid,
            state: service.state,
            restarts: service.restarts,
        };
        Self {
            phase: picture.phase,
            roll: picture.roll.is_some(),
            deployment: picture.details.deployment.clone(),
            database: picture.database.sample.as_ref().map(|sample| sample.outcome.as_ref().err().copied()),
            backup: (picture.backups.running, picture.backups.last.as_ref().map(|run| run.finished)),
            services: picture.services.iter().map(mark).collect(),
        }
    }
}

/// Note in `picture` what has changed since `before`.
pub fn note(picture: &mut Picture, before: &Marks, now: SystemTime) {
    let after = Marks::of(picture);
    let mut found: Vec<(bool, String)> = Vec::new();
    if before.phase != after.phase {
        found.push((false, format!("phase: {}", after.phase)));
    }
    match (&before.deployment, &after.deployment) {
        (before, Some(step)) if before.as_ref() != Some(step) => found.push((false, format!("deployment: {step}"))),
        (Some(_), None) => found.push((false, "the deployment ended".to_owned())),
        _ => {}
    }
    // While it boots or stops, the phases tell.
    if after.phase == Phase::Serving && before.phase == Phase::Serving {
        match (before.database, after.database) {
            (Some(None), Some(Some(fault))) => found.push((true, format!("database: {fault}"))),
            (Some(Some(_)), Some(None)) => found.push((false, "the database answers again".to_owned())),
            _ => {}
        }
        if before.roll != after.roll {
            found.push((false, if after.roll { "a roll began" } else { "the roll ended" }.to_owned()));
        }
        found.extend(picture.services.iter().filter_map(|service| of_service(service, before)));
    }
    // What an earlier run of Tandem left is no news.
    if before.backup.0
        && before.backup.1 != after.backup.1
        && let Some(run) = &picture.backups.last
    {
        found.push(match &run.error {
            Some(error) => (true, format!("a backup failed: {}", error.lines().next().unwrap_or_default())),
            None => (false, format!("a backup was taken{}", if run.verified { " and verified" } else { "" })),
        });
    }
    for (is_bad, words) in found {
        picture.details.history.note(now, is_bad, words);
    }
}

/// What happened to `service` since `before`.
fn of_service(service: &Service, before: &Marks) -> Option<(bool, String)> {
    let name = &service.name;
    let old = before.services.iter().find(|mark| mark.name == *name && mark.role == service.role);
    let why = service.last_reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let is_ready = service.state == "ready";
    match (old, service.pid) {
        (Some(old), None) if old.pid.is_some() => {
            Some((true, format!("{name} (process {}) ended{why}", old.pid.unwrap_or_default())))
        }
        (Some(old), Some(pid)) if is_ready && (old.pid != Some(pid) || old.state != "ready") => {
            let is_new = old.pid != Some(pid) || old.state != "hung";
            let words = if is_new { "is ready" } else { "answers again" };
            Some((false, format!("{name} {words} (process {pid}){why}")))
        }
        (Some(old), Some(pid)) if service.restarts > old.restarts && old.pid != Some(pid) => {
            Some((true, format!("{name} ended and is started again (process {pid}){why}")))
        }
        (Some(old), Some(pid)) if service.state == "hung" && old.state != "hung" => {
            Some((true, format!("{name} (process {pid}) does not answer")))
        }
        (Some(old), None) if service.state == "gave-up" && old.state != "gave-up" => {
            Some((true, format!("{name} gave up{why}")))
        }
        (None, Some(pid)) if is_ready => Some((false, format!("{name} is ready (process {pid}){why}"))),
        _ => None,
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
