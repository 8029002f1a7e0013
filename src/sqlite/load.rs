//! The transaction: tables, rows, indexes, foreign keys, counts, sequences; all of it or nothing.

use std::time::Duration;

use anyhow::{Context, bail};
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::{self, AssertSqlSafe, PgConnection, Row, query, query_scalar, raw_sql};
use tokio::sync::mpsc;

use super::check::fits;
use super::plan::{Action, TablePlan};
use super::profile::{each_row, quoted};
use super::{Prepared, Source, Wish, open, statements};
use crate::exit::{Code, Failure, what_the_server_said};
use crate::schema::{ANSWER_LIMIT, answered};

/// How long one step may take: the rows of a table, an index over them.
const STEP_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a table that is there may be held by the application, as PostgreSQL writes it.
const LOCK_LIMIT: &str = "10s";
/// Rows travel in pieces of so many bytes.
const PIECE: usize = 1 << 16;
/// So many pieces may wait for the server.
const PIECES_WAITING: usize = 8;

/// What was written.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Imported {
    pub tables: Vec<ImportedTable>,
    /// Rows that were left out because they refer to a row that is not there.
    pub orphans: u64,
    /// The next number of each sequence, by table and column.
    pub sequences: Vec<(String, i64)>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct ImportedTable {
    pub name: String,
    pub rows: u64,
    /// Rows that were left out because a value does not fit.
    pub skipped: u64,
    pub made: bool,
}

/// What the thread that reads the file sends.
enum Piece {
    Rows(Vec<u8>),
    /// A table is through.
    End {
        rows: u64,
        skipped: u64,
    },
    Failed(anyhow::Error),
}

/// Carry out `prepared` in one transaction.
///
/// # Errors
/// What the file or the server says; the database is as it was then.
pub async fn load(prepared: Prepared, session: &mut PgConnection, wish: &Wish) -> anyhow::Result<Imported> {
    let Prepared { file, plan, .. } = prepared;
    let (schema, tables) = (plan.schema.as_str(), plan.tables.clone());
    let written: Vec<&TablePlan> = plan.tables.iter().filter(|table| table.is_written()).collect();
    run(session, "BEGIN").await?;
    run(session, &format!("SET LOCAL lock_timeout = '{LOCK_LIMIT}'")).await?;
    let undo = prepare(session, schema, &written).await?;
    run(session, "SET LOCAL lock_timeout = 0").await?;
    let (sender, mut pieces) = mpsc::channel(PIECES_WAITING);
    let skip_bad = wish.skip_bad;
    let reading = tokio::task::spawn_blocking(move || read(&file, &tables, skip_bad, &sender));
    let mut imported = Imported::default();
    for table in &written {
        imported.tables.push(copy(session, schema, table, &mut pieces).await?);
    }
    reading.await.context("read the SQLite file")?;
    if wish.skip_bad {
        imported.orphans = drop_orphans(session, schema, &written).await?;
    }
    for table in written.iter().filter(|table| table.action == Action::Make) {
        for statement in &table.after {
            run(session, statement).await?;
        }
    }
    for table in &written {
        for key in table.keys.iter().filter(|key| key.made) {
            run(session, &statements::foreign_key(schema, table, key)).await?;
        }
    }
    run(session, "SET CONSTRAINTS ALL IMMEDIATE").await?;
    for statement in &undo {
        run(session, statement).await?;
    }
    count(session, schema, &mut imported).await?;
    for table in &written {
        imported.sequences.extend(sequences(session, schema, table).await?);
        run(session, &format!("ANALYZE {}", statements::qualified(schema, &table.name))).await?;
    }
    run(session, "COMMIT").await?;
    Ok(imported)
}

async fn run(session: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    let made = raw_sql(AssertSqlSafe(statement.to_owned())).execute(session);
    let made = tokio::time::timeout(STEP_LIMIT, made).await;
    let made =
        made.map_err(|_| Failure::new(Code::Temporary, format!("no answer within {STEP_LIMIT:?}: {statement}")))?;
    made.map(drop).map_err(|error| refused(statement, &error))
}

