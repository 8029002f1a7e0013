//! Count what a database holds, in the snapshot that a dump takes it in.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, ValueRef, query_scalar, raw_sql};

use super::contents::{self, Digests};
use super::database_level::DatabaseLevel;
use super::manifest::{Census, Properties};
use super::only::Only;
use super::reach::Reach;
use super::reader::Reader;
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered, copied};

/// Every statement of the transaction sees one snapshot.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// An empty search path makes PostgreSQL qualify every name that it prints; a row policy would hide rows from a role that is no owner. Serving comes first: counting takes one
/// core, as pg_dump does.
const AS_WE_READ: &str = "SET LOCAL search_path = ''; SET LOCAL row_security = off; \
     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; \
     SET LOCAL lock_timeout = 0; SET LOCAL TimeZone = 'UTC'; SET LOCAL max_parallel_workers_per_gather = 0";
/// What is neither the system's nor brought along by an extension, of the relation `class` in `namespace`.
macro_rules! ours {
    () => {
        "namespace.nspname !~ '^pg_' AND namespace.nspname <> 'information_schema' AND class.relpersistence <> 't'
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend WHERE depend.classid = 'pg_catalog.pg_class'::regclass
                         AND depend.objid = class.oid AND depend.deptype = 'e')"
    };
}
pub(super) use ours;

/// The relation that `oid`, an expression, leads to, and its schema.
macro_rules! of_relation {
    ($oid:literal) => {
        concat!(
            "JOIN pg_catalog.pg_class AS class ON class.oid = ",
            $oid,
            " JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace WHERE ",
            ours!()
        )
    };
}
/// The tables whose rows pg_dump writes, and the partitioned table that each is a partition of.
const TABLES: &str = concat!(
    "SELECT namespace.nspname::text, class.relname::text, root_schema.nspname::text || '.' || root.relname::text,
            class.oid::bigint
     FROM pg_catalog.pg_class AS class
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     LEFT JOIN pg_catalog.pg_class AS root ON class.relispartition AND root.oid = pg_catalog.pg_partition_root(class.oid)
     LEFT JOIN pg_catalog.pg_namespace AS root_schema ON root_schema.oid = root.relnamespace
     WHERE class.relkind = 'r' AND ",
    ours!(),
    " ORDER BY 1, 2"
);
const CONSTRAINTS: &str = concat!(
    "SELECT constraint_.conrelid::regclass::text || ' ' || constraint_.conname || ' '
            || pg_catalog.pg_get_constraintdef(constraint_.oid)
            || CASE WHEN constraint_.contype = 'c' AND NOT constraint_.conislocal THEN ' INHERITED' ELSE '' END
     FROM pg_catalog.pg_constraint AS constraint_ ",
    of_relation!("constraint_.conrelid")
);
/// Everything else that pg_dump writes and that has a name which a reload keeps. Columns by name and type: of tables that
/// inherit, a reload may order them in another way. Indexes as pg_dump takes them: not those that were never finished.
const OBJECTS: &str = concat!(
    "SELECT CASE class.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' WHEN 'S' THEN 'sequence '
                               WHEN 'f' THEN 'foreign table ' WHEN 'p' THEN 'partitioned table ' ELSE 'columns of ' END
            || class.oid::regclass::text
            || CASE class.relkind WHEN 'm' THEN CASE WHEN class.relispopulated THEN ' with rows' ELSE ' without rows' END
               WHEN 'S' THEN '' ELSE coalesce(': ' || (
                   SELECT string_agg(attribute.attname || ' ' || pg_catalog.format_type(attribute.atttypid, attribute.atttypmod),
                                     ', ' ORDER BY attribute.attname COLLATE \"C\")
                   FROM pg_catalog.pg_attribute AS attribute
                   WHERE attribute.attrelid = class.oid AND attribute.attnum > 0 AND NOT attribute.attisdropped), '') END
     FROM pg_catalog.pg_class AS class
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE class.relkind IN ('r', 'v', 'm', 'S', 'f', 'p') AND ",
    ours!(),
    " UNION ALL SELECT 'index ' || index.indexrelid::regclass::text || ' on ' || index.indrelid::regclass::text
      FROM pg_catalog.pg_index AS index ",
    of_relation!("index.indexrelid"),
    " AND index.indisready AND (index.indisvalid OR class.relkind = 'I')
      UNION ALL SELECT 'trigger ' || trigger.tgname || ' on ' || trigger.tgrelid::regclass::text
      FROM pg_catalog.pg_trigger AS trigger ",
    of_relation!("trigger.tgrelid"),
    " AND NOT trigger.tgisinternal AND trigger.tgparentid = 0
      UNION ALL SELECT 'policy ' || policy.polname || ' on ' || policy.polrelid::regclass::text
      FROM pg_catalog.pg_policy AS policy ",
    of_relation!("policy.polrelid"),
    " UNION ALL SELECT CASE routine.prokind WHEN 'p' THEN 'procedure ' WHEN 'a' THEN 'aggregate ' ELSE 'function ' END
             || routine.oid::regprocedure::text
      FROM pg_catalog.pg_proc AS routine
      JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = routine.pronamespace
      WHERE namespace.nspname !~ '^pg_' AND namespace.nspname <> 'information_schema'
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend WHERE depend.classid = 'pg_catalog.pg_proc'::regclass
                        AND depend.objid = routine.oid AND depend.deptype IN ('e', 'i'))
      UNION ALL SELECT 'type ' || type.oid::regtype::text
      FROM pg_catalog.pg_type AS type
      JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = type.typnamespace
      WHERE type.typtype IN ('e', 'd', 'r') AND namespace.nspname !~ '^pg_' AND namespace.nspname <> 'information_schema'
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend WHERE depend.classid = 'pg_catalog.pg_type'::regclass
                        AND depend.objid = type.oid AND depend.deptype = 'e')
      UNION ALL SELECT 'extension ' || extname FROM pg_catalog.pg_extension
      UNION ALL SELECT 'event trigger ' || evtname FROM pg_catalog.pg_event_trigger AS event
      WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend
                        WHERE depend.classid = 'pg_catalog.pg_event_trigger'::regclass AND depend.objid = event.oid
                          AND depend.deptype = 'e')
      UNION ALL SELECT 'publication ' || pubname FROM pg_catalog.pg_publication
      UNION ALL SELECT 'large objects: ' || count(*) FROM pg_catalog.pg_largeobject_metadata"
);
/// Databases have a provider since 15 and its locale under another name since 17: what is not there is not asked for.
const PROPERTIES: &str = "
    SELECT pg_catalog.pg_get_userbyid(datdba)::text, pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text,
           datctype::text, coalesce(pg_catalog.to_jsonb(database) ->> 'datlocprovider', 'c'),
           coalesce(pg_catalog.to_jsonb(database) ->> 'daticulocale', pg_catalog.to_jsonb(database) ->> 'datlocale')
    FROM pg_catalog.pg_database AS database WHERE datname = pg_catalog.current_database()";

