//! Backups: their age, their proof, their copies, and the archive of WAL. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Judged, seen, size, span};
use crate::backup::retention::State;
use crate::doctor::facts::{Backups, Facts, Unseen};
use crate::doctor::verdict::Finding;

/// A backup is late when so many scheduled ones have not been taken.
const PERIODS_LATE: u32 = 2;
/// Where none are scheduled: days after which one is old.
const DAYS_OLD: i64 = 7;
/// A cluster that is younger need not have one yet.
const CLUSTER_YOUNG: TimeDelta = TimeDelta::days(2);
/// Days after which some backup must have been proven.
const PROOF_OLD: i64 = 15;
/// Days after which a base backup is old.
const BASE_OLD: i64 = 30;

pub fn backups(facts: &Facts) -> Judged {
    let backups = seen(&facts.backups)?;
    let now = facts.now;
    let mut all = Vec::new();
    if let Some(why) = &backups.failed {
        let text = format!("the last backup failed: {}", why.lines().next().unwrap_or_default());
        all.push(Finding::error(text, "correct that, and `tandem backup`"));
    }
    let whole = backups.all.iter().filter(|one| matches!(one.state, State::Proven | State::Unverified));
    match whole.max_by_key(|one| one.taken) {
        None => all.push(no_backup(backups, now)),
        Some(newest) => all.push(of_age(newest.taken, backups.period, now)),
    }
    Ok(all)
}

fn no_backup(backups: &Backups, now: DateTime<Utc>) -> Finding {
    let next = "`tandem backup` takes one; backup.schedule has it done every night";
    match backups.cluster_since {
        Some(since) if now - since > CLUSTER_YOUNG => Finding::warning("there is no backup of this database", next),
        _ => Finding::notice("there is no backup of this database yet").then(next),
    }
}

fn of_age(taken: DateTime<Utc>, period: Option<Duration>, now: DateTime<Utc>) -> Finding {
    let age = now - taken;
    let late = match period {
        Some(period) => TimeDelta::from_std(period * PERIODS_LATE).unwrap_or(TimeDelta::MAX),
        None => TimeDelta::days(DAYS_OLD),
    };
    let text = format!("the newest backup is {} old", span(age.as_seconds_f64()));
    match age > late {
        true => Finding::warning(text, "`tandem backup` now; scheduled ones are taken while `tandem up` runs"),
        false => Finding::ok(text),
    }
}

pub fn proof(facts: &Facts) -> Judged {
    let backups = seen(&facts.backups)?;
    let bad = backups.all.iter().filter(|one| one.state == State::Bad);
    let newest = backups.all.iter().max_by_key(|one| one.taken);
    let mut all: Vec<Finding> = bad
        .map(|one| {
            let text = format!("the backup {} does not restore", one.name);
            match newest.is_some_and(|newest| newest.name == one.name) {
                true => Finding::error(text, "take another now (`tandem backup`), and keep older proven ones"),
                false => Finding::warning(text, "`tandem backup prune` removes it"),
            }
        })
        .collect();
    let proven = backups.all.iter().filter(|one| one.state == State::Proven).map(|one| one.taken).max();
    let next = "`tandem backup verify latest` restores it into a throwaway server";
    match (proven, newest) {
        (_, None) => return Err(Unseen::nothing("there is no backup yet")),
        (Some(proven), _) if (facts.now - proven).num_days() > PROOF_OLD => {
            let text = format!(
                "the newest backup that was proven to restore is {} old",
                span((facts.now - proven).as_seconds_f64())
            );
            all.push(Finding::warning(text, next));
        }
        (Some(_), _) => all.push(Finding::ok("a backup was proven to restore")),
        (None, Some(newest)) if (facts.now - newest.taken).num_days() > PROOF_OLD => {
            all.push(Finding::warning("no backup was ever proven to restore", next));
        }
        (None, _) => all.push(Finding::notice("no backup was proven to restore yet").then(next)),
    }
    if !backups.proves {
        all.push(
            Finding::notice("scheduled backups are not verified (backup.verify = \"never\")").then("set \"weekly\""),
        );
    }
    Ok(all)
}

