//! The data directory, the disks, the files. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{Judged, few, seen, size};
use crate::backup::doctor::Disk;
use crate::doctor::facts::{BackupFact, Entry, Facts, PidFile, Unseen};
use crate::doctor::verdict::{Finding, Verdict};

/// Fewer files than this part of all can still be made.
const INODES_LOW: u64 = 50;
/// A disk that is full in so many days is a warning, and in so many more a notice.
const DAYS_WARNED: f64 = 14.0;
const DAYS_TOLD: f64 = 60.0;
/// Growth is told from backups that lie at least so many days apart.
const GROWTH_DAYS: f64 = 2.0;
/// File systems on which a server of the network answers, and on which locks and flushes may not hold.
const OF_NETWORK: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse.sshfs", "glusterfs"];
/// File systems whose content ends with the machine's run, or with the container.
const OF_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
const OF_CONTAINER: [&str; 2] = ["overlay", "aufs"];

pub fn data_directory(facts: &Facts) -> Judged {
    let data = seen(&facts.data)?;
    let shown = data.path.display();
    match &data.cluster {
        Some(Ok(true)) => {}
        Some(Ok(false)) | None => return Err(Unseen::nothing("there is no cluster yet: the first start makes it")),
        Some(Err(why)) => return Ok(vec![Finding::error(why.clone(), "do what it says; nothing is started before")]),
    }
    let mut all: Vec<Finding> =
        data.altered.iter().map(|why| Finding::warning(why.clone(), "`tandem psql --superuser` takes that")).collect();
    match &data.control {
        Some(Err(why)) => {
            let text = format!("the control file of {shown} is damaged: {why}");
            all.push(Finding::error(text, "restore a backup (`tandem restore latest`); start nothing on it before"));
        }
        Some(Ok(said)) => all.extend(of_control(said, data.processes.is_empty())),
        None => all.push(Finding::ok(format!("there is a cluster in {shown}"))),
    }
    Ok(all)
}

/// What pg_controldata's words mean, where a server runs or is `stopped`.
fn of_control(said: &BTreeMap<String, String>, stopped: bool) -> Vec<Finding> {
    let state = said.get("Database cluster state").map_or("unknown", String::as_str);
    let mut all = Vec::new();
    if stopped && !state.starts_with("shut down") {
        let text = format!("the server was not stopped in an orderly way (it is \"{state}\"): the next start recovers");
        all.push(Finding::notice(text).then("nothing: recovery takes a moment"));
    }
    all.push(Finding::ok(format!("the cluster is \"{state}\"")));
    all
}

pub fn checksums(facts: &Facts) -> Judged {
    let data = seen(&facts.data)?;
    let mut all = Vec::new();
    let control = data.control.as_ref().and_then(|said| said.as_ref().ok());
    if control.is_some_and(|said| said.get("Data page checksum version").is_some_and(|version| version == "0")) {
        let text = "data pages have no checksums, so damage by a disk is not noticed";
        all.push(Finding::notice(text).then("with the server stopped: pg_checksums --enable"));
    }
    let damaged = facts.server.as_ref().ok().and_then(|server| server.damaged_pages.as_ref().ok());
    if let Some(count) = damaged.filter(|count| **count > 0) {
        let text = format!("the server has read {count} pages whose checksum is wrong: the disk has damaged data");
        all.push(Finding::error(text, "take a backup if one can be had, change the disk, restore the last proven one"));
    }
    match &data.checksums {
        Some(Ok(said)) if said.is_empty() => all.push(Finding::ok("every page of the cluster has the right checksum")),
        Some(Ok(said)) if said.contains("checksums are not enabled") => {}
        Some(Ok(said)) => {
            let text = format!("pg_checksums: {}", said.lines().find(|line| line.contains("failed")).unwrap_or(said));
            all.push(Finding::error(text, "change the disk, and restore the last proven backup"));
        }
        Some(Err(why)) => all.push(Finding::unknown(why.clone(), "run pg_checksums by hand")),
        None => {}
    }
    Ok(all)
}

pub fn amcheck(facts: &Facts) -> Judged {
    let server = match &facts.server {
        Ok(server) => server,
        Err(unseen) => return Err(unseen.clone()),
    };
    let damage = seen(&server.damage)?;
    let found = damage.found.iter().map(|what| {
        let next = "REINDEX an index; for a table, restore the last proven backup beside it and compare";
        Finding::error(what.clone(), next)
    });
    let good = Finding::ok(format!("{} tables and indexes were read", damage.looked_at));
    Ok(found.chain([good]).collect())
}

