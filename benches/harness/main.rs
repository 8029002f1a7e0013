//! `tandem test`, measured beside what people use instead, in one run.
//!
//! `cargo bench --bench harness` prints tables; `-- --write` puts them into `benches/README.md`; `-- --only cold,floor`
//! runs some of the parts; `-- --quick` does everything fewer times.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

mod cold;
#[path = "../../tests/it/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
mod figures;
mod floor;
mod ground;
mod handout;
mod peers;
mod sheet;
mod suite;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use ground::Ground;
use sheet::Sheet;

/// How often each thing is done.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Cold starts of each contestant.
    pub starts: usize,
    /// Runs of each suite, and its tests.
    pub suites: usize,
    pub tests: usize,
    /// Tests that run all migrations.
    pub upgrades: usize,
    pub handouts: usize,
    pub clones: usize,
}

const FULL: Pace = Pace { starts: 9, suites: 3, tests: 200, upgrades: 80, handouts: 400, clones: 400 };
const QUICK: Pace = Pace { starts: 2, suites: 1, tests: 40, upgrades: 12, handouts: 80, clones: 40 };

/// A part of the run.
type Part = fn(&Ground, Pace, &mut Sheet) -> Result<()>;

/// In the order of the tables.
const PARTS: [(&str, Part); 4] =
    [("cold", cold::part), ("suite", suite::part), ("handout", handout::part), ("floor", floor::part)];

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
    let given = |name: &str| args.iter().any(|arg| arg == name);
    let only: Option<Vec<&str>> =
        args.iter().skip_while(|arg| *arg != "--only").nth(1).map(|only| only.split(',').collect());
    for word in only.iter().flatten() {
        ensure!(PARTS.iter().any(|(name, _)| name == word), "`{word}` is no part of this benchmark");
    }
    let pace = if given("--quick") { QUICK } else { FULL };
    let ground = Ground::prepare()?;
    let (began, before) = (Instant::now(), figures::machine());
    let mut sheet = Sheet::default();
    for (name, part) in PARTS.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only.contains(name))) {
        let began = Instant::now();
        if let Err(error) = part(&ground, pace, &mut sheet) {
            sheet.note(&format!("{name}: not measured: {error:#}"));
            sheet.missed.push(format!("{name}: not measured"));
        }
        eprintln!("{name}: {:.0?}", began.elapsed());
    }
    ensure!(!sheet.is_empty(), "nothing was measured");
    let quick = if given("--quick") { "; a quick run" } else { "" };
    let text = format!("{before}; the run took {:.0} s{quick}.\n\n{}", began.elapsed().as_secs_f64(), sheet.markdown());
    println!("\n{text}");
    for missed in &sheet.missed {
        println!("missed: {missed}");
    }
    if given("--write") {
        figures::write("harness", |_| text);
    }
    Ok(())
}
