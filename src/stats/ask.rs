//! Ask a server a topic: one round trip, read-only, with limits.

use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::postgres::{PgConnection, PgRow};
use sea_orm::sqlx::{AssertSqlSafe, Row, raw_sql};

use super::masked::masked;
use super::table::{Cell, Column, Kind, ROWS_MAX, Table};
use super::topics::{Question, Server, Sizes, Statements, Topic};
use crate::exit::{Code, Failure, in_words, sql_state};

/// How long a question waits for a lock. Sizes need one on each table, and a table whose definition changes keeps it for long.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// What the driver gets beyond the limit that the server holds itself.
const MARGIN: Duration = Duration::from_secs(2);

/// SQLSTATEs (PostgreSQL documentation, appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";
const QUERY_CANCELED: &str = "57014";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// What a module says that is not preloaded.
const NOT_PRELOADED: &str = "55000";

/// What has to be known of the server before a question can be put to it.
const SERVER: &str = "
    SELECT current_setting('server_version_num')::int4, current_user::text, current_database()::text,
           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
           pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
           view.relnamespace::regnamespace::text,
           (SELECT string_agg(attname::text, ' ') FROM pg_attribute WHERE attrelid = view.oid AND attnum > 0)
    FROM (SELECT 1) AS always LEFT JOIN (
        SELECT class.oid, class.relnamespace FROM pg_extension AS extension
        JOIN pg_depend AS member ON member.refclassid = 'pg_extension'::regclass AND member.refobjid = extension.oid
             AND member.classid = 'pg_class'::regclass AND member.deptype = 'e'
        JOIN pg_class AS class ON class.oid = member.objid AND class.relname = 'pg_stat_statements'
        WHERE extension.extname = 'pg_stat_statements') AS view ON true";

/// The answer to `topic`, which the server gets `limit` for.
///
/// Where a role may not see everything, the rest is there, and the notes say what is missing. When this fails or is dropped,
/// the session may be in the middle of an answer: close it.
///
/// # Errors
/// [`Code::Temporary`] when there is no answer within the limit; what the server says.
pub async fn ask(topic: Topic, session: &mut PgConnection, limit: Duration) -> anyhow::Result<Table> {
    let server = server(session, limit).await?;
    let question = match topic.question(&server, Sizes::Measured) {
        Ok(question) => question,
        Err(why) => return Ok(empty(topic, Vec::new(), vec![why])),
    };
    let (columns, mut notes) = (columns(&question), Vec::new());
    let rows = match fetch(session, &limited(&question), limit).await {
        Ok(rows) => rows,
        Err(error) => match sql_state(&error).as_deref() {
            Some(LOCK_NOT_AVAILABLE | QUERY_CANCELED) => {
                let Ok(estimate) = topic.question(&server, Sizes::Estimated) else { return Err(error) };
                if estimate.sql == question.sql {
                    return Err(error);
                }
                notes.push(
                    "the sizes are those of the last VACUUM or ANALYZE: a table is locked, or measuring takes too long"
                        .to_owned(),
                );
                fetch(session, &limited(&estimate), limit).await?
            }
            Some(INSUFFICIENT_PRIVILEGE) => {
                let grant = format!("GRANT pg_monitor TO {}", server.quoted_role());
                return Ok(empty(topic, columns, vec![format!("{}: a superuser can run {grant}", in_words(&error))]));
            }
            Some(NOT_PRELOADED) => {
                let why = "the server does not preload pg_stat_statements: add it to shared_preload_libraries and restart the server";
                return Ok(empty(topic, columns, vec![why.to_owned()]));
            }
            _ => return Err(error),
        },
    };
    let truncated = rows.len() > ROWS_MAX;
    let rows = rows.iter().take(ROWS_MAX).map(|row| cells(row, &columns)).collect::<Result<Vec<_>, _>>();
    let rows = rows.with_context(|| format!("understand the answer about {}", topic.name()))?;
    if let Some(remarks) = &question.remarks {
        // They are beside the answer: one that cannot be had is left out.
        let said = fetch(session, remarks, limit).await.unwrap_or_default();
        notes.extend(said.iter().filter_map(|row| row.try_get::<Option<String>, _>(0).ok().flatten()));
    }
    notes.extend(topic.missing_rights(&server));
    Ok(Table { topic: topic.name().into(), title: topic.title().into(), columns, rows, truncated, notes })
}

