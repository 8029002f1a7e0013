//! What lies where in a destination. Pure.

use std::fmt;
use std::time::SystemTime;

use chrono::NaiveDateTime;

use super::super::bases::{self, Base};
use super::super::expiry;
use super::super::wal::{Lsn, Segment, WalFile};
use crate::backup::store::SUFFIX;

/// The directory of all of it.
pub const ROOT: &str = "pitr";
/// The note of whose it is.
pub const OWNER: &str = "pitr/owner.json";

/// What a file in a destination is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Wal(WalFile),
    /// A base backup's description, which is put last.
    Description(BaseName),
    Data(BaseName),
    Birth(u32),
    Gap(Segment),
}

/// A base backup by what its name says: enough to know which WAL it needs, where nobody here can open what is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseName {
    pub name: String,
    pub start: Segment,
    pub stop_timeline: u32,
    pub stop_lsn: Lsn,
}

impl BaseName {
    pub fn of(base: &Base) -> Self {
        let (stop_timeline, stop_lsn) = (base.stop_timeline, base.stop_lsn);
        Self { name: base.name.clone(), start: base.start_segment(), stop_timeline, stop_lsn }
    }

    /// When it began.
    pub fn began(&self) -> Option<SystemTime> {
        let stamp = self.name.strip_prefix("base_")?;
        Some(NaiveDateTime::parse_from_str(stamp, "%Y%m%d_%H%M%S").ok()?.and_utc().into())
    }

    /// As much of a description as retention looks at.
    pub fn outline(&self) -> Option<Base> {
        let began = self.began()?;
        Some(Base {
            name: self.name.clone(),
            system_identifier: 0,
            timeline: self.start.timeline,
            start_lsn: self.start.start(super::super::wal::SEGMENT_SIZE),
            stop_lsn: self.stop_lsn,
            stop_timeline: self.stop_timeline,
            segment_size: super::super::wal::SEGMENT_SIZE,
            began,
            ended: began,
            duration_ms: 0,
            files: 0,
            size: 0,
            archived_size: 0,
            checksums: super::super::file_list::Checksums::Crc32c,
            postgres_version: String::new(),
            tandem_version: String::new(),
        })
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (name, start, stop) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |range| stop.get(range).and_then(|text: &str| u64::from_str_radix(text, 16).ok());
        let WalFile::Segment(start) = start.parse().ok()? else { return None };
        let whole = parts.next().is_none() && stop.len() == 24;
        let stop_timeline = u32::try_from(hex(0..8)?).ok()?;
        let named = Self { name: name.to_owned(), start, stop_timeline, stop_lsn: Lsn(hex(8..24)?) };
        (whole && named.began().is_some()).then_some(named)
    }
}

impl fmt::Display for BaseName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{:08X}{:016X}", self.name, self.start, self.stop_timeline, self.stop_lsn.0)
    }
}

impl fmt::Display for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal(name) => match name.segment() {
                Some(segment) => {
                    write!(formatter, "{ROOT}/wal/{:08X}{:08X}/{name}.zst", segment.timeline, segment.log)
                }
                None => write!(formatter, "{ROOT}/wal/{name}.zst"),
            },
            Self::Description(base) => write!(formatter, "{ROOT}/base/{base}/{}", bases::DESCRIPTION),
            Self::Data(base) => write!(formatter, "{ROOT}/base/{base}/{}", bases::DATA),
            Self::Birth(timeline) => write!(formatter, "{ROOT}/timelines/{timeline:08X}.json"),
            Self::Gap(segment) => write!(formatter, "{ROOT}/gaps/{segment}"),
        }
    }
}

