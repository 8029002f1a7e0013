//! Whether archiving keeps up, and what follows when it does not.
//!
//! PostgreSQL keeps every segment that is not archived, until the disk is full and it stops. Its own statistics may show no
//! failure while nothing is archived at all, so what counts here is how much waits, and since when.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::header::Header;
use super::notes::Notes;
use super::wal::{SEGMENT_SIZE, WalFile};
use crate::config::{AtLimit, Pitr};
use crate::postgres::free_bytes;

/// A segment that waits for longer, while no other is archived either, means that archiving does not work.
const STALL: Duration = Duration::from_secs(60);
/// What the server itself needs of the disk, in bytes: two segments to start with, and room for what it is doing.
const DISK_RESERVE: u64 = 128 << 20;

/// How full a backlog is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Fine,
    /// More than half of what may wait.
    Half,
    /// All of it; and what is to follow.
    Full(AtLimit),
}

/// Judge `ready_count` waiting segments of `segment_size` bytes against `max` bytes. Pure.
pub fn backlog(ready_count: u64, segment_size: u64, max: u64, at_limit: AtLimit) -> Level {
    let waiting = ready_count.saturating_mul(segment_size);
    // One is always on its way.
    if waiting >= max && ready_count > 1 {
        Level::Full(at_limit)
    } else if waiting > max / 2 && ready_count > 1 {
        Level::Half
    } else {
        Level::Fine
    }
}

/// How many bytes may wait when at most `max` shall and the disk has `free` bytes beside the `waiting` ones. Pure.
pub fn room(max: u64, waiting: u64, free: Option<u64>) -> u64 {
    free.map_or(max, |free| max.min(waiting.saturating_add(free).saturating_sub(DISK_RESERVE)))
}

/// What one look at `pg_wal` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Segments that wait.
    pub ready: u64,
    pub segment_size: u64,
    /// Since when the oldest waits.
    pub oldest: Option<SystemTime>,
    pub last_archived: Option<SystemTime>,
    /// Why the last push failed.
    pub failure: Option<String>,
    /// Why the chain was given up.
    pub given_up: Option<String>,
    /// Free bytes of the disk that it is on.
    pub free: Option<u64>,
}

impl Sample {
    /// Look at `pg_wal`, and at nothing else: the archive may be on a disk that hangs.
    pub fn take(notes: &Notes) -> Self {
        let ready = notes.ready();
        let segments: Vec<&String> =
            ready.iter().filter(|name| matches!(name.parse(), Ok(WalFile::Segment(_) | WalFile::Partial(_)))).collect();
        let size =
            segments.first().and_then(|name| Header::of(&notes.dir().join(name))).map(|header| header.segment_size);
        Self {
            ready: segments.len() as u64,
            segment_size: size.unwrap_or(SEGMENT_SIZE),
            oldest: ready.first().and_then(|name| notes.ready_since(name)),
            last_archived: notes.last_archived().map(|(_, time)| time),
            failure: notes.failure(),
            given_up: notes.given_up(),
            free: free_bytes(notes.dir()),
        }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> u64 {
        self.ready.saturating_mul(self.segment_size)
    }
}

/// How the archiving is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub sample: Sample,
    pub level: Level,
    /// Whether nothing is archived though it should be.
    pub failing: bool,
    /// What is wrong, in words.
    pub trouble: Option<String>,
}

/// Looks at the archiving again and again.
#[derive(Debug)]
pub struct Watch {
    notes: Notes,
    settings: Pitr,
    /// When this process began to look: before, no archiver ran.
    since: SystemTime,
    /// What was last said of it.
    said: Option<String>,
}

impl Watch {
    /// A watch over the archiving of `pg_wal`.
    pub fn new(pg_wal: PathBuf, settings: Pitr, now: SystemTime) -> Self {
        Self { notes: Notes::new(pg_wal), settings, since: now, said: None }
    }

