//! Archiving WAL: the server's own segments again, each as `archive_command` gets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::common::tandem::wait_for;
use crate::figures::{median, number, quantile};
use crate::gauge::{self, FAST};
use crate::ground::{Ground, clear, size};
use crate::impact::pgbench_for;
use crate::pgbackrest::Repository;
use crate::sheet::{Sheet, Table, spread};

const ROUNDS: usize = 3;
/// Of each kind.
const SEGMENTS: usize = 16;
/// What a segment may take, in milliseconds.
const DURABLE: f64 = 42.0;
const AHEAD: f64 = 30.0;
/// What the process may take, in MB.
const MEMORY: f64 = 40.0;
/// How long pgbench writes, in seconds.
const PGBENCH: u32 = 25;

/// Segments of one kind: what wrote them, and their names.
struct Written {
    by: &'static str,
    names: Vec<String>,
}

/// One way to archive all segments.
#[derive(Default)]
struct Series {
    /// Milliseconds for each, all rounds.
    each: Vec<f64>,
    /// The mean of each round.
    means: Vec<f64>,
    /// What one takes, in bytes.
    bytes: f64,
}

pub fn part(ground: &mut Ground, sheet: &mut Sheet) -> Result<()> {
    ground.archive_wal()?;
    let kinds = write(ground)?;
    let from = ground.scratch.join("pg_wal");
    fs::create_dir_all(from.join("archive_status"))?;
    for kind in &kinds {
        for name in &kind.names {
            let archive = ground.archive().display().to_string();
            gauge::run(ground.tandem(&["wal", "fetch", "--archive", &archive, name]).arg(from.join(name)), FAST)?;
        }
        of_one_kind(ground, sheet, kind, &from)?;
    }
    Ok(())
}

/// A table of all ways to archive `kind`.
fn of_one_kind(ground: &Ground, sheet: &mut Sheet, kind: &Written, from: &Path) -> Result<()> {
    let (mut durable, mut ahead) = (Series::default(), Series::default());
    for _ in 0..ROUNDS {
        round(ground, kind, from, &mut durable, false)?;
        round(ground, kind, from, &mut ahead, true)?;
    }
    let memory = [false, true].map(|queue| peak(ground, kind, from, queue));

    let title = format!("a WAL segment of 16 MB: {} of {}", kind.names.len(), kind.by);
    let mut table = Table::new(&[&title, "ms", "segments/s", "MB", "peak memory, MB", "goal", "met"]);
    let [one, many] = memory;
    let mut ours = |title: &str, series: &Series, ms: f64, limit: f64, memory: f64, cell: String| {
        let (mut met, goal) = (Vec::new(), format!("≤ {limit} ms; ≤ {MEMORY} MB of memory"));
        let row = format!("{title}, {}", kind.by);
        met.push(sheet.verdict(&format!("{row}: ≤ {limit} ms"), ms <= limit));
        met.push(sheet.verdict(&format!("{row}: ≤ {MEMORY} MB of memory"), memory <= MEMORY));
        let mut cells = peer(title.to_owned(), series);
        cells[1] = cell;
        cells.extend([number(memory), goal, met.join(", ")]);
        table.row(cells);
    };
    let title = "**Tandem**: `tandem wal push`, one after the other, durable";
    ours(title, &durable, median(&durable.each), DURABLE, one?, times(&durable.each));
    let title = "**Tandem**: the same while all wait (read-ahead), durable; the mean of a round";
    ours(title, &ahead, median(&ahead.means), AHEAD, many?, spread(&ahead.means));
    for (title, line) in [
        ("`cp`, and `sync` of file and directory", "cp $from $to && sync $to ."),
        ("`gzip -6`, and `sync` of both", "gzip -6 < $from > $to && sync $to ."),
        ("`zstd -1`, and `sync` of both", "zstd -q -1 < $from > $to && sync $to ."),
    ] {
        match shell(ground, kind, from, line) {
            Ok(series) => table.row(peer(title.into(), &series)),
            Err(error) => sheet.note(&format!("{title}: not measured: {error:#}")),
        }
    }
    match pgbackrest(ground, kind, from) {
        Ok((title, series)) => table.row(peer(title, &series)),
        Err(error) => sheet.note(&format!("pgBackRest, {}: not measured: {error:#}", kind.by)),
    }
    sheet.add(table);
    Ok(())
}

fn peer(title: String, series: &Series) -> Vec<String> {
    vec![title, times(&series.each), number(1000.0 / median(&series.means)), number(series.bytes / 1e6)]
}

/// How long each took: the middle, from the least to the most, and what nine in ten do not exceed.
fn times(each: &[f64]) -> String {
    let mut sorted = each.to_vec();
    sorted.sort_by(f64::total_cmp);
    format!("{}, p90 {}", spread(each), number(quantile(&sorted, 0.9)))
}

