//! The main job, measured: Tandem against the same programs started by hand, in pairs, one after the other in one run.
//!
//! `cargo bench --bench main_job` prints a table; `-- --write` puts it into `benches/README.md`; `-- --only stop,health`
//! runs some of the parts.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

mod client;
#[path = "../../tests/it/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
mod figures;
mod follow;
mod parts;
mod peers;
mod probes;
mod table;
mod up;

use std::process::ExitCode;
use std::time::Instant;

use figures::machine;
use parts::Bench;
use table::Table;

/// A part of the run.
type Part = fn(&mut Bench, &mut Table);

/// In the order of the table.
const PARTS: [(&str, Part); 9] = [
    ("warm", parts::warm),
    ("stack", parts::stack),
    ("first", parts::first),
    ("stop", parts::stop),
    ("crash", parts::crash),
    ("follow", follow::follow),
    ("idle", parts::idle),
    ("health", parts::health),
    ("workers", parts::workers),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);
    let wanted = |name: &str| only.is_none_or(|only| only.split(',').any(|part| part == name));
    let (began, before) = (Instant::now(), machine());
    let mut table = Table::default();
    let mut bench = Bench::prepare();
    for (name, part) in PARTS.iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        part(&mut bench, &mut table);
        eprintln!("{name}: {:.0?}", began.elapsed());
    }
    let took = began.elapsed();
    let text = format!("{before}; the run took {:.0} s.\n\n{}", took.as_secs_f64(), table.markdown());
    println!("\n{text}");
    for missed in &table.missed {
        println!("missed: {missed}");
    }
    if args.iter().any(|arg| arg == "--write") {
        figures::write("measured", |_| text);
    }
    ExitCode::SUCCESS
}
