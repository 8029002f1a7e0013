//! Count what a database holds, in the snapshot that a dump takes it in.

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, query_scalar, raw_sql};

use super::manifest::{Census, Properties};
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// Repeatable read gives every statement of the transaction one snapshot. An empty search path makes PostgreSQL qualify
/// every name that it prints; a row policy would hide rows from a role that is no owner.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = ''; SET LOCAL row_security = off; \
                     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; \
                     SET LOCAL lock_timeout = 0; SET LOCAL TimeZone = 'UTC'";
/// The tables whose rows pg_dump writes: neither the system's nor those that an extension brings along.
const TABLES: &str = "
    SELECT namespace.nspname::text, class.relname::text FROM pg_catalog.pg_class AS class
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE class.relkind = 'r' AND class.relpersistence <> 't'
      AND namespace.nspname !~ '^pg_' AND namespace.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend WHERE depend.classid = 'pg_catalog.pg_class'::regclass
                      AND depend.objid = class.oid AND depend.deptype = 'e')
    ORDER BY 1, 2";
const CONSTRAINTS: &str = "
    SELECT constraint_.conrelid::regclass::text || ' ' || constraint_.conname || ' '
           || pg_catalog.pg_get_constraintdef(constraint_.oid)
    FROM pg_catalog.pg_constraint AS constraint_
    JOIN pg_catalog.pg_class AS class ON class.oid = constraint_.conrelid
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE namespace.nspname !~ '^pg_' AND namespace.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS depend WHERE depend.classid = 'pg_catalog.pg_class'::regclass
                      AND depend.objid = class.oid AND depend.deptype = 'e')";
const PROPERTIES: &str = "
    SELECT pg_catalog.pg_get_userbyid(datdba)::text, pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text,
           datctype::text, datlocprovider::text, daticulocale::text
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";

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
        answered(ANSWER_LIMIT, "begin a snapshot", raw_sql(BEGIN).execute(&mut session)).await?;
        let exported = query_scalar("SELECT pg_catalog.pg_export_snapshot()").fetch_one(&mut session);
        let id = answered(ANSWER_LIMIT, "export the snapshot", exported).await?;
        Ok(Self { session, id })
    }

    /// The tables that it holds, with their schemas.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn tables(&mut self) -> anyhow::Result<Vec<(String, String)>> {
        let rows = answered(MAKE_LIMIT, "list the tables", raw_sql(TABLES).fetch_all(&mut self.session)).await?;
        let names = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        names.collect()
    }

    /// Count all that the snapshot holds. How long that may take, the caller says (`backup.limit`).
    ///
    /// # Errors
    /// A table cannot be read.
    pub async fn census(&mut self) -> anyhow::Result<Census> {
        let mut census = Census::default();
        let tables = self.tables().await?;
        let session = &mut self.session;
        for (schema, name) in tables {
            let count = format!("SELECT pg_catalog.count(*) FROM ONLY {}.{}", identifier(&schema), identifier(&name));
            let rows: i64 = query_scalar(AssertSqlSafe(count))
                .fetch_one(&mut *session)
                .await
                .with_context(|| format!("count the rows of {schema}.{name}"))?;
            if (schema.as_str(), name.as_str()) == ("public", "alembic_version") {
                let versions =
                    "SELECT pg_catalog.string_agg(version_num, ', ' ORDER BY version_num) FROM public.alembic_version";
                let asked = query_scalar(versions).fetch_one(&mut *session);
                census.schema_version = answered(ANSWER_LIMIT, "read alembic_version", asked).await?;
            }
            census.rows.insert(format!("{schema}.{name}"), rows.cast_unsigned());
        }
        let constraints =
            answered(MAKE_LIMIT, "list the constraints", raw_sql(CONSTRAINTS).fetch_all(&mut *session)).await?;
        let mut constraints = constraints.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
        // Here and not in SQL, whose order depends on the database's collation.
        constraints.sort();
        census.constraints = Some(constraints);
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
        Ok(census)
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