impl Held {
    /// What the file `name` is, sealed or not; `None`: none of ours.
    pub fn read(name: &str) -> Option<Self> {
        let plain = name.strip_suffix(SUFFIX).unwrap_or(name);
        let parts: Vec<&str> = plain.strip_prefix(ROOT)?.strip_prefix('/')?.split('/').collect();
        let held = match parts[..] {
            ["wal", file] | ["wal", _, file] => Self::Wal(file.strip_suffix(".zst")?.parse().ok()?),
            ["base", base, file] if file == bases::DESCRIPTION => Self::Description(BaseName::read(base)?),
            ["base", base, file] if file == bases::DATA => Self::Data(BaseName::read(base)?),
            ["timelines", file] => Self::Birth(u32::from_str_radix(file.strip_suffix(".json")?, 16).ok()?),
            ["gaps", file] => match file.parse().ok()? {
                WalFile::Segment(segment) => Self::Gap(segment),
                _ => return None,
            },
            _ => return None,
        };
        // Nothing but the one name that it has: a second one would be a second file.
        (held.to_string() == plain).then_some(held)
    }
}

/// What a listing says of base backups and WAL.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pub wal: Vec<WalFile>,
    /// Whole ones: their descriptions are there. Oldest first.
    pub bases: Vec<BaseName>,
    pub births: Vec<u32>,
    pub gaps: Vec<Segment>,
    /// The data of base backups that never became whole.
    pub cut: Vec<BaseName>,
}

impl Inventory {
    pub fn of(held: &[Held]) -> Self {
        let mut all = Self::default();
        for held in held {
            match held {
                Held::Wal(name) => all.wal.push(*name),
                Held::Description(base) => all.bases.push(base.clone()),
                Held::Birth(timeline) => all.births.push(*timeline),
                Held::Gap(segment) => all.gaps.push(*segment),
                Held::Data(_) => {}
            }
        }
        let described = |base: &BaseName| all.bases.contains(base);
        all.cut = held
            .iter()
            .filter_map(|held| if let Held::Data(base) = held { Some(base.clone()) } else { None })
            .filter(|base| !described(base))
            .collect();
        all.bases.sort_by_key(|base| base.name.clone());
        all
    }

    /// The WAL that none of the base backups `kept` needs.
    pub fn unneeded(&self, kept: &[BaseName]) -> Vec<WalFile> {
        expiry::unneeded(&self.wal, &kept.iter().map(|base| base.start).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bases::tests::base;
    use super::*;

    #[test]
    fn every_name_is_read_as_it_was_written_and_nothing_else_is_one() {
        let whole = BaseName::of(&base(3, 0x200_0028, 0x1_0200_0100, 1_767_366_245));
        let segment = Segment { timeline: 3, log: 1, number: 2 };
        let all = [
            Held::Wal(WalFile::Segment(segment)),
            Held::Wal(WalFile::Partial(segment)),
            Held::Wal(WalFile::Backup(segment, 0x28)),
            Held::Wal(WalFile::History(3)),
            Held::Description(whole.clone()),
            Held::Data(whole.clone()),
            Held::Birth(3),
            Held::Gap(segment),
        ];
        for held in &all {
            assert_eq!(Held::read(&held.to_string()).as_ref(), Some(held), "{held}");
            assert_eq!(Held::read(&format!("{held}.age")).as_ref(), Some(held), "{held}");
        }
        let outline = whole.outline().unwrap();
        assert_eq!(
            (outline.name, outline.ended, outline.stop_lsn),
            (whole.name.clone(), whole.began().unwrap(), whole.stop_lsn)
        );
        let wrong = [
            "pitr/owner.json",
            "pitr/wal/0000000300000002/000000030000000100000002.zst",
            "pitr/wal/../000000030000000100000002.zst",
            "pitr/base/base_20260102_150405/base.json",
            "pitr/base/base_20261302_150405.000000010000000000000002.000000010000000000000100/base.json",
            "app_backup_20260102_150405.sql.gz",
        ];
        for name in wrong {
            assert_eq!(Held::read(name), None, "{name}");
        }
        let inventory = Inventory::of(&all[5..6]);
        assert_eq!((inventory.bases.len(), inventory.cut), (0, vec![whole]));
    }
}
