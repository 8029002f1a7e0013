//! `tandem backup`

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use chrono::Utc;
use comfy_table::Table;

use crate::backup::catalog::{BackupEntry, Catalog};
use crate::backup::copies::Copies;
use crate::backup::dump::{self, Wanted};
use crate::backup::import;
use crate::backup::manifest::{Manifest, Verdict};
use crate::backup::retention::Fate;
use crate::backup::scheduled;
use crate::backup::signature::{self, SigningKeys};
use crate::backup::verify::{self, Means};
use crate::cli::{Backup, BackupCreate, Common};
use crate::commands::running::say;
use crate::commands::table::{plain, size};
use crate::commands::{backup_base, backup_send, open};
use crate::config::Settings;
use crate::exit::{Code, code_of, in_words};
use crate::postgres::home::Home;
use crate::process::priority;

/// The name that stands for the newest backup.
const LATEST: &str = "latest";

/// Run one of the backup commands.
///
/// # Errors
/// What failed.
pub async fn run(common: &Common, command: Option<Backup>, create: BackupCreate) -> anyhow::Result<Code> {
    match command {
        None => take(common, create).await,
        Some(Backup::Create(create)) => take(common, create).await,
        Some(Backup::Scheduled { copies }) => scheduled(common, copies).await,
        Some(Backup::Verify { from: Some(from), json, .. }) => backup_send::verify(common, &from, json).await,
        Some(Backup::Send { follow, json }) => backup_send::send(common, follow, json).await,
        Some(Backup::Claim { address }) => backup_send::claim(common, &address).await,
        Some(Backup::Verify { name, all, json, .. }) => verify(common, name.as_deref(), all, json).await,
        Some(Backup::Import { file, database, trust, json }) => {
            import(common, &file, database.as_deref(), trust, json).await
        }
        Some(Backup::Key { import }) => key(common, import.as_deref()),
        Some(Backup::Base { json }) => backup_base::make(common, json).await,
        Some(Backup::Bases { json }) => backup_base::list(common, json),
        Some(Backup::Prune { dry_run, json }) => prune(common, dry_run, json).await,
        Some(Backup::List { from, json }) => list(common, from.as_deref(), json).await,
    }
}

/// Serving comes first: a backup, its programs and the server that proves it wait for the processor behind the application.
pub fn stand_back(settings: &Settings) {
    priority::stand_back(settings.backup.nice.cast_signed());
}

/// Print the keys that sign backups, or accept those in the file `import`.
fn key(common: &Common, import: Option<&Path>) -> anyhow::Result<Code> {
    let home = Home::resolve(&open::settings(common, Vec::new())?)?;
    let path = signature::path(&home);
    let Some(import) = import else {
        // What a file is to hold that others read is printed as it stands.
        say(SigningKeys::ensure(&path)?.text().trim_end())?;
        return Ok(Code::Stopped);
    };
    let text = match import {
        stdin if stdin == Path::new("-") => io::read_to_string(io::stdin()),
        file => fs::read_to_string(file),
    };
    let text = text.with_context(|| format!("read {}", import.display()))?;
    match SigningKeys::import(&path, &text)? {
        0 => say("these keys were known already")?,
        new => say(&format!(
            "{new} accepted: backups that are signed with it are trusted here; kept in {}",
            path.display()
        ))?,
    }
    Ok(Code::Stopped)
}

async fn import(common: &Common, file: &Path, database: Option<&str>, trust: bool, json: bool) -> anyhow::Result<Code> {
    let mut settings = open::settings(common, Vec::new())?;
    settings.restore_trust |= trust;
    stand_back(&settings);
    let home = Home::resolve(&settings)?;
    let catalog = Catalog::of(&settings, &home);
    let installation = open::installation(&settings).await?;
    let means = Means { settings: &settings, home: &home, installation: &installation };
    let imported = import::import(&means, &catalog, file, database, &open::database_name(&settings)).await?;
    if json {
        say(&serde_json::to_string_pretty(&imported)?)?;
        return Ok(Code::Stopped);
    }
    let removed = match (imported.removed, imported.warnings.len()) {
        (0, _) => "nothing had to be repaired".to_owned(),
        (removed, 0) => format!("removed {removed} messages of pg_dump's"),
        (removed, _) => {
            format!("removed {removed} messages of pg_dump's, among them:\n  {}", imported.warnings.join("\n  "))
        }
    };
    say(&format!("{}\n{removed}; restored and counted, so it is verified", told(&catalog, &imported.manifest)))?;
    for role in imported.roles.iter().filter(|role| **role != settings.postgres.user) {
        let user = &settings.postgres.user;
        say(&format!("note: things in it belong to role {role}, and this configuration's is {user} (postgres.user)"))?;
    }
    Ok(Code::Stopped)
}