    /// Look, do what is to be done at the limit, and say what is new.
    pub fn look(&mut self, now: SystemTime) -> Condition {
        let mut condition = judge(Sample::take(&self.notes), &self.settings, self.since, now);
        if condition.level == Level::Full(AtLimit::GiveUp) && condition.sample.given_up.is_none() {
            let why = condition.trouble.take().unwrap_or_default();
            let why = format!("{}: {why}", humantime::format_rfc3339_seconds(now));
            match self.notes.give_up(&why) {
                Ok(()) => condition.sample.given_up = Some(why),
                Err(error) => tracing::error!("give the point-in-time chain up: {error}"),
            }
            condition = judge(condition.sample, &self.settings, self.since, now);
        }
        self.say(&condition);
        self.drop_waiting(&condition.sample, now);
        condition
    }

    /// Given up, pushes drop what they get. Where none comes to that, because the command hangs or cannot be started, or
    /// because PostgreSQL asks for a timeline's history first, which is not dropped, it is dropped here.
    fn drop_waiting(&self, sample: &Sample, now: SystemTime) {
        let waits = |since: SystemTime| now.duration_since(since).is_ok_and(|since| since > STALL);
        let stuck = sample.oldest.is_some_and(waits) && self.notes.given_up_since().is_some_and(waits);
        if sample.given_up.is_none() || !(stuck || self.notes.history_waits()) {
            return;
        }
        match self.notes.drop_ready() {
            Ok(0) => {}
            Ok(count) => tracing::warn!("the archive_command does not get to them: {count} files of WAL were dropped"),
            Err(error) => tracing::error!("drop what waits for the archive: {error}"),
        }
    }

    /// Say it once, and not for every number in it.
    fn say(&mut self, condition: &Condition) {
        let kind = match (&condition.trouble, condition.level) {
            (None, _) => None,
            (Some(_), _) if condition.sample.given_up.is_some() => Some("given up".to_owned()),
            (Some(_), level) => Some(format!("{level:?} {} {:?}", condition.failing, condition.sample.failure)),
        };
        if kind != self.said {
            match &condition.trouble {
                Some(trouble) => tracing::error!("{trouble}"),
                None => tracing::info!("WAL is archived again"),
            }
            self.said = kind;
        }
    }
}

/// What `sample` means. Pure.
fn judge(sample: Sample, settings: &Pitr, since: SystemTime, now: SystemTime) -> Condition {
    let max = room(settings.max_backlog, sample.waiting(), sample.free);
    let level = backlog(sample.ready, sample.segment_size, max, settings.at_limit);
    let quiet_since = [Some(since), sample.oldest, sample.last_archived].into_iter().flatten().max().unwrap_or(since);
    let quiet = now.duration_since(quiet_since).unwrap_or_default();
    let stalled = sample.oldest.is_some() && quiet > STALL;
    let failing = sample.given_up.is_none() && (sample.failure.is_some() || stalled);
    let waiting = format!("{} of WAL wait for the archive", size(sample.waiting()));
    let why = match &sample.failure {
        Some(why) => format!("archiving fails: {why}"),
        None if stalled => format!("nothing was archived for {} s", quiet.as_secs()),
        None => "archiving is slower than what is written".to_owned(),
    };
    let trouble = match (&sample.given_up, level) {
        (Some(why), _) => Some(format!(
            "the point-in-time chain was given up, and no WAL is archived until `tandem backup base` begins another: {why}"
        )),
        (None, Level::Full(_)) => Some(format!("{waiting}, as much as may ({}): {why}", size(max))),
        (None, Level::Half) => Some(format!("{waiting}, of {} that may: {why}", size(max))),
        (None, Level::Fine) if failing => Some(format!("{waiting}: {why}")),
        (None, Level::Fine) => None,
    };
    Condition { sample, level, failing, trouble }
}