/// In a database without an encoding names are any bytes, which the server checks before it sends them as UTF-8.
const AS_THEY_ARE: &str = "SELECT pg_catalog.set_config('client_encoding', 'LATIN1', false) FROM pg_catalog.pg_database
     WHERE datname = pg_catalog.current_database() AND encoding = pg_catalog.pg_char_to_encoding('SQL_ASCII')";

/// A table whose rows a dump holds.
#[derive(Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// The partitioned table that it is a partition of.
    root: Option<String>,
    pub oid: i64,
    /// Whether its name can be written in a statement.
    pub is_utf8: bool,
}

impl Table {
    /// As a census calls it.
    fn key(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// What pg_dump calls it, unless `only` holds it.
    pub fn pattern_unless(&self, only: &Only) -> Option<String> {
        let is_other = self.is_utf8 && !only.holds(Some(&self.schema), &self.name);
        is_other.then(|| format!("{}.{}", identifier(&self.schema), identifier(&self.name)))
    }
}

/// A transaction that sees one moment of the database.
pub struct Snapshot {
    session: PgConnection,
    /// What other sessions call it (PostgreSQL documentation, "Snapshot Synchronization Functions").
    pub id: String,
}

impl Snapshot {
    /// Begin one in `session`.
    ///
    /// # Errors
    /// The server refuses, as a standby in recovery does.
    pub async fn export(mut session: PgConnection) -> anyhow::Result<Self> {
        answered(ANSWER_LIMIT, "begin a snapshot", raw_sql(AssertSqlSafe(begin(None))).execute(&mut session)).await?;
        let exported = query_scalar("SELECT pg_catalog.pg_export_snapshot()").fetch_one(&mut session);
        let id = answered(ANSWER_LIMIT, "export the snapshot", exported).await?;
        names_as_they_are(&mut session).await?;
        Ok(Self { session, id })
    }

