//! Large objects that restored rows refer to. They belong to no table: a live one may have the same number and other bytes, so none
//! is brought along, and what is lacking is told.

use std::collections::BTreeSet;

use anyhow::Context;
use sea_orm::sqlx::{PgConnection, query_as, query_scalar};
use serde::Serialize;

use super::shape::Moved;
use super::wish::Named;
use crate::postgres::provision::identifier;
use crate::schema::{MAKE_LIMIT, answered, copied};

const OBJECTS: &str = "SELECT oid::bigint FROM pg_catalog.pg_largeobject_metadata";
/// Columns that may hold the number of one: `oid`, and `lo` of the extension of that name.
const COLUMNS: &str = "SELECT namespace.nspname::text, class.relname::text, attribute.attname::text
     FROM pg_catalog.pg_attribute AS attribute JOIN pg_catalog.pg_class AS class ON class.oid = attribute.attrelid
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     JOIN pg_catalog.pg_type AS type ON type.oid = attribute.atttypid
     WHERE class.relkind = 'r' AND attribute.attnum > 0 AND NOT attribute.attisdropped AND attribute.attgenerated = ''
       AND (type.oid = 'pg_catalog.oid'::regtype OR type.typbasetype = 'pg_catalog.oid'::regtype AND type.typname = 'lo')
     ORDER BY 1, 2, 3";

/// The large objects of the backup that restored rows refer to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Referred {
    pub objects: usize,
    /// How many of them the live database has none of that number for.
    pub lacking: usize,
}

/// What the `moved` tables of the `scratch` database refer to, and what of it the `live` one lacks.
///
/// # Errors
/// The server does not answer.
pub async fn referred(
    scratch: &mut PgConnection,
    live: &mut PgConnection,
    moved: &[Moved],
) -> anyhow::Result<Referred> {
    let there = objects(scratch).await?;
    if there.is_empty() {
        return Ok(Referred::default());
    }
    let columns = query_as::<_, (String, String, String)>(COLUMNS).fetch_all(&mut *scratch);
    let mut found = BTreeSet::new();
    for (schema, name, column) in answered(MAKE_LIMIT, "look for numbers of large objects", columns).await? {
        let table = Named { schema, name };
        if !moved.iter().any(|moved| moved.to == table) {
            continue;
        }
        let copy = format!("COPY {} ({}) TO STDOUT", table.sql(), identifier(&column));
        // How long that takes, the caller bounds (`backup.limit`).
        let mut rest = Vec::new();
        let see = |chunk: &[u8]| {
            rest.extend_from_slice(chunk);
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return };
            let whole: Vec<u8> = rest.drain(..=end).collect();
            let numbers = whole.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()?.parse().ok());
            found.extend(numbers.filter(|number: &i64| there.contains(number)));
        };
        copied::lines(scratch, &copy, see).await.with_context(|| format!("read column {column} of {table}"))?;
    }
    let live = objects(live).await.context("look at the live database")?;
    Ok(Referred { objects: found.len(), lacking: found.difference(&live).count() })
}

async fn objects(session: &mut PgConnection) -> anyhow::Result<BTreeSet<i64>> {
    let objects = query_scalar::<_, i64>(OBJECTS).fetch_all(session);
    Ok(answered(MAKE_LIMIT, "list the large objects", objects).await?.into_iter().collect())
}
