//! Read where a database is, changing nothing.

use std::collections::BTreeSet;

use anyhow::Context;
use sea_orm::sqlx::{PgConnection, query_as, query_scalar};

/// What a database says about its schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Tables and views of `public`.
    pub tables: BTreeSet<String>,
    /// The rows of `public.alembic_version`, sorted, or `None` without the table.
    pub alembic: Option<Vec<String>>,
    /// The rows of `tandem.seaql_migrations`, sorted, or `None` without the table.
    pub recorded: Option<Vec<String>>,
}

/// Names are asked for first, so that a first start leaves no "does not exist" in the server's log.
const TABLES: &str = "
    SELECT to_regclass('tandem.seaql_migrations') IS NOT NULL,
           ARRAY(SELECT relname::text FROM pg_catalog.pg_class
                 WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p', 'v', 'm', 'f'))";
const ALEMBIC: &str = "SELECT version_num::text FROM public.alembic_version ORDER BY 1";
const RECORDED: &str = "SELECT version::text FROM tandem.seaql_migrations ORDER BY 1";

/// Read the state of `session`'s database.
pub(super) async fn inspect(session: &mut PgConnection) -> anyhow::Result<Found> {
    let (recorded, tables): (bool, Vec<String>) =
        query_as(TABLES).persistent(false).fetch_one(&mut *session).await.context("list the database's tables")?;
    let mut found = Found { tables: tables.into_iter().collect(), ..Found::default() };
    if found.tables.contains("alembic_version") {
        let rows = query_scalar(ALEMBIC).persistent(false).fetch_all(&mut *session);
        found.alembic = Some(rows.await.context("read alembic_version")?);
    }
    if recorded {
        let rows = query_scalar(RECORDED).persistent(false).fetch_all(&mut *session);
        found.recorded = Some(rows.await.context("read tandem.seaql_migrations")?);
    }
    Ok(found)
}
