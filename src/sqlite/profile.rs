//! The rows of a table, and what their values are: SQLite's types are declared by column and kept by value.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Result, Row};

use super::moment;
use super::shape::{Shape, Table};

/// What the values of one column are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub nulls: u64,
    pub integers: u64,
    pub reals: u64,
    pub texts: u64,
    pub blobs: u64,
    /// Characters of the longest text.
    pub longest: usize,
    /// Times with an offset from UTC.
    pub offsets: u64,
    /// The largest whole number.
    pub largest: Option<i64>,
}

/// The rows of one table, and a profile of each of its columns.
#[derive(Clone, Debug, Default)]
pub struct TableProfile {
    pub rows: u64,
    pub columns: Vec<Profile>,
}

impl Profile {
    fn see(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.nulls += 1,
            ValueRef::Integer(number) => {
                self.integers += 1;
                self.largest = self.largest.max(Some(number));
            }
            ValueRef::Real(_) => self.reals += 1,
            ValueRef::Text(text) => {
                self.texts += 1;
                // Every character has one byte that does not continue another (RFC 3629).
                self.longest = self.longest.max(text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count());
                self.offsets += u64::from(moment::has_offset(text));
            }
            ValueRef::Blob(_) => self.blobs += 1,
        }
    }
}

/// Look at every value of the file.
///
/// # Errors
/// What SQLite says, such as a damaged page.
pub fn all(connection: &Connection, shape: &Shape) -> Result<Vec<TableProfile>> {
    shape.tables.iter().map(|table| of(connection, table)).collect()
}

fn of(connection: &Connection, table: &Table) -> Result<TableProfile> {
    let columns: Vec<usize> = (0..table.columns.len()).collect();
    let mut found = TableProfile { rows: 0, columns: vec![Profile::default(); columns.len()] };
    each_row(connection, table, &columns, |row, _| {
        found.rows += 1;
        for (profile, place) in found.columns.iter_mut().zip(0..) {
            profile.see(row.get_ref(place)?);
        }
        Ok(true)
    })?;
    Ok(found)
}

/// Show `see` every row: its `columns` by their place, and a function that names the row. It goes on as long as `see` says so.
///
/// # Errors
/// What SQLite or `see` says.
pub fn each_row(
    connection: &Connection,
    table: &Table,
    columns: &[usize],
    mut see: impl FnMut(&Row<'_>, &dyn Fn() -> String) -> Result<bool>,
) -> Result<()> {
    let (names, key) = name_columns(table);
    let wanted = columns.iter().map(|&column| quoted(&table.columns[column].name)).chain(names);
    let select = format!("SELECT {} FROM {}", wanted.collect::<Vec<_>>().join(", "), quoted(&table.name));
    let mut statement = connection.prepare(&select)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name = || {
            let parts = key.iter().zip(columns.len()..);
            let parts =
                parts.map(|(name, place)| format!("{name} {}", row.get_ref(place).map(shown).unwrap_or_default()));
            parts.collect::<Vec<_>>().join(", ")
        };
        if !see(row, &name)? {
            break;
        }
    }
    Ok(())
}

/// What a row is named by: expressions for SQLite, and words for people.
fn name_columns(table: &Table) -> (Vec<String>, Vec<String>) {
    // A column may have taken one of the names of the row's number (SQLite documentation, "ROWIDs and the INTEGER PRIMARY KEY").
    let free = ["rowid", "_rowid_", "oid"].into_iter().find(|name| table.column(name).is_none());
    match free.filter(|_| table.has_rowid) {
        Some(name) => (vec![name.to_owned()], vec!["rowid".to_owned()]),
        None => {
            let names = table.key.iter().map(|&column| table.columns[column].name.clone());
            let names: Vec<String> = names.collect();
            (names.iter().map(|name| quoted(name)).collect(), names)
        }
    }
}

/// A name as SQL has it, in SQLite and in PostgreSQL alike.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// How much of a value is shown.
const SHOWN_MAX: usize = 60;

/// A value for a person: short, and in one line.
pub fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(text) => {
            let text = String::from_utf8_lossy(text);
            let short: String = text.chars().take(SHOWN_MAX).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("{short:?}{more}")
        }
        ValueRef::Blob(bytes) => {
            let short: String = bytes.iter().take(SHOWN_MAX / 4).map(|byte| format!("{byte:02x}")).collect();
            let more = if bytes.len() > SHOWN_MAX / 4 { "…" } else { "" };
            format!("x'{short}{more}' ({} bytes)", bytes.len())
        }
    }
}