pub fn copies(facts: &Facts) -> Judged {
    let copies = seen(&facts.copies)?;
    let here = facts.backups.as_ref().ok().and_then(|backups| backups.all.iter().map(|one| one.taken).max());
    let mut all = Vec::new();
    for place in copies {
        let to = &place.destination;
        match (&place.newest, here) {
            (Err(why), _) => {
                let text = format!("{to} cannot be reached: {why}");
                all.push(Finding::error(
                    text,
                    "correct the address, the credentials or the network; copies are sent again",
                ));
            }
            (Ok(None), Some(_)) => {
                all.push(Finding::warning(
                    format!("{to} holds no whole copy"),
                    "`tandem backup` sends what is missing",
                ));
            }
            (Ok(Some(there)), Some(here)) if here - *there > TimeDelta::days(2) => {
                let text = format!(
                    "{to}: its newest copy is {} older than the newest backup",
                    span((here - *there).as_seconds_f64())
                );
                all.push(Finding::warning(text, "`tandem backup` sends what is missing"));
            }
            (Ok(_), _) => all.push(Finding::ok(format!("{to} can be reached"))),
        }
    }
    Ok(all)
}

pub fn recovery(facts: &Facts) -> Judged {
    let found = seen(&facts.recovery)?;
    let wal = seen(&facts.wal)?;
    let mut all: Vec<Finding> = found.iter().map(|why| Finding::warning(why.clone(), "do what it says")).collect();
    match wal.newest_base {
        None => all.push(Finding::warning("there is no base backup: nothing can be recovered", "`tandem backup base`")),
        Some(at) if (facts.now - at).num_days() > BASE_OLD => {
            let text = format!("the newest base backup is {} old", span((facts.now - at).as_seconds_f64()));
            all.push(Finding::notice(text).then("`tandem backup base`: recovery then replays less"));
        }
        Some(at) => {
            all.push(Finding::ok(format!("the newest base backup is {} old", span((facts.now - at).as_seconds_f64()))))
        }
    }
    Ok(all)
}

pub fn wal(facts: &Facts) -> Judged {
    let of_server = facts.server.as_ref().ok().and_then(|server| server.archiver.as_ref().ok());
    let mut all = Vec::new();
    let next = "make room or mend the place that backup.pitr.dir names; what waits is sent then";
    match &facts.wal {
        Ok(wal) => {
            if let Some(why) = &wal.given_up {
                let text = format!("the archive of WAL was given up: {why}");
                all.push(Finding::error(text, "`tandem backup base` begins another"));
            }
            if let Some(why) = &wal.failure {
                all.push(Finding::error(format!("WAL cannot be archived: {why}"), next));
            }
            let text = format!("{} of WAL wait for the archive", size(wal.waiting));
            match wal.waiting {
                waiting if waiting.saturating_mul(2) > wal.waiting_max => all.push(Finding::warning(text, next)),
                _ => all.push(Finding::ok(text)),
            }
        }
        Err(Unseen::Unknown(why)) => return Err(Unseen::unknown(why.clone())),
        Err(Unseen::Nothing(why)) if of_server.is_none_or(|archiver| !archiver.is_on) => {
            return Err(Unseen::nothing(why.clone()));
        }
        Err(Unseen::Nothing(_)) => {}
    }
    if let Some(archiver) = of_server.filter(|archiver| archiver.is_on && archiver.is_failing && all.is_empty()) {
        let last = archiver.last_failed.clone().unwrap_or_default();
        all.push(Finding::error(
            format!("the server's archive_command fails, last for {last}"),
            "see the server's log",
        ));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::verdict::Verdict;

    #[test]
    fn a_backup_is_late_when_two_scheduled_ones_are_missing() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let day = Some(Duration::from_secs(86_400));
        let of = |hours, period| of_age(now - TimeDelta::hours(hours), period, now).verdict;
        assert_eq!((of(47, day), of(49, day)), (Verdict::Ok, Verdict::Warning));
        assert_eq!((of(6 * 24, None), of(8 * 24, None)), (Verdict::Ok, Verdict::Warning));
        let young = Backups { cluster_since: Some(now - TimeDelta::hours(3)), ..Backups::default() };
        assert_eq!(no_backup(&young, now).verdict, Verdict::Notice);
        let old = Backups { cluster_since: Some(now - TimeDelta::days(3)), ..Backups::default() };
        assert_eq!(no_backup(&old, now).verdict, Verdict::Warning);
    }
}
