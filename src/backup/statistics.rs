//! Gather the planner's statistics of a database that was restored: a dump holds none, and plans made without them are slow for
//! hours. Where they cannot be gathered, the rows are there all the same. And let the server count the database's statements
//! (pg_stat_statements), which a dump of another server need not hold.

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, Connection, query_scalar, raw_sql};

use super::reach::Reach;
use crate::postgres::provision;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// What has statistics of its own.
const TABLES: &str = "SELECT class.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class AS class
     WHERE class.relkind IN ('r', 'p', 'm') AND class.relpersistence <> 't' AND class.relnamespace::pg_catalog.regnamespace::text !~ '^pg_'
     ORDER BY 1";

/// Gather those of `database`. What an expression of the application's own keeps from being read (`CREATE STATISTICS` of a cast
/// that some row does not bear) is named in the log. Gathering takes as long as it takes: the caller sets a limit.
///
/// # Errors
/// The server does not answer.
pub async fn gather(reach: &Reach, database: &str) -> anyhow::Result<()> {
    let mut session = reach.session(database).await?;
    let named = "SET search_path = ''; SET client_min_messages = error";
    answered(ANSWER_LIMIT, "leave the search path", raw_sql(named).execute(&mut session)).await?;
    if reach.is_superuser() {
        provision::statements(&mut session).await?;
    }
    // It ends with the first that fails.
    if raw_sql("ANALYZE").execute(&mut session).await.is_err() {
        let tables = query_scalar::<_, String>(TABLES).fetch_all(&mut session);
        for table in answered(MAKE_LIMIT, "list the tables", tables).await? {
            let analyzed = raw_sql(AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut session).await;
            if let Err(error) = analyzed {
                if error.as_database_error().is_none() {
                    return Err(error).context("gather statistics");
                }
                tracing::warn!("no statistics of {table} could be gathered, and plans with it may be slow: {error}");
            }
        }
    }
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    Ok(())
}
