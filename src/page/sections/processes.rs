//! Workers and all other processes, rolls and deployments, and the boot as a time line.

use maud::{Markup, html};

use super::{scrolling, time};
use crate::health::overview::{BootStepOverview, Overview, ServiceOverview};
use crate::page::words::{bytes, count, duration};

/// Every process. The script draws the last minutes of a number beside it.
pub fn processes(overview: &Overview) -> Markup {
    let (ready, wanted) = (overview.workers_ready, overview.workers_wanted);
    html! {
        section #processes aria-labelledby="processes-title" {
            h2 #processes-title { "Processes" }
            @if wanted > 0 { p { (ready) " of " (wanted) " workers are ready." } }
            (scrolling("processes-scroll", "Table of processes", html! {
                table {
                    caption.hidden { "Every process, its state and its work" }
                    thead {
                        tr {
                            th scope="col" { "name" }
                            th scope="col" { "state" }
                            th.n scope="col" { "requests/s" }
                            th.n scope="col" { "in flight" }
                            th.n scope="col" { "loop lag" }
                            th.n scope="col" { "memory" }
                            th.n scope="col" { "age" }
                            th.n scope="col" { "pid" }
                            th.n scope="col" { "requests" }
                            th.n scope="col" { "restarts" }
                            th scope="col" { "last reason" }
                        }
                    }
                    tbody { @for service in &overview.services { (row(service)) } }
                }
            }))
        }
    }
}

fn row(service: &ServiceOverview) -> Markup {
    // The one that holds the place keeps its history when its process is another one.
    let key = match service.role.as_str() {
        "standing" => service.name.clone(),
        _ => format!("{}/{}", service.name, service.pid.unwrap_or_default()),
    };
    let spark = |what: &str, number: Option<f64>, words: Option<String>| {
        html! {
            td.n {
                @if let (Some(number), Some(words)) = (number, words) {
                    svg.spark data-keep data-series={ (key) "/" (what) } viewBox="0 0 60 16" aria-hidden="true" { polyline points="" {} }
                    " " span data-value=(number) { (words) }
                }
            }
        }
    };
    let rate = service.requests_per_second;
    let (flight, memory, lag) = (service.in_flight, service.memory_bytes, service.loop_lag_ms);
    html! {
        tr data-key=(key) {
            th scope="row" { bdi { (service.name) } }
            td { (state(service)) }
            (spark("rate", rate, rate.map(|rate| format!("{rate:.1}"))))
            (spark("flight", flight.map(|it| it as f64), flight.map(count)))
            (spark("lag", lag, lag.map(|lag| duration(lag / 1000.0))))
            (spark("memory", memory.map(|it| it as f64), memory.map(bytes)))
            td.n { @if let Some(age) = service.uptime_seconds { (duration(age)) } }
            td.n { @if let Some(pid) = service.pid { (pid) } }
            td.n { @if let Some(requests) = service.requests { (count(requests)) } }
            td.n { (service.restarts) }
            td { @if let Some(reason) = &service.last_reason { bdi { (reason) } } }
        }
    }
}

fn state(service: &ServiceOverview) -> Markup {
    let (look, mark) = match service.state.as_str() {
        "ready" => ("ok", "✓"),
        "gave-up" | "abandoned" | "hung" | "backoff" => ("bad", "✗"),
        _ => ("warn", "…"),
    };
    html! {
        span.badge.(look) { span aria-hidden="true" { (mark) " " } (service.state) }
        @if service.role != "standing" { " " span.muted { (service.role) } }
        @if let Some(draining) = &service.draining { " " span.muted { "finishes " bdi { (draining) } } }
        " " span.muted { "for " (duration(service.state_seconds)) }
    }
}

/// Rolls, deployments, and whatever else happened, newest first.
pub fn changes(overview: &Overview) -> Markup {
    html! {
        section #changes aria-labelledby="changes-title" {
            h2 #changes-title { "What happened" }
            @if let Some(step) = &overview.deployment_step { p { strong.badge.warn { "deployment" } " " bdi { (step) } } }
            @if let Some(roll) = &overview.roll { p { strong.badge.warn { "roll" } " " (roll) } }
            @if overview.history.is_empty() {
                p.muted { "Nothing yet." }
            } @else {
                (scrolling("changes-scroll", "Table of what happened", html! {
                    table {
                        caption.hidden { "What happened since the start of Tandem, newest first" }
                        thead { tr { th scope="col" { "time" } th scope="col" { "what" } } }
                        tbody {
                            @for event in overview.history.iter().rev() {
                                tr.(if event.is_bad { "bad" } else { "plain" }) {
                                    td { (time(&event.time)) }
                                    td.text {
                                        @if event.is_bad { span aria-hidden="true" { "✗ " } }
                                        bdi { (event.words) }
                                    }
                                }
                            }
                        }
                    }
                }))
            }
        }
    }
}

/// The boot as a time line.
pub fn boot(overview: &Overview) -> Markup {
    let end =
        overview.boot.iter().filter_map(|step| Some(step.began_seconds? + step.took_seconds?)).fold(0.0, f64::max);
    html! {
        section #boot aria-labelledby="boot-title" {
            h2 #boot-title { "Boot" }
            @if overview.boot.is_empty() {
                p.muted { "It has not begun: what a start waits for is shown above." }
            } @else {
                (scrolling("boot-scroll", "Table of the boot's steps", html! {
                    table.timeline {
                        caption.hidden { "The steps of the boot in their order" }
                        thead {
                            tr {
                                th scope="col" { "step" }
                                th scope="col" { "state" }
                                th.n scope="col" { "began after" }
                                th.n scope="col" { "took" }
                                td {}
                            }
                        }
                        tbody { @for step in &overview.boot { (boot_step(step, end)) } }
                    }
                }))
            }
        }
    }
}

fn boot_step(step: &BootStepOverview, end: f64) -> Markup {
    let (look, mark) = match step.state.as_str() {
        "done" => ("ok", "✓"),
        "running" => ("warn", "…"),
        _ => ("plain", "·"),
    };
    let part = |seconds: f64| if end > 0.0 { seconds / end * 100.0 } else { 0.0 };
    let (began, took) = (part(step.began_seconds.unwrap_or(0.0)), part(step.took_seconds.unwrap_or(0.0)));
    html! {
        tr data-key=(step.name) {
            th scope="row" { (step.name) }
            td { span.badge.(look) { span aria-hidden="true" { (mark) " " } (step.state) } }
            td.n { @if let Some(began) = step.began_seconds { (duration(began)) } }
            td.n { @if let Some(took) = step.took_seconds { (duration(took)) } }
            td.wide {
                svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                    rect x=(format!("{began:.2}")) y="1" width=(format!("{:.2}", took.max(0.4))) height="8" {}
                }
            }
        }
    }
}
