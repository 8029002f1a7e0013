//! The database: what the probe knows, and what it says of itself while somebody looks.

use maud::{Markup, html};

use super::{scrolling, time};
use crate::health::overview::{DatabaseOverview, Overview, StatisticsOverview};
use crate::health::statistics::StatisticsTable;
use crate::page::words::{count, duration};

/// States of connections, by the columns of the topic `connections`.
const STATES: [(&str, &str); 4] =
    [("active", "active"), ("idle", "idle"), ("idle_in_transaction", "idle in transaction"), ("other", "other")];
/// The topics whose tables are open at first.
const OPEN: [&str; 3] = ["blocking", "outliers", "table-size"];

pub fn database(overview: &Overview, statistics: &StatisticsOverview) -> Markup {
    let database = &overview.database;
    html! {
        section #database aria-labelledby="database-title" {
            h2 #database-title { "Database" }
            (state(database))
            (connections(database, statistics))
            @if let Some(error) = &statistics.error {
                p { strong.badge.warn { "not asked" } " " bdi { (error) } }
            }
            @match &statistics.taken {
                Some(taken) => p.muted { "What follows the database was asked at " (time(taken)) "; it is asked while somebody looks." },
                None if statistics.error.is_none() => p.muted { "The database is asked for more once somebody looks: in a moment." },
                None => {}
            }
            @for table in &statistics.tables { (statistics_table(table)) }
        }
    }
}

fn state(database: &DatabaseOverview) -> Markup {
    let missing = || html! { span.muted { "not known" } };
    html! {
        p {
            @if database.available {
                strong.badge.ok { span aria-hidden="true" { "✓ " } "answers" }
            } @else {
                strong.badge.bad { span aria-hidden="true" { "✗ " } "cannot be used" }
                @if let Some(error) = &database.error { " " bdi { (error) } }
            }
        }
        dl {
            div { dt { "latency" } dd { @match database.latency_ms { Some(it) => (duration(it / 1000.0)), None => (missing()) } } }
            div { dt { "tables" } dd { @match database.tables { Some(it) => (count(it as u64)), None => (missing()) } } }
            div { dt { "schema" } dd { @match &database.schema_version { Some(it) => bdi { (it) }, None => (missing()) } } }
            div {
                dt { "asked" }
                dd { @match database.sample_age_seconds { Some(age) => { (duration(age)) " ago" }, None => (missing()) } }
            }
        }
    }
}

/// Connections by state against what the server accepts.
fn connections(database: &DatabaseOverview, statistics: &StatisticsOverview) -> Markup {
    let (Some(open), Some(most)) = (database.connections, database.max_connections) else { return html! {} };
    let known = statistics.tables.iter().find(|table| table.topic == "connections");
    let by_state: Vec<(&str, f64)> = STATES
        .iter()
        .filter_map(|(column, words)| Some((*words, sum(known?, column)?)))
        .filter(|(_, sessions)| *sessions > 0.0)
        .collect();
    let scale = 100.0 / f64::from(most.max(1));
    let mut begin = 0.0;
    html! {
        p {
            (open) " of " (most) " connections are open"
            @for (place, (words, sessions)) in by_state.iter().enumerate() {
                @if place == 0 { ": " } @else { ", " } (sessions) " " (words)
            }
            "."
        }
        svg.bar.stacked viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
            rect.rest x="0" y="0" width="100" height="10" {}
            @if by_state.is_empty() {
                rect.s0 x="0" y="0" width=(format!("{:.2}", f64::from(open) * scale)) height="10" {}
            }
            @for (place, (_, sessions)) in by_state.iter().enumerate() {
                @let from = { let from = begin; begin += sessions * scale; from };
                rect class={ "s" (place) } x=(format!("{from:.2}")) y="0" width=(format!("{:.2}", sessions * scale)) height="10" {}
            }
        }
    }
}

/// The sum of a column's numbers.
fn sum(table: &StatisticsTable, column: &str) -> Option<f64> {
    let at = table.columns.iter().position(|it| it.name == column)?;
    Some(table.rows.iter().filter_map(|row| row.get(at)?.number).sum())
}

fn statistics_table(table: &StatisticsTable) -> Markup {
    let id = format!("statistics-{}", table.topic);
    let bars: Vec<Option<f64>> = (0..table.columns.len()).map(|at| longest(table, at)).collect();
    let rows = table.rows.len();
    html! {
        details id=(id) data-key=(id) open[OPEN.contains(&table.topic.as_str())] {
            summary {
                (table.title) " "
                span.muted { @match rows { 0 => "none", 1 => "1 row", _ => { (rows) " rows" } } @if table.truncated { " and more" } }
            }
            @for note in &table.notes { p.muted { bdi { (note) } } }
            @if rows > 0 {
                (scrolling(&format!("{id}-scroll"), &format!("Table: {}", table.title), html! {
                    table {
                        caption.hidden { (table.title) }
                        thead {
                            tr { @for column in &table.columns { th scope="col" .n[column.is_number] { (column.name.replace('_', " ")) } } }
                        }
                        tbody { @for row in &table.rows { (statistics_row(table, row, &bars)) } }
                    }
                }))
            }
        }
    }
}

fn statistics_row(
    table: &StatisticsTable,
    row: &[crate::health::statistics::StatisticsCell],
    bars: &[Option<f64>],
) -> Markup {
    html! {
        tr {
            @for ((cell, column), longest) in row.iter().zip(&table.columns).zip(bars) {
                td .n[column.is_number] .text[!column.is_number] {
                    @if let (Some(longest), Some(number)) = (longest, cell.number) {
                        svg.bar.small viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                            rect x="0" y="1" width=(format!("{:.2}", (number / longest * 100.0).clamp(0.0, 100.0))) height="8" {}
                        }
                        " "
                    }
                    bdi { (cell.text) }
                }
            }
        }
    }
}

/// What a full bar of a column stands for, if it has bars.
fn longest(table: &StatisticsTable, at: usize) -> Option<f64> {
    table.columns.get(at).filter(|column| column.has_bar)?;
    let longest = table.rows.iter().filter_map(|row| row.get(at)?.number).fold(0.0, f64::max);
    (longest > 0.0).then_some(longest)
}
