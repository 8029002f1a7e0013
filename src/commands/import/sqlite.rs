//! `tandem import sqlite`

use crate::cli::{Common, Into, SqliteArgs};
use crate::commands::open::{self, Database};
use crate::commands::restore::confirm_with;
use crate::commands::running::say;
use crate::config::PostgresMode;
use crate::exit::{Code, Failure};
use crate::room::Guard;
use crate::sqlite::{self, Action, Destination, Imported, Misfits, Plan, TablePlan, Wish};
use crate::{schema, telemetry};

/// What our session is called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-import";
/// The word that a person types to confirm an import.
const WORD: &str = "IMPORT";
/// How many misfits are printed as text; `--json` has more.
const SHOWN_MAX: usize = 20;
/// Rows with their indexes, and the WAL of both, take so many times the bytes of the SQLite file.
const GROWTH: u64 = 3;

/// Import an SQLite file. If no server runs, start one for it and stop it afterwards.
///
/// # Errors
/// What does not fit or cannot be read; nothing is written then.
pub async fn run(common: &Common, args: SqliteArgs) -> anyhow::Result<Code> {
    // Before a server is started for it.
    sqlite::try_out(&args.file)?;
    let work = async move |at: Database| import(&at, &args).await;
    open::with_database(common, Vec::new(), "tandem import sqlite", work).await
}

async fn import(at: &Database, args: &SqliteArgs) -> anyhow::Result<()> {
    let wish = Wish {
        file: args.file.clone(),
        destination: match args.into {
            Into::Auto => Destination::Auto,
            Into::New => Destination::New,
            Into::Existing => Destination::Existing,
        },
        schema: args.schema.clone(),
        replace: args.replace,
        skip_bad: args.skip_bad,
    };
    // The tables belong to the application's role, as those of its migrations do.
    let mut session = schema::session(&open::url(&at.settings, &at.home)?, APPLICATION_NAME).await?;
    schema::unlimited(&mut session).await?;
    let progress = telemetry::progress(format!("reading {}", args.file.display()));
    let prepared = sqlite::prepare(&wish, &mut session).await?;
    drop(progress);
    let plan = plan_in_words(&prepared.plan, &at.name, args);
    let misfits = (prepared.misfits.total > 0).then(|| in_words(&prepared.misfits));
    if args.json && (args.dry_run || misfits.is_some() && !args.skip_bad) {
        say(&serde_json::to_string_pretty(&json(&prepared.plan, &prepared.misfits, None))?)?;
    } else if !args.json {
        say(&[Some(plan), misfits].into_iter().flatten().collect::<Vec<_>>().join("\n"))?;
    }
    if prepared.misfits.total > 0 && !args.skip_bad {
        let text = format!(
            "{} values of {} do not fit. Nothing was written. Mend them in the file, or say --skip-bad to leave their rows out",
            prepared.misfits.total,
            args.file.display()
        );
        return Err(Failure::new(Code::Failed, text).into());
    }
    if args.dry_run {
        if !args.json {
            say("nothing was written (--dry-run)")?;
        }
        return Ok(());
    }
    confirm_with(args.yes, &question(&prepared.plan, &prepared.misfits, &at.name), WORD)?;
    let data = (at.settings.postgres.mode == PostgresMode::Managed).then_some(at.home.data.as_path());
    let mut room = Guard::new("import", at.settings.disk.stop_free, data);
    if let Some(data) = data {
        room = room.claim(data, sqlite::size(&args.file).saturating_mul(GROWTH));
    }
    let (plan, misfits) = (prepared.plan.clone(), prepared.misfits.clone());
    let progress = telemetry::progress(format!("importing {}", args.file.display()));
    let imported = room.hold(sqlite::load(prepared, &mut session, &wish)).await?;
    drop(progress);
    if args.json {
        say(&serde_json::to_string_pretty(&json(&plan, &misfits, Some(&imported)))?)?;
    } else {
        say(&told(&imported, &at.name))?;
        if at.home.control.exists() {
            say(
                "the workers go on as they are; `tandem reload` replaces them, if they remember what was there before",
            )?;
        }
    }
    Ok(())
}

