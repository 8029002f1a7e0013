//! `tandem doctor`

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use crate::backup::doctor::{self as room, Disk, Finding, Kind, Place};
use crate::backup::restore::Restoring;
use crate::cli::{Common, DoctorArgs};
use crate::commands::open::{self, Database};
use crate::commands::restore::confirm;
use crate::commands::running::say;
use crate::commands::table::size;
use crate::config::{Debugger, PostgresMode, Settings};
use crate::doctor::{self, Diagnosis, Facts, Subject};
use crate::exit::{Code, in_words};
use crate::postgres::home::Home;
use crate::scrub::scrubbed;
use crate::sidecar::Configuration;
use crate::telemetry;

/// What was found, and what became of it.
#[derive(Debug, serde::Serialize)]
struct Report {
    #[serde(flatten)]
    diagnosis: Diagnosis,
    disks: Vec<Disk>,
    /// What takes room and need not, as it was before anything was removed.
    findings: Vec<Finding>,
    #[serde(flatten)]
    done: Done,
}

/// What `--fix` did, and what is to be said about it.
#[derive(Debug, Default, serde::Serialize)]
struct Done {
    removed: Vec<String>,
    changed: Vec<String>,
    notes: Vec<String>,
}

/// Look for what is wrong; with `--fix` remove leftovers and, after a confirmation, what restores replaced, and look again.
///
/// # Errors
/// `--set` sets nothing, the archive cannot be written, or the answer cannot be printed. What is wrong with the project is no
/// error here: it is found.
pub async fn run(common: &Common, args: DoctorArgs) -> anyhow::Result<Code> {
    let began = Instant::now();
    let source = open::source(common, Vec::new())?;
    let subject = Subject::read(&source, args.deep).await;
    let mut facts = doctor::look(&subject).await;
    let findings = taking_room(&facts);
    let mut done = Done::default();
    if args.fix {
        if let Ok(settings) = &subject.settings {
            telemetry::init(settings.log.format, &settings.log.filter, settings.log.colour)?;
        }
        fix(&subject, &findings, args.yes, &mut done).await;
        facts = doctor::look(&subject).await;
    } else if subject.is_managed() && facts.server.is_err() && subject.home.is_ok() {
        done.notes.push("no server runs, so its databases were not looked at (--fix starts one)".to_owned());
    }
    let diagnosis = Diagnosis::of(&facts, &args.skip, began.elapsed());
    if let Some(file) = &args.bundle {
        doctor::write_bundle(file, &subject, &facts, &diagnosis).await?;
        done.notes.push(format!("{} is written; look through it before you send it", file.display()));
    }
    let verdict = diagnosis.verdict;
    let disks = facts.disks.unwrap_or_default();
    let report = Report { diagnosis, disks, findings, done };
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { words(&report, args.all) };
    say(&scrubbed(&text))?;
    Ok(verdict.code())
}

/// What was seen to take room, on the disks and in the server.
fn taking_room(facts: &Facts) -> Vec<Finding> {
    let in_server = facts.server.as_ref().ok().and_then(|server| server.kept.as_ref().ok());
    facts.room.iter().chain(in_server).flatten().cloned().collect()
}

fn of_kind(findings: &[Finding], kind: Kind) -> Vec<Finding> {
    findings.iter().filter(|one| one.kind == kind).cloned().collect()
}

/// Do what is safe. What cannot be done is told.
async fn fix(subject: &Subject, findings: &[Finding], yes: bool, done: &mut Done) {
    let (changed, failed) = doctor::close_to_others(subject).await;
    done.changed.extend(changed);
    done.notes.extend(failed);
    let is_sound = subject.configuration.problems.is_empty();
    let (Ok(settings), Ok(home), true) = (&subject.settings, &subject.home, is_sound) else {
        return done.notes.push("nothing else is done while the configuration has mistakes".to_owned());
    };
    let on_disks: Vec<Finding> =
        findings.iter().filter(|one| !matches!(one.place, Place::Database(_))).cloned().collect();
    done.removed.extend(room::sweep(settings, home, &of_kind(&on_disks, Kind::Leftover)).await);
    let kept = of_kind(&on_disks, Kind::Kept);
    if agreed(&kept, yes, &mut done.notes) {
        for one in &kept {
            if let Place::Cluster(path) = &one.place {
                room::remove_cluster(home, path).await;
                done.removed.extend((!path.exists()).then(|| one.what.clone()));
            }
        }
    }
    // Removing files may be what lets the server start.
    fix_server(subject, (settings, home), yes, done).await;
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

/// Remove what restores left in the server; one is started where none runs.
async fn fix_server(subject: &Subject, (settings, home): (&Settings, &Home), yes: bool, done: &mut Done) {
    let is_there = settings.postgres.mode == PostgresMode::Attach || has_cluster(&home.data);
    let Some(loaded) = subject.loaded.clone().filter(|_| is_there) else { return };
    let configuration =
        Configuration { source: subject.source.clone(), loaded, reload: false, debugger: Debugger::None };
    let found = Rc::new(RefCell::new(Done::default()));
    let into = found.clone();
    let outcome = open::with_database_of(configuration, "tandem doctor", async move |at: Database| {
        let findings = room::in_server(&at.reach, &at.name).await?;
        let mut done = Done::default();
        let outcome = fix_databases(&at, &findings, yes, &mut done).await;
        *into.borrow_mut() = done;
        outcome
    })
    .await;
    let found = found.take();
    done.removed.extend(found.removed);
    done.notes.extend(found.notes);
    if let Err(error) = outcome {
        done.notes.push(format!("the databases: {}", in_words(&error)));
    }
}

fn has_cluster(data: &Path) -> bool {
    data.join("PG_VERSION").exists()
}

async fn fix_databases(at: &Database, findings: &[Finding], yes: bool, done: &mut Done) -> anyhow::Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    // Whoever takes the lock of restores drops what an ended one left.
    let restoring = Restoring::begin(&at.reach, &at.name).await?;
    done.removed.extend(of_kind(findings, Kind::Leftover).into_iter().map(|one| one.what));
    let kept = of_kind(findings, Kind::Kept);
    if agreed(&kept, yes, &mut done.notes) {
        for one in kept {
            if let Place::Database(name) = &one.place {
                room::drop_database(&restoring, &at.reach, name).await?;
                done.removed.push(one.what);
            }
        }
    }
    restoring.end().await;
    Ok(())
}

fn words(report: &Report, all: bool) -> String {
    let mut lines: Vec<String> = report.disks.iter().map(disk).collect();
    lines.extend(report.done.removed.iter().map(|what| format!("removed: {what}")));
    lines.extend(report.done.changed.iter().map(|what| format!("changed: {what}")));
    lines.extend(report.done.notes.iter().map(|note| format!("note: {note}")));
    let is_left = |one: &Finding| !report.done.removed.contains(&one.what);
    if !report.findings.iter().any(is_left) {
        lines.push("nothing of Tandem's takes room that it need not".to_owned());
    }
    lines.push(report.diagnosis.text(all));
    lines.join("\n")
}

fn disk(disk: &Disk) -> String {
    let Disk { name, path, free_bytes, total_bytes, low } = disk;
    let low = if *low { ", less than disk.warn_free asks for" } else { "" };
    let (free, total, path) = (size(Some(*free_bytes)), size(Some(*total_bytes)), path.display());
    format!("disk of the {name}: {free} free of {total}{low} ({path})")
}
