//! `tandem status`

use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::Table;

use crate::cli::Common;
use crate::commands::running;
use crate::commands::table::{age, plain, size};
use crate::control::client;
use crate::control::messages::{CertificateStatus, ServiceStatus, Status};
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
    let width = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    Ok(if json { serde_json::to_string(status)? } else { table(status, width) })
}

/// The columns, and how many of them a narrow terminal may lack: those with the highest number go first.
const COLUMNS: [(&str, usize); 8] = [
    ("SERVICE", 0),
    ("PID", 4),
    ("STATE", 0),
    ("UPTIME", 2),
    ("RESTARTS", 1),
    ("REQUESTS", 3),
    ("IN FLIGHT", 5),
    ("MEMORY", 0),
];
/// Those whose cells stand at their right edge.
const RIGHT: [&str; 5] = ["PID", "UPTIME", "REQUESTS", "IN FLIGHT", "MEMORY"];

/// One row per process, Tandem's own first, and a row with the total; on a terminal of `width` columns as much of it as
/// stands in one line.
fn table(status: &Status, width: Option<usize>) -> String {
    let (pid, uptime) = (status.pid.to_string(), age(Some(status.uptime_seconds)));
    let own = ["tandem", &pid, &status.phase, &uptime, "", "", "", &size(status.memory_bytes)].map(str::to_owned);
    let total = ["total", "", "", "", "", "", "", &size(Some(status.memory_total_bytes))].map(str::to_owned);
    let rows = |reasons| {
        let services = status.services.iter().map(move |service| row(service, reasons));
        [own.clone()].into_iter().chain(services).chain([total.clone()]).collect::<Vec<_>>()
    };
    // First go the reasons of restarts, then columns.
    let fewer = (1..=5).rev().map(|level| (false, level));
    let mut layouts =
        [(true, 6), (false, 6)].into_iter().chain(fewer).map(|(reasons, level)| laid_out(&rows(reasons), level));
    let fits = |text: &String| width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= width));
    let mut last = layouts.next().unwrap_or_default();
    while !fits(&last)
        && let Some(next) = layouts.next()
    {
        last = next;
    }
    let draining: String = status.services.iter().filter_map(draining).collect();
    let roll = status.roll.as_ref().map_or_else(String::new, |roll| format!("roll: {roll}\n"));
    let under_way: String = status.under_way.iter().map(|work| format!("under way: {work}\n")).collect();
    let backups = status.backups.as_ref().map_or_else(String::new, |words| format!("\nbackups: {words}"));
    let of = |one: &CertificateStatus| format!("{} {} days left", one.of, one.days_left);
    let certificates = status.certificates.iter().map(of).collect::<Vec<_>>().join(", ");
    let certificates = match certificates.is_empty() {
        true => certificates,
        false => format!("\ncertificates: {certificates}"),
    };
    let hook = status.hook.as_ref().map_or_else(String::new, |why| format!("\n{why}"));
    format!("{roll}{under_way}{draining}{last}{backups}{certificates}{hook}")
}

/// The `rows` in the columns whose number is below `level`.
fn laid_out(rows: &[[String; 8]], level: usize) -> String {
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(|&column| COLUMNS[column].1 < level).collect();
    let mut table = Table::new();
    table.set_header(shown.iter().map(|&column| COLUMNS[column].0));
    for row in rows {
        table.add_row(shown.iter().map(|&column| &row[column]));
    }
    let right: Vec<usize> = (0..shown.len()).filter(|&place| RIGHT.contains(&COLUMNS[shown[place]].0)).collect();
    plain(table, &right)
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

fn row(service: &ServiceStatus, reasons: bool) -> [String; 8] {
    let state = match service.role.as_str() {
        "standing" => service.state.clone(),
        role => format!("{} ({role})", service.state),
    };
    let restarts = match &service.last_reason {
        Some(reason) if reasons && service.restarts > 0 => format!("{} ({reason})", service.restarts),
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
            certificates: vec![CertificateStatus {
                of: "postgres".into(),
                not_after: "2027-11-27T00:00:00Z".into(),
                days_left: 365,
            }],
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
            total                                                                              39.2 MB
            backups: next 2026-11-27 02:00 UTC
            certificates: postgres 365 days left
            hooks.after_ready ended with exit status 1; the log has the rest"#]]
        .assert_eq(&table(&status, None));
        for width in [120, 100, 80, 60, 44] {
            let text = table(
                &Status { hook: None, roll: None, services: status.services[..2].to_vec(), ..status.clone() },
                Some(width),
            );
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("backoff (replacement)") && text.contains("35.0 MB"), "{width}:\n{text}");
        }
    }
}
