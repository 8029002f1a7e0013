//! What a backup is called: `<database>_backup_YYYYMMDD_HHMMSS.sql.gz`. Pure.
//!
//! The time is UTC, so that names sort by age across a change of the clocks. The database's name is percent-encoded where
//! it could harm a path or be taken for another name.

use std::fmt;

use chrono::{DateTime, NaiveDateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub use crate::config::BackupFormat as Format;
use crate::config::Compression;

/// What stands unencoded in a file's name.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
const BETWEEN: &str = "_backup_";
const TIME: &str = "%Y%m%d_%H%M%S";

/// A backup's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub database: String,
    pub taken: DateTime<Utc>,
    pub format: Format,
    /// Of a plain dump; the others are compressed inside.
    pub compression: Compression,
}

impl Name {
    /// The name of a backup of `database` begun at `taken`, of which whole seconds count.
    pub fn new(database: &str, taken: DateTime<Utc>, format: Format, compression: Compression) -> Self {
        let whole = DateTime::from_timestamp(taken.timestamp(), 0).unwrap_or(taken);
        Self { database: database.to_owned(), taken: whole, format, compression }
    }

    /// Read a file's name; `None` when it is no backup's.
    pub fn parse(text: &str) -> Option<Self> {
        let endings = [
            (".sql.gz", Format::Plain, Compression::Gzip),
            (".sql.zst", Format::Plain, Compression::Zstd),
            (".sql", Format::Plain, Compression::None),
            (".dump", Format::Custom, Compression::None),
            (".dir", Format::Directory, Compression::None),
        ];
        let (rest, format, compression) = endings
            .into_iter()
            .find_map(|(ending, format, compression)| Some((text.strip_suffix(ending)?, format, compression)))?;
        let (database, time) = rest.rsplit_once(BETWEEN)?;
        let taken = NaiveDateTime::parse_from_str(time, TIME).ok()?.and_utc();
        let database = percent_decode_str(database).decode_utf8().ok()?.into_owned();
        // One name, one text: `20261` and `1` are months to the parser alike.
        let name = Self { database, taken, format, compression };
        (name.format == Format::Plain || compression == Compression::None).then_some(())?;
        (name.to_string() == text).then_some(name)
    }

    /// The name without its ending, which what lies beside the backup shares with it.
    pub fn stem(&self) -> String {
        format!("{}{BETWEEN}{}", utf8_percent_encode(&self.database, ENCODED), self.taken.format(TIME))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match (self.format, self.compression) {
            (Format::Plain, Compression::Gzip) => ".sql.gz",
            (Format::Plain, Compression::Zstd) => ".sql.zst",
            (Format::Plain, Compression::None) => ".sql",
            (Format::Custom, _) => ".dump",
            (Format::Directory, _) => ".dir",
        };
        write!(formatter, "{}{ending}", self.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn the_guides_name_is_written_and_read() {
        let name = Name::new("ffe", at("2026-01-02T15:04:05.9Z"), Format::Plain, Compression::Gzip);
        assert_eq!(name.to_string(), "ffe_backup_20260102_150405.sql.gz");
        assert_eq!(Name::parse("ffe_backup_20260102_150405.sql.gz"), Some(name));
    }

    #[test]
    fn every_database_and_ending_comes_back() {
        let databases = ["a", "_backup_", "it's \"quoted\" / 100 %.sql.gz", "x_backup_20260102_150405", "größe", ".."];
        let kinds = [
            (Format::Plain, Compression::None),
            (Format::Plain, Compression::Gzip),
            (Format::Plain, Compression::Zstd),
            (Format::Custom, Compression::None),
            (Format::Directory, Compression::None),
        ];
        for database in databases {
            for (format, compression) in kinds {
                let name = Name::new(database, at("2024-02-29T23:59:59Z"), format, compression);
                let text = name.to_string();
                assert!(!text.contains(['/', ' ', '\'', '"']) && !text.starts_with('.'), "{text}");
                assert_eq!(Name::parse(&text), Some(name), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_backup_is_none() {
        for text in [
            "",
            "ffe_backup_20260102_150405",
            "ffe_backup_20260102_150405.tar",
            "ffe_backup_20261302_150405.sql.gz",
            "ffe_backup_2026012_150405.sql.gz",
            "ffe_20260102_150405.sql.gz",
            "ffe_backup_20260102_150405.sql.gz.part",
            "a b_backup_20260102_150405.sql.gz",
            "ffe_backup_20260102_150405.manifest.json",
        ] {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