async fn prune(common: &Common, dry_run: bool, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let catalog = Catalog::of(&settings, &Home::resolve(&settings)?);
    let database = open::database_name(&settings);
    let fates = match dry_run {
        true => scheduled::fates(&settings, &catalog, &database, Utc::now())?,
        false => scheduled::prune(&settings, &catalog, &database, Utc::now()).await?,
    };
    if json {
        let rows = fates.iter().map(|(entry, fate)| {
            let removed = matches!(fate, Fate::Remove(_));
            serde_json::json!({ "name": entry.name.to_string(), "remove": removed, "why": fate.why() })
        });
        say(&serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?)?;
        return Ok(Code::Stopped);
    }
    for (entry, fate) in &fates {
        match fate {
            Fate::Remove(why) if dry_run => say(&format!("{} would be removed: {why}", entry.name))?,
            Fate::Remove(why) => say(&format!("{} was removed: {why}", entry.name))?,
            Fate::Keep(why) if dry_run => say(&format!("{} stays: {why}", entry.name))?,
            Fate::Keep(_) => {}
        }
    }
    Ok(Code::Stopped)
}

async fn verify(common: &Common, name: Option<&str>, all: bool, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    stand_back(&settings);
    let home = Home::resolve(&settings)?;
    let catalog = Catalog::of(&settings, &home);
    let entries = match name {
        Some(name) if name != LATEST => vec![catalog.find(name)?],
        None if all => catalog.entries(None)?,
        _ => vec![catalog.latest(&open::database_name(&settings))?],
    };
    let installation = open::installation(&settings).await?;
    let means = Means { settings: &settings, home: &home, installation: &installation };
    let (mut verdicts, mut code) = (Vec::new(), Code::Stopped);
    for entry in &entries {
        let verdict = match verify::verify(&means, &catalog, entry).await {
            Ok(verdict) => verdict,
            // An error of one backup does not stop the verification of the others.
            Err(error) if all => {
                tracing::error!("{}: not verified: {}", entry.name, in_words(&error));
                verdicts.push(serde_json::json!({ "name": entry.name.to_string(), "error": in_words(&error) }));
                code = if code == Code::Stopped { code_of(&error) } else { code };
                continue;
            }
            Err(error) => return Err(error),
        };
        if !verdict.good() {
            code = Code::Failed;
        }
        if json {
            verdicts.push(serde_json::json!({ "name": entry.name.to_string(), "verdict": verdict }));
        } else {
            say(&judged(entry, &verdict))?;
        }
    }
    if json {
        say(&serde_json::to_string_pretty(&verdicts)?)?;
    }
    Ok(code)
}

/// A verdict in words.
fn judged(entry: &BackupEntry, verdict: &Verdict) -> String {
    let (name, seconds) = (&entry.name, verdict.duration_ms as f64 / 1000.0);
    match &entry.manifest {
        Ok(manifest) if verdict.good() => {
            let (rows, tables) = (manifest.census.rows_total(), manifest.census.rows.len());
            format!("{name}: verified, {rows} rows in {tables} tables, in {seconds:.1} s")
        }
        _ => format!("{name}: BAD\n  {}", verdict.problems.join("\n  ")),
    }
}

async fn take(common: &Common, create: BackupCreate) -> anyhow::Result<Code> {
    let set = |key, value: Option<&String>, name| value.map(|value| open::flag(key, value, name));
    let dir = create.dir.as_ref().map(|dir| dir.display().to_string());
    let flags = [
        set("backup.format", create.format.as_ref(), "--format"),
        set("backup.compress", create.compress.as_ref(), "--compress"),
        set("backup.dir", dir.as_ref(), "--dir"),
    ];
    let json = create.json;
    open::with_database(
        common,
        flags.into_iter().flatten().collect(),
        "tandem backup",
        async move |at: open::Database| {
            stand_back(&at.settings);
            let catalog = Catalog::of(&at.settings, &at.home);
            // What was said for this one backup holds inside `tandem test` too.
            let catalog = match &at.settings.backup.dir {
                Some(dir) if create.dir.is_some() && at.settings.in_test() => catalog.elsewhere(dir),
                _ => catalog,
            };
            let manifest = dump::take(&at.reach, &catalog, Wanted::of(&at.settings, &at.name), Utc::now()).await?;
            scheduled::send(&at.settings, &catalog, &catalog.find(&manifest.file)?).await?;
            say(&if json { serde_json::to_string_pretty(&manifest)? } else { told(&catalog, &manifest) })?;
            Ok(())
        },
    )
    .await
}

