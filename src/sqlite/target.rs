//! The tables that the database has already.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use sea_orm::sqlx::{self, AssertSqlSafe, PgConnection, Row, query, query_scalar};

use super::kind::Kind;
use super::profile::quoted;
use super::shape::Shape;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// What is in the schema.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub tables: BTreeMap<String, TargetTable>,
    /// Every name that is taken: tables, indexes, views, sequences.
    pub names: BTreeSet<String>,
    /// What the bookkeeping tables of migrations say, by table.
    pub applied: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Default)]
pub struct TargetTable {
    pub columns: Vec<TargetColumn>,
    pub rows: u64,
    /// Not a view, nor a foreign table.
    pub is_table: bool,
    /// The columns of each of its foreign keys.
    pub foreign_keys: Vec<Vec<String>>,
}

#[derive(Clone, Debug)]
pub struct TargetColumn {
    pub name: String,
    pub kind: Kind,
    pub not_null: bool,
    pub has_default: bool,
    pub generated: bool,
}

/// The bookkeeping of migrations: the table, and what identifies one of them.
pub const BOOKKEEPING: [(&str, &str); 2] =
    [("alembic_version", "version_num"), ("django_migrations", "app || '.' || name")];

const COLUMNS: &str = "
    SELECT c.relname::text, c.relkind::text, a.attname::text, a.attnotnull, a.atthasdef OR a.attidentity <> '',
           a.attgenerated <> '',
           pg_catalog.format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END,
                                  CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE a.atttypmod END),
           ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname, a.attnum";

const NAMES: &str = "
    SELECT c.relname::text FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1";

const FOREIGN_KEYS: &str = "
    SELECT c.relname::text, ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS it(number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = it.number ORDER BY it.place)
    FROM pg_catalog.pg_constraint AS k
    JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND k.contype = 'f'";

/// Look at the tables of `schema`, and count the rows of those that the file has too.
///
/// # Errors
/// The schema is not there, or the server does not answer.
pub async fn look(session: &mut PgConnection, schema: &str, shape: &Shape) -> anyhow::Result<Target> {
    let known = query_scalar::<_, bool>("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)");
    let known = answered(ANSWER_LIMIT, "look for the schema", known.bind(schema).fetch_one(&mut *session)).await?;
    anyhow::ensure!(known, "there is no schema {schema} in the database");
    let names = query_scalar(NAMES).bind(schema).fetch_all(&mut *session);
    let names: Vec<String> = answered(ANSWER_LIMIT, "read the names in the database", names).await?;
    let mut target = Target { names: names.into_iter().collect(), ..Target::default() };
    let rows = answered(ANSWER_LIMIT, "read the tables", query(COLUMNS).bind(schema).fetch_all(&mut *session)).await?;
    for row in rows {
        let (name, column) = column(&row).context("read the tables")?;
        let relation: String = row.try_get(1)?;
        let table = target.tables.entry(name).or_default();
        table.is_table = matches!(relation.as_str(), "r" | "p");
        table.columns.push(column);
    }
    let keys = query(FOREIGN_KEYS).bind(schema).fetch_all(&mut *session);
    for row in answered(ANSWER_LIMIT, "read the foreign keys", keys).await? {
        let (table, columns): (String, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
        target.tables.entry(table).or_default().foreign_keys.push(columns);
    }
    for (name, table) in target.tables.iter_mut().filter(|(name, table)| table.is_table && shape.table(name).is_some())
    {
        let count = format!("SELECT count(*) FROM {}.{}", quoted(schema), quoted(name));
        let count = query_scalar::<_, i64>(AssertSqlSafe(count));
        let rows = answered(MAKE_LIMIT, &format!("count the rows of {name}"), count.fetch_one(&mut *session)).await?;
        table.rows = u64::try_from(rows).unwrap_or(0);
    }
    for (name, what) in BOOKKEEPING.into_iter().filter(|(name, _)| target.tables.contains_key(*name)) {
        let said = query_scalar::<_, String>(AssertSqlSafe(format!("SELECT {what} FROM {}.{name}", quoted(schema))));
        let said = answered(ANSWER_LIMIT, &format!("read {name}"), said.fetch_all(&mut *session)).await?;
        target.applied.insert(name.to_owned(), said.into_iter().collect());
    }
    Ok(target)
}

fn column(row: &sqlx::postgres::PgRow) -> Result<(String, TargetColumn), sqlx::Error> {
    let kind = Kind::of_catalog(&row.try_get::<String, _>(6)?, row.try_get(7)?);
    let column = TargetColumn {
        name: row.try_get(2)?,
        kind,
        not_null: row.try_get(3)?,
        has_default: row.try_get(4)?,
        generated: row.try_get(5)?,
    };
    Ok((row.try_get(0)?, column))
}

impl Target {
    /// The table `name`: by its exact name, else by the one name that differs only in case.
    pub fn table(&self, name: &str) -> Option<(&str, &TargetTable)> {
        if let Some((name, table)) = self.tables.get_key_value(name) {
            return Some((name, table));
        }
        let mut similar = self.tables.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let found = similar.next().filter(|_| similar.next().is_none());
        found.map(|(name, table)| (name.as_str(), table))
    }
}

impl TargetTable {
    /// The column `name`, as [`Target::table`] finds a table.
    pub fn column(&self, name: &str) -> Option<&TargetColumn> {
        let exact = self.columns.iter().find(|column| column.name == name);
        let mut similar = self.columns.iter().filter(|column| column.name.eq_ignore_ascii_case(name));
        exact.or_else(|| similar.next().filter(|_| similar.next().is_none()))
    }
}