pub fn locks(facts: &Facts) -> Judged {
    let data = seen(&facts.data)?;
    let tandem = seen(&facts.tandem)?;
    let mut all = Vec::new();
    if let Some(pid) = data.foreign {
        let text = format!(
            "a PostgreSQL server of another container or namespace (process {pid}) works in this data directory"
        );
        all.push(Finding::error(text, "stop it where it was started: a second server would destroy the data"));
    } else if !data.processes.is_empty() && !tandem.is_there() {
        let text =
            format!("a PostgreSQL server of an earlier run still works in it ({} processes)", data.processes.len());
        all.push(Finding::warning(text, "`tandem up` stops it in an orderly way before it starts its own"));
    }
    match data.pid_file {
        PidFile::Damaged => {
            all.push(Finding::notice("postmaster.pid is damaged").then("nothing: the next start moves it aside"));
        }
        PidFile::Whole if data.processes.is_empty() && data.foreign.is_none() => {
            let text = "postmaster.pid is there, and no server: it was killed, or runs where it cannot be seen";
            all.push(Finding::notice(text).then("nothing: the next start looks for it, and recovers"));
        }
        PidFile::Whole | PidFile::Absent => {}
    }
    Ok(all)
}

pub fn room(facts: &Facts) -> Judged {
    let disks = seen(&facts.disks)?;
    let stop = facts.settings.as_ref().ok().map(|settings| settings.disk.stop_free);
    let judge = |disk: &Disk| {
        let text = format!(
            "disk of the {}: {} free of {} ({})",
            disk.name,
            size(disk.free_bytes),
            size(disk.total_bytes),
            disk.path.display()
        );
        let is_full = stop.is_some_and(|stop| disk.free_bytes < stop.bytes(disk.total_bytes));
        let next = "make room; the findings of `leftovers` name what of Tandem's can go";
        match (is_full, disk.low) {
            (true, true) => Finding::error(format!("{text}, less than disk.stop_free"), next),
            (_, true) => Finding::warning(format!("{text}, less than disk.warn_free asks for"), next),
            (_, false) => Finding::ok(text),
        }
    };
    let mut all: Vec<Finding> = disks.iter().map(judge).collect();
    for place in facts.places.as_ref().ok().into_iter().flatten() {
        if let Some((free, total)) = place.inodes.filter(|(free, total)| free.saturating_mul(INODES_LOW) < *total) {
            let text = format!("only {free} of {total} files can still be made on the disk of the {}", place.what);
            all.push(Finding::warning(text, "remove files there: it is full when the last of them is used"));
        }
    }
    all.extend(facts.backups.as_ref().ok().and_then(|backups| forecast(&backups.all, backups.free?)));
    Ok(all)
}

/// When the data's disk will be full, as fast as the database has grown between its backups.
fn forecast(backups: &[BackupFact], free: u64) -> Option<Finding> {
    let sized: Vec<(DateTime<Utc>, f64)> =
        backups.iter().filter_map(|one| Some((one.taken, one.database_bytes? as f64))).collect();
    let ((first, _), (last, _)) = (sized.first()?, sized.last()?);
    let days = |at: &DateTime<Utc>| (*at - *first).as_seconds_f64() / 86_400.0;
    if days(last) < GROWTH_DAYS {
        return None;
    }
    // The line with the least squares.
    let count = sized.len() as f64;
    let (mean_day, mean_size) =
        sized.iter().fold((0.0, 0.0), |(day, size), (at, bytes)| (day + days(at) / count, size + bytes / count));
    let (above, below) = sized.iter().fold((0.0, 0.0), |(above, below), (at, bytes)| {
        let away = days(at) - mean_day;
        (above + away * (bytes - mean_size), below + away * away)
    });
    let a_day = above / below;
    if a_day < 1.0 {
        return None;
    }
    let left = free as f64 / a_day;
    let text = format!("the database grows by {} a day: its disk is full in {left:.0} days", size(a_day as u64));
    let next = "plan for a larger disk, or let old rows go";
    match left {
        left if left < DAYS_WARNED => Some(Finding::warning(text, next)),
        left if left < DAYS_TOLD => Some(Finding::notice(text).then(next)),
        _ => Some(Finding::ok(text)),
    }
}

