//! What a backup is for: to come back, and to be proven to.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::gauge::{self, Cost};
use crate::goals::{Goals, cell, memory};
use crate::ground::Ground;
use crate::sheet::{Sheet, Table};

/// How much longer a verification may take than a plain restore.
const VERIFY: f64 = 1.2;
/// How long the database refuses sessions, in seconds.
const SWAP: f64 = 0.2;

pub fn part(ground: &mut Ground, sheet: &mut Sheet) -> Result<()> {
    let taken = gauge::run(&mut ground.tandem(&["backup", "--json"]), gauge::SLOW)?;
    let manifest: Value = serde_json::from_str(&taken.said).context("read what `tandem backup --json` says")?;
    let gigabytes = manifest["sql_bytes"].as_f64().context("the SQL's length")? / 1e9;
    let file = ground.backups().join(manifest["file"].as_str().context("the backup's file")?);
    ground.sql(&format!("CREATE DATABASE plain OWNER \"{}\" TEMPLATE template0", ground.role()))?;
    ground.sql("CHECKPOINT")?;
    let line = format!("zcat {} | psql -Xq1 -v ON_ERROR_STOP=1 -o /dev/null -d plain", file.display());
    let plain = gauge::run(&mut ground.shell(&line), gauge::SLOW)?;
    ground.sql("DROP DATABASE plain")?;
    ground.sql("CHECKPOINT")?;
    let verify = gauge::run(&mut ground.tandem(&["backup", "verify", "--json"]), gauge::SLOW)?;
    ground.sql("CHECKPOINT")?;
    let restore = gauge::run(&mut ground.tandem(&["restore", "latest", "--yes", "--json"]), gauge::SLOW)?;
    let restored: Value = serde_json::from_str(&restore.said).context("read what `tandem restore --json` says")?;
    let swap = restored["swap_ms"].as_f64().context("how long the swap took")? / 1e3;
    gauge::run(&mut ground.tandem(&["restore", "--drop-kept", "--yes", "--json"]), gauge::SLOW)?;
    ground.sql("CHECKPOINT")?;

    let mut table = Table::new(&[
        "restore of the `.sql.gz`, per GB of SQL, once",
        "s",
        "÷ the plain restore",
        "CPU of the clients, s",
        "peak memory, MB: the process (with its children)",
        "goal",
        "met",
    ]);
    let mut row = |title: &str, cost: &Cost, goals: Option<Goals>| {
        let costs = std::slice::from_ref(cost);
        let mut cells = vec![
            title.to_owned(),
            cell(costs, |cost| cost.seconds / gigabytes),
            format!("{:.2} ×", cost.seconds / plain.seconds),
            cell(costs, |cost| cost.cpu / gigabytes),
            memory(costs),
        ];
        cells.extend(goals.map(|goals| goals.cells(title, sheet)).into_iter().flatten());
        table.row(cells);
    };
    row("`zcat \\| psql -1` into an empty database of the running server", &plain, None);
    let mut goals = Goals::default();
    goals.at_most(verify.seconds / plain.seconds, VERIFY, "×");
    goals.memory(std::slice::from_ref(&verify));
    row("**Tandem**: `tandem backup verify`, in a throwaway server", &verify, Some(goals));
    let mut goals = Goals::default();
    goals.memory(std::slice::from_ref(&restore));
    row("**Tandem**: `tandem restore`: counted, analyzed and swapped in", &restore, Some(goals));
    let mut goals = Goals::default();
    goals.at_most(swap, SWAP, "s");
    let mut cells = vec!["— of that nobody gets in, in all".to_owned(), crate::figures::number(swap)];
    cells.resize(5, String::new());
    cells.extend(goals.cells("the swap of a restore", sheet));
    table.row(cells);
    sheet.add(table);
    Ok(())
}