    /// The schema and name of each table that it holds, and the partitioned table that it is a partition of.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn tables(&mut self) -> anyhow::Result<Vec<Table>> {
        let rows = answered(MAKE_LIMIT, "list the tables", raw_sql(TABLES).fetch_all(&mut self.session)).await?;
        let table = |row: &PgRow| {
            let (Some(schema), Some(name)) = (text(row, 0)?, text(row, 1)?) else { bail!("a table has no name") };
            Ok(Table {
                is_utf8: is_utf8(row, 0)? && is_utf8(row, 1)?,
                schema,
                name,
                root: text(row, 2)?,
                oid: row.try_get(3)?,
            })
        };
        rows.iter().map(table).collect()
    }

    /// Where each sequence is now.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn sequences(&mut self) -> anyhow::Result<BTreeMap<String, Option<i64>>> {
        contents::sequences(&mut self.session).await
    }

    /// Count all that the snapshot holds of `database`, which `reach` leads to, with digests of the rows if `digests`. How long
    /// that may take, the caller says (`backup.limit`). With `only`, other tables have no rows.
    ///
    /// # Errors
    /// A table cannot be read.
    pub async fn census(
        &mut self,
        reach: &Reach,
        database: &str,
        digests: bool,
        only: Option<&Only>,
    ) -> anyhow::Result<Census> {
        let mut census = Census::default();
        let is_wanted = |table: &Table| only.is_none_or(|only| only.holds(Some(&table.schema), &table.name));
        let (tables, others): (Vec<_>, Vec<_>) = self.tables().await?.into_iter().partition(is_wanted);
        not_counted(others, &mut census);
        let session = &mut self.session;
        let mut digests = digests.then(Digests::default);
        let mut reader = Reader::enter(reach, database, &self.id).await;
        let read = rows(session, &mut reader, tables, &mut digests, &mut census).await;
        reader.leave().await;
        read?;
        if let Some(digests) = &mut digests {
            digests.add_large_objects(session).await?;
        }
        census.contents = digests.map(Digests::end);
        census.constraints = Some(sorted(session, "list the constraints", CONSTRAINTS).await?);
        census.objects = Some(sorted(session, "list what else there is", OBJECTS).await?);
        let row =
            answered(ANSWER_LIMIT, "read what the database is like", raw_sql(PROPERTIES).fetch_one(&mut *session))
                .await?;
        census.properties = Some(Properties {
            owner: row.try_get(0)?,
            encoding: row.try_get(1)?,
            collate: row.try_get(2)?,
            ctype: row.try_get(3)?,
            provider: row.try_get(4)?,
            icu_locale: row.try_get(5)?,
        });
        census.database_level = Some(DatabaseLevel::of(session, database).await?);
        Ok(census)
    }

    /// Which tables there are, none of them counted, and what else.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn outline(&mut self) -> anyhow::Result<Census> {
        let mut census = Census::default();
        not_counted(self.tables().await?, &mut census);
        census.objects = Some(sorted(&mut self.session, "list what else there is", OBJECTS).await?);
        Ok(census)
    }

    /// Count the rows of the tables of `database` that `wanted` names by schema and name, and nothing else, with digests if
    /// `digests`; and all tables that there are, under the names that a census has for them.
    ///
    /// # Errors
    /// A table cannot be read.
    pub async fn rows_of(
        &mut self,
        reach: &Reach,
        database: &str,
        digests: bool,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> anyhow::Result<(Census, BTreeSet<String>)> {
        let mut census = Census::default();
        let tables = self.tables().await?;
        let names = tables.iter().map(Table::key).collect();
        let tables = tables.into_iter().filter(|table| wanted(&table.schema, &table.name)).collect();
        let mut digests = digests.then(Digests::default);
        let mut reader = Reader::enter(reach, database, &self.id).await;
        let read = rows(&mut self.session, &mut reader, tables, &mut digests, &mut census).await;
        reader.leave().await;
        read?;
        census.contents = digests.map(Digests::end);
        Ok((census, names))
    }

    /// The server's version.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn server_version(&mut self) -> anyhow::Result<String> {
        let version = query_scalar("SELECT pg_catalog.current_setting('server_version')");
        answered(ANSWER_LIMIT, "ask the server's version", version.fetch_one(&mut self.session)).await
    }

    /// Let go of it at once.
    pub async fn close(self) {
        let _closed = answered(ANSWER_LIMIT, "close", sea_orm::sqlx::Connection::close(self.session)).await;
    }
}

