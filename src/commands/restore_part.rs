//! `tandem restore --table`, `--schema` and `--database`: part of a backup, or of an earlier moment, beside what is live.

use crate::backup::catalog::{BackupEntry, Catalog};
use crate::backup::part::beside::RestoredBeside;
use crate::backup::part::tables::RestoredPart;
use crate::backup::part::wish::Part;
use crate::backup::pitr::to_moment::Wish;
use crate::backup::pitr::{self, apart};
use crate::backup::restore::{self, Restoring};
use crate::cli::RestoreArgs;
use crate::commands::asks::asked_to_end;
use crate::commands::open::Database;
use crate::commands::restore::settings;
use crate::commands::running::say;
use crate::commands::{backup_base, restore_point};
use crate::config::Settings;
use crate::exit::{Code, Failure};

/// How many tables are named.
const TABLES_MAX: usize = 20;

/// What part is asked for, if one is.
///
/// # Errors
/// The names do not match.
pub fn part(args: &RestoreArgs) -> anyhow::Result<Option<Part>> {
    let asked = if args.schema.is_some() { 1 } else { args.tables.len() };
    if !args.into.is_empty() && args.into.len() != asked {
        let text = "--into gives a name to each --table, or to the --schema: as many times, and in the same order";
        return Err(Failure::new(Code::Usage, text).into());
    }
    if let Some(schema) = &args.schema {
        return Ok(Some(Part::Schema(schema.clone(), args.into.first().cloned())));
    }
    let into = args.into.iter().cloned().map(Some).chain(std::iter::repeat(None));
    let tables: Vec<_> = args.tables.iter().cloned().zip(into).collect();
    Ok((!tables.is_empty()).then_some(Part::Tables(tables)))
}

/// Restore `part`, or all as another database.
///
/// # Errors
/// What failed; what is live is as it was then.
pub async fn run(at: &Database, source: &str, args: &RestoreArgs, part: Option<Part>) -> anyhow::Result<()> {
    let settings = settings(at, args);
    let of = Catalog::of(&settings, &at.home);
    let (catalog, entry) = restore::source(&of, &settings, (source, args.older), &at.name).await?;
    restore::check((&catalog, &entry), &settings, &at.name, args.other_database).await?;
    let restoring = Restoring::begin(&at.reach, &at.name).await?;
    bring((at, args, &settings), restoring, (&catalog, &entry), (part, None)).await
}

/// As [`run`], of an earlier moment.
///
/// # Errors
/// What failed; what is live is as it was then.
pub async fn run_at(at: &Database, args: &RestoreArgs, part: Option<Part>) -> anyhow::Result<()> {
    let settings = settings(at, args);
    restore_point::refuse_attached(&settings)?;
    backup_base::check(&settings)?;
    let archive = pitr::archive(&settings, &at.home);
    let (target, timeline) = restore_point::moment(args, &archive)?;
    let restoring = Restoring::begin(&at.reach, &at.name).await?;
    let (home, archive, accept) = (&at.home, &archive, args.accept);
    let wish = Wish { home, settings: &settings, archive, target, timeline, accept };
    // Boxed: the future would not fit on the stack of a debug build.
    let work = Box::pin(async {
        let dumped = apart::dump(&at.reach, &wish, &at.name, part.as_ref()).await?;
        let last = dumped.recovered.last_transaction.as_deref();
        let last = last.map(|time| format!(", the last transaction is of {time}")).unwrap_or_default();
        let source = format!("{} recovered to {target}{last}", dumped.way.base.name);
        let entry = (&dumped.catalog, &dumped.entry);
        bring((at, args, &settings), restoring, entry, (part.clone(), Some(source))).await
    });
    tokio::select! {
        done = work => done,
        () = asked_to_end() => {
            let text = format!("interrupted: either nothing of it is in database {}, or all of it", at.name);
            Err(Failure::new(Code::Failed, text).into())
        }
    }
}

/// Bring in what is asked for. `source` is what people know it by, where that is not the backup's name.
async fn bring(
    (at, args, settings): (&Database, &RestoreArgs, &Settings),
    mut restoring: Restoring,
    (catalog, entry): (&Catalog, &BackupEntry),
    (part, source): (Option<Part>, Option<String>),
) -> anyhow::Result<()> {
    let named = |backup: String| source.clone().unwrap_or(backup);
    let said = match (part, &args.database) {
        (None, Some(name)) => {
            let restored = restoring.beside(&at.reach, (catalog, entry), settings, (&at.name, name)).await?;
            let restored = RestoredBeside { backup: named(restored.backup), ..restored };
            if args.json { serde_json::to_string_pretty(&restored)? } else { beside_in_words(&restored) }
        }
        (Some(part), _) => {
            let restored = restoring.part(&at.reach, (catalog, entry), settings, &at.name, &part).await?;
            let restored = RestoredPart { backup: named(restored.backup), ..restored };
            if args.json { serde_json::to_string_pretty(&restored)? } else { in_words(&restored) }
        }
        (None, None) => return Ok(()),
    };
    restoring.end().await;
    say(&said)?;
    Ok(())
}

fn beside_in_words(restored: &RestoredBeside) -> String {
    let RestoredBeside { backup, database, rows, tables, duration_ms } = restored;
    let seconds = *duration_ms as f64 / 1000.0;
    format!("database {database} holds {backup}: {rows} rows in {tables} tables, in {seconds:.1} s")
}

fn in_words(restored: &RestoredPart) -> String {
    let RestoredPart { backup, database, tables, rows, foreign_keys_left_out, large_objects, duration_ms } = restored;
    let seconds = *duration_ms as f64 / 1000.0;
    let mut text = format!("{database} has of {backup}, as its manifest counted them:");
    for table in tables.iter().take(TABLES_MAX) {
        let renamed = if table.into == table.table { String::new() } else { format!(" as {}", table.into) };
        text.push_str(&format!("\n  {}{renamed}: {} rows", table.table, table.rows));
    }
    if tables.len() > TABLES_MAX {
        text.push_str(&format!("\n  and {} tables more", tables.len() - TABLES_MAX));
    }
    text.push_str(&format!("\n{rows} rows in {} tables, in {seconds:.1} s", tables.len()));
    for key in foreign_keys_left_out {
        text.push_str(&format!(
            "\nleft out, as the other table was not restored with it: of {}, {} {}",
            key.table, key.key, key.definition
        ));
    }
    if large_objects.objects > 0 {
        text.push_str(&format!(
            "\nits rows refer to {} large objects of the backup, which were not restored: {database} has none of that number for {} of \
             them. `--database NAME` restores them too",
            large_objects.objects, large_objects.lacking
        ));
    }
    text
}
