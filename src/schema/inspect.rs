//! Read which revision a database is at. Changes nothing.

use std::collections::BTreeSet;

use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, Row, raw_sql};

use migration::REVISIONS;

use super::connect::{ANSWER_LIMIT, MAKE_LIMIT, answered, answered_at_last, session};
use super::position::locate;
use crate::plan::DatabaseUrl;

/// What a database says about its schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SchemaState {
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

/// Whether the database at `url` has a table that no extension brought.
///
/// # Errors
/// It cannot be asked.
pub async fn has_tables(url: &DatabaseUrl) -> anyhow::Result<bool> {
    // What initdb makes has lower numbers (PostgreSQL's source, `FirstNormalObjectId`).
    const ANY: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'f') AND oid >= 16384
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE objid = pg_class.oid AND deptype = 'e'))";
    let mut session = session(url, "tandem").await?;
    let ask = async || raw_sql(AssertSqlSafe(format!("{UNLIMITED}{ANY}"))).fetch_one(&mut session).await;
    let any = answered_at_last(ANSWER_LIMIT, "look for tables", ask).await?.try_get(0)?;
    answered(ANSWER_LIMIT, "close the connection", session.close()).await?;
    Ok(any)
}

/// Whether the database at `url` has the built-in migrations, or some of them: as its own bookkeeping and its tables say.
///
/// # Errors
/// It cannot be asked.
pub async fn has_built_in(url: &DatabaseUrl) -> anyhow::Result<bool> {
    let mut session = session(url, "tandem").await?;
    let found = inspect(&mut session).await?;
    answered(ANSWER_LIMIT, "close the connection", session.close()).await?;
    let is_recorded = found.recorded.as_ref().is_some_and(|rows| !rows.is_empty());
    Ok(is_recorded || locate(&found, REVISIONS).is_ok_and(|position| position.applied > 0))
}

/// Read the state of `session`'s database, in two questions.
///
/// Every boot waits for this, so it uses the simple protocol: one round trip each, where a prepared statement has three.
pub(super) async fn inspect(session: &mut PgConnection) -> anyhow::Result<SchemaState> {
    let ask = async || raw_sql(AssertSqlSafe(format!("{UNLIMITED}{TABLES}"))).fetch_one(&mut *session).await;
    let row = answered_at_last(ANSWER_LIMIT, "list the database's tables", ask).await?;
    let (recorded, tables) = (row.try_get::<bool, _>(0)?, row.try_get::<Vec<String>, _>(1)?);
    let mut found = SchemaState { tables: tables.into_iter().collect(), ..SchemaState::default() };
    found.alembic = found.tables.contains("alembic_version").then(Vec::new);
    found.recorded = recorded.then(Vec::new);

    let sources = [found.alembic.as_ref().map(|_| ALEMBIC), found.recorded.as_ref().map(|_| RECORDED)];
    let sources: Vec<&str> = sources.into_iter().flatten().collect();
    if sources.is_empty() {
        return Ok(found);
    }
    let sql = format!("{UNLIMITED}{}", sources.join(" UNION ALL "));
    // A migration that another tool runs may have locked the tables for as long as it takes.
    let ask = async || raw_sql(AssertSqlSafe(sql.clone())).fetch_all(&mut *session).await;
    for row in answered_at_last(MAKE_LIMIT, "read the recorded revisions", ask).await? {
        let (source, revision) = (row.try_get::<&str, _>(0)?, row.try_get(1)?);
        let rows = if source == "alembic" { &mut found.alembic } else { &mut found.recorded };
        rows.get_or_insert_default().push(revision);
    }
    // Here and not in SQL, whose order depends on the database's collation.
    found.alembic.iter_mut().chain(&mut found.recorded).for_each(|rows| rows.sort());
    Ok(found)
}
