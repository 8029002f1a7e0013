//! `tandem restore`

use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use anyhow::bail;

use crate::backup::catalog::Catalog;
use crate::backup::load;
use crate::backup::manifest::Manifest;
use crate::backup::restore::{self, Restored, Restoring};
use crate::cli::{Common, RestoreArgs, RestoreWorkers};
use crate::commands::open::{self, Database};
use crate::commands::running::say;
use crate::commands::{moments, restore_part, restore_point};
use crate::config::Settings;
use crate::control::{Order, client};
use crate::exit::{Code, Failure, in_words};

/// The word that a person types to confirm a restore.
const WORD: &str = "RESTORE";
/// How long open transactions may take to end when workers are drained.
const PATIENCE: Duration = Duration::from_secs(30);

/// Restore a backup, put back the database that a restore replaced, or drop it.
///
/// # Errors
/// What failed; the database is as it was then.
pub async fn run(common: &Common, args: RestoreArgs) -> anyhow::Result<Code> {
    if args.list_moments {
        return moments::list(common, args.json);
    }
    let part = restore_part::part(&args)?;
    let is_partial = part.is_some() || args.database.is_some();
    if restore_point::is_asked(&args) && !is_partial {
        return restore_point::run(common, &args).await;
    }
    open::with_database(common, Vec::new(), "tandem restore", async move |at| match &args.source {
        Some(source) if is_partial => restore_part::run(&at, source, &args, part).await,
        None if restore_point::is_asked(&args) => restore_part::run_at(&at, &args, part).await,
        Some(source) => replace(&at, source, &args).await,
        None if args.undo => undo(&at, &args).await,
        None => drop_kept(&at, &args).await,
    })
    .await
}

async fn replace(at: &Database, source: &str, args: &RestoreArgs) -> anyhow::Result<()> {
    let settings = settings(at, args);
    let (catalog, entry) =
        restore::source(&Catalog::of(&settings, &at.home), &settings, (source, args.older), &at.name).await?;
    let manifest = restore::check((&catalog, &entry), &settings, &at.name, args.other_database).await?;
    let mut restoring = Restoring::begin(&at.reach, &at.name).await?;
    confirm(args.yes, &question(&at.name, &entry.name.to_string(), manifest))?;
    let restored = restoring.restore(&at.reach, (&catalog, &entry), &settings, &at.name, patience(args)).await?;
    restoring.end().await;
    roll_workers(at, args).await;
    say(&if args.json { serde_json::to_string_pretty(&restored)? } else { told(&restored) })?;
    Ok(())
}

/// The settings, as the flags change them.
pub fn settings(at: &Database, args: &RestoreArgs) -> Settings {
    Settings {
        restore_trust: at.settings.restore_trust || args.trust,
        restore_locale: args.locale.clone().or_else(|| at.settings.restore_locale.clone()),
        ..at.settings.clone()
    }
}

/// What the restore will do, in words.
fn question(database: &str, name: &str, manifest: &Manifest) -> String {
    let (rows, tables) = (manifest.census.rows_total(), manifest.census.rows.len());
    format!(
        "Database {database} will be replaced by {name}, taken {} ({rows} rows in {tables} tables).\n\
         What was written since then will be in the kept database only.",
        manifest.taken.format("%Y-%m-%d %H:%M:%S UTC")
    )
}

fn told(restored: &Restored) -> String {
    let Restored { backup, database, kept, rows, tables, duration_ms, swap_ms, replication } = restored;
    let seconds = *duration_ms as f64 / 1000.0;
    let swapped = match kept {
        Some(kept) => {
            let replication = replication.after_swap(database, kept).into_iter().map(|told| format!("\n{told}"));
            format!(
                "\nthe swap took {swap_ms} ms; what was there is kept as {kept}\n\
                 back to it: tandem restore --undo; to drop it: tandem restore --drop-kept{}",
                replication.collect::<String>()
            )
        }
        None => String::new(),
    };
    format!("{database} holds {backup} now: {rows} rows in {tables} tables, in {seconds:.1} s{swapped}")
}

async fn undo(at: &Database, args: &RestoreArgs) -> anyhow::Result<()> {
    let mut restoring = Restoring::begin(&at.reach, &at.name).await?;
    let kept = restoring.kept(&at.name).await?;
    if let Some(last) = kept.last() {
        confirm(args.yes, &format!("Database {} will be replaced by {last}.", at.name))?;
    }
    let (back, kept) = restoring.undo(&at.reach, &at.name, patience(args)).await?;
    let held = restoring.replication(&kept).await?;
    restoring.end().await;
    roll_workers(at, args).await;
    if args.json {
        say(&serde_json::json!({ "database": at.name, "back": back, "kept": kept, "replication": held }).to_string())?;
    } else {
        say(&format!("{} is {back} again; what was there is kept as {kept}", at.name))?;
        for told in held.after_swap(&at.name, &kept) {
            say(&told)?;
        }
    }
    Ok(())
}

async fn drop_kept(at: &Database, args: &RestoreArgs) -> anyhow::Result<()> {
    let mut restoring = Restoring::begin(&at.reach, &at.name).await?;
    let kept = restoring.kept(&at.name).await?;
    let (mut held, mut named) = (Vec::new(), Vec::new());
    for name in &kept {
        let holds = restoring.replication(name).await?;
        named.push([Some(name.clone()), holds.before_drop()].into_iter().flatten().collect::<Vec<_>>().join(" "));
        held.push(holds);
    }
    if !kept.is_empty() {
        confirm(args.yes, &format!("These databases will be dropped: {}.", named.join("; ")))?;
    }
    for ((name, holds), named) in kept.iter().zip(&held).zip(&named) {
        load::drop(&at.reach, name).await?;
        if !args.json {
            say(&format!("dropped {named}"))?;
            for left in holds.after_drop() {
                say(&left)?;
            }
        }
    }
    restoring.end().await;
    if args.json {
        say(&serde_json::json!({ "dropped": kept, "replication": held }).to_string())?;
    }
    Ok(())
}

fn patience(args: &RestoreArgs) -> Duration {
    if args.workers == RestoreWorkers::Drain { PATIENCE } else { Duration::ZERO }
}

/// Ask a person to type the word, unless `--yes` was given.
///
/// # Errors
/// Standard input is not a terminal, or another word was typed.
pub fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    confirm_with(yes, question, WORD)
}

/// As [`confirm`], with another word.
///
/// # Errors
/// As [`confirm`].
pub fn confirm_with(yes: bool, question: &str, word: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let message =
            format!("{question}\nNobody is there to confirm it: say --yes if it is meant. Nothing was changed.");
        bail!(Failure::new(Code::Usage, message));
    }
    crate::telemetry::prompt(&format!("{question}\nType {word} to go on: "));
    let mut typed = String::new();
    stdin.lock().read_line(&mut typed)?;
    if typed.trim_end_matches('\n') != word {
        bail!(Failure::new(Code::Failed, "not confirmed. Nothing was changed."));
    }
    Ok(())
}

/// Replace the workers, which may remember rows of the old database. Without a running Tandem there is nothing to do.
async fn roll_workers(at: &Database, args: &RestoreArgs) {
    if args.workers != RestoreWorkers::Drain || !at.home.control.exists() {
        return;
    }
    let rolled = async { client::order(&at.home.control, &Order::Reload).await?.into_result().map_err(Into::into) };
    let rolled: anyhow::Result<Vec<String>> = rolled.await;
    if let Err(error) = rolled {
        tracing::warn!(
            "the workers were not replaced, and may remember what was there: {}; try `tandem reload`",
            in_words(&error)
        );
    }
}
