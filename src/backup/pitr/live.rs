//! Which timeline was live at a moment. A restore leaves one and begins another; what was committed by a moment is on the
//! one that was live then, wherever the newest one left it.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::archive::Archive;
use super::bases::{Base, rfc3339};
use super::wal::WalFile;
use crate::exit::in_words;

/// The beginning of a timeline: a restore that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    pub timeline: u32,
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// The base backup that the restore began from, where it was written down.
    pub base: Option<String>,
    /// The timeline of the cluster that it replaced, where there was one.
    #[serde(default)]
    pub replaced: Option<u32>,
}

/// What shows that a timeline was live at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sign {
    pub at: SystemTime,
    pub timeline: u32,
    /// Whether it began then.
    pub born: bool,
}

/// The timeline that was live at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub timeline: u32,
    /// The one that may have been it: it was seen afterwards, and did not begin in between. Somebody put an old data
    /// directory back.
    pub instead: Option<u32>,
}

/// Which timeline was live at `moment`. Pure.
pub fn live_at(signs: &[Sign], moment: SystemTime) -> Live {
    let mut signs = signs.to_vec();
    signs.sort_by_key(|sign| (sign.at, sign.timeline));
    let (by_then, after) = signs.split_at(signs.partition_point(|sign| sign.at <= moment));
    let next = after.first();
    let first = next.map_or(1, |next| if next.born { 1 } else { next.timeline });
    let timeline = by_then.last().map_or(first, |last| last.timeline);
    let instead = next.filter(|next| !next.born && next.timeline != timeline).map(|next| next.timeline);
    Live { timeline, instead }
}

/// The signs that the beginnings of timelines and base backups are. Pure.
pub fn signs(births: &[Birth], bases: &[Base]) -> Vec<Sign> {
    let born = births.iter().map(|birth| Sign { at: birth.at, timeline: birth.timeline, born: true });
    let replaced = births.iter().filter_map(|birth| {
        // Until a moment before.
        let at = birth.at.checked_sub(Duration::from_micros(1))?;
        Some(Sign { at, timeline: birth.replaced?, born: false })
    });
    let bases = bases.iter().map(|base| Sign { at: base.ended, timeline: base.stop_timeline, born: false });
    born.chain(replaced).chain(bases).collect()
}

/// Write down that a timeline began. Where that cannot be, the file of its history tells the time.
pub fn record(archive: &Archive, birth: &Birth) {
    let dir = archive.dir().join("timelines");
    let write = || -> anyhow::Result<()> {
        archive.make_dir(&dir)?;
        archive.write_small(&dir.join(file_name(birth.timeline)), &serde_json::to_string_pretty(birth)?)
    };
    if let Err(error) = write() {
        tracing::warn!("write down when timeline {} began: {}", birth.timeline, in_words(&error));
    }
}

/// When the timelines began whose histories these are.
pub fn births(archive: &Archive, pg_wal: Option<&Path>, timelines: &[u32]) -> Vec<Birth> {
    let read = |timeline: u32| {
        let written = fs::read(archive.dir().join("timelines").join(file_name(timeline))).ok();
        let written = written.and_then(|text| serde_json::from_slice::<Birth>(&text).ok());
        written.filter(|birth| birth.timeline == timeline).or_else(|| {
            let name = WalFile::History(timeline);
            let files = [Some(archive.path(name)), pg_wal.map(|dir| dir.join(name.to_string()))];
            // A copy may be younger than what it is a copy of.
            let at = files.iter().flatten().filter_map(|file| file.metadata().ok()?.modified().ok()).min()?;
            Some(Birth { timeline, at, base: None, replaced: None })
        })
    };
    timelines.iter().filter_map(|timeline| read(*timeline)).collect()
}

fn file_name(timeline: u32) -> String {
    format!("{timeline:08X}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn sign(seconds: u64, timeline: u32, born: bool) -> Sign {
        Sign { at: at(seconds), timeline, born }
    }

    #[test]
    fn the_timeline_that_was_live_is_the_last_that_was_seen_by_then() {
        let signs = [sign(30, 2, true), sign(10, 1, false), sign(20, 1, false), sign(40, 2, false), sign(50, 3, true)];
        let expected = [(5, 1), (10, 1), (29, 1), (30, 2), (45, 2), (50, 3), (99, 3)];
        for (moment, timeline) in expected {
            assert_eq!(live_at(&signs, at(moment)), Live { timeline, instead: None }, "{moment}");
        }
        assert_eq!(live_at(&[], at(1)).timeline, 1);
        assert_eq!(live_at(&[sign(10, 4, false)], at(1)).timeline, 4, "an archive that begins later");
    }

    #[test]
    fn after_an_old_data_directory_was_put_back_it_is_not_known_since_when() {
        let signs = [sign(10, 2, true), sign(20, 1, false), sign(30, 3, true)];
        assert_eq!(live_at(&signs, at(15)), Live { timeline: 2, instead: Some(1) });
        assert_eq!(live_at(&signs, at(25)), Live { timeline: 1, instead: None });
        assert_eq!(live_at(&signs, at(35)), Live { timeline: 3, instead: None });
        // What a restore replaced shows it too.
        let birth = |timeline, seconds, replaced| Birth { timeline, at: at(seconds), base: None, replaced };
        let signs = super::signs(&[birth(2, 10, Some(1)), birth(3, 30, Some(1))], &[]);
        assert_eq!(live_at(&signs, at(9)), Live { timeline: 1, instead: None });
        assert_eq!(live_at(&signs, at(15)), Live { timeline: 2, instead: Some(1) });
        assert_eq!(live_at(&signs, at(30)), Live { timeline: 3, instead: None });
    }

    #[test]
    fn a_beginning_is_read_as_it_was_written_and_else_told_by_the_history() {
        let temp = tempfile::tempdir().unwrap();
        let (archive, pg_wal) = (Archive::new(temp.path().join("pitr")), temp.path().join("pg_wal"));
        archive.prepare(7, None).unwrap();
        fs::create_dir(&pg_wal).unwrap();
        let base = Some("base_20260102_150405".into());
        let birth = Birth { timeline: 2, at: at(1_767_366_245), base, replaced: Some(1) };
        record(&archive, &birth);
        let history = fs::File::create(pg_wal.join("00000003.history")).unwrap();
        history.set_modified(at(1_767_366_246)).unwrap();
        let third = Birth { timeline: 3, at: at(1_767_366_246), base: None, replaced: None };
        assert_eq!(births(&archive, Some(&pg_wal), &[2, 3, 4]), [birth, third]);
    }
}
