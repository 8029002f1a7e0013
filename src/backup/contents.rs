//! What tables hold, beyond their number of rows: where sequences are, and digests of the rows where that is asked for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, query_scalar, raw_sql};

use super::census::{self, ours};
use super::manifest::{Census, SequenceSpan};
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// What the text of a value depends on beside the value; the rest of it is the snapshot's.
pub const FORMATS: &str = "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL bytea_output = 'hex'; \
                       SET LOCAL extra_float_digits = 1; SET LOCAL lc_monetary = 'C'";
/// Sequences that only go one way. A standby cannot read those that are not logged.
const SEQUENCES: &str = concat!(
    "SELECT class.oid::regclass::text, CASE WHEN pg_catalog.has_sequence_privilege(class.oid, 'SELECT, USAGE')
                                            THEN pg_catalog.pg_sequence_last_value(class.oid) END
     FROM pg_catalog.pg_sequence AS sequence JOIN pg_catalog.pg_class AS class ON class.oid = sequence.seqrelid
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE NOT sequence.seqcycle AND class.relpersistence = 'p' AND ",
    ours!()
);
/// In the order of their names: of tables that inherit, a reload may order columns in another way. Not those that the
/// server computes.
const COLUMNS: &str = "SELECT attribute.attname::text FROM pg_catalog.pg_attribute AS attribute
     WHERE attribute.attrelid = $1::pg_catalog.regclass AND attribute.attnum > 0 AND NOT attribute.attisdropped
       AND attribute.attgenerated = '' ORDER BY attribute.attname COLLATE \"C\"";
const LARGE_OBJECTS: &str = "SELECT pg_catalog.sum(pg_catalog.hashtextextended(
         loid::text || ' ' || pageno::text || ' ' || pg_catalog.encode(data, 'base64') COLLATE \"C\", 0))::text
     FROM pg_catalog.pg_largeobject";
/// What the digest of all large objects is called; no table has this name.
const LARGE_OBJECTS_NAME: &str = "large objects";

/// Where each sequence is now: a sequence belongs to no snapshot.
///
/// # Errors
/// The server does not answer, or a sequence was dropped meanwhile.
pub async fn sequences(session: &mut PgConnection) -> anyhow::Result<BTreeMap<String, Option<i64>>> {
    let rows = answered(MAKE_LIMIT, "read the sequences", raw_sql(SEQUENCES).fetch_all(session)).await?;
    rows.iter().map(|row| Ok((census::text(row, 0)?.unwrap_or_default(), row.try_get(1)?))).collect()
}

/// Where each sequence was between two looks.
pub fn between(
    before: &BTreeMap<String, Option<i64>>,
    after: &BTreeMap<String, Option<i64>>,
) -> BTreeMap<String, SequenceSpan> {
    let both = before.iter().filter_map(|(name, &first)| Some((name, first, *after.get(name)?)));
    both.map(|(name, first, last)| (name.clone(), SequenceSpan { first, last })).collect()
}

/// Digests of the rows, by table; those of partitions are their table's.
#[derive(Default)]
pub struct Digests {
    sums: BTreeMap<String, i128>,
    left_out: BTreeSet<String>,
}

impl Digests {
    /// Add the rows of a table, whatever order they lie in, by a session that writes values as [`FORMATS`] say. How long that may
    /// take, the caller says.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn add(
        &mut self,
        session: &mut PgConnection,
        (schema, name): (&str, &str),
        belongs_to: &str,
    ) -> anyhow::Result<()> {
        let table = format!("{}.{}", identifier(schema), identifier(name));
        let columns = query_scalar::<_, String>(COLUMNS).bind(&table).fetch_all(&mut *session);
        let columns = answered(ANSWER_LIMIT, "list the columns", columns).await?;
        let columns = columns.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ");
        let sum = format!(
            "SELECT pg_catalog.sum(pg_catalog.hashtextextended(ROW({columns})::text COLLATE \"C\", 0))::text FROM ONLY {table}"
        );
        let sum = query_scalar(AssertSqlSafe(sum)).fetch_one(session);
        self.count(belongs_to, sum.await.with_context(|| format!("digest the rows of {schema}.{name}"))?)
    }

    /// Add what only a superuser may read, where we are one.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn add_large_objects(&mut self, session: &mut PgConnection) -> anyhow::Result<()> {
        let may = query_scalar("SELECT pg_catalog.has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')");
        if answered(ANSWER_LIMIT, "ask what may be read", may.fetch_one(&mut *session)).await? {
            let sum = query_scalar(LARGE_OBJECTS).fetch_one(session).await.context("digest the large objects")?;
            self.count(LARGE_OBJECTS_NAME, sum)?;
        }
        Ok(())
    }

    /// Give the table no digest.
    pub fn leave_out(&mut self, table: &str) {
        self.left_out.insert(table.to_owned());
    }

    fn count(&mut self, name: &str, sum: Option<String>) -> anyhow::Result<()> {
        let sum: i128 = sum.map_or(Ok(0), |sum| sum.parse()).context("read a digest")?;
        let total = self.sums.entry(name.to_owned()).or_default();
        *total = total.wrapping_add(sum);
        Ok(())
    }

    /// In hexadecimal.
    pub fn end(self) -> BTreeMap<String, String> {
        let whole = self.sums.into_iter().filter(|(name, _)| !self.left_out.contains(name));
        whole.map(|(name, sum)| (name, format!("{sum:032x}"))).collect()
    }
}

/// In what the sequences and the rows of `found` differ from those of `wanted`, as far as both are known.
pub fn differences(wanted: &Census, found: &Census) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, span) in &wanted.sequences {
        // A missing sequence is reported with the other missing objects.
        if let Some(found) = found.sequences.get(name)
            && !span.holds(found.last)
        {
            let say = |value: Option<i64>| value.map_or("unused".to_owned(), |value| value.to_string());
            let wanted = match span.first == span.last {
                true => say(span.last),
                false => format!("between {} and {}", say(span.first), say(span.last)),
            };
            differences.push(format!("sequence {name} is {}, not {wanted}", say(found.last)));
        }
    }
    if let (Some(wanted), Some(found)) = (&wanted.contents, &found.contents) {
        let other = wanted.iter().filter(|(name, digest)| found.get(*name).is_some_and(|found| found != *digest));
        differences.extend(other.map(|(name, _)| match name.as_str() {
            LARGE_OBJECTS_NAME => "the large objects hold other bytes".to_owned(),
            table => format!("table {table} holds other rows, though as many"),
        }));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_may_be_anywhere_between_the_two_looks() {
        let span = |first, last| SequenceSpan { first, last };
        let table = [
            (span(Some(5), Some(5)), Some(5), true),
            (span(Some(5), Some(5)), Some(4), false),
            (span(Some(5), Some(5)), None, false),
            (span(Some(5), Some(9)), Some(7), true),
            (span(Some(9), Some(5)), Some(7), true),
            (span(Some(5), Some(9)), Some(10), false),
            (span(None, None), None, true),
            (span(None, None), Some(1), false),
            // It may have begun anywhere.
            (span(None, Some(9)), Some(3), true),
            (span(None, Some(9)), None, true),
            (span(Some(3), None), Some(3), true),
        ];
        for (span, found, expected) in table {
            assert_eq!(span.holds(found), expected, "{span:?} {found:?}");
        }
    }
}
