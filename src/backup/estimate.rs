//! How much room something is going to take. Pure, and rather too much than too little.

use super::manifest::Manifest;
use super::name::Format;
use crate::config::Compression;

/// A backup is taken to be at most so many percent larger than the one before.
const GROWTH: u64 = 125;
/// A database is taken to be at least so many times as large as its first compressed backup, and WAL as its archived form.
const SHRINKING: u64 = 3;
/// A restored database is taken to be at most so many percent of the size that it had when it was dumped: without the room
/// that deleted rows left, it is smaller.
const LOADED: u64 = 110;
/// How many times the SQL's length its tables and indexes take, where their size is not known.
const SWELLING: u64 = 2;
/// How much smaller compressed SQL is at the most, where its length is not known.
const COMPRESSION_MAX: u64 = 8;
/// How much of `max_wal_size` PostgreSQL passes before a checkpoint that it began for that has removed old segments.
const WAL_OVERSHOOT: u64 = 120;

fn percent(bytes: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// How large the next dump of a database of `database` bytes may be; `earlier` are its backups, the newest first.
pub fn dump<'a>(earlier: impl Iterator<Item = &'a Manifest> + Clone, database: u64, compression: Compression) -> u64 {
    let is_compressed = |compression| compression != Compression::None;
    let alike = earlier.clone().find(|last| is_compressed(last.compression) == is_compressed(compression));
    // Gzip and zstd do not differ by more than is added here.
    let grown = |bytes: u64, last: &Manifest| {
        let larger = last.database_bytes.filter(|then| *then > 0 && *then < database);
        let bytes =
            larger.map_or(u128::from(bytes), |then| u128::from(bytes) * u128::from(database) / u128::from(then));
        percent(u64::try_from(bytes).unwrap_or(u64::MAX), GROWTH)
    };
    let sql = earlier.clone().find_map(|last| Some(grown(last.sql_bytes?, last)));
    match (alike, compression) {
        (Some(last), _) => grown(last.size_bytes, last),
        (None, Compression::None) => sql.unwrap_or(database),
        (None, Compression::Gzip | Compression::Zstd) => sql.map_or(database / SHRINKING, |sql| sql / SHRINKING),
    }
}

/// What is known of a file that is to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restorable {
    /// Of the database when it was dumped.
    pub database_bytes: Option<u64>,
    pub sql_bytes: Option<u64>,
    pub size_bytes: u64,
    pub is_compressed: bool,
}

impl Restorable {
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            database_bytes: manifest.database_bytes,
            sql_bytes: manifest.sql_bytes,
            size_bytes: manifest.size_bytes,
            // pg_restore's formats hold no indexes either, and are taken as if they were compressed.
            is_compressed: manifest.compression != Compression::None || manifest.format != Format::Plain,
        }
    }

    /// How large the database becomes that it is restored into.
    pub fn loaded(&self) -> u64 {
        let unknown =
            || if self.is_compressed { self.size_bytes.saturating_mul(COMPRESSION_MAX) } else { self.size_bytes };
        match self.database_bytes {
            Some(bytes) => percent(bytes, LOADED),
            None => self.sql_bytes.unwrap_or_else(unknown).saturating_mul(SWELLING),
        }
    }
}

/// How much `pg_wal` grows while `written` bytes of WAL are written, when it may take `max` bytes and takes `present` now.
pub fn wal(written: u64, max: u64, present: u64) -> u64 {
    written.min(percent(max, WAL_OVERSHOOT).saturating_sub(present))
}

/// How much `written` bytes of WAL take in the archive.
pub fn archived_wal(written: u64) -> u64 {
    written / SHRINKING
}

/// How large a base backup of `cluster` bytes may be; `last` is the size of the cluster in the last one, and what that took.
pub fn base_backup(cluster: u64, last: Option<(u64, u64)>) -> u64 {
    match last {
        Some((then, took)) if then > 0 => {
            let took = u128::from(took) * u128::from(cluster.max(then)) / u128::from(then);
            percent(u64::try_from(took).unwrap_or(u64::MAX), GROWTH)
        }
        // Data that does not compress is not rare in a first one.
        _ => cluster / 2,
    }
}

