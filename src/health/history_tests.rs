//! What is found to have happened.

use super::*;
use crate::health::overview::tests::picture;
use crate::health::picture::{BackupRun, WorkerState};

/// What happened when `change` was made.
fn after(change: impl FnOnce(&mut Picture)) -> Vec<String> {
    let mut picture = picture();
    picture.roll = None;
    picture.services.truncate(1);
    after_of(&mut picture, change)
}

fn after_of(picture: &mut Picture, change: impl FnOnce(&mut Picture)) -> Vec<String> {
    let (marks, known) = (Marks::of(picture), picture.details.history.events().count());
    change(picture);
    note(picture, &marks, SystemTime::now());
    let words = |event: &Event| format!("{}{}", if event.is_bad { "! " } else { "" }, event.words);
    picture.details.history.events().skip(known).map(words).collect()
}

#[test]
fn a_worker_that_dies_and_comes_back_is_told() {
    let mut picture = picture();
    picture.roll = None;
    picture.services.truncate(1);
    let died = after_of(&mut picture, |picture| {
        let worker = &mut picture.services[0];
        (worker.pid, worker.state, worker.restarts) = (None, "backoff", 3);
    });
    assert_eq!(died, ["! worker-0 (process 41) ended: SIGKILL"]);
    let begun = after_of(&mut picture, |picture| {
        let worker = &mut picture.services[0];
        (worker.pid, worker.state) = (Some(42), "starting");
    });
    assert!(begun.is_empty(), "{begun:?}");
    let back = after_of(&mut picture, |picture| picture.services[0].state = "ready");
    assert_eq!(back, ["worker-0 is ready (process 42): SIGKILL"]);
    let at_once = after_of(&mut picture, |picture| {
        let worker = &mut picture.services[0];
        (worker.pid, worker.state, worker.restarts) = (Some(43), "starting", 4);
    });
    assert_eq!(at_once, ["! worker-0 ended and is started again (process 43): SIGKILL"]);
}

#[test]
fn each_kind_of_event_is_told_once() {
    assert!(after(|_| ()).is_empty());
    assert!(after(|picture| picture.workers[0].state = WorkerState::Retiring).is_empty());
    assert_eq!(after(|picture| picture.phase = Phase::Draining), ["phase: draining"]);
    assert_eq!(after(|picture| picture.roll = Some("2".into())), ["a roll began"]);
    assert_eq!(after(|picture| picture.details.deployment = Some("migrations".into())), ["deployment: migrations"]);
    let fault = |picture: &mut Picture| picture.database.sample.as_mut().unwrap().outcome = Err(Fault::Down);
    assert_eq!(after(fault), ["! database: the server is not running"]);
    assert_eq!(after(|picture| picture.services[0].state = "hung"), ["! worker-0 (process 41) does not answer"]);
    let mut rolled = picture();
    assert_eq!(after_of(&mut rolled, |picture| picture.roll = None), ["the roll ended"]);
}

#[test]
fn a_backup_is_told_when_it_ends_and_one_of_an_earlier_run_is_not() {
    let run = |error: Option<&str>| BackupRun {
        started: SystemTime::now(),
        finished: SystemTime::now(),
        name: None,
        size_bytes: None,
        verified: error.is_none(),
        error: error.map(str::to_owned),
    };
    assert!(after(|picture| picture.backups.last = Some(run(None))).is_empty());
    let mut picture = picture();
    picture.backups.running = true;
    let done = after_of(&mut picture, |picture| {
        (picture.backups.running, picture.backups.last) = (false, Some(run(None)));
    });
    assert_eq!(done, ["a backup was taken and verified"]);
    picture.backups.running = true;
    let failed = after_of(&mut picture, |picture| {
        (picture.backups.running, picture.backups.last) = (false, Some(run(Some("disk full\nmore"))));
    });
    assert_eq!(failed, ["! a backup failed: disk full"]);
}

#[test]
fn the_oldest_events_go() {
    let mut picture = picture();
    for at in 0..100 {
        after_of(&mut picture, |picture| picture.details.deployment = Some(format!("step {at}")));
    }
    let events: Vec<_> = picture.details.history.events().collect();
    assert_eq!((events.len(), events[EVENTS_MAX - 1].words.as_str()), (EVENTS_MAX, "deployment: step 99"));
}
