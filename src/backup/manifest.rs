//! What is written down beside a backup: what it holds, so that a restore can be compared, and what became of that.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::name::Format;
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
    /// `schema.table name definition` of each constraint, sorted; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Vec<String>>,
    /// What the database itself is like; `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Properties>,
}

/// What `CREATE DATABASE` decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `c` for libc, `i` for ICU.
    pub provider: String,
    pub icu_locale: Option<String>,
}

impl Census {
    /// All rows.
    pub fn rows_total(&self) -> u64 {
        self.rows.values().sum()
    }

    /// In what `found` differs from this, in words; empty when in nothing.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.schema_version != found.schema_version {
            let say = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
            let (wanted, got) = (say(&self.schema_version), say(&found.schema_version));
            differences.push(format!("the schema's version is {got}, not {wanted}"));
        }
        for (table, rows) in &self.rows {
            match found.rows.get(table) {
                None => differences.push(format!("table {table} is missing")),
                Some(got) if got != rows => differences.push(format!("table {table} has {got} rows, not {rows}")),
                Some(_) => {}
            }
        }
        let more = found.rows.keys().filter(|table| !self.rows.contains_key(*table));
        differences.extend(more.map(|table| format!("table {table} is not in the manifest")));
        if let (Some(wanted), Some(got)) = (&self.constraints, &found.constraints) {
            let lost = wanted.iter().filter(|one| got.binary_search(one).is_err());
            differences.extend(lost.map(|one| format!("constraint {one} is missing")));
            let new = got.iter().filter(|one| wanted.binary_search(one).is_err());
            differences.extend(new.map(|one| format!("constraint {one} is not in the manifest")));
        }
        differences
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

#[cfg(test)]
mod tests {
    use super::*;

    fn census(rows: &[(&str, u64)], constraints: &[&str], version: Option<&str>) -> Census {
        Census {
            schema_version: version.map(str::to_owned),
            rows: rows.iter().map(|(table, rows)| ((*table).to_owned(), *rows)).collect(),
            constraints: Some(constraints.iter().map(|&one| one.to_owned()).collect()),
            properties: None,
        }
    }

    #[test]
    fn each_difference_is_named() {
        let wanted = census(&[("public.a", 1), ("public.b", 2)], &["public.a a_pkey PRIMARY KEY (id)"], Some("004"));
        assert_eq!(wanted.differences(&wanted), Vec::<String>::new());
        let found = census(&[("public.a", 3), ("public.c", 0)], &["public.c x"], None);
        assert_eq!(
            wanted.differences(&found),
            [
                "the schema's version is none, not 004",
                "table public.a has 3 rows, not 1",
                "table public.b is missing",
                "table public.c is not in the manifest",
                "constraint public.a a_pkey PRIMARY KEY (id) is missing",
                "constraint public.c x is not in the manifest",
            ]
        );
        let unknown = Census { constraints: None, ..wanted.clone() };
        assert_eq!(unknown.differences(&Census { constraints: Some(vec![]), ..wanted }), Vec::<String>::new());
    }
}