/// How large a gzip of the SQL in a file of `size` bytes is.
pub fn import(size: u64, compression: Compression) -> u64 {
    match compression {
        Compression::None => size / 2,
        Compression::Gzip => percent(size, GROWTH),
        Compression::Zstd => size.saturating_mul(2),
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Census, LAYOUT};
    use super::*;

    fn taken(
        compression: Compression,
        size_bytes: u64,
        sql_bytes: Option<u64>,
        database_bytes: Option<u64>,
    ) -> Manifest {
        Manifest {
            layout: LAYOUT,
            file: "f".into(),
            database: "app".into(),
            format: Format::Plain,
            compression,
            taken: "2026-01-02T15:04:05Z".parse().unwrap(),
            duration_ms: 1,
            size_bytes,
            sql_bytes,
            database_bytes,
            sha256: String::new(),
            globals: None,
            census: Census::default(),
            server_version: "16.0".into(),
            pg_dump_version: "16.0".into(),
            tandem_version: "0".into(),
            needs_superuser: None,
            imported: false,
        }
    }

    #[test]
    fn an_uncompressed_dump_is_not_as_small_as_the_last_compressed_one() {
        let gzip = taken(Compression::Gzip, 1000, Some(10_000), None);
        let estimate = |earlier: &[&Manifest], compression| dump(earlier.iter().copied(), 30_000, compression);
        assert_eq!(estimate(&[&gzip], Compression::Gzip), 1250);
        assert_eq!(estimate(&[&gzip], Compression::Zstd), 1250);
        assert_eq!(estimate(&[&gzip], Compression::None), 12_500);
        let none = taken(Compression::None, 8000, Some(8000), None);
        assert_eq!(estimate(&[&none, &gzip], Compression::None), 10_000);
        assert_eq!(estimate(&[&none, &gzip], Compression::Gzip), 1250, "the last that was compressed");
        assert_eq!(estimate(&[&none], Compression::Gzip), 3333);
        assert_eq!([estimate(&[], Compression::None), estimate(&[], Compression::Gzip)], [30_000, 10_000]);
    }

    #[test]
    fn a_database_that_has_grown_has_a_larger_dump_and_one_that_shrank_no_smaller_one() {
        let last = |then| taken(Compression::Gzip, 1000, None, Some(then));
        let estimate = |then| dump([&last(then)].into_iter(), 30_000, Compression::Gzip);
        assert_eq!([estimate(10_000), estimate(30_000), estimate(90_000), estimate(0)], [3750, 1250, 1250, 1250]);
    }

    #[test]
    fn a_restore_takes_what_the_database_took_or_a_multiple_of_its_sql() {
        let known = Restorable { database_bytes: Some(1000), sql_bytes: Some(9), size_bytes: 9, is_compressed: true };
        assert_eq!(known.loaded(), 1100);
        assert_eq!(Restorable { database_bytes: None, ..known }.loaded(), 18);
        let unknown = Restorable { database_bytes: None, sql_bytes: None, ..known };
        assert_eq!(unknown.loaded(), 9 * 8 * 2);
        assert_eq!(Restorable { is_compressed: false, ..unknown }.loaded(), 18);
    }

    #[test]
    fn wal_grows_to_what_it_may_and_no_further() {
        assert_eq!([wal(100, 1000, 200), wal(5000, 1000, 200), wal(5000, 1000, 5000)], [100, 1000, 0]);
    }

    #[test]
    fn a_base_backup_compresses_as_the_last_one_did() {
        assert_eq!(base_backup(1000, None), 500);
        assert_eq!(base_backup(2000, Some((1000, 200))), 500);
        assert_eq!(base_backup(500, Some((1000, 200))), 250);
        assert_eq!(base_backup(500, Some((0, 0))), 250);
        assert_eq!(base_backup(u64::MAX, Some((1, u64::MAX))), u64::MAX);
    }
}