/// What the server said of `statement`, and where: the line and the column of a `COPY`.
fn refused(statement: &str, error: &sqlx::Error) -> anyhow::Error {
    let said = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let place =
        said.and_then(PgDatabaseError::r#where).map(|place| format!("; {}", place.lines().next().unwrap_or_default()));
    let code = said.map(PgDatabaseError::code).unwrap_or_default();
    let advice = match code {
        // lock_not_available
        "55P03" => "; the application holds the table: `tandem stop` and try again",
        // insufficient_privilege
        "42501" => "; the table belongs to another role than the application's",
        _ => "",
    };
    let text = format!(
        "{}{}{advice}. Nothing was written.\n  the statement: {statement}",
        what_the_server_said(error),
        place.unwrap_or_default()
    );
    Failure::new(if code == "55P03" { Code::Temporary } else { Code::Failed }, text).into()
}

/// Make the new tables; lock, empty and free of hindrances those that are there. What was changed for the time of the import
/// is returned as the statements that take it back.
async fn prepare(session: &mut PgConnection, schema: &str, tables: &[&TablePlan]) -> anyhow::Result<Vec<String>> {
    let mut undo = Vec::new();
    for table in tables {
        let place = statements::qualified(schema, &table.name);
        let Action::Fill { replaces } = table.action else {
            run(session, &statements::make(schema, table)).await?;
            continue;
        };
        run(session, &format!("LOCK TABLE {place} IN SHARE ROW EXCLUSIVE MODE")).await?;
        // In any order, and rows may refer to each other in a circle.
        for name in keys_at_once(session, schema, &table.name).await? {
            let change = |how: &str| format!("ALTER TABLE {place} ALTER CONSTRAINT {} {how}", quoted(&name));
            run(session, &change("DEFERRABLE")).await?;
            undo.push(change("NOT DEFERRABLE"));
        }
        // The rows are taken over as they are.
        for name in triggers(session, schema, &table.name).await? {
            run(session, &format!("ALTER TABLE {place} DISABLE TRIGGER {}", quoted(&name))).await?;
            undo.push(format!("ALTER TABLE {place} ENABLE TRIGGER {}", quoted(&name)));
        }
        if replaces == 0 {
            let holds = query_scalar::<_, bool>(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {place})")));
            if answered(ANSWER_LIMIT, "look into the table", holds.fetch_one(&mut *session)).await? {
                bail!(Failure::new(
                    Code::Failed,
                    format!("rows came into {} meanwhile. Nothing was written.", table.name)
                ));
            }
        }
    }
    run(session, "SET CONSTRAINTS ALL DEFERRED").await?;
    refuse_cascade(session, schema, tables).await?;
    for table in tables.iter().filter(|table| matches!(table.action, Action::Fill { replaces } if replaces > 0)) {
        run(session, &format!("DELETE FROM {}", statements::qualified(schema, &table.name))).await?;
    }
    Ok(undo)
}

/// Refuse to delete rows with which rows of tables that are no part of the import would go, or change.
async fn refuse_cascade(session: &mut PgConnection, schema: &str, tables: &[&TablePlan]) -> anyhow::Result<()> {
    let emptied = tables.iter().filter(|table| matches!(table.action, Action::Fill { replaces } if replaces > 0));
    let emptied: Vec<&str> = emptied.map(|table| table.name.as_str()).collect();
    let all: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let asked = query(
        "SELECT n2.nspname::text, c.relname::text, p.relname::text FROM pg_catalog.pg_constraint AS k
         JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
         JOIN pg_catalog.pg_namespace AS n2 ON n2.oid = c.relnamespace
         JOIN pg_catalog.pg_class AS p ON p.oid = k.confrelid
         JOIN pg_catalog.pg_namespace AS n ON n.oid = p.relnamespace
         WHERE n.nspname = $1 AND k.contype = 'f' AND k.confdeltype IN ('c', 'n', 'd') AND p.relname = ANY ($2)
           AND NOT (n2.nspname = $1 AND c.relname = ANY ($3))",
    );
    let found = asked.bind(schema).bind(&emptied[..]).bind(&all[..]).fetch_all(&mut *session);
    for row in answered(ANSWER_LIMIT, "read the foreign keys", found).await? {
        let (place, table, parent): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let holds = format!("SELECT EXISTS (SELECT FROM {})", statements::qualified(&place, &table));
        let holds = query_scalar::<_, bool>(AssertSqlSafe(holds)).fetch_one(&mut *session);
        if answered(ANSWER_LIMIT, "look into the table", holds).await? {
            let text = format!(
                "to empty {parent} would change or delete rows of {table}, which is not in the file. Nothing was written."
            );
            bail!(Failure::new(Code::Failed, text));
        }
    }
    Ok(())
}

/// The foreign keys that are checked with each statement.
async fn keys_at_once(session: &mut PgConnection, schema: &str, table: &str) -> anyhow::Result<Vec<String>> {
    let asked = query_scalar(
        "SELECT k.conname::text FROM pg_catalog.pg_constraint AS k
         JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
         JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND k.contype = 'f' AND NOT k.condeferrable",
    );
    answered(ANSWER_LIMIT, "read the foreign keys", asked.bind(schema).bind(table).fetch_all(session)).await
}

async fn triggers(session: &mut PgConnection, schema: &str, table: &str) -> anyhow::Result<Vec<String>> {
    let asked = query_scalar(
        "SELECT t.tgname::text FROM pg_catalog.pg_trigger AS t
         JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
         JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2 AND NOT t.tgisinternal AND t.tgenabled = 'O'",
    );
    answered(ANSWER_LIMIT, "read the triggers", asked.bind(schema).bind(table).fetch_all(session)).await
}

/// The rows of one table, from the thread that reads to the server.
async fn copy(
    session: &mut PgConnection,
    schema: &str,
    table: &TablePlan,
    pieces: &mut mpsc::Receiver<Piece>,
) -> anyhow::Result<ImportedTable> {
    let statement = statements::copy(schema, table);
    let refuse = |error: sqlx::Error| refused(&statement, &error);
    let copying = async {
        let mut copy = session.copy_in_raw(&statement).await.map_err(refuse)?;
        loop {
            match pieces.recv().await.context("the thread that reads the SQLite file ended")? {
                Piece::Rows(rows) => drop(copy.send(rows).await.map_err(refuse)?),
                Piece::End { rows, skipped } => {
                    let taken = copy.finish().await.map_err(refuse)?;
                    anyhow::ensure!(taken == rows, "table {}: {rows} rows were sent, {taken} arrived", table.name);
                    let (name, made) = (table.name.clone(), table.action == Action::Make);
                    return Ok(ImportedTable { name, rows, skipped, made });
                }
                Piece::Failed(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout(STEP_LIMIT, copying)
        .await
        .with_context(|| format!("copy into {}: not done within {STEP_LIMIT:?}", table.name))?
}

/// Read every table that is written and send its rows. It ends when nobody receives any more.
fn read(file: &Source, tables: &[TablePlan], skip_bad: bool, sender: &mpsc::Sender<Piece>) {
    for plan in tables.iter().filter(|plan| plan.is_written()) {
        let columns: Vec<usize> = plan.columns.iter().map(|column| column.source).collect();
        let (mut rows, mut skipped, mut piece) = (0, 0, Vec::with_capacity(PIECE + PIECE / 4));
        let outcome = each_row(&file.connection, &file.shape.tables[plan.source], &columns, |row, _| {
            let start = piece.len();
            for (column, place) in plan.columns.iter().zip(0..) {
                if place > 0 {
                    piece.push(b'\t');
                }
                // Without `skip_bad` nothing is left to skip: the check refused the file.
                if fits(row.get_ref(place)?, column, &mut piece).is_err() && skip_bad {
                    piece.truncate(start);
                    skipped += 1;
                    return Ok(true);
                }
            }
            piece.push(b'\n');
            rows += 1;
            if piece.len() < PIECE {
                return Ok(true);
            }
            let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE + PIECE / 4));
            Ok(sender.blocking_send(Piece::Rows(full)).is_ok())
        });
        let last = match outcome {
            Ok(()) => sender.blocking_send(Piece::Rows(piece)).map(|()| Piece::End { rows, skipped }),
            Err(error) => Ok(Piece::Failed(open::explained(&file.path, error))),
        };
        if last.and_then(|last| sender.blocking_send(last)).is_err() {
            return;
        }
    }
}

/// Delete rows that refer to no row, and then those that referred to them.
async fn drop_orphans(session: &mut PgConnection, schema: &str, tables: &[&TablePlan]) -> anyhow::Result<u64> {
    let mut total = 0;
    loop {
        let mut dropped = 0;
        for table in tables {
            for key in &table.keys {
                let statement = statements::without_orphans(schema, table, key);
                let done = raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *session).await;
                dropped += done.map_err(|error| refused(&statement, &error))?.rows_affected();
            }
        }
        if dropped == 0 {
            return Ok(total);
        }
        total += dropped;
    }
}

/// Compare the rows that are there with those that were sent.
async fn count(session: &mut PgConnection, schema: &str, imported: &mut Imported) -> anyhow::Result<()> {
    let mut missing = 0;
    for table in &mut imported.tables {
        let ask = format!("SELECT count(*) FROM {}", statements::qualified(schema, &table.name));
        let there = query_scalar::<_, i64>(AssertSqlSafe(ask)).fetch_one(&mut *session).await?;
        let there = u64::try_from(there).unwrap_or(0);
        missing += table.rows.abs_diff(there);
        table.rows = there;
    }
    anyhow::ensure!(
        missing == imported.orphans,
        "the counts differ: {missing} rows are not where they were sent. Nothing was written."
    );
    Ok(())
}

/// Set the sequences of a table behind its largest number.
async fn sequences(session: &mut PgConnection, schema: &str, table: &TablePlan) -> anyhow::Result<Vec<(String, i64)>> {
    let place = statements::qualified(schema, &table.name);
    let asked = query(
        "SELECT a.attname::text, pg_catalog.pg_get_serial_sequence($1, a.attname::text)
         FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped",
    );
    let rows = answered(ANSWER_LIMIT, "read the sequences", asked.bind(&place).fetch_all(&mut *session)).await?;
    let mut set = Vec::new();
    for row in rows {
        let (column, sequence): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let Some(sequence) = sequence else { continue };
        let next = format!(
            "SELECT pg_catalog.setval($1::regclass, greatest((SELECT max({}) FROM {place}) + 1, $2 + 1, 1)::bigint, false)",
            quoted(&column)
        );
        let next = query_scalar::<_, i64>(AssertSqlSafe(next)).bind(&sequence).bind(table.given.unwrap_or(0));
        let next = next.fetch_one(&mut *session).await.map_err(|error| refused("setval", &error))?;
        set.push((format!("{}.{column}", table.name), next));
    }
    Ok(set)
}