pub fn file_system(facts: &Facts) -> Judged {
    let places = seen(&facts.places)?;
    let mut all = Vec::new();
    for place in places {
        let (what, kind, path) = (place.what, place.kind.as_str(), place.path.display());
        let is_data = matches!(what, "data" | "WAL");
        if place.read_only {
            let text = format!("the {what} are on a file system that is mounted read-only ({path})");
            all.push(Finding::error(text, "see dmesg: a disk with errors is mounted so; repair it, and mount it anew"));
        }
        let on = format!("the {what} are on {kind} ({path})");
        if OF_MEMORY.contains(&kind) {
            all.push(Finding::warning(format!("{on}, which the next restart of the machine empties"), move_it(what)));
        } else if OF_CONTAINER.contains(&kind) {
            all.push(Finding::warning(format!("{on}, which goes with the container"), "mount a volume there"));
        } else if OF_NETWORK.contains(&kind) && is_data {
            let text = format!("{on}, where locks and flushes may not hold what PostgreSQL needs of them");
            all.push(Finding::warning(
                text,
                "keep the state on a disk of this machine (state_dir), and send copies there",
            ));
        } else {
            all.push(Finding::ok(on));
        }
    }
    Ok(all)
}

fn move_it(what: &str) -> &'static str {
    if what == "backups" { "set backup.dir to a disk" } else { "set state_dir to a disk" }
}

pub fn permissions(facts: &Facts) -> Judged {
    let entries = seen(&facts.owners)?;
    let judge = |entry: &Entry| {
        let (what, path, mode) = (entry.what, entry.path.display(), entry.mode);
        let open = mode & 0o777 & !entry.allowed;
        if open != 0 {
            let text = format!("{what} {path} is open to other users (mode {mode:04o})");
            let next = match entry.owners.is_empty() {
                false => format!("`tandem doctor --fix`, or chmod {:04o} {path}", entry.allowed & mode),
                true => format!("chmod go-w,o-rwx {path}, if nothing else needs that"),
            };
            let verdict = if entry.is_secret { Verdict::Error } else { Verdict::Warning };
            return Some(Finding::warning(text, next).as_bad_as(verdict));
        }
        let is_foreign = !entry.owners.is_empty() && !entry.owners.contains(&entry.uid);
        is_foreign.then(|| {
            let (uid, wanted) = (entry.uid, entry.owners.iter().map(u32::to_string).collect::<Vec<_>>().join(" or "));
            let text = format!("{what} {path} belongs to user id {uid}, not to {wanted}");
            Finding::warning(text, format!("chown -R {wanted} {path}"))
        })
    };
    Ok(entries.iter().filter_map(judge).collect())
}

pub fn collation(facts: &Facts) -> Judged {
    let server = match &facts.server {
        Ok(server) => server,
        Err(unseen) => return Err(unseen.clone()),
    };
    let found = seen(&server.collations)?;
    Ok(found.iter().map(|why| Finding::error(why.clone(), "REINDEX, as it says, before more is written")).collect())
}

pub fn indexes(facts: &Facts) -> Judged {
    let server = match &facts.server {
        Ok(server) => server,
        Err(unseen) => return Err(unseen.clone()),
    };
    let invalid = seen(&server.invalid_indexes)?;
    if invalid.is_empty() {
        return Ok(Vec::new());
    }
    let text =
        format!("{} left by a CREATE INDEX CONCURRENTLY that failed: it costs writes and helps nobody", few(invalid));
    Ok(vec![Finding::warning(text, "DROP INDEX, or REINDEX INDEX CONCURRENTLY")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::retention::State;

    #[test]
    fn growth_between_backups_says_when_the_disk_is_full() {
        let day = |n: i64, megabytes: u64| BackupFact {
            name: n.to_string(),
            taken: DateTime::from_timestamp(n * 86_400, 0).unwrap(),
            state: State::Proven,
            database_bytes: Some(megabytes << 20),
        };
        let grown = [day(0, 100), day(1, 110), day(2, 120), day(3, 130)];
        let told = |free: u64| forecast(&grown, free << 20).unwrap();
        assert_eq!(told(100).verdict, Verdict::Warning);
        assert_eq!(told(100).evidence, "the database grows by 10 MB a day: its disk is full in 10 days");
        assert_eq!((told(400).verdict, told(4_000).verdict), (Verdict::Notice, Verdict::Ok));
        assert_eq!(forecast(&grown[..2], 1), None, "a day says nothing");
        assert_eq!(forecast(&[day(0, 100), day(9, 90)], 1), None, "it shrinks");
    }

    #[test]
    fn a_cluster_that_was_killed_recovers_and_one_that_was_stopped_is_well() {
        let state = |state: &str| BTreeMap::from([("Database cluster state".to_owned(), state.to_owned())]);
        let worst = |said, stopped| of_control(&said, stopped).iter().map(|one| one.verdict).max();
        assert_eq!(worst(state("in production"), true), Some(Verdict::Notice));
        assert_eq!(worst(state("in production"), false), Some(Verdict::Ok));
        assert_eq!(worst(state("shut down"), true), Some(Verdict::Ok));
    }
}
