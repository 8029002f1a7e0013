//! Base backups: the data directory of the running server.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::figures::number;
use crate::gauge::{self, Cost};
use crate::goals::{Goals, cell, memory, middle};
use crate::ground::{Ground, clear, size};
use crate::pgbackrest;
use crate::sheet::{Sheet, Table};

const ROUNDS: usize = 3;
/// For a GB of the data directory.
const SECONDS: f64 = 4.6;

/// A title, and what it runs; `None` for Tandem, which knows where to.
type Way = (&'static str, Option<fn(&Ground, &Path) -> Command>);

const WAYS: [Way; 3] = [
    ("**Tandem**: `tandem backup base`", None),
    ("`pg_basebackup -Ft`", Some(|ground, out| pg_basebackup(ground, out, &[]))),
    (
        "`pg_basebackup -Ft --compress=client-zstd:level=1`",
        Some(|ground, out| pg_basebackup(ground, out, &["--compress=client-zstd:level=1"])),
    ),
];

/// As Tandem's: no WAL in it, which the archive has, and a checkpoint at once.
fn pg_basebackup(ground: &Ground, out: &Path, options: &[&str]) -> Command {
    let mut command = ground.program("pg_basebackup");
    command.args(["-Ft", "-X", "none", "-c", "fast", "-D"]).arg(out).args(options);
    command
}

pub fn part(ground: &mut Ground, sheet: &mut Sheet) -> Result<()> {
    ground.archive_wal()?;
    let mut all: Vec<Result<Vec<(Cost, f64)>>> = WAYS.iter().map(|_| Ok(Vec::new())).collect();
    // What the data directory holds without its WAL, in GB.
    let mut gigabytes = None;
    for _ in 0..ROUNDS {
        for ((_, way), series) in WAYS.iter().zip(&mut all) {
            let Ok(done) = series else { continue };
            match once(ground, *way, &mut gigabytes) {
                Ok(one) => done.push(one),
                // Without its size nothing can be said.
                Err(error) if way.is_none() => return Err(error),
                Err(error) => *series = Err(error),
            }
        }
    }
    let gigabytes = gigabytes.context("no base backup of Tandem's says how much there is")?;
    let title = format!("base backup, per GB of the data directory, which holds {} GB", number(gigabytes));
    let mut table = Table::new(&[
        &title,
        "s",
        "MB",
        "CPU of the client, s",
        "peak memory, MB: the process (with its children)",
        "times done",
        "goal",
        "met",
    ]);
    for ((title, way), series) in WAYS.iter().zip(all) {
        let done = match series {
            Ok(done) => done,
            Err(error) => {
                sheet.note(&format!("{title}: not measured: {error:#}"));
                table.row(vec![(*title).to_owned(), "not measured".into()]);
                continue;
            }
        };
        let (costs, sizes): (Vec<Cost>, Vec<f64>) = done.into_iter().unzip();
        let mut cells = vec![
            (*title).to_owned(),
            cell(&costs, |cost| cost.seconds / gigabytes),
            number(crate::figures::median(&sizes) / 1e6 / gigabytes),
            cell(&costs, |cost| cost.cpu / gigabytes),
            memory(&costs),
            costs.len().to_string(),
        ];
        if way.is_none() {
            let mut goals = Goals::default();
            goals.at_most(middle(&costs, |cost| cost.seconds) / gigabytes, SECONDS, "s");
            goals.memory(&costs);
            cells.extend(goals.cells(title, sheet));
        }
        table.row(cells);
    }
    match pgbackrest::backup(ground) {
        Ok((title, cost, size)) => {
            let costs = [cost];
            table.row(vec![
                title,
                cell(&costs, |cost| cost.seconds / gigabytes),
                number(size / 1e6 / gigabytes),
                cell(&costs, |cost| cost.cpu / gigabytes),
                memory(&costs),
                "1".into(),
            ]);
        }
        Err(error) => sheet.note(&format!("pgBackRest: not measured: {error:#}")),
    }
    sheet.add(table);
    Ok(())
}

/// What one base backup costs, and what it takes, in bytes.
fn once(
    ground: &Ground,
    way: Option<fn(&Ground, &Path) -> Command>,
    gigabytes: &mut Option<f64>,
) -> Result<(Cost, f64)> {
    let out = ground.scratch.join("base");
    clear(&out);
    let Some(way) = way else {
        let cost = gauge::run(&mut ground.tandem(&["backup", "base", "--json"]), gauge::SLOW)?;
        let base: Value = serde_json::from_str(&cost.said).context("read what `tandem backup base --json` says")?;
        *gigabytes = gigabytes.or(base["size"].as_f64().map(|size| size / 1e9));
        let size = base["archived_size"].as_f64().context("the base backup's size")?;
        return Ok((cost, size));
    };
    let cost = gauge::run(&mut way(ground, &out), gauge::SLOW)?;
    #[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
    let size = size(&out)? as f64;
    clear(&out);
    Ok((cost, size))
}
