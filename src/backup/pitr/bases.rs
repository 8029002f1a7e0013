//! The base backups that there are. One is there when its description is, which is written last.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::archive::{Archive, list};
use super::file_list::Checksums;
use super::wal::{Lsn, Segment};
use crate::durable;

/// The description's file name.
pub const DESCRIPTION: &str = "base.json";
/// The data's file name: a tar archive in a zstd frame.
pub const DATA: &str = "base.tar.zst";
/// What one that is being made, or removed, ends with.
pub const UNFINISHED: &str = ".partial";
/// What the names begin with.
const PREFIX: &str = "base_";

/// What is known of a base backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub name: String,
    pub system_identifier: u64,
    /// On which it began.
    pub timeline: u32,
    pub start_lsn: Lsn,
    /// From here on the data is consistent, on `stop_timeline`.
    pub stop_lsn: Lsn,
    pub stop_timeline: u32,
    pub segment_size: u64,
    #[serde(with = "rfc3339")]
    pub began: SystemTime,
    #[serde(with = "rfc3339")]
    pub ended: SystemTime,
    pub duration_ms: u64,
    pub files: usize,
    /// Bytes of all files.
    pub size: u64,
    /// Bytes that it takes in the archive.
    pub archived_size: u64,
    /// What its files are checked by.
    #[serde(default = "Checksums::older")]
    pub checksums: Checksums,
    pub postgres_version: String,
    pub tandem_version: String,
}

impl Base {
    /// The first segment that recovery from it reads.
    pub fn start_segment(&self) -> Segment {
        Segment::of(self.timeline, self.start_lsn, self.segment_size)
    }

    /// Its directory in `archive`.
    pub fn dir(&self, archive: &Archive) -> PathBuf {
        archive.bases().join(&self.name)
    }
}

/// The name of a base backup that begins at `now`.
pub fn name(now: SystemTime) -> String {
    format!("{PREFIX}{}", stamp(now))
}

/// A time as part of a name, in UTC: `20260102_150405`.
pub fn stamp(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.chars().filter(char::is_ascii_digit).enumerate().fold(String::new(), |mut stamp, (place, digit)| {
        if place == 8 {
            stamp.push('_');
        }
        stamp.push(digit);
        stamp
    })
}

/// What there is of base backups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Oldest first.
    pub bases: Vec<Base>,
    /// Those that cannot be read, with why. They count for nothing and are never removed.
    pub unreadable: Vec<String>,
}

/// All base backups in `archive` that can be read, oldest first.
///
/// # Errors
/// The directory cannot be read.
pub fn bases(archive: &Archive) -> anyhow::Result<Vec<Base>> {
    Ok(listing(archive)?.bases)
}

/// All base backups in `archive`, those too that cannot be read.
///
/// # Errors
/// The directory cannot be read.
pub fn listing(archive: &Archive) -> anyhow::Result<Listing> {
    let mut found = Listing::default();
    for path in list(&archive.bases())?.into_iter().filter(|path| !is_unfinished(path)) {
        let Some(name) = path.file_name().and_then(OsStr::to_str).filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        match read(&path, name) {
            Ok(base) => found.bases.push(base),
            Err(why) => found.unreadable.push(format!("the base backup {} cannot be read: {why}", path.display())),
        }
    }
    found.bases.sort_by_key(|base| (base.ended, base.name.clone()));
    found.unreadable.sort();
    Ok(found)
}

fn read(dir: &Path, name: &str) -> Result<Base, String> {
    let text = fs::read(dir.join(DESCRIPTION)).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
    let base: Base = serde_json::from_slice(&text).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
    let data = fs::metadata(dir.join(DATA)).map_err(|error| format!("{DATA}: {error}"));
    match base.name == name {
        true => data.map(|_| base),
        false => Err(format!("{DESCRIPTION} is of {}", base.name)),
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.to_string_lossy().ends_with(UNFINISHED)
}

/// What was cut short while it was made or removed.
pub fn unfinished(archive: &Archive) -> Vec<PathBuf> {
    let entries = fs::read_dir(archive.bases()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| is_unfinished(path)).collect()
}

/// Remove it.
pub fn sweep(archive: &Archive) {
    for path in unfinished(archive) {
        tracing::info!("removing {}, which was not finished", path.display());
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!("remove {}: {error}", path.display());
        }
    }
}

/// Remove `base`, which no list names any more once that has begun.
///
/// # Errors
/// It cannot be removed.
pub fn remove(archive: &Archive, base: &Base) -> anyhow::Result<()> {
    let (from, to) = (base.dir(archive), archive.bases().join(format!("{}{UNFINISHED}", base.name)));
    // A disk may put off the new name and not the removals: half of it would be there under the old name, which nothing
    // removes, and the WAL that it needs would be gone.
    durable::rename(&from, &to)
        .and_then(|()| durable::sync_dir(&archive.bases()))
        .and_then(|()| fs::remove_dir_all(&to))
        .with_context(|| format!("remove {}", from.display()))
}

/// The length of an interval in whole milliseconds.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Times as text.
pub(super) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_micros(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A base backup that began and ended at these positions of `timeline`, `ended` seconds after the epoch.
    pub fn base(timeline: u32, start: u64, stop: u64, ended: u64) -> Base {
        let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(ended);
        Base {
            name: name(ended),
            system_identifier: 1,
            timeline,
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            stop_timeline: timeline,
            segment_size: super::super::wal::SEGMENT_SIZE,
            began: ended - Duration::from_secs(1),
            ended,
            duration_ms: 1000,
            files: 1,
            size: 1,
            archived_size: 1,
            checksums: Checksums::Crc32c,
            postgres_version: "16".into(),
            tandem_version: "0".into(),
        }
    }

    #[test]
    fn a_base_backup_is_there_once_its_description_is() {
        let temp = tempfile::tempdir().unwrap();
        let archive = Archive::new(temp.path());
        assert_eq!(bases(&archive).unwrap(), []);
        let (older, newer) = (base(1, 0x200_0028, 0x200_0100, 1_767_366_245), base(1, 1 << 27, 1 << 28, 1_767_366_246));
        assert_eq!(older.name, "base_20260102_150405");
        for base in [&newer, &older] {
            fs::create_dir_all(base.dir(&archive)).unwrap();
            fs::write(base.dir(&archive).join(DATA), "").unwrap();
        }
        assert_eq!(bases(&archive).unwrap(), []);
        let unreadable = listing(&archive).unwrap().unreadable;
        assert!(unreadable.len() == 2 && unreadable[0].contains("base_20260102_150405"), "{unreadable:?}");
        for base in [&newer, &older] {
            fs::write(base.dir(&archive).join(DESCRIPTION), serde_json::to_string(base).unwrap()).unwrap();
        }
        assert_eq!(bases(&archive).unwrap(), [older.clone(), newer.clone()]);
        let cut = archive.bases().join("base_20260102_150500.partial");
        fs::create_dir_all(&cut).unwrap();
        remove(&archive, &older).unwrap();
        sweep(&archive);
        assert_eq!(bases(&archive).unwrap(), [newer]);
        assert!(!cut.exists());
    }
}
