//! The process that sends base backups and WAL to the destinations, kept for as long as Tandem runs: it ends after the server,
//! whose last WAL may wait for it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chrono::Utc;

use super::disks::LOOK_LIMIT;
use super::{Context, backups};
use crate::backup::pitr::away;
use crate::backup::pitr::away::ledger::{Verified, is_complete};
use crate::backup::scheduled;
use crate::config::{Room, Settings, Verify};
use crate::event_loop::within;
use crate::exit::in_words;

/// How often it is looked whether the destinations are others, and whether there is a cluster yet.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long after its end it is started again.
const AGAIN: Duration = Duration::from_secs(5);
/// It ends by itself before that, and begins anew.
const LIFE_MAX: Duration = Duration::from_secs(2 * 24 * 3600);

/// How often it is looked whether a destination is to be read again.
const VERIFY_LOOK: Duration = Duration::from_secs(10);
/// How long after a failed verification the next is tried.
const VERIFY_AGAIN: Duration = Duration::from_secs(3600);

/// What it is started with: it is started anew where one of these changes.
#[derive(PartialEq)]
struct Wanted {
    destinations: Vec<String>,
    encrypt_to: Vec<String>,
    keys: BTreeMap<String, String>,
    keep: (u32, u32),
    retry_limit: Duration,
    stop_free: Room,
    is_wanted: bool,
}

impl Wanted {
    fn of(settings: &Settings) -> Self {
        let backup = &settings.backup;
        Self {
            destinations: backup.destinations.clone(),
            encrypt_to: backup.encrypt_to.clone(),
            keys: settings.cloud_variables.0.clone(),
            keep: (backup.pitr.base_backups, backup.pitr.keep_days),
            retry_limit: backup.retry_limit,
            stop_free: settings.disk.stop_free,
            is_wanted: away::is_wanted(settings),
        }
    }
}

/// Keep it, and have what is in the destinations read again once a week, for ever.
pub async fn keep(context: Rc<Context>) {
    tokio::join!(sending(&context), verifying(&context));
}

async fn sending(context: &Rc<Context>) {
    loop {
        let wanted = Wanted::of(&context.settings());
        let changed = async {
            while Wanted::of(&context.settings()) == wanted {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = send(context), if wanted.is_wanted => {}
        }
    }
}

async fn verifying(context: &Rc<Context>) {
    loop {
        tokio::time::sleep(VERIFY_LOOK).await;
        let settings = context.settings();
        // As base backups are: by themselves where anything is.
        if !away::is_wanted(&settings) || settings.backup.schedule.is_none() || settings.backup.verify == Verify::Never
        {
            continue;
        }
        // What is sealed cannot be read without a key.
        if !settings.backup.encrypt_to.is_empty() && settings.backup.identity_file.is_none() {
            continue;
        }
        for destination in away::destinations(&settings) {
            verify_if_due(context, &settings, destination).await;
        }
    }
}

async fn verify_if_due(context: &Rc<Context>, settings: &Settings, destination: String) {
    let (state, place) = (context.home.state.clone(), destination.clone());
    // Blocks: called by `within`.
    let look = move || {
        let (last, now) = (Verified::read(&state, &place), Utc::now());
        // What was found may have been sent again meanwhile.
        let is_bad =
            |last: &Verified| !last.problems.is_empty() && (now - last.at).to_std().is_ok_and(|age| age > VERIFY_AGAIN);
        let due = last.as_ref().is_some_and(is_bad) || scheduled::base_due(last.map(|last| last.at), now);
        due && is_complete(&state, &place)
    };
    if !within(LOOK_LIMIT, "look whether a destination is to be read again", look).await.unwrap_or(false) {
        return;
    }
    let verified = match backups::command(context, &["backup", "verify", "--from", &destination]) {
        Ok(command) => backups::in_a_process(&command, LIFE_MAX).await.map(drop),
        Err(error) => Err(in_words(&error)),
    };
    if let Err(error) = verified {
        let error = format!("the verification of {destination} failed: {error}");
        tracing::error!("{error}; it is tried again in {VERIFY_AGAIN:?}");
        backups::alarm(context, settings, &error).await;
        tokio::time::sleep(VERIFY_AGAIN).await;
    }
}

/// One process, from its start to some time after its end.
async fn send(context: &Context) {
    let control = context.home.data.join("global/pg_control");
    // Blocks: called by `within`.
    let is_there = move || control.exists();
    if !within(LOOK_LIMIT, "look whether there is a cluster", is_there).await.unwrap_or(false) {
        return tokio::time::sleep(LOOK_AGAIN).await;
    }
    let ended = match backups::command(context, &["backup", "send", "--follow"]) {
        Ok(command) => backups::in_a_process(&command, LIFE_MAX).await.map(drop),
        Err(error) => Err(in_words(&error)),
    };
    if let Err(error) = ended {
        tracing::error!("the process that sends base backups and WAL ended: {error}; it is started again");
        tokio::time::sleep(AGAIN).await;
    }
}
