//! Logical backups: the whole database as SQL, or in pg_restore's formats.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::gauge::{self, Cost};
use crate::goals::{Goals, cell, memory, middle};
use crate::ground::{Ground, clear, size};
use crate::sheet::{Sheet, Table};

/// Of what is compared with a goal; the others are done once.
const ROUNDS: usize = 3;
/// For a GB of SQL.
const SECONDS: f64 = 9.0;
const SIZE: f64 = 260.0;
const RATIO: f64 = 3.0;

/// A way to back up.
struct Way {
    title: &'static str,
    rounds: usize,
    command: fn(&Ground, &Path) -> Command,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// With the goals of all.
    Tandem,
    /// Faster, without goals of time and size.
    TandemZstd,
    Guide,
    Peer,
    /// Writes nothing: what the server and pg_dump take to produce it: the floor for every tool that starts one pg_dump.
    Floor,
}

/// In the order of their turns.
const WAYS: [Way; 7] = [
    Way {
        title: "**Tandem**: `tandem backup --compress zstd`",
        rounds: ROUNDS,
        command: |ground, _| ground.tandem(&["backup", "--json", "--compress", "zstd"]),
        kind: Kind::TandemZstd,
    },
    Way {
        title: "**Tandem**: `tandem backup`, `.sql.gz`",
        rounds: ROUNDS,
        command: |ground, _| ground.tandem(&["backup", "--json"]),
        kind: Kind::Tandem,
    },
    Way {
        title: "`pg_dump \\| gzip -6`",
        rounds: ROUNDS,
        command: |ground, out| ground.shell(&format!("pg_dump | gzip -6 > {}", out.display())),
        kind: Kind::Guide,
    },
    Way {
        title: "`pg_dump -Fc`",
        rounds: 1,
        command: |ground, out| ground.shell(&format!("exec pg_dump -Fc -f {}", out.display())),
        kind: Kind::Peer,
    },
    Way {
        title: "`pg_dump -Fd -j2`",
        rounds: 1,
        command: |ground, out| ground.shell(&format!("exec pg_dump -Fd -j2 -f {}", out.display())),
        kind: Kind::Peer,
    },
    Way {
        title: "`pg_dump \\| zstd -T2 -3`",
        rounds: 1,
        command: |ground, out| ground.shell(&format!("pg_dump | zstd -q -T2 -3 > {}", out.display())),
        kind: Kind::Peer,
    },
    Way {
        title: "`pg_dump > /dev/null`: the server alone",
        rounds: ROUNDS,
        command: |ground, _| ground.shell("pg_dump > /dev/null"),
        kind: Kind::Floor,
    },
];

/// All of one way.
#[derive(Default)]
struct Series {
    costs: Vec<Cost>,
    sizes: Vec<f64>,
    failed: Option<String>,
}

pub fn part(ground: &mut Ground, sheet: &mut Sheet) -> Result<()> {
    let mut all: Vec<Series> = WAYS.iter().map(|_| Series::default()).collect();
    // The SQL's length.
    let mut sql_bytes = None;
    for round in 0..ROUNDS {
        let turn = |way: &Way| round < way.rounds && !(ground.quick && way.rounds == 1);
        let ways: Vec<bool> = WAYS.iter().map(turn).collect();
        for ((way, series), _) in WAYS.iter().zip(&mut all).zip(ways).filter(|(_, turn)| *turn) {
            if series.failed.is_some() {
                continue;
            }
            match once(ground, way) {
                Ok((cost, size, sql)) => {
                    sql_bytes = sql_bytes.or(sql);
                    series.costs.push(cost);
                    series.sizes.push(size);
                }
                Err(error) => series.failed = Some(format!("{error:#}")),
            }
        }
    }
    let gigabytes = sql_bytes.context("no backup of Tandem's says how much SQL there is")? / 1e9;
    ground.holds = format!("{}, {:.2} GB as SQL", ground.holds, gigabytes);
    let guide =
        WAYS.iter().position(|way| way.kind == Kind::Guide).map(|at| middle(&all[at].costs, |cost| cost.seconds));
    let mut table = Table::new(&[
        "backup of the database, per GB of SQL",
        "s",
        "MB",
        "CPU, s",
        "peak memory, MB: the process (with its children)",
        "times done",
        "goal",
        "met",
    ]);
    for (way, series) in WAYS.iter().zip(&all).filter(|(_, series)| series.failed.is_some() || !series.costs.is_empty())
    {
        table.row(row(way, series, gigabytes, guide, sheet));
    }
    sheet.add(table);
    Ok(())
}

/// What one backup costs, its size in bytes, and the SQL's length where that is told.
fn once(ground: &Ground, way: &Way) -> Result<(Cost, f64, Option<f64>)> {
    let out = ground.scratch.join("dump");
    clear(&out);
    let cost = gauge::run(&mut (way.command)(ground, &out), gauge::SLOW)?;
    if matches!(way.kind, Kind::Tandem | Kind::TandemZstd) {
        let manifest: Value = serde_json::from_str(&cost.said).context("read what `tandem backup --json` says")?;
        let size = manifest["size_bytes"].as_f64().context("the backup's size")?;
        return Ok((cost, size, manifest["sql_bytes"].as_f64()));
    }
    #[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
    let size = if way.kind == Kind::Floor { 0.0 } else { size(&out)? as f64 };
    clear(&out);
    Ok((cost, size, None))
}

fn row(way: &Way, series: &Series, gigabytes: f64, guide: Option<f64>, sheet: &mut Sheet) -> Vec<String> {
    if let Some(failed) = &series.failed {
        sheet.note(&format!("{}: not measured: {failed}", way.title));
        return vec![way.title.to_owned(), "not measured".to_owned()];
    }
    let costs = &series.costs;
    let sizes: Vec<f64> = series.sizes.iter().map(|size| size / 1e6 / gigabytes).collect();
    let mut cells = vec![
        way.title.to_owned(),
        cell(costs, |cost| cost.seconds / gigabytes),
        crate::figures::number(crate::figures::median(&sizes)),
        cell(costs, |cost| cost.cpu / gigabytes),
        memory(costs),
        costs.len().to_string(),
    ];
    let mut goals = Goals::default();
    let seconds = middle(costs, |cost| cost.seconds);
    match way.kind {
        Kind::Tandem => {
            goals.at_most(seconds / gigabytes, SECONDS, "s");
            goals.at_most(crate::figures::median(&sizes), SIZE, "MB");
            if let Some(guide) = guide {
                let ratio = guide / seconds;
                let what = format!("× as fast as `pg_dump \\| gzip -6` ({} ×)", crate::figures::number(ratio));
                goals.at_least(ratio, RATIO, &what);
            }
            goals.memory(costs);
        }
        Kind::TandemZstd => goals.memory(costs),
        Kind::Guide | Kind::Peer | Kind::Floor => return cells,
    }
    cells.extend(goals.cells(way.title, sheet));
    cells
}
