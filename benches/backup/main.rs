//! Backups, measured beside what people use instead, in one run.
//!
//! `cargo bench --bench backup` prints tables; `-- --write` puts them into `benches/README.md`, where what was not measured
//! stays with its own day; `-- --only dumps,wal` runs some of the parts; `-- --size 50` takes a database of about 50 MB of SQL
//! instead of 1000; `-- --quick` measures what has a goal, and pgbench for a shorter time.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

mod base;
#[path = "../../tests/it/common/mod.rs"]
mod common;
mod dumps;
#[path = "../figures/mod.rs"]
mod figures;
mod gauge;
mod goals;
mod ground;
mod impact;
mod kept;
mod pgbackrest;
mod restores;
#[path = "../harness/sheet.rs"]
mod sheet;
mod wal;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use ground::Ground;
use sheet::Sheet;

/// About so much SQL the database holds, in MB.
const SIZE: u64 = 1000;

/// A part of the run.
type Part = fn(&mut Ground, &mut Sheet) -> Result<()>;

/// In the order of the tables. From `base` on, the server archives its WAL.
const PARTS: [(&str, Part); 5] = [
    ("dumps", dumps::part),
    ("restores", restores::part),
    ("base", base::part),
    ("impact", impact::part),
    ("wal", wal::part),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let value = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    let only: Option<Vec<&str>> = value("--only").map(|only| only.split(',').collect());
    for word in only.iter().flatten() {
        ensure!(PARTS.iter().any(|(name, _)| name == word), "`{word}` is no part of this benchmark");
    }
    let size = value("--size").map_or(Ok(SIZE), |size| size.parse()).context("--size takes a number of MB")?;
    let (began, before) = (Instant::now(), figures::machine());
    let quick = args.iter().any(|arg| arg == "--quick");
    let mut ground = Ground::prepare(size, quick)?;
    eprintln!("filled: {:.0?}", began.elapsed());
    let write = args.iter().any(|arg| arg == "--write");
    let (mut measured, mut missed) = (false, Vec::new());
    for (name, part) in
        PARTS.iter().filter(|(name, _)| only.as_ref().map_or(!quick || *name != "restores", |only| only.contains(name)))
    {
        let (began, mut sheet) = (Instant::now(), Sheet::default());
        let outcome = part(&mut ground, &mut sheet);
        let took = began.elapsed().as_secs_f64();
        eprintln!("{name}: {took:.0} s");
        if let Err(error) = outcome {
            eprintln!("{name}: not measured: {error:#}");
            missed.push(format!("{name}: not measured"));
            continue;
        }
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let after = load.split(' ').next().unwrap_or("?");
        let text =
            format!("{before}, after it {after}; {}; it took {took:.0} s.\n\n{}", ground.holds, sheet.markdown());
        println!("\n{text}");
        // At once: what is measured stays when the run is ended.
        if write {
            figures::write(&format!("backup, {name}"), |old| kept::with_kept(old, &text));
        }
        missed.append(&mut sheet.missed);
        measured |= !sheet.is_empty();
    }
    ensure!(measured, "nothing was measured");
    for missed in &missed {
        println!("missed: {missed}");
    }
    eprintln!("in all: {:.0?}", began.elapsed());
    Ok(())
}