/// Let the server write WAL as pgbench has it, and as rows like an application's have it.
fn write(ground: &Ground) -> Result<Vec<Written>> {
    let now = || ground.sql("SELECT pg_switch_wal(); SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let begun = switched(&now()?);
    ground.sql("CHECKPOINT")?;
    pgbench_for(ground, PGBENCH)?;
    let middle = switched(&now()?);
    ground.sql("CREATE TABLE more (LIKE decision_cache INCLUDING ALL)")?;
    // Twice what is wanted at the most, in bytes: a row with its indexes takes about its own size again.
    ground.sql("INSERT INTO more SELECT * FROM decision_cache ORDER BY decision_hash LIMIT 800000")?;
    ground.sql("UPDATE more SET confidence = confidence + 1 WHERE decision_hash < '08'")?;
    let ended = switched(&now()?);
    ground.sql("DROP TABLE more")?;
    wait_for("the archive to have it all", || waiting(ground) == 0);
    let names = segments(&ground.archive().join("wal"))?;
    let between = |from: &str, to: &str| -> Vec<String> {
        let all: Vec<&String> = names.iter().filter(|name| name.as_str() > from && name.as_str() < to).collect();
        // Evenly over all that there is.
        let step = (all.len() / SEGMENTS).max(1);
        all.into_iter().step_by(step).take(SEGMENTS).cloned().collect()
    };
    let kinds = vec![
        Written { by: "pgbench", names: between(&begun, &middle) },
        Written { by: "inserts of decisions", names: between(&middle, &ended) },
    ];
    ensure!(kinds.iter().all(|kind| !kind.names.is_empty()), "too little WAL was written");
    Ok(kinds)
}

/// The last line.
fn switched(said: &str) -> String {
    said.lines().last().unwrap_or_default().to_owned()
}

/// Segments that wait for the server's archiving.
fn waiting(ground: &Ground) -> usize {
    let entries = fs::read_dir(ground.project.data().join("pg_wal/archive_status")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready")).count()
}

/// Names of all archived segments below `dir`, in order.
fn segments(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in fs::read_dir(dir)?.flatten().filter(|entry| entry.path().is_dir()) {
        for entry in fs::read_dir(folder.path())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".zst").filter(|name| name.len() == 24).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// An empty archive of the same cluster.
fn fresh(ground: &Ground) -> Result<PathBuf> {
    let dir = ground.scratch.join("pitr");
    clear(&dir);
    for below in ["wal", "base"] {
        fs::create_dir_all(dir.join(below))?;
    }
    fs::copy(ground.archive().join("system_identifier"), dir.join("system_identifier"))?;
    nix::unistd::sync();
    Ok(dir)
}

/// Let all wait, or none.
fn queue(names: &[String], from: &Path, wait: bool) -> Result<()> {
    for note in ["tandem.ahead", "tandem.archived"] {
        let _ = fs::remove_file(from.join(note));
    }
    for name in names {
        let _ = fs::remove_file(from.join(format!("archive_status/{name}.done")));
        if wait {
            fs::write(from.join(format!("archive_status/{name}.ready")), "")?;
        }
    }
    Ok(())
}

/// Archive all of them as the server does: through a shell, in order, one at a time.
fn round(ground: &Ground, kind: &Written, from: &Path, series: &mut Series, wait: bool) -> Result<()> {
    let archive = fresh(ground)?;
    queue(&kind.names, from, wait)?;
    let push = format!("exec {} wal push --archive {}", env!("CARGO_BIN_EXE_tandem"), archive.display());
    let whole = Instant::now();
    for name in &kind.names {
        let began = Instant::now();
        let status = ground.program("sh").arg("-c").arg(format!("{push} {}", from.join(name).display())).status()?;
        ensure!(status.success(), "tandem wal push {name}: {status}");
        if wait {
            let [ready, done] = ["ready", "done"].map(|end| from.join(format!("archive_status/{name}.{end}")));
            fs::rename(ready, done)?;
        }
        series.each.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
    series.means.push(whole.elapsed().as_secs_f64() * 1000.0 / kind.names.len() as f64);
    series.bytes = each(kind, |name| archive.join("wal").join(&name[..16]).join(format!("{name}.zst")))?;
    ensure!(series.bytes > 0.0, "an archived segment is empty");
    Ok(())
}

/// What an archived segment takes, in bytes.
fn each(kind: &Written, place: impl Fn(&str) -> PathBuf) -> Result<f64> {
    let sizes = kind.names.iter().map(|name| size(&place(name))).collect::<Result<Vec<u64>>>()?;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred MB")]
    Ok(mean(&sizes.into_iter().map(|size| size as f64).collect::<Vec<_>>()))
}

/// The most memory of one push, in MB.
fn peak(ground: &Ground, kind: &Written, from: &Path, wait: bool) -> Result<f64> {
    let names = &kind.names;
    let archive = fresh(ground)?.display().to_string();
    queue(names, from, wait)?;
    let first = from.join(names.first().context("a segment")?);
    let cost = gauge::run(ground.tandem(&["wal", "push", "--archive", &archive]).arg(first), FAST)?;
    for name in names {
        let _ = fs::remove_file(from.join(format!("archive_status/{name}.ready")));
    }
    Ok(cost.own)
}

/// Archive all of them by a line of the shell, each in its turn, once.
fn shell(ground: &Ground, kind: &Written, from: &Path, line: &str) -> Result<Series> {
    let to = ground.scratch.join("copies");
    clear(&to);
    fs::create_dir_all(&to)?;
    nix::unistd::sync();
    let mut series = Series::default();
    for name in &kind.names {
        let mut command = ground.program("sh");
        command.args(["-c", line]).current_dir(&to).env("from", from.join(name)).env("to", name);
        let began = Instant::now();
        ensure!(command.status()?.success(), "it fails");
        series.each.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    series.means.push(mean(&series.each));
    series.bytes = each(kind, |name| to.join(name))?;
    clear(&to);
    Ok(series)
}

/// Archive all of them by pgBackRest's `archive-push`, each in its turn, once.
fn pgbackrest(ground: &Ground, kind: &Written, from: &Path) -> Result<(String, Series)> {
    let repository = Repository::make(ground)?;
    let mut series = Series::default();
    for name in &kind.names {
        let mut command = repository.command(ground);
        command.arg("archive-push").arg(from.join(name));
        let began = Instant::now();
        ensure!(command.status()?.success(), "{}: archive-push fails", repository.title);
        series.each.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    series.means.push(mean(&series.each));
    Ok((format!("{} `archive-push`, zstd 1", repository.title), series))
}

fn mean(values: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few dozen")]
    let count = values.len() as f64;
    values.iter().sum::<f64>() / count
}
