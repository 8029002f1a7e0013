//! What is written down beside a backup: what it holds, so that a restore can be compared, and what became of that.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::database_level::DatabaseLevel;
use super::name::{Format, Name};
use crate::config::Compression;

/// The version of this file's layout; a reader refuses a higher one.
pub const LAYOUT: u32 = 1;

/// `<stem>.manifest.json`, written last: a backup without it is not complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub layout: u32,
    /// The file or directory beside this one.
    pub file: String,
    pub database: String,
    pub format: Format,
    pub compression: Compression,
    /// When the snapshot was taken.
    pub taken: DateTime<Utc>,
    pub duration_ms: u64,
    pub size_bytes: u64,
    /// Of the SQL before it was compressed, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql_bytes: Option<u64>,
    /// Of the database when it was dumped, indexes included, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_bytes: Option<u64>,
    /// Of the file, in hexadecimal; of a directory's: of the list of its files with their own.
    pub sha256: String,
    /// `None` where none was made, as of an imported dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<Globals>,
    pub census: Census,
    /// Of the server that was dumped.
    pub server_version: String,
    pub pg_dump_version: String,
    pub tandem_version: String,
    /// What only a superuser can make of what is in it (`event trigger …`); `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_superuser: Option<Vec<String>>,
    /// Whether something else than Tandem dumped it: what its SQL does is not known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub imported: bool,
}

/// Roles and their settings, which belong to the cluster and not to a database (`pg_dumpall --globals-only`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Globals {
    pub file: String,
    pub size_bytes: u64,
    pub sha256: String,
}

/// What a database holds, counted in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// What `alembic_version` says, if it is there.
    pub schema_version: Option<String>,
    /// Rows of each table that is dumped, as `schema.table`.
    pub rows: BTreeMap<String, u64>,
    /// The partitioned table, as `schema.table`, of each of these that is a partition of one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<String, String>,
    /// `schema.table name definition` of each constraint, sorted; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Vec<String>>,
    /// `kind name` of everything else that a dump brings, sorted: columns, indexes, views, functions, triggers, policies and so
    /// on; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Vec<String>>,
    /// Where each sequence was while the dump was taken; without those that begin anew at their end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sequences: BTreeMap<String, SequenceSpan>,
    /// A digest of the rows of each table, whatever their order, in hexadecimal (`backup.verify = "content"`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<BTreeMap<String, String>>,
    /// What the database itself is like; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
    /// What belongs to the database's name and is in no dump; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_level: Option<DatabaseLevel>,
}

/// The last values of a sequence before and after a dump read it, which it does at no certain moment; `None`: not used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceSpan {
    pub first: Option<i64>,
    pub last: Option<i64>,
}

impl SequenceSpan {
    /// Whether the dump may have read `value`.
    pub fn holds(self, value: Option<i64>) -> bool {
        match (self.first, self.last, value) {
            (first, last, value) if first == last => value == last,
            (Some(first), Some(last), Some(value)) => (first.min(last)..=first.max(last)).contains(&value),
            (Some(_), Some(_), None) => false,
            _ => true,
        }
    }
}

/// What `CREATE DATABASE` decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `c` for libc, `i` for ICU, `b` for PostgreSQL's own (since 17).
    pub provider: String,
    /// Of ICU, or of PostgreSQL's own.
    pub icu_locale: Option<String>,
}

impl Properties {
    /// The same in another locale of the system, where one is named.
    pub fn in_locale(&self, locale: Option<&str>) -> Self {
        let Some(locale) = locale.map(str::to_owned) else { return self.clone() };
        Self { collate: locale.clone(), ctype: locale, ..self.clone() }
    }

    /// With a locale of the system that every machine has.
    pub fn in_plain_locale(&self) -> Self {
        let locale = if self.encoding == "UTF8" { "C.UTF-8" } else { "C" };
        self.in_locale(Some(locale)).of_system()
    }

    /// With the system's locale alone, where its own is of ICU.
    pub fn of_system(self) -> Self {
        Self { provider: "c".to_owned(), icu_locale: None, ..self }
    }
}

impl Census {
    /// All rows.
    pub fn rows_total(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// `<stem>.verdict.json`: what came of the last verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The digest of the backup that was verified: a verdict on other content does not count.
    pub sha256: String,
    pub verified: DateTime<Utc>,
    pub duration_ms: u64,
    /// What is wrong; empty when it restored to what the manifest says.
    pub problems: Vec<String>,
    pub tandem_version: String,
}

impl Verdict {
    pub fn good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The manifest of the backup `name`. What it says of files is what follows from the name, or it is of another backup: a
/// manifest that somebody else wrote could name any file of this machine.
///
/// # Errors
/// Why it is none, in words.
pub fn understood(name: &Name, value: &Value) -> Result<Manifest, String> {
    let manifest = Manifest::deserialize(value).map_err(|error| format!("its manifest is damaged: {error}"))?;
    let globals = globals_name(name);
    match &manifest {
        manifest if manifest.layout > LAYOUT => Err("its manifest is of a newer Tandem".to_owned()),
        manifest if manifest.file != name.to_string() => Err(format!("its manifest is of {:?}", manifest.file)),
        manifest if manifest.format != name.format => Err("its manifest is of another format".to_owned()),
        Manifest { globals: Some(it), .. } if it.file != globals => {
            Err(format!("its manifest names {:?} for its roles, and not {globals}", it.file))
        }
        // The manifest says nothing of how pg_restore's formats are compressed inside.
        manifest if manifest.format == Format::Plain && manifest.compression != name.compression => {
            Err("its manifest is of another compression".to_owned())
        }
        _ => Ok(manifest),
    }
}

/// What the file of the roles of the backup `name` is called.
pub fn globals_name(name: &Name) -> String {
    format!("{}.globals.sql", name.stem())
}

/// A manifest of nothing.
#[cfg(test)]
pub fn sample() -> Manifest {
    Manifest {
        layout: LAYOUT,
        file: "app_backup_20260102_030405.sql.gz".to_owned(),
        database: "app".to_owned(),
        format: Format::Plain,
        compression: Compression::Gzip,
        taken: DateTime::UNIX_EPOCH,
        duration_ms: 0,
        size_bytes: 0,
        sql_bytes: None,
        database_bytes: None,
        sha256: String::new(),
        globals: None,
        census: Census::default(),
        server_version: "16.15".to_owned(),
        pg_dump_version: "16.15".to_owned(),
        tandem_version: String::new(),
        needs_superuser: None,
        imported: false,
    }
}