fn plan_in_words(plan: &Plan, database: &str, args: &SqliteArgs) -> String {
    let table = |table: &TablePlan| {
        let columns =
            || table.columns.iter().map(|column| format!("{} {}", column.name, column.kind)).collect::<Vec<_>>();
        let rows = table.rows;
        match &table.action {
            Action::Make => format!("  make {}, {rows} rows: {}", table.name, columns().join(", ")),
            Action::Fill { replaces: 0 } => format!("  fill {}, {rows} rows", table.name),
            Action::Fill { replaces } => {
                format!("  fill {}, {rows} rows, in place of the {replaces} that are there", table.name)
            }
            Action::Leave(why) => format!("  leave out {}: {why}", table.name),
        }
    };
    let tables = plan.tables.iter().map(table);
    let notes = plan.notes.iter().map(|note| format!("note: {note}"));
    let head = format!("{} into schema {} of database {database}:", args.file.display(), plan.schema);
    std::iter::once(head).chain(tables).chain(notes).collect::<Vec<_>>().join("\n")
}

fn in_words(misfits: &Misfits) -> String {
    let shown = misfits.first.iter().take(SHOWN_MAX);
    let lines = shown.map(|it| format!("  {}.{}, {}: {} {}", it.table, it.column, it.row, it.value, it.why));
    let more = misfits.total.saturating_sub(SHOWN_MAX as u64);
    let more = (more > 0).then(|| format!("  and {more} more (--json prints up to 1000)"));
    let head = std::iter::once("these values do not fit:".to_owned());
    head.chain(lines).chain(more).collect::<Vec<_>>().join("\n")
}

fn question(plan: &Plan, misfits: &Misfits, database: &str) -> String {
    let written: Vec<_> = plan.tables.iter().filter(|table| table.is_written()).collect();
    let rows: u64 = written.iter().map(|table| table.rows).sum();
    let deleted: u64 =
        written.iter().map(|table| if let Action::Fill { replaces } = table.action { replaces } else { 0 }).sum();
    let mut text = format!("{rows} rows will be written into {} tables of database {database}.", written.len());
    if deleted > 0 {
        text.push_str(&format!(" {deleted} rows that are there will be deleted first."));
    }
    if misfits.total > 0 {
        text.push_str(" Rows with values that do not fit stay out.");
    }
    text
}

fn told(imported: &Imported, database: &str) -> String {
    let rows: u64 = imported.tables.iter().map(|table| table.rows).sum();
    let mut lines = vec![format!(
        "{rows} rows are in {} tables of database {database} now; the counts agree",
        imported.tables.len()
    )];
    for table in imported.tables.iter().filter(|table| table.skipped > 0) {
        lines.push(format!("{}: {} rows left out, with values that do not fit", table.name, table.skipped));
    }
    if imported.orphans > 0 {
        lines.push(format!("{} rows left out that refer to a row that is not there", imported.orphans));
    }
    let sequences: Vec<String> = imported.sequences.iter().map(|(name, next)| format!("{name} {next}")).collect();
    if !sequences.is_empty() {
        lines.push(format!("next numbers: {}", sequences.join(", ")));
    }
    lines.join("\n")
}

fn json(plan: &Plan, misfits: &Misfits, imported: Option<&Imported>) -> serde_json::Value {
    let tables = plan.tables.iter().map(|table| {
        let (action, replaces, why) = match &table.action {
            Action::Make => ("make", 0, None),
            Action::Fill { replaces } => ("fill", *replaces, None),
            Action::Leave(why) => ("leave", 0, Some(why)),
        };
        let columns = table.columns.iter().map(|column| {
            serde_json::json!({ "name": column.name, "declared": column.declared, "type": column.kind.to_string() })
        });
        serde_json::json!({
            "name": table.name, "action": action, "why": why, "rows": table.rows, "replaces": replaces,
            "columns": columns.collect::<Vec<_>>(),
        })
    });
    serde_json::json!({
        "schema": plan.schema, "tables": tables.collect::<Vec<_>>(), "notes": plan.notes,
        "misfits": misfits, "imported": imported,
    })
}
