//! What the application notices: pgbench's transactions while WAL is archived, and while a backup is taken.

use std::fs;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::figures::{median, number};
use crate::gauge;
use crate::ground::{Ground, clear};
use crate::sheet::{Sheet, Table, spread};

/// How long each run takes, in seconds; and a quick one.
const SECONDS: u32 = 15;
const SECONDS_QUICK: u32 = 12;
const CLIENTS: u32 = 4;
/// Even, so that each is first as often as the other.
const PAIRS: usize = 6;
/// How often pgbench runs beside each of the ways to back up.
const TURNS: usize = 4;
/// How much slower pgbench may be for the archiving, in percent.
const SLOWER: f64 = 3.0;

pub fn part(ground: &mut Ground, sheet: &mut Sheet) -> Result<()> {
    ground.archive_wal()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // The second of a pair finds another database, so the pairs take turns at which is first.
        for archives in [pair % 2 == 0, pair % 2 == 1] {
            archive(ground, archives)?;
            let rate = pgbench(ground)?;
            if archives { with.push(rate) } else { without.push(rate) }
        }
    }
    archive(ground, true)?;
    let backups = beside_backups(ground)?;

    let title = format!("`pgbench -c {CLIENTS} -T {}`, transactions per second", seconds(ground));
    let mut table = Table::new(&[&title, "without", "with", "slower by", "runs of each", "goal", "met"]);
    // In pairs: the database grows.
    let losses: Vec<f64> = with.iter().zip(&without).map(|(with, without)| (1.0 - with / without) * 100.0).collect();
    let goal = format!("≤ {} %", number(SLOWER));
    let what = format!("WAL archiving slows pgbench: {goal}");
    let met = match (losses.iter().all(|loss| *loss <= SLOWER), losses.iter().any(|loss| *loss <= SLOWER)) {
        // Between them lies the limit: a median decides nothing then.
        (false, true) => {
            sheet.missed.push(format!("{what}: undecided"));
            "undecided: the pairs differ by more than that".to_owned()
        }
        (met, _) => sheet.verdict(&what, met),
    };
    let loss = format!("{} %", spread(&losses));
    table.row(vec!["WAL is archived".into(), spread(&without), spread(&with), loss, with.len().to_string(), goal, met]);
    backups.rows(&mut table, sheet);
    sheet.add(table);
    Ok(())
}

/// Ways to back up, in pairs: Tandem's, and the one that it may not be slower than.
const BACKUPS: [[&str; 2]; 2] = [
    ["`tandem backup`, again and again", "`pg_dump \\| gzip -6`, again and again"],
    ["`tandem backup base`, again and again", "`pg_basebackup -Ft --compress=client-zstd:level=1`, again and again"],
];

/// Transactions per second without a backup, and beside each way, turn by turn.
#[derive(Default)]
struct Beside {
    without: Vec<f64>,
    with: [[Vec<f64>; 2]; 2],
}

fn beside_backups(ground: &Ground) -> Result<Beside> {
    let dir = ground.scratch.join("beside");
    fs::create_dir_all(&dir)?;
    let tandem =
        |args: &str| format!("(cd {} && {} {args})", ground.project.dir().display(), env!("CARGO_BIN_EXE_tandem"));
    let lines = [
        [tandem("backup"), "pg_dump | gzip -6 > beside/dump.sql.gz".to_owned()],
        [
            tandem("backup base"),
            "rm -rf beside/base && pg_basebackup -Ft -X none -c fast --compress=client-zstd:level=1 -D beside/base"
                .to_owned(),
        ],
    ];
    let mut all = Beside::default();
    for turn in 0..TURNS {
        all.without.push(pgbench(ground)?);
        for (lines, with) in lines.iter().zip(&mut all.with) {
            // The database grows: they take turns at who is first.
            for way in [turn % 2, 1 - turn % 2] {
                with[way].push(during(ground, &lines[way])?);
            }
        }
    }
    clear(&dir);
    Ok(all)
}

impl Beside {
    fn rows(&self, table: &mut Table, sheet: &mut Sheet) {
        let losses = |with: &[f64]| -> Vec<f64> {
            with.iter().zip(&self.without).map(|(with, without)| (1.0 - with / without) * 100.0).collect()
        };
        for (titles, with) in BACKUPS.iter().zip(&self.with) {
            let all = [losses(&with[0]), losses(&with[1])];
            let met = median(&all[0]) <= median(&all[1]);
            let goal = format!("pgbench beside {}: no slower than beside {}", titles[0], titles[1]);
            let goal = ["no more than the next row".to_owned(), sheet.verdict(&goal, met)];
            for (way, more) in [goal, Default::default()].into_iter().enumerate() {
                let mut cells = vec![titles[way].to_owned(), spread(&self.without), spread(&with[way])];
                cells.extend([format!("{} %", spread(&all[way])), with[way].len().to_string()]);
                cells.extend(more);
                table.row(cells);
            }
        }
    }
}

/// Let the server archive, or only think so.
fn archive(ground: &Ground, really: bool) -> Result<()> {
    let statement = if really { "RESET archive_command" } else { "SET archive_command = '/bin/true'" };
    ground.sql(&format!("ALTER SYSTEM {statement}"))?;
    ground.sql("SELECT pg_reload_conf()")?;
    Ok(())
}

/// Transactions per second.
pub fn pgbench(ground: &Ground) -> Result<f64> {
    ground.sql("CHECKPOINT")?;
    nix::unistd::sync();
    pgbench_for(ground, seconds(ground))
}

fn seconds(ground: &Ground) -> u32 {
    if ground.quick { SECONDS_QUICK } else { SECONDS }
}

/// The same at once, for so many seconds.
pub fn pgbench_for(ground: &Ground, seconds: u32) -> Result<f64> {
    let (clients, seconds) = (CLIENTS.to_string(), seconds.to_string());
    let mut pgbench = ground.program("pgbench");
    let said = gauge::run(pgbench.args(["-n", "-c", &clients, "-j", "2", "-T", &seconds]), gauge::SLOW)?.said;
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("no rate in what pgbench says: {said}"))
}

/// Transactions per second while `line` runs again and again.
fn during(ground: &Ground, line: &str) -> Result<f64> {
    let go = ground.scratch.join("beside/go");
    fs::write(&go, "")?;
    let mut again =
        ground.shell(&format!("while [ -e {} ]; do {line} > /dev/null 2> beside/errors; done", go.display()));
    let mut again = again.process_group(0).spawn().context("start a shell")?;
    let rate = pgbench(ground);
    let failed = again.try_wait()?;
    fs::remove_file(&go)?;
    // What is under way may go on for a minute.
    let _ = killpg(Pid::from_raw(again.id().cast_signed()), Signal::SIGTERM);
    again.wait()?;
    if let Some(failed) = failed {
        let errors = fs::read_to_string(ground.scratch.join("beside/errors")).unwrap_or_default();
        anyhow::bail!("{line}: {failed}: {errors}");
    }
    ground.sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
         WHERE application_name IN ('pg_dump', 'pg_basebackup', 'tandem-backup')",
    )?;
    rate
}