/// Name `tables` in `census`, as if they had no rows.
fn not_counted(tables: Vec<Table>, census: &mut Census) {
    for table in tables {
        let name = table.key();
        census.partitions.extend(table.root.map(|root| (name.clone(), root)));
        census.rows.insert(name, 0);
    }
}

/// Have `session` tell names as the database keeps them.
///
/// # Errors
/// The server does not answer.
pub async fn names_as_they_are(session: &mut PgConnection) -> anyhow::Result<()> {
    answered(ANSWER_LIMIT, "take names as they are", raw_sql(AS_THEY_ARE).execute(session)).await.map(drop)
}

/// What begins a transaction that sees one moment of the database: this one, or that of an exported snapshot.
pub fn begin(snapshot: Option<&str>) -> String {
    let take = snapshot.map(|snapshot| format!("SET TRANSACTION SNAPSHOT '{snapshot}'; ")).unwrap_or_default();
    format!("{BEGIN}; {take}{AS_WE_READ}")
}

/// Count, and digest, the rows of `tables`.
async fn rows(
    session: &mut PgConnection,
    reader: &mut Reader<'_>,
    tables: Vec<Table>,
    digests: &mut Option<Digests>,
    census: &mut Census,
) -> anyhow::Result<()> {
    for table in tables {
        let (name, root) = (table.key(), table.root.clone());
        let rows = reader.count(session, &table).await.with_context(|| format!("count the rows of {name}"))?;
        // A name that no statement can have is not looked up: its rows are counted alone.
        if let Some(digests) = digests.as_mut().filter(|_| table.is_utf8) {
            reader.digest(digests, &table, root.as_ref().unwrap_or(&name)).await;
        }
        if let Some(root) = root {
            census.partitions.insert(name.clone(), root);
        }
        if name == "public.alembic_version" {
            census.schema_version = copied::alembic_version(session).await.context("read alembic_version")?;
        }
        census.rows.insert(name, rows.cast_unsigned());
    }
    Ok(())
}

/// How many rows `table` has. Asking is planned: see [`Reader`].
///
/// # Errors
/// The table cannot be read.
pub async fn count(session: &mut PgConnection, table: &Table) -> anyhow::Result<i64> {
    if table.is_utf8 {
        let (schema, name) = (identifier(&table.schema), identifier(&table.name));
        let count = format!("SELECT pg_catalog.count(*) FROM ONLY {schema}.{name}");
        return Ok(query_scalar(AssertSqlSafe(count)).fetch_one(session).await?);
    }
    // The server itself writes the name down.
    let count = format!(
        "DO $$DECLARE n bigint; BEGIN EXECUTE 'SELECT pg_catalog.count(*) FROM ONLY ' || {}::pg_catalog.regclass INTO n; \
         PERFORM pg_catalog.set_config('tandem.rows', n::text, true); END$$",
        table.oid
    );
    raw_sql(AssertSqlSafe(count)).execute(&mut *session).await?;
    Ok(query_scalar("SELECT pg_catalog.current_setting('tandem.rows')::bigint").fetch_one(session).await?)
}

/// The text in a column; bytes that are no UTF-8 as Latin-1 has them.
pub fn text(row: &PgRow, column: usize) -> anyhow::Result<Option<String>> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(|error| anyhow::anyhow!("read a name: {error}"))?;
    Ok(Some(match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }))
}

fn is_utf8(row: &PgRow, column: usize) -> anyhow::Result<bool> {
    let value = row.try_get_raw(column)?;
    Ok(value.as_bytes().is_ok_and(|bytes| str::from_utf8(bytes).is_ok()))
}

/// The texts that `query` finds. Sorted here and not in SQL, whose order depends on the database's collation.
pub async fn sorted(session: &mut PgConnection, what: &str, query: &'static str) -> anyhow::Result<Vec<String>> {
    let rows = answered(MAKE_LIMIT, what, raw_sql(query).fetch_all(session)).await?;
    let texts = rows.iter().map(|row| Ok(text(row, 0)?.unwrap_or_default()));
    let mut texts = texts.collect::<anyhow::Result<Vec<String>>>()?;
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_database_no_column_is_named_that_an_older_or_newer_server_lacks() {
        let outside_quotes: String = PROPERTIES.split('\'').step_by(2).collect();
        for column in ["datlocprovider", "daticulocale", "datlocale"] {
            assert!(PROPERTIES.contains(column) && !outside_quotes.contains(column), "{column}");
        }
    }
}
