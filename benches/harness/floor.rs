//! What PostgreSQL itself takes to clone and to drop a database.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::Pace;
use crate::figures::{median, number, quantile};
use crate::ground::Ground;
use crate::sheet::{Sheet, Table};

/// Many statements of one kind, in seconds.
#[derive(Deserialize)]
struct Statements {
    all: f64,
    each: Vec<f64>,
}

#[derive(Deserialize)]
struct Measured {
    create: Statements,
    drop: Statements,
}

pub fn part(ground: &Ground, pace: Pace, sheet: &mut Sheet) -> Result<()> {
    let mut command = ground.python(&ground.best());
    command.arg(ground.script("floor.py")).arg(&ground.bin).arg(ground.schema()).arg(pace.clones.to_string());
    let said = ground.output(command)?;
    let measured: BTreeMap<u32, Measured> = serde_json::from_str(&said).context("read what floor.py says")?;
    let mut table = Table::new(&["bare PostgreSQL, FFE's schema", "ms: p50", "p99", "per second"]);
    for (clients, measured) in measured {
        let clients = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
        let kinds = [("`CREATE DATABASE … TEMPLATE`", measured.create), ("`DROP DATABASE`", measured.drop)];
        for (kind, Statements { all, mut each }) in kinds {
            each.sort_by(f64::total_cmp);
            #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
            let rate = each.len() as f64 / all;
            let ms = |value: f64| number(value * 1000.0);
            table.row(vec![
                format!("{kind}, {clients}"),
                format!("**{}**", ms(median(&each))),
                ms(quantile(&each, 0.99)),
                number(rate),
            ]);
        }
    }
    sheet.add(table);
    Ok(())
}
