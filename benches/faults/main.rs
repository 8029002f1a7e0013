//! Faults, measured: processes are killed, stopped and broken by a seeded schedule while rows are written through the
//! application, and after each fault everything must be as before.
//!
//! `cargo bench --bench faults` runs 500 of them and prints what came of it; `-- --write` puts it into
//! `benches/README.md`; `-- --faults N`, `-- --seed N`; `-- --slack N` lets every limit count so often. It fails where a
//! promise is broken.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

#[path = "../../tests/it/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
#[allow(dead_code, reason = "other benchmarks use all of it")]
mod figures;
mod schedule;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use figures::{median, number};
use schedule::plan::kinds;
use schedule::{Options, Outcome};

const SEED: u64 = 11;
const FAULTS: usize = 500;
const WITHDRAWALS: usize = 20;
/// Longest wait for the supervisor in milliseconds: readiness withdrawn after the death of a backend, a stall of its loop.
const WITHDRAWN_GOAL: f64 = 10.0;
const STALL_GOAL: f64 = 250.0;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every promise was kept.
fn run() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let given = |name: &str| args.iter().any(|arg| arg == name);
    let count = |name: &str, default: u64| match args.iter().skip_while(|arg| *arg != name).nth(1) {
        Some(text) => text.parse().with_context(|| format!("{name} {text}: not a number")),
        None => Ok(default),
    };
    let options = Options {
        seed: count("--seed", SEED)?,
        faults: usize::try_from(count("--faults", FAULTS as u64)?)?,
        withdrawals: WITHDRAWALS,
        slack: u32::try_from(count("--slack", 1)?)?,
        say: true,
    };
    // Orphans of what is killed become our children, so that they are seen.
    nix::sys::prctl::set_child_subreaper(true)?;
    let (began, before) = (Instant::now(), figures::machine());
    let outcome = schedule::run(options)?;
    let took = began.elapsed().as_secs_f64();
    let head = format!(
        "{before}; seed {}, {} faults of {} kinds; the run took {took:.0} s.",
        options.seed,
        outcome.hits,
        kinds().len()
    );
    let text = format!("{head}\n\n{}\n{}", figures_table(&outcome), kinds_table(&outcome));
    println!("\n{text}");
    for (kind, (times, why)) in &outcome.missed {
        println!("missed {times} times: {kind}: {why}");
    }
    let broken = outcome.broken();
    for promise in &broken {
        println!("broken: {promise}");
    }
    if given("--write") {
        figures::write("faults", |_| text);
    }
    Ok(broken.is_empty())
}

fn figures_table(outcome: &Outcome) -> String {
    let mut text = "| | | goal | met |\n|---|---|---|---|\n".to_owned();
    let mut row = |what: &str, value: String, goal: &str, met: Option<bool>| {
        let met = met.map_or("", |met| if met { "yes" } else { "**no**" });
        let _ = writeln!(text, "| {what} | {value} | {goal} | {met} |");
    };
    let bold = |value: String| format!("**{value}**");
    let rows = format!("{} of {}", bold(outcome.lost.to_string()), outcome.acknowledged);
    row("rows lost that were acknowledged", rows, "0", Some(outcome.lost == 0));
    row("— requests that were not acknowledged", outcome.refused.to_string(), "", None);
    row("processes left after the stop", bold(outcome.left.len().to_string()), "0", Some(outcome.left.is_empty()));
    let troubles = outcome.troubles.len();
    row(
        "faults after which not all was as before within the limit",
        bold(troubles.to_string()),
        "0",
        Some(troubles == 0),
    );
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    let stalls = &outcome.stalls;
    let longest = "longest stall of the supervisor's loop, by its own measure, its own pauses left out";
    match &stalls.longest {
        Some((stall, during)) => {
            let value = format!("**{}** ms ({during})", number(ms(*stall)));
            row(longest, value, "≤ 250 ms", Some(ms(*stall) <= STALL_GOAL));
        }
        None => row(longest, "not measured".into(), "≤ 250 ms", None),
    }
    let left_out = match stalls.hidden {
        std::time::Duration::ZERO => String::new(),
        hidden => format!(" (a pause left {} ms in the meter)", number(ms(hidden))),
    };
    row("— stalls beyond 250 ms, likewise", format!("**{}**{left_out}", stalls.count), "0", Some(stalls.count == 0));
    let (live, during) = &outcome.live;
    row("longest wait for an answer of `/live`", format!("{} ms ({during})", number(ms(*live))), "", None);
    if !outcome.withdrawn.is_empty() {
        let all = &outcome.withdrawn;
        let (middle, most) = (median(all), all.iter().copied().fold(0.0, f64::max));
        let value = format!("**{}** ms, {} at most, of {}", number(middle), number(most), all.len());
        row("`/ready` withdrawn after `kill -9` of a backend", value, "≤ 10 ms", Some(middle <= WITHDRAWN_GOAL));
    }
    if let Some((first, last)) = outcome.taken {
        let change = |first: f64, last: f64| format!("{} → {}", number(first), number(last));
        row("the supervisor's private dirty memory, MB", change(first.private_dirty, last.private_dirty), "", None);
        row("— its proportional memory (PSS), MB", change(first.pss, last.pss), "", None);
        let (before, after) = (first.descriptors, last.descriptors);
        row("— its descriptors", format!("{before} → {after}"), "no more than before", Some(after <= before));
    }
    text
}

fn kinds_table(outcome: &Outcome) -> String {
    let mut text = "| fault | times | as before after, ms | at most | limit |\n|---|---|---|---|---|\n".to_owned();
    let limit = |name: &str| kinds().into_iter().find(|kind| kind.name() == name).map(|kind| kind.limit().as_millis());
    for (name, times) in &outcome.healed {
        let most = times.iter().copied().fold(0.0, f64::max) * 1000.0;
        let limit = limit(name).map_or_else(|| "their sum".to_owned(), |limit| limit.to_string());
        let middle = number(median(times) * 1000.0);
        let _ = writeln!(text, "| {name} | {} | {middle} | {} | {limit} |", times.len(), number(most));
    }
    text
}
