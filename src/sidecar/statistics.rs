//! Asks the database what the status page and `tandem top` show of it: while somebody looks, and not otherwise.
//!
//! There is one session at most, and one question at a time. It is closed when nobody looks any more.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{ConnectOptions, Connection};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Context;
use crate::config::PostgresMode;
use crate::exit::in_words;
use crate::health::overview::visible_name;
use crate::health::picture::Picture;
use crate::health::statistics::{Statistics, StatisticsCell, StatisticsColumn, StatisticsTable};
use crate::health::viewers::Viewers;
use crate::page::words;
use crate::postgres::provision::superuser_options;
use crate::postgres::service::DatabaseStage;
use crate::schema;
use crate::stats::{self, Cell, Column, Kind, Table, Topic};

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// The pause before the next round, however long the last one took.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long one question may take, and how long to wait for a connection.
const QUESTION_LIMIT: Duration = Duration::from_secs(2);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a session may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// So many rows of a table are shown.
const ROWS_MAX: usize = 20;
/// So much of a cell, in characters.
const TEXT_MAX: usize = 300;
/// What its session is called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-page";
/// What is shown.
const TOPICS: [Topic; 7] = [
    Topic::Connections,
    Topic::Blocking,
    Topic::LongRunningQueries,
    Topic::Outliers,
    Topic::CacheHit,
    Topic::TableSize,
    Topic::Locks,
];

/// Put what the database says of itself into the picture; for ever.
pub async fn follow(pictures: watch::Sender<Arc<Picture>>, viewers: Viewers, context: Rc<Context>) {
    let mut session = None;
    loop {
        if !viewers.is_wanted() {
            if let Some(session) = session.take() {
                close(session).await;
            }
            viewers.wanted().await;
        }
        let began = Instant::now();
        let asked = match open(&mut session, &context).await {
            Ok(session) => ask(session).await,
            Err(error) => Err(error),
        };
        if asked.is_err() {
            // It may be in the middle of an answer.
            session = None;
        }
        pictures.send_modify(|picture| {
            let known = &mut Arc::make_mut(picture).details.statistics;
            *known = Arc::new(match asked {
                Ok(tables) => Statistics { taken: Some(SystemTime::now()), tables, error: None },
                Err(error) => Statistics { error: Some(in_words(&error)), ..Statistics::clone(known) },
            });
        });
        sleep(INTERVAL.saturating_sub(began.elapsed()).max(PAUSE_MIN)).await;
    }
}

/// The session, opened if need be.
async fn open<'a>(session: &'a mut Option<PgConnection>, context: &Context) -> anyhow::Result<&'a mut PgConnection> {
    let opened = match session.take() {
        Some(session) => session,
        None => connect(context).await?,
    };
    Ok(session.insert(opened))
}

async fn connect(context: &Context) -> anyhow::Result<PgConnection> {
    anyhow::ensure!(context.database.get() != DatabaseStage::Unknown, "the database is not set up yet");
    let url = context.url();
    if context.settings().postgres.mode == PostgresMode::Attach {
        return schema::session(&url, APPLICATION_NAME).await;
    }
    let options = superuser_options(&context.home, url.port, &url.database).application_name(APPLICATION_NAME);
    schema::answered(CONNECT_LIMIT, "connect to the database", options.connect()).await
}

/// Everything that is shown. Where one question fails, the session may be in the middle of its answer: all of the round fails.
async fn ask(session: &mut PgConnection) -> anyhow::Result<Vec<StatisticsTable>> {
    let mut tables = Vec::with_capacity(TOPICS.len());
    for topic in TOPICS {
        tables.push(shown(stats::ask(topic, session, QUESTION_LIMIT).await?));
    }
    Ok(tables)
}

async fn close(session: PgConnection) {
    let _ = timeout(CLOSE_LIMIT, session.close()).await;
}

/// A table for people to read.
fn shown(mut table: Table) -> StatisticsTable {
    table.shorten(ROWS_MAX);
    // One column is drawn: the first whose cells are amounts.
    let drawn = table.columns.iter().position(|column| matches!(column.kind, Kind::Bytes | Kind::Percent));
    let column = |(at, column): (usize, &Column)| StatisticsColumn {
        name: column.name.clone().into_owned(),
        is_number: column.kind.is_number(),
        has_bar: Some(at) == drawn,
    };
    let row =
        |row: &Vec<Cell>| row.iter().zip(&table.columns).map(|(cell, column)| cell_of(cell, column.kind)).collect();
    StatisticsTable {
        topic: table.topic.clone().into_owned(),
        title: table.title.clone().into_owned(),
        columns: table.columns.iter().enumerate().map(column).collect(),
        rows: table.rows.iter().map(row).collect(),
        truncated: table.truncated,
        notes: table.notes.iter().map(|note| visible_name(note)).collect(),
    }
}

fn cell_of(cell: &Cell, kind: Kind) -> StatisticsCell {
    let number = match cell {
        Cell::Count(count) => Some(*count as f64),
        Cell::Number(number) => Some(*number),
        Cell::Flag(_) | Cell::Text(_) | Cell::Nothing => None,
    };
    let text = match (cell, number) {
        (Cell::Flag(flag), _) => if *flag { "yes" } else { "no" }.to_owned(),
        (Cell::Text(text), _) => cut(&visible_name(text)),
        (_, Some(number)) => number_words(number, kind),
        (_, None) => String::new(),
    };
    StatisticsCell { text, number }
}

fn number_words(number: f64, kind: Kind) -> String {
    match kind {
        Kind::Bytes if number >= 0.0 => words::bytes(number as u64),
        Kind::Seconds => words::duration(number),
        Kind::Milliseconds => words::duration(number / 1000.0),
        Kind::Percent => format!("{number:.1} %"),
        _ if number >= 0.0 && number.fract() == 0.0 => words::count(number as u64),
        _ => format!("{number}"),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_short_and_its_names_are_harmless() {
        let columns = vec![
            Column { name: "table".into(), kind: Kind::Text },
            Column { name: "bytes".into(), kind: Kind::Bytes },
            Column { name: "share".into(), kind: Kind::Percent },
        ];
        let row = vec![Cell::Text("two\nlines\u{202e}".into()), Cell::Count(2048), Cell::Number(12.34)];
        let mut rows = vec![row; 100];
        rows[1] = vec![Cell::Text("x".repeat(500)), Cell::Nothing, Cell::Flag(true)];
        let table =
            Table { topic: "t".into(), title: "T".into(), columns, rows, truncated: false, notes: vec!["n\n".into()] };
        let shown = shown(table);
        assert!(shown.rows.len() == ROWS_MAX && shown.truncated && shown.notes == ["n\\n"]);
        let texts = |row: usize| shown.rows[row].iter().map(|cell| cell.text.as_str()).collect::<Vec<_>>();
        assert_eq!(texts(0), ["two\\nlines\\u{202e}", "2.0 kB", "12.3 %"]);
        assert_eq!((texts(1)[0].chars().count(), texts(1)[1], texts(1)[2]), (TEXT_MAX + 1, "", "yes"));
        assert_eq!(shown.columns.iter().map(|column| column.has_bar).collect::<Vec<_>>(), [false, true, false]);
    }
}
