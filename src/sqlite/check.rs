//! Every value of the file, converted and thrown away: what does not fit is known before anything is written.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Result};

use super::plan::TablePlan;
use super::profile::{each_row, shown};
use super::shape::{Shape, Table};
use super::{statements, value};

/// How many are kept with their value.
const KEPT_MAX: usize = 1000;

/// A value that PostgreSQL's table cannot have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Misfit {
    pub table: String,
    pub column: String,
    /// What names the row: its `rowid`, or its key.
    pub row: String,
    pub value: String,
    pub why: String,
}

/// What does not fit: the first of them, and how many there are.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Misfits {
    pub first: Vec<Misfit>,
    pub total: u64,
}

impl Misfits {
    fn add(&mut self, misfit: impl FnOnce() -> Misfit) {
        self.total += 1;
        if self.first.len() < KEPT_MAX {
            self.first.push(misfit());
        }
    }
}

/// Try every value of the tables that are written, and look for rows that refer to no row.
///
/// # Errors
/// What SQLite says, such as a damaged page.
pub fn check(connection: &Connection, shape: &Shape, tables: &[TablePlan]) -> Result<Misfits> {
    let mut found = Misfits::default();
    for plan in tables.iter().filter(|plan| plan.is_written()) {
        let table = &shape.tables[plan.source];
        values(connection, table, plan, &mut found)?;
        for key in &plan.keys {
            orphans(connection, table, plan, key, &mut found)?;
        }
    }
    Ok(found)
}

fn values(connection: &Connection, table: &Table, plan: &TablePlan, found: &mut Misfits) -> Result<()> {
    let columns: Vec<usize> = plan.columns.iter().map(|column| column.source).collect();
    let mut scratch = Vec::new();
    each_row(connection, table, &columns, |row, name| {
        for (column, place) in plan.columns.iter().zip(0..) {
            let value = row.get_ref(place)?;
            scratch.clear();
            if let Err(why) = fits(value, column, &mut scratch) {
                found.add(|| Misfit {
                    table: plan.name.clone(),
                    column: column.name.clone(),
                    row: name(),
                    value: shown(value),
                    why,
                });
            }
        }
        Ok(true)
    })
}

/// Write a field, or say why it cannot be.
pub fn fits(
    value: ValueRef<'_>,
    column: &super::plan::ColumnPlan,
    out: &mut Vec<u8>,
) -> std::result::Result<(), String> {
    if value == ValueRef::Null && column.not_null {
        return Err("is NULL, which this column may not be".to_owned());
    }
    value::write(value, &column.kind, out)
}

fn orphans(
    connection: &Connection,
    table: &Table,
    plan: &TablePlan,
    key: &super::plan::KeyPlan,
    found: &mut Misfits,
) -> Result<()> {
    let name = if table.has_rowid && table.column("rowid").is_none() { "child.rowid" } else { "NULL" };
    let mut statement = connection.prepare(&statements::orphans(&table.name, key, name))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (number, value) = (row.get_ref(0)?, row.get_ref(1)?);
        found.add(|| Misfit {
            table: plan.name.clone(),
            column: key.columns.join(", "),
            row: if number == ValueRef::Null { "a row".to_owned() } else { format!("rowid {}", shown(number)) },
            value: shown(value),
            why: format!("refers to a row that is not in {}", key.parent),
        });
    }
    Ok(())
}