fn empty(topic: Topic, columns: Vec<Column>, notes: Vec<String>) -> Table {
    let (topic, title) = (topic.name().into(), topic.title().into());
    Table { topic, title, columns, rows: Vec::new(), truncated: false, notes }
}

fn columns(question: &Question) -> Vec<Column> {
    question.columns.iter().map(|&(name, kind)| Column { name: name.into(), kind }).collect()
}

/// One row more than is shown tells that there are more.
fn limited(question: &Question) -> String {
    format!("{} LIMIT {}", question.sql, ROWS_MAX + 1)
}

async fn server(session: &mut PgConnection, limit: Duration) -> anyhow::Result<Server> {
    let rows = fetch(session, SERVER, limit).await?;
    let row = rows.first().context("the server said nothing about itself")?;
    let schema: Option<String> = row.try_get(5)?;
    let columns: Option<String> = row.try_get(6)?;
    Ok(Server {
        version: row.try_get(0)?,
        role: row.try_get(1)?,
        database: row.try_get(2)?,
        is_superuser: row.try_get::<Option<bool>, _>(3)?.unwrap_or_default(),
        reads_all_stats: row.try_get(4)?,
        statements: schema.map(|schema| Statements { schema, columns: columns.unwrap_or_default() }),
    })
}

/// The rows of the one statement `sql`. Several statements in one message are one transaction, which ends with the message
/// whatever becomes of it (PostgreSQL documentation, "Multiple Statements in a Simple Query"): so a pooler in transaction mode
/// will do, and nothing is left in its session.
async fn fetch(session: &mut PgConnection, sql: &str, limit: Duration) -> anyhow::Result<Vec<PgRow>> {
    let (statement, lock) = (limit.as_millis().max(1), LOCK_TIMEOUT.as_millis());
    let message = format!(
        "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {lock};
         SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL jit = off;\n{sql}"
    );
    let asked = raw_sql(AssertSqlSafe(message)).fetch_all(session);
    match tokio::time::timeout(limit.saturating_add(MARGIN), asked).await {
        Ok(rows) => Ok(rows?),
        Err(_) => {
            let text = format!("no answer within {limit:?}, the database server hangs");
            Err(Failure::new(Code::Temporary, text).into())
        }
    }
}

fn cells(row: &PgRow, columns: &[Column]) -> anyhow::Result<Vec<Cell>> {
    let cell = |(at, column): (usize, &Column)| -> anyhow::Result<Cell> {
        Ok(match column.kind {
            Kind::Text | Kind::Time => row.try_get::<Option<String>, _>(at)?.map_or(Cell::Nothing, Cell::Text),
            Kind::Query => row
                .try_get::<Option<String>, _>(at)?
                .map_or(Cell::Nothing, |query| Cell::Text(masked(&query).into_owned())),
            Kind::Count | Kind::Bytes => row.try_get::<Option<i64>, _>(at)?.map_or(Cell::Nothing, Cell::Count),
            Kind::Seconds | Kind::Milliseconds | Kind::Percent => {
                row.try_get::<Option<f64>, _>(at)?.map_or(Cell::Nothing, |number| Cell::Number(rounded(number)))
            }
            Kind::Flag => row.try_get::<Option<bool>, _>(at)?.map_or(Cell::Nothing, Cell::Flag),
        })
    };
    columns.iter().enumerate().map(cell).collect()
}

/// To three places: more are noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