/// The process that `tandem up` starts for the schedule. `tandem up` reads the last line that it prints.
async fn scheduled(common: &Common, copies: bool) -> anyhow::Result<Code> {
    open::with_database(common, Vec::new(), "tandem backup", async move |at: open::Database| {
        stand_back(&at.settings);
        let means = Means { settings: &at.settings, home: &at.home, installation: at.reach.installation() };
        let run = match copies {
            true => scheduled::copy_again(&means, &at.name).await?,
            false => scheduled::run(&means, &at.reach, &at.name).await?,
        };
        say(&serde_json::to_string(&run)?)?;
        Ok(())
    })
    .await
}

/// A new backup in words.
fn told(catalog: &Catalog, manifest: &Manifest) -> String {
    let (rows, tables) = (manifest.census.rows_total(), manifest.census.rows.len());
    let schema = manifest.census.schema_version.as_ref().map_or_else(String::new, |it| format!(", schema {it}"));
    format!(
        "{}\n{rows} rows in {tables} tables{schema}: {} in {:.1} s",
        catalog.dir().join(&manifest.file).display(),
        size(Some(manifest.size_bytes)),
        manifest.duration_ms as f64 / 1000.0
    )
}

async fn list(common: &Common, from: Option<&str>, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    if let Some(from) = from {
        return list_copies(&Copies::open(&settings, from)?, json).await;
    }
    let home = Home::resolve(&settings)?;
    let entries = Catalog::of(&settings, &home).entries(None)?;
    if json {
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| {
                serde_json::json!({
                    "name": entry.name.to_string(), "database": entry.name.database, "taken": entry.name.taken,
                    "state": entry.state(), "manifest": entry.manifest.as_ref().ok(), "verdict": entry.verdict,
                    "problem": entry.manifest.as_ref().err(),
                })
            })
            .collect();
        say(&serde_json::to_string_pretty(&rows)?)?;
    } else {
        say(&format!("{}{}", table(&entries), backup_send::told(&settings, &home)))?;
    }
    Ok(Code::Stopped)
}

async fn list_copies(copies: &Copies, json: bool) -> anyhow::Result<Code> {
    let held = copies.list().await?;
    let state = |whole| if whole { "whole" } else { "incomplete" };
    if json {
        let rows = held.iter().map(|held| {
            serde_json::json!({
                "name": held.name.to_string(), "database": held.name.database, "taken": held.name.taken,
                "size_bytes": held.size_bytes, "state": state(held.whole),
            })
        });
        say(&serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?)?;
        return Ok(Code::Stopped);
    }
    if held.is_empty() {
        say(&format!("{} holds no backups", copies.destination))?;
        return Ok(Code::Stopped);
    }
    let mut table = Table::new();
    table.set_header(["NAME", "TAKEN (UTC)", "SIZE", "STATE"]);
    for held in &held {
        let taken = held.name.taken.format("%Y-%m-%d %H:%M:%S").to_string();
        table.add_row([held.name.to_string(), taken, size(Some(held.size_bytes)), state(held.whole).to_owned()]);
    }
    say(&plain(table, &[2]))?;
    Ok(Code::Stopped)
}

fn table(entries: &[BackupEntry]) -> String {
    if entries.is_empty() {
        return "there are no backups yet: `tandem backup` takes one".to_owned();
    }
    let mut table = Table::new();
    table.set_header(["NAME", "TAKEN (UTC)", "SIZE", "ROWS", "SCHEMA", "STATE"]);
    for entry in entries {
        let (bytes, rows, schema) = match &entry.manifest {
            Ok(it) => (
                size(Some(it.size_bytes)),
                it.census.rows_total().to_string(),
                it.census.schema_version.clone().unwrap_or_default(),
            ),
            Err(_) => Default::default(),
        };
        let taken = entry.name.taken.format("%Y-%m-%d %H:%M:%S").to_string();
        table.add_row([entry.name.to_string(), taken, bytes, rows, schema, state(entry)]);
    }
    plain(table, &[2, 3])
}

/// The state, with the reason for a bad one.
fn state(entry: &BackupEntry) -> String {
    let why = match (&entry.manifest, &entry.verdict) {
        (Err(problem), _) => Some(problem.clone()),
        (Ok(_), Some(verdict)) => verdict.problems.first().cloned(),
        _ => None,
    };
    why.map_or_else(|| entry.state().to_owned(), |why| format!("{}: {why}", entry.state()))
}
