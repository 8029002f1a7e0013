//! `tandem status`

use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::Table;

use crate::cli::Common;
use crate::commands::running;
use crate::commands::table::{age, plain, size};
use crate::control::client;
use crate::control::messages::{ServiceStatus, Status};
use crate::exit::{Code, in_words};
use crate::health::picture;
use crate::telemetry::{self, Printed};

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Cursor home, then clear what is below (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Print the state of every process of the running Tandem.
///
/// # Errors
/// No Tandem runs; with `watch`, none ran when it began.
pub async fn run(common: &Common, json: bool, watch: bool) -> anyhow::Result<Code> {
    let socket = running::socket(common)?;
    let mut status = client::status(&socket).await;
    if status.is_err() || !watch {
        running::say(&shown(&status?, json)?)?;
        return Ok(Code::Stopped);
    }
    let clear = if !json && io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        match &status {
            Ok(status) if telemetry::print(&format!("{clear}{}\n", shown(status, json)?))? == Printed::Unread => {
                return Ok(Code::Stopped);
            }
            Ok(_) => {}
            // Tandem may be restarting.
            Err(error) => telemetry::say_aside(&format!("{clear}tandem: {}", in_words(error))),
        }
        tokio::time::sleep(INTERVAL).await;
        status = client::status(&socket).await;
    }
}

fn shown(status: &Status, json: bool) -> anyhow::Result<String> {
    Ok(if json { serde_json::to_string(status)? } else { table(status) })
}

/// One row per process, Tandem's own first, and a row with the total.
fn table(status: &Status) -> String {
    let mut table = Table::new();
    table.set_header(["SERVICE", "PID", "STATE", "UPTIME", "RESTARTS", "REQUESTS", "IN FLIGHT", "MEMORY"]);
    let (pid, uptime) = (status.pid.to_string(), age(Some(status.uptime_seconds)));
    let own = ["tandem", &pid, &status.phase, &uptime, "", "", "", &size(status.memory_bytes)].map(str::to_owned);
    table.add_row(own);
    for service in &status.services {
        table.add_row(row(service));
    }
    table.add_row(["", "", "", "", "", "", "total", &size(Some(status.memory_total_bytes))]);
    let draining: String = status.services.iter().filter_map(draining).collect();
    let roll = status.roll.as_ref().map_or_else(String::new, |roll| format!("roll: {roll}\n"));
    let under_way: String = status.under_way.iter().map(|work| format!("under way: {work}\n")).collect();
    let backups = status.backups.as_ref().map_or_else(String::new, |words| format!("\nbackups: {words}"));
    let hook = status.hook.as_ref().map_or_else(String::new, |why| format!("\n{why}"));
    format!("{roll}{under_way}{draining}{}{backups}{hook}", plain(table, &[1, 3, 5, 6, 7]))
}

/// What a replaced worker still does, in a line.
fn draining(service: &ServiceStatus) -> Option<String> {
    let unfinished = service.unfinished.as_ref()?;
    let (since, pid) = (age(Some(service.state_seconds)), service.pid?);
    Some(format!(
        "{} (process {pid}) was replaced {since} ago and finishes {}\n",
        service.name,
        picture::in_words(unfinished)
    ))
}

fn row(service: &ServiceStatus) -> [String; 8] {
    let state = match service.role.as_str() {
        "standing" => service.state.clone(),
        role => format!("{} ({role})", service.state),
    };
    let restarts = match &service.last_reason {
        Some(reason) if service.restarts > 0 => format!("{} ({reason})", service.restarts),
        _ => service.restarts.to_string(),
    };
    let number = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    [
        service.name.clone(),
        service.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        state,
        age(service.uptime_seconds),
        restarts,
        number(service.requests),
        number(service.in_flight),
        size(service.memory_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Unfinished;
    use expect_test::expect;

    #[test]
    fn the_table_has_a_row_for_each_process_and_nothing_at_the_lines_ends() {
        let worker = ServiceStatus {
            name: "worker-0".into(),
            kind: "worker".into(),
            pid: Some(4711),
            state: "ready".into(),
            state_seconds: 1.0,
            role: "standing".into(),
            uptime_seconds: Some(7_265.9),
            restarts: 2,
            last_reason: Some("SIGKILL".into()),
            requests: Some(123_456),
            connections: Some(9),
            in_flight: Some(3),
            unfinished: None,
            memory_bytes: Some(35 * 1024 * 1024),
        };
        let replaced = ServiceStatus {
            pid: Some(4700),
            state: "draining".into(),
            state_seconds: 42.0,
            role: "retiring".into(),
            unfinished: Some(Unfinished {
                requests: 2,
                streams: 1,
                idle: 0,
                on: vec!["GET /export".into(), "WebSocket /ws".into()],
            }),
            ..worker.clone()
        };
        let replacement = ServiceStatus {
            pid: None,
            state: "backoff".into(),
            role: "replacement".into(),
            uptime_seconds: None,
            restarts: 0,
            requests: None,
            in_flight: None,
            memory_bytes: None,
            ..worker.clone()
        };
        let status = Status {
            version: "0.1.0".into(),
            pid: 1,
            memory_bytes: Some(4_400_000),
            phase: "serving".into(),
            uptime_seconds: 200_000.0,
            roll: Some("worker-0 is being replaced".into()),
            under_way: vec!["making the Python environment".into()],
            hook: Some("hooks.after_ready ended with exit status 1; the log has the rest".into()),
            backups: Some("next 2026-11-27 02:00 UTC".into()),
            services: vec![worker, replacement, replaced],
            memory_total_bytes: 41_100_160,
        };
        expect![[r#"
            roll: worker-0 is being replaced
            under way: making the Python environment
            worker-0 (process 4700) was replaced 42s ago and finishes 2 requests, 1 stream: GET /export, WebSocket /ws
            SERVICE    PID  STATE                    UPTIME  RESTARTS     REQUESTS  IN FLIGHT   MEMORY
            tandem       1  serving                2days 7h                                     4.2 MB
            worker-0  4711  ready                     2h 1m  2 (SIGKILL)    123456          3  35.0 MB
            worker-0     -  backoff (replacement)         -  0
            worker-0  4700  draining (retiring)       2h 1m  2 (SIGKILL)    123456          3  35.0 MB
                                                                                        total  39.2 MB
            backups: next 2026-11-27 02:00 UTC
            hooks.after_ready ended with exit status 1; the log has the rest"#]]
        .assert_eq(&table(&status));
    }
}
