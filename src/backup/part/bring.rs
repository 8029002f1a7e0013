//! Bring what has its shape in the scratch database into the live one: pg_dump writes it, psql reads it in one transaction, which
//! counts the rows before it commits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::super::existing::Existing;
use super::super::pour::{Pour, Source, Transaction, pour};
use super::super::reach::Reach;
use super::super::rights::{self, Rights};
use super::shape::{Moved, Shape};
use super::wish::Named;
use crate::postgres::embedded::{PgDumpBuilder, dbname};
use crate::postgres::provision::identifier;
use crate::process::Streaming;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry::Progress;

/// Relations by their names.
const THERE: &str = "SELECT namespace.nspname::text || '.' || class.relname FROM pg_catalog.pg_class AS class
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     JOIN ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS asked(schema, name)
       ON namespace.nspname = asked.schema AND class.relname = asked.name ORDER BY 1";
const EMPTY: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = namespace.oid)
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = namespace.oid)
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_type WHERE typnamespace = namespace.oid)
     FROM pg_catalog.pg_namespace AS namespace WHERE nspname = $1";

/// From where to where, and how.
pub struct Bringing<'a> {
    pub scratch: &'a str,
    pub live: &'a str,
    pub shape: &'a Shape,
    /// The rows of each table, under the names of the backup.
    pub rows: &'a BTreeMap<String, u64>,
    pub rights: Rights,
    pub trusted: bool,
    pub limit: Duration,
}

impl Bringing<'_> {
    /// Bring it all, or nothing of it.
    ///
    /// # Errors
    /// The live database refused something, or has other rows of it in the end.
    pub async fn bring(&self, reach: &Reach, progress: &Progress) -> anyhow::Result<()> {
        let bring = async |reader: &Reach| {
            let pouring = Pour {
                transaction: Transaction::Committed(checks(self.shape.moved(), self.rows)),
                existing: Existing { schemas: self.schemas(reach).await?, ..Existing::default() },
                sql_bytes: None,
                limit: self.limit,
            };
            let (dump, stream) = Streaming::reading(&self.dump(reach))?;
            pour(reader, Source::of_program("pg_dump", dump, stream), &pouring, self.live, progress).await
        };
        rights::in_live(reach, self.live, (self.rights, self.trusted), bring).await
    }

    /// The schema, where an empty one of that name is there.
    async fn schemas(&self, reach: &Reach) -> anyhow::Result<Vec<String>> {
        let Shape::Schema(schema, _) = self.shape else { return Ok(Vec::new()) };
        let mut session = reach.session(self.live).await?;
        let there = schema_exists(&mut session, schema).await;
        let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
        // As pg_dump writes it, with quotes where they are needed.
        Ok(if there? { vec![schema.clone(), identifier(schema)] } else { Vec::new() })
    }

    fn dump(&self, reach: &Reach) -> crate::plan::CommandLine {
        let dump = PgDumpBuilder::new().dbname(dbname(self.scratch)).no_password().format("plain");
        // What the live database publishes is its own affair.
        let dump = dump.no_publications().no_subscriptions().strict_names();
        match self.shape {
            Shape::Schema(schema, _) => reach.client(&dump.schema(identifier(schema))),
            Shape::Tables(moved) => {
                let tables = moved.iter().map(|moved| moved.to.sql());
                tables.fold(reach.client(&dump), |dump, table| dump.arg("--table").arg(table))
            }
        }
    }
}

/// Statements that fail where a table has other rows than it is to have: a partitioned one in all of its partitions together.
fn checks(moved: &[Moved], rows: &BTreeMap<String, u64>) -> String {
    let mut groups = BTreeMap::<&Named, (Vec<String>, u64)>::new();
    for table in moved.iter().filter(|table| table.has_rows) {
        let (counts, wanted) = groups.entry(table.of.as_ref().unwrap_or(&table.from)).or_default();
        counts.push(format!("(SELECT pg_catalog.count(*) FROM ONLY {})", table.to.sql()));
        *wanted += rows.get(&table.from.to_string()).copied().unwrap_or_default();
    }
    let check = |(table, (counts, wanted)): (&Named, (Vec<String>, u64))| {
        let (counts, table) = (counts.join(" + "), table.to_string().replace('\'', "''"));
        // The text is no number, and PostgreSQL says so with all of it.
        format!(
            "SELECT CASE WHEN n = {wanted} THEN 0 ELSE ('{table} has ' || n || ' rows, not {wanted}')::pg_catalog.int4 END \
             FROM (SELECT {counts} AS n) AS counted;\n"
        )
    };
    groups.into_iter().map(check).collect()
}

/// Which of `names` the database has already, of whatever kind.
///
/// # Errors
/// The server does not answer.
pub async fn existing(session: &mut PgConnection, names: &[&Named]) -> anyhow::Result<BTreeSet<String>> {
    let (schemas, tables): (Vec<String>, Vec<String>) =
        names.iter().map(|named| (named.schema.clone(), named.name.clone())).unzip();
    let there = query_scalar::<_, String>(THERE).bind(schemas).bind(tables).fetch_all(session);
    Ok(answered(MAKE_LIMIT, "look whether a table exists", there).await?.into_iter().collect())
}

/// Whether there is a schema of that name.
///
/// # Errors
/// The server does not answer.
pub async fn schema_exists(session: &mut PgConnection, schema: &str) -> anyhow::Result<bool> {
    let there = query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)").bind(schema);
    answered(ANSWER_LIMIT, "look for a schema", there.fetch_one(session)).await
}

/// Whether the schema holds no relation, routine or type.
///
/// # Errors
/// The server does not answer.
pub async fn is_empty_schema(session: &mut PgConnection, schema: &str) -> anyhow::Result<bool> {
    let empty = query_scalar(EMPTY).bind(schema).fetch_one(session);
    answered(ANSWER_LIMIT, "look into a schema", empty).await
}

/// Gather the statistics of what was brought. Where that fails the rows are there all the same.
pub async fn analyze(session: &mut PgConnection, moved: &[Moved]) {
    for table in moved.iter().map(|moved| moved.to.sql()) {
        if let Err(error) = raw_sql(AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut *session).await {
            tracing::warn!("no statistics of {table} could be gathered, and plans with it may be slow: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_partitions_are_counted_together() {
        let moved = |from: &str, to: &str, has_rows: bool, of: Option<&str>| Moved {
            from: Named::new("s", from),
            to: Named::new("s", to),
            has_rows,
            of: of.map(|of| Named::new("s", of)),
        };
        let moved = [
            moved("p", "q", false, None),
            moved("p1", "q1", true, Some("p")),
            moved("p2", "q2", true, Some("p")),
            moved("it's", "it's", true, None),
        ];
        let rows = [("s.p1", 1), ("s.p2", 2), ("s.it's", 0)].map(|(table, rows)| (table.to_owned(), rows)).into();
        let checks = checks(&moved, &rows);
        let lines: Vec<&str> = checks.lines().collect();
        assert_eq!(lines.len(), 2, "{checks}");
        assert!(lines[0].contains("(SELECT (SELECT pg_catalog.count(*) FROM ONLY \"s\".\"it's\") AS n)"), "{checks}");
        assert!(lines[0].contains("'s.it''s has ' || n || ' rows, not 0'"), "{checks}");
        assert!(lines[1].contains("ONLY \"s\".\"q1\") + (SELECT") && lines[1].contains("n = 3 "), "{checks}");
    }
}
