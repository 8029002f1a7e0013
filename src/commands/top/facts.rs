//! What `tandem top` says of health, the database and disks, in a line each. Pure.

use std::time::Duration;

use crate::commands::table::size;
use crate::health::overview::{DatabaseOverview, DiskOverview, Overview};

/// Reasons that are shown at most; `/health` has all.
const REASONS_MAX: usize = 3;
/// A disk that is full later than this is not worth a line.
const FULL_SOON: Duration = Duration::from_hours(7 * 24);

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Well(String),
    Careful(String),
    Bad(String),
}

/// The lines about `overview`.
pub fn of(overview: &Overview) -> Vec<Fact> {
    let is_bad = overview.status == "unhealthy";
    let reason = |reason: &String| {
        let text = format!("{}: {reason}", overview.status);
        if is_bad { Fact::Bad(text) } else { Fact::Careful(text) }
    };
    let mut facts: Vec<Fact> = overview.reasons.iter().take(REASONS_MAX).map(reason).collect();
    facts.push(database(&overview.database));
    facts.extend(overview.disks.iter().filter_map(disk));
    facts.extend(overview.deployment_step.iter().map(|step| Fact::Careful(format!("deployment: {step}"))));
    facts
}

fn database(database: &DatabaseOverview) -> Fact {
    if !database.available {
        return Fact::Bad(format!("database: {}", database.error.as_deref().unwrap_or("not asked yet")));
    }
    let latency = database.latency_ms.map(|ms| format!("answers in {ms} ms"));
    let connections = database.connections.map(|count| match database.max_connections {
        Some(most) => format!("{count} of {most} connections"),
        None => format!("{count} connections"),
    });
    let tables = database.tables.map(|count| format!("{count} tables"));
    let schema = database.schema_version.as_ref().map(|revision| format!("revision {revision}"));
    let parts: Vec<String> = [latency, connections, tables, schema].into_iter().flatten().collect();
    Fact::Well(format!("database: {}", parts.join(", ")))
}

/// A disk that somebody should look at.
fn disk(disk: &DiskOverview) -> Option<Fact> {
    let name = &disk.name;
    if let Some(seconds) = disk.unanswered_seconds {
        return Some(Fact::Bad(format!("disk of {name}: no answer for {seconds:.0} s")));
    }
    let (free, full_in) = (disk.free_bytes?, disk.full_in_seconds.filter(|seconds| *seconds < FULL_SOON.as_secs_f64()));
    let is_low = disk.wanted_bytes.is_some_and(|wanted| free < wanted);
    if !is_low && full_in.is_none() {
        return None;
    }
    let soon =
        full_in.map_or_else(String::new, |seconds| format!(", full in {:.1} hours at this pace", seconds / 3600.0));
    Some(Fact::Careful(format!("disk of {name}: {} free{soon}", size(Some(free)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_matters_of_each() {
        let mut overview = Overview { status: "degraded".into(), ..Overview::default() };
        overview.reasons = (0..5).map(|number| format!("reason {number}")).collect();
        overview.database = DatabaseOverview {
            available: true,
            latency_ms: Some(0.5),
            connections: Some(7),
            max_connections: Some(60),
            tables: Some(2),
            schema_version: Some("m001".into()),
            ..DatabaseOverview::default()
        };
        let disk = DiskOverview { name: "data".into(), free_bytes: Some(1 << 30), ..DiskOverview::default() };
        let low = DiskOverview { wanted_bytes: Some(2 << 30), full_in_seconds: Some(7200.0), ..disk.clone() };
        let hung = DiskOverview { unanswered_seconds: Some(9.0), ..disk.clone() };
        overview.disks = vec![disk, low, hung];
        let careful = |text: &str| Fact::Careful(text.to_owned());
        assert_eq!(
            of(&overview),
            [
                careful("degraded: reason 0"),
                careful("degraded: reason 1"),
                careful("degraded: reason 2"),
                Fact::Well("database: answers in 0.5 ms, 7 of 60 connections, 2 tables, revision m001".into()),
                careful("disk of data: 1024.0 MB free, full in 2.0 hours at this pace"),
                Fact::Bad("disk of data: no answer for 9 s".into()),
            ]
        );
        overview = Overview { status: "unhealthy".into(), reasons: vec!["no database".into()], ..Overview::default() };
        overview.database.error = Some("the server is not running".into());
        let bad = |text: &str| Fact::Bad(text.to_owned());
        assert_eq!(of(&overview), [bad("unhealthy: no database"), bad("database: the server is not running")]);
    }
}
