//! What an SQLite file holds, as its schema tells it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Result};

use super::target::BOOKKEEPING;

/// Tables, and what else there is.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub tables: Vec<Table>,
    /// What is not carried over, in words: views, triggers, virtual tables, indexes that PostgreSQL would write differently.
    pub left: Vec<String>,
    /// What the bookkeeping tables of migrations say, by table.
    pub applied: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// The columns of the primary key, in its order.
    pub key: Vec<usize>,
    pub has_rowid: bool,
    /// Of a table with AUTOINCREMENT: the largest number that was ever given.
    pub given: Option<i64>,
    pub foreign_keys: Vec<ForeignKey>,
    pub indexes: Vec<Index>,
    /// Whether a CHECK constraint, or a collation that ignores case, stands in its definition.
    pub has_check: bool,
    pub ignores_case: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Column {
    pub name: String,
    /// The type as it is declared; often empty, and never binding.
    pub declared: String,
    pub not_null: bool,
    pub default: Option<String>,
    pub generated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    pub columns: Vec<String>,
    pub parent: String,
    /// The parent's columns; empty for its primary key.
    pub parent_columns: Vec<String>,
    pub on_update: String,
    pub on_delete: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    pub columns: Vec<String>,
    pub unique: bool,
}

impl Table {
    /// Whether this column is the number of the row (`INTEGER PRIMARY KEY`).
    pub fn is_row_number(&self, column: usize) -> bool {
        self.has_rowid && self.key == [column] && self.columns[column].declared.eq_ignore_ascii_case("INTEGER")
    }

    /// The place of the column `name`; SQLite's names ignore case.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }
}

impl Shape {
    /// The table `name`; SQLite's names ignore case.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name.eq_ignore_ascii_case(name))
    }
}

/// Read the schema.
///
/// # Errors
/// What SQLite says.
pub fn read(connection: &Connection) -> Result<Shape> {
    let mut shape = Shape::default();
    let sequences: i64 =
        connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'", [], |row| row.get(0))?;
    let mut statement = connection.prepare(
        "SELECT list.name, list.type, list.wr, coalesce(made.sql, '') FROM pragma_table_list AS list
         LEFT JOIN sqlite_schema AS made ON made.name = list.name AND made.type IN ('table', 'view')
         WHERE list.schema = 'main' AND list.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY made.rowid",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
        match kind.as_str() {
            "table" => {
                let definition = row.get::<_, String>(3)?.to_uppercase();
                let given = if sequences > 0 && definition.contains("AUTOINCREMENT") {
                    connection
                        .query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [&name], |row| row.get(0))
                        .optional()?
                } else {
                    None
                };
                let mut table = Table {
                    name: name.clone(),
                    has_rowid: !row.get::<_, bool>(2)?,
                    given,
                    has_check: definition.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == "CHECK"),
                    ignores_case: definition.contains("NOCASE"),
                    ..Table::default()
                };
                columns(connection, &mut table)?;
                table.foreign_keys = foreign_keys(connection, &name)?;
                indexes(connection, &mut table, &mut shape.left)?;
                shape.tables.push(table);
            }
            "view" => shape.left.push(format!("view {name}")),
            "virtual" => shape.left.push(format!("virtual table {name} (such as full-text search)")),
            // Parts of a virtual table.
            _ => {}
        }
    }
    for (name, what) in BOOKKEEPING {
        if shape.table(name).is_none() {
            continue;
        }
        let mut statement = connection.prepare(&format!("SELECT {what} FROM {name}"))?;
        let said = statement.query_map([], |row| row.get(0))?.collect::<Result<BTreeSet<String>>>()?;
        shape.applied.insert(name.to_owned(), said);
    }
    let mut statement = connection.prepare("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger'")?;
    let triggers = statement
        .query_map([], |row| Ok(format!("trigger {} of {}", row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for trigger in triggers {
        shape.left.push(trigger?);
    }
    Ok(shape)
}

fn columns(connection: &Connection, table: &mut Table) -> Result<()> {
    let mut statement = connection
        .prepare("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid")?;
    let mut rows = statement.query([&table.name])?;
    let mut key = Vec::new();
    while let Some(row) = rows.next()? {
        let (place, hidden): (i64, i64) = (row.get(4)?, row.get(5)?);
        if place > 0 {
            key.push((place, table.columns.len()));
        }
        table.columns.push(Column {
            name: row.get(0)?,
            declared: row.get(1)?,
            not_null: row.get(2)?,
            default: row.get(3)?,
            generated: hidden > 1,
        });
    }
    key.sort_unstable();
    table.key = key.into_iter().map(|(_, column)| column).collect();
    Ok(())
}

fn foreign_keys(connection: &Connection, table: &str) -> Result<Vec<ForeignKey>> {
    let mut statement = connection.prepare(
        "SELECT id, \"table\", \"from\", \"to\", on_update, on_delete FROM pragma_foreign_key_list(?1) ORDER BY id, seq",
    )?;
    let mut rows = statement.query([table])?;
    let mut found: Vec<(i64, ForeignKey)> = Vec::new();
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        if found.last().is_none_or(|(last, _)| *last != id) {
            let (columns, parent_columns) = (Vec::new(), Vec::new());
            let (parent, on_update, on_delete) = (row.get(1)?, row.get(4)?, row.get(5)?);
            found.push((id, ForeignKey { columns, parent, parent_columns, on_update, on_delete }));
        }
        if let Some((_, key)) = found.last_mut() {
            key.columns.push(row.get(2)?);
            key.parent_columns.extend(row.get::<_, Option<String>>(3)?);
        }
    }
    // SQLite lists the last one first.
    Ok(found.into_iter().rev().map(|(_, key)| key).collect())
}

fn indexes(connection: &Connection, table: &mut Table, left: &mut Vec<String>) -> Result<()> {
    let mut statement =
        connection.prepare("SELECT name, \"unique\", origin, partial FROM pragma_index_list(?1) ORDER BY seq DESC")?;
    let mut rows = statement.query([&table.name])?;
    while let Some(row) = rows.next()? {
        let (name, unique, origin, partial): (String, bool, String, bool) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        if origin == "pk" {
            continue;
        }
        let mut inside = connection.prepare("SELECT name FROM pragma_index_xinfo(?1) WHERE key ORDER BY seqno")?;
        let columns = inside.query_map([&name], |row| row.get::<_, Option<String>>(0))?;
        match columns.collect::<Result<Option<Vec<String>>>>()? {
            Some(columns) if !partial => table.indexes.push(Index { name, columns, unique }),
            _ => left.push(format!("index {name} of {} (of a part of the rows, or of an expression)", table.name)),
        }
    }
    Ok(())
}
