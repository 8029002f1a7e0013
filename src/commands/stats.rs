//! `tandem stats`

use std::io;
use std::time::Duration;

use sea_orm::sqlx::Connection;

use crate::cli::{Common, StatsArgs};
use crate::commands::running::say;
use crate::commands::stats_words::words;
use crate::commands::{looking, open};
use crate::config::Settings;
use crate::exit::Code;
use crate::health::client;
use crate::postgres::home::Home;
use crate::schema::ANSWER_LIMIT;
use crate::stats::{self, Cell, Column, Kind, ROWS_MAX, Table, Topic};

/// What our session is called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-stats";
/// How long the server may take for one topic.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the health port may take to name the workers' processes.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);
/// So many rows of each topic are shown where none is named.
const OVERVIEW_ROWS: usize = 10;

/// Print what PostgreSQL knows about `args.topic`, or the overview.
///
/// # Errors
/// The database is stopped, or does not answer.
pub async fn run(common: &Common, args: &StatsArgs) -> anyhow::Result<Code> {
    let settings = open::load(common, Vec::new())?.settings;
    let home = Home::resolve(&settings)?;
    let mut session = looking::session(&settings, &home, APPLICATION_NAME).await?;
    let topics = args.topic.map_or(Topic::OVERVIEW.to_vec(), |topic| vec![topic]);
    let most = if args.topic.is_some() { ROWS_MAX } else { OVERVIEW_ROWS };
    let most = args.rows.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(most);
    let mut tables = Vec::new();
    for topic in topics {
        let mut table = stats::ask(topic, &mut session, LIMIT).await?;
        table.shorten(most);
        if topic == Topic::Connections {
            name_processes(&mut table, &settings).await;
        }
        tables.push(table);
    }
    let _closed = tokio::time::timeout(ANSWER_LIMIT, session.close()).await;
    if args.json {
        let json = match (args.topic, tables.as_slice()) {
            (Some(_), [table]) => table.to_json(),
            (_, tables) => tables.iter().map(Table::to_json).collect(),
        };
        say(&stats::visible_json(&serde_json::to_string_pretty(&json)?))?;
    } else {
        let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
        say(&tables.iter().map(|table| words(table, width)).collect::<Vec<_>>().join("\n\n"))?;
    }
    Ok(Code::Stopped)
}

/// Add to each application that is a worker of the running Tandem the worker's process.
async fn name_processes(table: &mut Table, settings: &Settings) {
    // Not `tandem status`, which measures the memory of every session's process.
    let Ok((_, body)) = client::probe(&settings.health.listen, "/health", HEALTH_LIMIT).await else { return };
    let report: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(workers) = report["workers"].as_array().filter(|_| report["deployment"] == settings.deployment()) else {
        return;
    };
    let process = |application: &Cell| {
        let Cell::Text(application) = application else { return Cell::Nothing };
        let is_of =
            |worker: &&serde_json::Value| *application == format!("{}-worker-{}", settings.name, worker["slot"]);
        let pids = workers.iter().filter(is_of).filter(|worker| worker["pid"].is_number());
        let pids: Vec<String> = pids.map(|worker| worker["pid"].to_string()).collect();
        if pids.is_empty() { Cell::Nothing } else { Cell::Text(pids.join(" ")) }
    };
    for row in &mut table.rows {
        let process = process(&row[0]);
        row.insert(1, process);
    }
    table.columns.insert(1, Column { name: "process".into(), kind: Kind::Text });
}
