//! `tandem doctor`

use std::cell::RefCell;
use std::rc::Rc;

use crate::backup::doctor::{self, Disk, Finding, Kind, Place};
use crate::backup::restore::Restoring;
use crate::cli::Common;
use crate::commands::open::{self, Database};
use crate::commands::restore::confirm;
use crate::commands::running::say;
use crate::commands::table::size;
use crate::config::PostgresMode;
use crate::exit::{Code, in_words};
use crate::postgres::home::Home;
use crate::postgres::server;
use crate::sidecar::Configuration;

/// What was found, and what became of it.
#[derive(Debug, Default, serde::Serialize)]
struct Report {
    disks: Vec<Disk>,
    findings: Vec<Finding>,
    removed: Vec<String>,
    notes: Vec<String>,
}

/// Show free room and what takes it; with `fix` remove leftovers, and after a confirmation what restores replaced.
///
/// # Errors
/// The configuration is wrong, or the answer cannot be printed. What cannot be looked at or removed is told.
pub async fn run(common: &Common, fix: bool, yes: bool, json: bool) -> anyhow::Result<Code> {
    let configuration = open::configuration(common, Vec::new())?;
    let settings = configuration.loaded.settings.clone();
    let home = Home::resolve(&settings)?;
    let mut report = Report { findings: doctor::on_disks(&settings, &home), ..Report::default() };
    let of_recovery = doctor::of_recovery(&settings, &home);
    report.notes.clone_from(&of_recovery);
    if fix {
        let leftovers = of_kind(&report.findings, Kind::Leftover);
        report.removed = doctor::sweep(&settings, &home, &leftovers).await;
        let kept = of_kind(&report.findings, Kind::Kept);
        if agreed(&kept, yes, &mut report.notes) {
            for one in &kept {
                if let Place::Cluster(path) = &one.place {
                    doctor::remove_cluster(&home, path).await;
                    report.removed.extend((!path.exists()).then(|| one.what.clone()));
                }
            }
        }
    }
    // Removing files may be what lets the server start.
    look_into_server(configuration, &home, (fix, yes), &mut report).await;
    report.disks = doctor::disks(&settings, &home);
    let is_left = |one: &Finding| one.kind != Kind::Kept && !report.removed.contains(&one.what);
    let is_well =
        of_recovery.is_empty() && !report.disks.iter().any(|disk| disk.low) && !report.findings.iter().any(is_left);
    say(&if json { serde_json::to_string_pretty(&report)? } else { words(&report, fix) })?;
    Ok(if is_well { Code::Stopped } else { Code::Failed })
}

fn of_kind(findings: &[Finding], kind: Kind) -> Vec<Finding> {
    findings.iter().filter(|one| one.kind == kind).cloned().collect()
}

/// Whether what restores replaced is to go.
fn agreed(kept: &[Finding], yes: bool, notes: &mut Vec<String>) -> bool {
    if kept.is_empty() {
        return false;
    }
    let names: Vec<&str> = kept.iter().map(|one| one.what.as_str()).collect();
    let named: Vec<String> = kept.iter().map(|one| format!("{} ({})", one.what, one.why)).collect();
    let question = format!("These will be removed, and with them the way back: {}.", named.join(", "));
    let answer = confirm(yes, &question);
    if answer.is_err() {
        notes.push(format!("{} stays: say --yes to remove it", names.join(", ")));
    }
    answer.is_ok()
}

/// Look into the server that runs. To remove something, one is started where none runs.
async fn look_into_server(configuration: Configuration, home: &Home, (fix, yes): (bool, bool), report: &mut Report) {
    let mode = configuration.loaded.settings.postgres.mode;
    let runs = mode == PostgresMode::Attach || server::own_running_port(home).is_some();
    let starts = fix && home.data.join("PG_VERSION").exists();
    if !runs && !starts {
        report.notes.push("no server runs, so its databases were not looked at (--fix starts one)".to_owned());
        return;
    }
    let found = Rc::new(RefCell::new(Report::default()));
    let into = found.clone();
    let outcome = open::with_database_of(configuration, "tandem doctor", async move |at: Database| {
        let mut report = Report { findings: doctor::in_server(&at.reach, &at.name).await?, ..Report::default() };
        let outcome = if fix { fix_databases(&at, yes, &mut report).await } else { Ok(()) };
        *into.borrow_mut() = report;
        outcome
    })
    .await;
    let found = found.take();
    report.findings.extend(found.findings);
    report.removed.extend(found.removed);
    report.notes.extend(found.notes);
    if let Err(error) = outcome {
        report.notes.push(format!("the databases: {}", in_words(&error)));
    }
}

async fn fix_databases(at: &Database, yes: bool, report: &mut Report) -> anyhow::Result<()> {
    if report.findings.is_empty() {
        return Ok(());
    }
    // Whoever takes the lock of restores drops what an ended one left.
    let restoring = Restoring::begin(&at.reach, &at.name).await?;
    report.removed.extend(of_kind(&report.findings, Kind::Leftover).into_iter().map(|one| one.what));
    let kept = of_kind(&report.findings, Kind::Kept);
    if agreed(&kept, yes, &mut report.notes) {
        for one in kept {
            if let Place::Database(name) = &one.place {
                doctor::drop_database(&restoring, &at.reach, name).await?;
                report.removed.push(one.what);
            }
        }
    }
    restoring.end().await;
    Ok(())
}

fn words(report: &Report, fix: bool) -> String {
    let mut lines = Vec::new();
    for Disk { name, path, free_bytes, total_bytes, low } in &report.disks {
        let low = if *low { ", less than disk.warn_free asks for" } else { "" };
        let (free, total, path) = (size(Some(*free_bytes)), size(Some(*total_bytes)), path.display());
        lines.push(format!("disk of the {name}: {free} free of {total}{low} ({path})"));
    }
    for one in &report.findings {
        let state = match one.kind {
            _ if report.removed.contains(&one.what) => "removed",
            Kind::Leftover => "left over",
            Kind::Kept => "kept",
            Kind::Incomplete => "no backup",
        };
        lines.push(format!("{state}: {}, {}: {}", one.what, size(Some(one.bytes)), one.why));
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    if report.findings.is_empty() {
        lines.push("nothing of Tandem's takes room that it need not".to_owned());
    } else if !fix {
        lines.push("`tandem doctor --fix` removes what is left over, and asks about what is kept".to_owned());
    }
    lines.join("\n")
}