fn size(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Ack;

    const MB: u64 = 1 << 20;

    fn settings(max: u64, at_limit: AtLimit) -> Pitr {
        let archive_timeout = Duration::from_secs(60);
        Pitr {
            enabled: true,
            dir: None,
            max_backlog: max,
            at_limit,
            archive_timeout,
            base_backups: 2,
            keep_days: 0,
            copy: true,
            ack: Ack::Local,
            behind_max: Duration::from_secs(900),
        }
    }

    #[test]
    fn a_backlog_is_fine_then_half_then_full() {
        let judge = |ready| backlog(ready, SEGMENT_SIZE, 128 * MB, AtLimit::GiveUp);
        assert_eq!([judge(0), judge(4)], [Level::Fine, Level::Fine]);
        assert_eq!([judge(5), judge(7)], [Level::Half, Level::Half]);
        assert_eq!([judge(8), judge(u64::MAX)], [Level::Full(AtLimit::GiveUp); 2]);
        assert_eq!(backlog(1, SEGMENT_SIZE, MB, AtLimit::Warn), Level::Fine, "one on its way is no backlog");
        assert_eq!(backlog(2, SEGMENT_SIZE, MB, AtLimit::Warn), Level::Full(AtLimit::Warn));
    }

    #[test]
    fn a_disk_that_runs_full_is_a_limit_of_its_own() {
        assert_eq!(room(1024 * MB, 100 * MB, Some(10_000 * MB)), 1024 * MB);
        assert_eq!(room(1024 * MB, 100 * MB, Some(328 * MB)), 300 * MB);
        assert_eq!(room(1024 * MB, 100 * MB, Some(0)), 0);
        assert_eq!(room(1024 * MB, 100 * MB, None), 1024 * MB);
    }

    #[test]
    fn what_waits_too_long_is_trouble_though_nothing_failed() {
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let after = |seconds| began + Duration::from_secs(seconds);
        let settings = settings(1024 * MB, AtLimit::Warn);
        let waiting = Sample { ready: 1, segment_size: SEGMENT_SIZE, oldest: Some(after(0)), ..Sample::default() };
        assert_eq!(judge(waiting.clone(), &settings, began, after(60)).trouble, None);
        let stalled = judge(waiting.clone(), &settings, began, after(61));
        assert!(stalled.failing && stalled.trouble.unwrap().contains("nothing was archived for 61 s"));
        // No archiver ran while the server was down.
        assert!(!judge(waiting.clone(), &settings, after(600), after(601)).failing);
        let busy = Sample { last_archived: Some(after(599)), ..waiting };
        assert!(!judge(busy, &settings, began, after(601)).failing);
        let failed = Sample { failure: Some("no space".into()), ..Sample::default() };
        let failed = judge(failed, &settings, began, began);
        assert!(failed.failing && failed.trouble.unwrap().contains("no space"));
    }

    #[test]
    fn at_the_limit_the_chain_is_given_up_where_that_is_wanted_and_stays_so() {
        for (at_limit, gives_up) in [(AtLimit::Warn, false), (AtLimit::GiveUp, true)] {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("archive_status")).unwrap();
            let mut watch = Watch::new(temp.path().to_owned(), settings(64 * MB, at_limit), SystemTime::now());
            assert_eq!(watch.look(SystemTime::now()).trouble, None);
            for number in 1..=4 {
                fs::write(temp.path().join(format!("archive_status/00000001000000000000000{number}.ready")), "")
                    .unwrap();
            }
            let condition = watch.look(SystemTime::now());
            assert_eq!(condition.level, Level::Full(at_limit));
            assert_eq!(condition.sample.given_up.is_some(), gives_up);
            assert_eq!(Notes::new(temp.path()).given_up().is_some(), gives_up);
            assert!(condition.trouble.unwrap().contains("64 MB of WAL wait"));
            // The segment stays: the command hangs.
            watch.look(SystemTime::now() + STALL * 2);
            let waits = Sample::take(&Notes::new(temp.path())).ready;
            assert_eq!(waits, if gives_up { 0 } else { 4 });
            assert_eq!(temp.path().join("archive_status/000000010000000000000004.done").exists(), gives_up);
            if gives_up {
                fs::remove_dir_all(temp.path().join("archive_status")).unwrap();
                let later = watch.look(SystemTime::now());
                assert!(later.trouble.unwrap().contains("tandem backup base"), "until there is another chain");
            }
        }
    }
}
