//! The whole page as HTML, from an [`Overview`]; the same again as events. Pure.

use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::sections;
use super::words::{duration, stamp};
use crate::health::overview::{LogLine, Overview, StatisticsOverview};

/// The licence that uPlot's copies must carry (MIT).
const UPLOT_LICENSE: &str = include_str!("assets/uplot.LICENSE");
pub const ICON: &str = include_str!("assets/icon.svg");

/// The style, as it stands in the page: its digest is in the page's policy.
pub static STYLE: LazyLock<String> =
    LazyLock::new(|| [include_str!("assets/uplot.css"), include_str!("assets/page.css")].join("\n"));
/// The script, as it stands in the page.
pub static SCRIPT: LazyLock<String> = LazyLock::new(|| {
    let licence = format!("/*\n{UPLOT_LICENSE}\n*/");
    [&*licence, include_str!("assets/uplot.js"), include_str!("assets/page.js")].join("\n")
});

/// What the query of a page's address asks for; what is unknown in it asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Only lines of the log with this in them.
    pub filter: String,
    /// Only lines of at least this level.
    pub level: String,
    /// After how many seconds the page is loaded again.
    pub refresh: Option<u32>,
}

impl Asked {
    pub fn of_query(query: &str) -> Self {
        let mut asked = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "filter" => asked.filter = value.into_owned(),
                "level" => asked.level = value.into_owned(),
                "refresh" => asked.refresh = value.parse().ok(),
                _ => {}
            }
        }
        asked
    }

    fn wants(&self, line: &LogLine) -> bool {
        let filter = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&filter);
        let is_wanted = match self.level.as_str() {
            "ERROR" => line.level == "ERROR",
            "WARN" => matches!(line.level.as_str(), "ERROR" | "WARN"),
            _ => true,
        };
        is_wanted && (has(&line.text) || has(&line.service))
    }
}

/// The page.
pub fn page(overview: &Overview, asked: &Asked) -> String {
    let statistics = overview.statistics.clone().unwrap_or_default();
    let lines: Vec<_> = overview.log.iter().filter(|line| asked.wants(line)).collect();
    let title = format!("{} · {}", overview.name, overview.status);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) }
                link rel="icon" href="/icon.svg" type="image/svg+xml";
                style { (PreEscaped(&*STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the state" }
                header {
                    div #top { (top(overview)) }
                    p #link {
                        "As of " (stamp(&overview.time)) " UTC. "
                        @if asked.refresh.is_none() {
                            a href="/?refresh=10" { "Load it again every 10 seconds" }
                        } @else {
                            a href="/" { "Stop loading it again" }
                        }
                    }
                    p #news .hidden role="status" {}
                }
                main #main tabindex="-1" {
                    div #live { (live(overview, &statistics)) }
                    section #charts aria-labelledby="charts-title" hidden {
                        h2 #charts-title { "The last ten minutes" }
                        div.charts {}
                    }
                    (sections::log(&lines, asked))
                }
                footer { p { "Tandem " (overview.version) " · times are UTC · this page changes nothing" } }
                script { (PreEscaped(&*SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// The events that bring the page up to date: its parts, and new lines of the log. `known` are the last statistics.
pub fn event(overview: &Overview, known: &mut StatisticsOverview) -> String {
    if let Some(statistics) = &overview.statistics {
        known.clone_from(statistics);
    }
    let parts = html! {
        div #top { (top(overview)) }
        div #live { (live(overview, known)) }
    };
    let mut text = named("page", parts);
    if !overview.log.is_empty() {
        let lines: Vec<_> = overview.log.iter().collect();
        text.push_str(&named("log", html! { table { tbody { (sections::log_rows(&lines)) } } }));
    }
    text
}

/// A server-sent event. A line feed would end its data, so each line is a `data` of its own (HTML standard, 9.2.6).
fn named(name: &str, data: Markup) -> String {
    let mut text = format!("event: {name}\n");
    for line in data.into_string().split('\n') {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text
}

/// The name of the deployment and how it is.
fn top(overview: &Overview) -> Markup {
    let (look, mark) = match overview.status.as_str() {
        "healthy" => ("ok", "✓"),
        "degraded" => ("warn", "!"),
        _ => ("bad", "✗"),
    };
    html! {
        h1 { bdi { (overview.name) } }
        p.state {
            strong.badge.(look) { span aria-hidden="true" { (mark) " " } (overview.status) }
            " " span.badge { (overview.phase) }
            " " span.muted { "up for " (duration(overview.uptime_seconds)) ", process " (overview.pid) }
        }
        @if !overview.application.is_empty() {
            p.muted { "The application is served on " bdi { (overview.application) } "." }
        }
    }
}

/// Everything that an event renews, but the log.
fn live(overview: &Overview, statistics: &StatisticsOverview) -> Markup {
    let workers = overview.services.iter().filter(|service| service.kind == "worker");
    let rate: f64 = workers.clone().filter_map(|worker| worker.requests_per_second).sum();
    let in_flight: u64 = workers.filter_map(|worker| worker.in_flight).sum();
    let database = &overview.database;
    html! {
        // What the charts and the news are made from.
        div #now hidden data-instance=(overview.instance) data-version=(overview.version) data-status=(overview.status)
            data-phase=(overview.phase) data-time=(overview.time) data-rate=(rate) data-flight=(in_flight)
            data-latency=(database.latency_ms.filter(|_| database.available).map(|it| it.to_string()).unwrap_or_default())
            data-connections=(database.connections.map(|it| it.to_string()).unwrap_or_default()) {}
        (sections::reasons(overview))
        (sections::processes(overview))
        (sections::database(overview, statistics))
        (sections::changes(overview))
        (sections::boot(overview))
        (sections::backups(overview))
        (sections::disks(overview))
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
