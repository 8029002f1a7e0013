//! The parts of the page. Pure.
//!
//! Every part is a section with a heading. Tables have captions, and what is wide scrolls by itself, so that the page never
//! does. What a colour says, a word says too. Foreign text stands in `bdi`, so that it turns no other text's direction.

mod backups;
mod database;
mod processes;

use maud::{Markup, html};

pub use backups::{backups, disks};
pub use database::database;
pub use processes::{boot, changes, processes};

use super::render::Asked;
use super::words::{clock, stamp};
use crate::health::overview::{LogLine, Overview};

/// Why it is not healthy, and what a boot waits for.
pub fn reasons(overview: &Overview) -> Markup {
    let under_way = if overview.phase == "serving" { &[][..] } else { &overview.under_way[..] };
    html! {
        @if !overview.reasons.is_empty() || !under_way.is_empty() {
            section #why aria-labelledby="why-title" {
                h2 #why-title { "Why it is " (overview.status) }
                ul {
                    @for reason in &overview.reasons { li { bdi { (reason) } } }
                    @for work in under_way { li { "under way: " bdi { (work) } } }
                }
            }
        }
    }
}

/// The last lines of the log, with a filter. Without JavaScript the filter is a form.
pub fn log(lines: &[&LogLine], asked: &Asked) -> Markup {
    let option = |value: &str, words: &str| {
        html! {
            option value=(value) selected[asked.level == value] { (words) }
        }
    };
    html! {
        section #log aria-labelledby="log-title" {
            h2 #log-title { "Log" }
            form #log-filter method="get" action="/#log" {
                label { "Contains " input #log-text type="search" name="filter" value=(asked.filter) autocomplete="off"; }
                " "
                label {
                    "Level "
                    select #log-level name="level" {
                        (option("", "all"))
                        (option("WARN", "warnings and errors"))
                        (option("ERROR", "errors"))
                    }
                }
                " "
                button type="submit" { "Filter" }
            }
            (scrolling("log-scroll", "Lines of the log", html! {
                table #log-lines {
                    caption.hidden { "The last lines of the log, oldest first" }
                    thead { tr { th scope="col" { "time" } th scope="col" { "service" } th scope="col" { "line" } } }
                    tbody { (log_rows(lines)) }
                }
            }))
            p #log-none hidden[!lines.is_empty()] { "No line is like that." }
        }
    }
}

/// Lines of the log as rows.
pub fn log_rows(lines: &[&LogLine]) -> Markup {
    html! {
        @for line in lines {
            tr data-n=(line.sequence) data-level=(line.level) .(level(&line.level)) {
                td { time datetime=(line.time) title=(stamp(&line.time)) { (clock(&line.time)) } }
                td { bdi { (line.service) } }
                td.text {
                    @if matches!(line.level.as_str(), "ERROR" | "WARN") { strong { (line.level) } " " }
                    bdi { (line.text) }
                }
            }
        }
    }
}

fn level(level: &str) -> &'static str {
    match level {
        "ERROR" => "bad",
        "WARN" => "warn",
        _ => "plain",
    }
}

/// What may be wider than the page: it scrolls by itself, also by keyboard.
fn scrolling(id: &str, label: &str, content: Markup) -> Markup {
    html! { div.scroll id=(id) role="region" aria-label=(label) tabindex="0" { (content) } }
}

/// A moment as people read it.
fn time(moment: &str) -> Markup {
    html! { time datetime=(moment) { (stamp(moment)) } }
}
