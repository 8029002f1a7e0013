//! Read where a database is, changing nothing.

use std::collections::BTreeSet;

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, raw_sql};

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
/// A limit that is meant for the application does not cut these questions short; each is a transaction of its own.
const UNLIMITED: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; ";
const TABLES: &str = "
    SELECT to_regclass('tandem.seaql_migrations') IS NOT NULL,
           ARRAY(SELECT relname::text FROM pg_catalog.pg_class
                 WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p', 'v', 'm', 'f'))";
const ALEMBIC: &str = "SELECT 'alembic', version_num::text FROM public.alembic_version";
const RECORDED: &str = "SELECT 'recorded', version::text FROM tandem.seaql_migrations";

/// Read the state of `session`'s database, in two questions.
///
/// Every boot waits for this, so it uses the simple protocol: one round trip each, where a prepared statement has three.
pub(super) async fn inspect(session: &mut PgConnection) -> anyhow::Result<Found> {
    let row = raw_sql(AssertSqlSafe(format!("{UNLIMITED}{TABLES}")))
        .fetch_one(&mut *session)
        .await
        .context("list the database's tables")?;
    let (recorded, tables) = (row.try_get::<bool, _>(0)?, row.try_get::<Vec<String>, _>(1)?);
    let mut found = Found { tables: tables.into_iter().collect(), ..Found::default() };
    found.alembic = found.tables.contains("alembic_version").then(Vec::new);
    found.recorded = recorded.then(Vec::new);

    let sources = [found.alembic.as_ref().map(|_| ALEMBIC), found.recorded.as_ref().map(|_| RECORDED)];
    let sources: Vec<&str> = sources.into_iter().flatten().collect();
    if sources.is_empty() {
        return Ok(found);
    }
    let sql = AssertSqlSafe(format!("{UNLIMITED}{}", sources.join(" UNION ALL ")));
    for row in raw_sql(sql).fetch_all(&mut *session).await.context("read the recorded revisions")? {
        let (source, revision) = (row.try_get::<&str, _>(0)?, row.try_get(1)?);
        let rows = if source == "alembic" { &mut found.alembic } else { &mut found.recorded };
        rows.get_or_insert_default().push(revision);
    }
    // Here and not in SQL, whose order depends on the database's collation.
    found.alembic.iter_mut().chain(&mut found.recorded).for_each(|rows| rows.sort());
    Ok(found)
}
