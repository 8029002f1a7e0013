//! The main job, measured: Tandem against the same programs started by hand, in pairs, one after the other in one run.
//!
//! `cargo bench --bench main_job` prints a table; `-- --write` puts it into `benches/README.md`; `-- --only stop,health`
//! runs some of the parts.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

mod client;
#[path = "../../tests/common/mod.rs"]
mod common;
mod parts;
mod peers;
mod probes;
mod table;
mod up;

use std::fs;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use common::project::root;
use parts::Bench;
use table::Table;

const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

/// A part of the run.
type Part = fn(&mut Bench, &mut Table);

/// In the order of the table.
const PARTS: [(&str, Part); 8] = [
    ("warm", parts::warm),
    ("stack", parts::stack),
    ("first", parts::first),
    ("stop", parts::stop),
    ("crash", parts::crash),
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
        write(&text);
    }
    ExitCode::SUCCESS
}

/// What ran this, and what else ran there.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let meminfo = read("/proc/meminfo");
    let memory = meminfo.split_whitespace().nth(1).and_then(|size| size.parse::<f64>().ok()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let day = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!(
        "{}: {cpus} × {}, {:.0} GB, Linux {}; load average before the run {}",
        &day[..10],
        model.map_or("unknown processor", |(_, model)| model),
        memory / 1024.0 / 1024.0,
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("?"),
    )
}

/// Put the table between its markers.
fn write(text: &str) {
    let path = root().join("benches/README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(BEGIN).expect("benches/README.md has the marker of the begin");
    let (_, tail) = rest.split_once(END).expect("benches/README.md has the marker of the end");
    fs::write(&path, format!("{head}{BEGIN}{text}{END}{tail}")).unwrap();
}
