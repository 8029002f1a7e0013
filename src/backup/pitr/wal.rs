//! Names and positions of WAL. Pure.
//!
//! A segment's name is its timeline and its place, `TTTTTTTTLLLLLLLLSSSSSSSS` in hexadecimal (PostgreSQL's
//! src/include/access/xlog_internal.h): the place counts segments, in logs of 4 GB each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The size of a segment where nobody asked for another, in bytes.
pub const SEGMENT_SIZE: u64 = 16 << 20;
/// What one log holds, in bytes.
const LOG_SIZE: u64 = 1 << 32;

/// A position in the WAL, written as PostgreSQL does: `1/A0B3C8D0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// What was to be a position is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position in the WAL, which looks like 1/A0B3C8D0")]
pub struct NoLsn(String);

impl FromStr for Lsn {
    type Err = NoLsn;

    fn from_str(text: &str) -> Result<Self, NoLsn> {
        let half = |text: &str| {
            let digits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        halves.map(|(high, low)| Self(high << 32 | low)).ok_or_else(|| NoLsn(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One segment. They are ordered by place, and by timeline where two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    pub log: u32,
    /// The place within the log.
    pub number: u32,
    pub timeline: u32,
}

impl Segment {
    /// The segment of `timeline` that `lsn` lies in.
    pub fn of(timeline: u32, lsn: Lsn, size: u64) -> Self {
        let (log, number) = (lsn.0 / LOG_SIZE, lsn.0 % LOG_SIZE / size);
        Self {
            log: u32::try_from(log).unwrap_or(u32::MAX),
            number: u32::try_from(number).unwrap_or(u32::MAX),
            timeline,
        }
    }

    /// Where it begins.
    pub fn start(self, size: u64) -> Lsn {
        Lsn(u64::from(self.log) * LOG_SIZE + u64::from(self.number) * size)
    }

    /// The one behind it, on the same timeline.
    pub fn next(self, size: u64) -> Self {
        Self::of(self.timeline, Lsn(self.start(size).0.saturating_add(size)), size)
    }

    /// Its place, whatever the timeline.
    pub fn place(self) -> (u32, u32) {
        (self.log, self.number)
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.number)
    }
}

/// A file that PostgreSQL archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalFile {
    Segment(Segment),
    /// The last, unfinished segment of a timeline that was left.
    Partial(Segment),
    /// What a base backup that began in this segment leaves in the WAL.
    Backup(Segment, u32),
    /// Where a timeline began.
    History(u32),
}

impl WalFile {
    /// The segment that it belongs to.
    pub fn segment(self) -> Option<Segment> {
        match self {
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup(segment, _) => Some(segment),
            Self::History(_) => None,
        }
    }

    /// The timeline of which this is the history.
    pub fn begun(self) -> Option<u32> {
        if let Self::History(timeline) = self { Some(timeline) } else { None }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => write!(formatter, "{segment}"),
            Self::Partial(segment) => write!(formatter, "{segment}.partial"),
            Self::Backup(segment, offset) => write!(formatter, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(formatter, "{timeline:08X}.history"),
        }
    }
}

/// A file name that no file of an archive of WAL has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a WAL segment, a timeline's history or a backup's label")]
pub struct NoName(String);

impl FromStr for WalFile {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let read = || {
            let (stem, rest) = text.split_once('.').map_or((text, ""), |(stem, rest)| (stem, rest));
            match rest {
                "" if !text.contains('.') => Some(Self::Segment(segment(stem)?)),
                "partial" => Some(Self::Partial(segment(stem)?)),
                "history" => Some(Self::History(hex(stem)?)),
                _ => Some(Self::Backup(segment(stem)?, hex(rest.strip_suffix(".backup")?)?)),
            }
        };
        read().ok_or_else(|| NoName(text.to_owned()))
    }
}

fn segment(text: &str) -> Option<Segment> {
    let part = |range| text.get(range).and_then(hex);
    (text.len() == 24).then_some(())?;
    Some(Segment { timeline: part(0..8)?, log: part(8..16)?, number: part(16..24)? })
}

/// Eight digits, with capital letters as PostgreSQL writes them.
fn hex(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    (text.len() == 8 && digits).then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_and_nothing_else_is_one() {
        let names = [
            "000000010000000A000000FF",
            "000000020000000A000000FF.partial",
            "000000010000000000000002.00000028.backup",
            "0000000C.history",
        ];
        for name in names {
            assert_eq!(name.parse::<WalFile>().unwrap().to_string(), name);
        }
        let others =
            ["", "00000001", "../../etc/passwd", "000000010000000a000000ff", "RECOVERYXLOG", "0000000C.History"];
        for name in
            others.iter().chain(&["000000010000000A000000FF.", "000000010000000A000000FF.ready", "é000000.history"])
        {
            assert!(name.parse::<WalFile>().is_err(), "{name}");
        }
    }

    #[test]
    fn positions_and_segments_agree() {
        let lsn: Lsn = "A/FF000028".parse().unwrap();
        assert_eq!(lsn.to_string(), "A/FF000028");
        let segment = Segment::of(1, lsn, SEGMENT_SIZE);
        assert_eq!(segment.to_string(), "000000010000000A000000FF");
        assert_eq!(segment.start(SEGMENT_SIZE).to_string(), "A/FF000000");
        assert_eq!(segment.next(SEGMENT_SIZE).to_string(), "000000010000000B00000000", "a log holds 256 of 16 MB");
        assert_eq!(Segment::of(1, lsn, 64 << 20).number, 63, "and 64 of 64 MB");
        for text in ["", "A", "A/", "/A", "G/0", "1/123456789", "-1/0", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        let later = Segment { timeline: 1, log: 0, number: 5 };
        assert!(later > Segment { timeline: 9, log: 0, number: 4 }, "the place comes first");
    }
}
