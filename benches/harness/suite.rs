//! A suite of tests, each with a database of its own that holds FFE's schema.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::Pace;
use crate::figures::{median, number};
use crate::ground::Ground;
use crate::sheet::{Sheet, Table, spread};

const MOST_WORKERS: usize = 4;
const WORKERS: [usize; 2] = [1, MOST_WORKERS];
/// With the most workers, as the one below.
const RATE_GOAL: f64 = 100.0;
const RATIO_GOAL: f64 = 3.0;

/// A way to give each test its database.
struct Way {
    title: String,
    /// Where temporary files go.
    tmp: PathBuf,
    tests: usize,
    command: fn(&Ground, &Path) -> Command,
    /// Options of pytest, and the file of the tests.
    options: &'static [&'static str],
    tests_in: &'static str,
    /// Whether our goal is set beside its rate.
    is_rival: bool,
}

/// One run of the suite.
struct Run {
    /// Tests per second, from the first test's begin to the last test's end.
    rate: f64,
    /// Milliseconds of that for each test.
    wall: f64,
    /// A test's own time in milliseconds, set-up and tear-down included; the median.
    own: f64,
    /// Until the test had its database.
    setup: f64,
    /// Of the whole command, in seconds.
    command: f64,
}

/// All runs of one way with so many workers.
#[derive(Default)]
struct Series {
    runs: Vec<Run>,
    failed: Option<String>,
}

impl Series {
    fn values(&self, value: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(value).collect()
    }

    fn cell(&self, value: impl Fn(&Run) -> f64) -> String {
        if self.failed.is_some() { "not measured".into() } else { spread(&self.values(value)) }
    }
}

pub fn part(ground: &Ground, pace: Pace, sheet: &mut Sheet) -> Result<()> {
    let ways = ways(ground, pace)?;
    let title = format!("{} tests, a database each", pace.tests);
    let mut head: Vec<&str> = vec![&title];
    head.extend(ways.iter().map(|way| way.title.as_str()));
    head.extend(["goal", "met"]);
    let mut table = Table::new(&head);
    for workers in WORKERS {
        let mut all: Vec<Series> = ways.iter().map(|_| Series::default()).collect();
        for _round in 0..pace.suites {
            for (way, series) in ways.iter().zip(&mut all) {
                attempt(ground, way, workers, series);
            }
        }
        for (way, series) in ways.iter().zip(&all) {
            if let Some(failed) = &series.failed {
                sheet.note(&format!("{}: not measured: {failed}", way.title));
            }
        }
        rows(&mut table, workers, &ways, &all, sheet);
    }
    sheet.add(table);
    Ok(())
}

fn ways(ground: &Ground, pace: Pace) -> Result<Vec<Way>> {
    let (best, version) = (ground.best(), ground.version("pytest-postgresql")?);
    let mut ways = vec![Way {
        title: "Tandem".into(),
        tmp: best.clone(),
        tests: pace.tests,
        command: tandem,
        // A suite that uses Tandem has no pytest-postgresql to load.
        options: &["-p", "no:pytest_postgresql"],
        tests_in: "test_tandem.py",
        is_rival: false,
    }];
    for (place, tmp) in ground.places() {
        ways.push(Way {
            title: format!("pytest-postgresql {version}, {place}"),
            tmp,
            tests: pace.tests,
            command: plain,
            options: &[],
            tests_in: "test_pytest_postgresql.py",
            is_rival: true,
        });
    }
    ways.push(Way {
        title: format!("`alembic upgrade head` in each of {} tests", pace.upgrades),
        tmp: best,
        tests: pace.upgrades,
        command: plain,
        options: &[],
        tests_in: "test_alembic.py",
        is_rival: false,
    });
    Ok(ways)
}

fn tandem(ground: &Ground, tmp: &Path) -> Command {
    let mut command = ground.tandem_test(tmp, &[]);
    command.arg(ground.venv.join("bin/python"));
    command
}

fn plain(ground: &Ground, tmp: &Path) -> Command {
    let mut command = ground.python(tmp);
    // Those that start a server find it by `pg_config`; ours is not the first that it would name.
    command.env("PYTEST_ADDOPTS", format!("--postgresql-exec={}", ground.bin.join("pg_ctl").display()));
    command
}

fn attempt(ground: &Ground, way: &Way, workers: usize, series: &mut Series) {
    if series.failed.is_none() {
        match run(ground, way, workers) {
            Ok(run) => series.runs.push(run),
            Err(error) => series.failed = Some(format!("{error:#}")),
        }
    }
}

fn run(ground: &Ground, way: &Way, workers: usize) -> Result<Run> {
    let tmp = ground.dir(&way.tmp, "suite")?;
    let _ = fs::remove_dir_all(tmp.join("stamps"));
    let stamps = ground.dir(&tmp, "stamps")?;
    let mut command = (way.command)(ground, &tmp);
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "stamps", "-n", &workers.to_string()]);
    command.args(way.options).arg(ground.script("suite").join(way.tests_in));
    command.env("PYTHONPATH", ground.script("suite")).env("STAMPS", &stamps);
    command.env("TESTS", way.tests.to_string()).env("SCHEMA", ground.schema());
    command.env("ALEMBIC_INI", ground.script("alembic/alembic.ini"));
    let log = ground.project.dir().join("pytest.log");
    let took = ground.finish(command, Stdio::from(fs::File::create(&log)?)).with_context(|| summary(&log))?;
    let tests = read(&stamps)?;
    fs::remove_dir_all(tmp)?;
    ensure!(tests.len() == way.tests, "{} of {} tests ran", tests.len(), way.tests);
    let (first, last) =
        tests.iter().fold((f64::MAX, f64::MIN), |(first, last), [begin, _, end]| (first.min(*begin), last.max(*end)));
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let rate = tests.len() as f64 / (last - first);
    let middle = |value: fn(&[f64; 3]) -> f64| median(&tests.iter().map(value).collect::<Vec<_>>()) * 1000.0;
    let own = middle(|[begin, _, end]| end - begin);
    let setup = middle(|[begin, call, _]| call - begin);
    Ok(Run { rate, wall: 1000.0 / rate, own, setup, command: took.as_secs_f64() })
}

/// The lines of pytest's output that say what went wrong.
fn summary(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let errors = text.lines().filter(|line| line.starts_with("E  ") || line.starts_with("ERROR"));
    errors.take(2).collect::<Vec<_>>().join(" ")
}

/// What the plugin of `suite/stamps.py` has noted, in all its processes.
fn read(stamps: &Path) -> Result<Vec<[f64; 3]>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(stamps)? {
        let text = fs::read_to_string(entry?.path())?;
        all.extend(serde_json::from_str::<Vec<[f64; 3]>>(&text).context("read the stamps of the tests")?);
    }
    Ok(all)
}

fn rows(table: &mut Table, workers: usize, ways: &[Way], all: &[Series], sheet: &mut Sheet) {
    let who = if workers == 1 { "1 xdist worker".to_owned() } else { format!("{workers} xdist workers") };
    let mut row = |what: &str, value: fn(&Run) -> f64, verdict: [String; 2]| {
        let mut cells = vec![what.to_owned()];
        cells.extend(all.iter().map(|series| series.cell(value)));
        cells.extend(verdict);
        table.row(cells);
    };
    let ours = &all[0];
    let mut verdict = [String::new(), String::new()];
    if workers == MOST_WORKERS {
        let met = !ours.runs.is_empty() && median(&ours.values(|run| run.rate)) >= RATE_GOAL;
        let goal = format!("≥ {RATE_GOAL}/s");
        let met = sheet.verdict(&format!("tests per second with {workers} workers: {goal}"), met);
        verdict = [goal, met];
    }
    let none = || [String::new(), String::new()];
    row(&format!("{who}: tests per second"), |run| run.rate, verdict);
    row("— ms of the wall clock for each test", |run| run.wall, none());
    row("— a test's own ms, set-up and tear-down included", |run| run.own, none());
    row("— of that until it has its database", |run| run.setup, none());
    row("— the whole command, s", |run| run.command, none());
    ratios(table, workers, ways, all, sheet);
}

/// How often our rate holds each of the others', round by round.
fn ratios(table: &mut Table, workers: usize, ways: &[Way], all: &[Series], sheet: &mut Sheet) {
    let (mut cells, mut met) = (vec!["— Tandem's rate ÷ this one's".to_owned(), String::new()], Vec::new());
    let goal = format!("≥ {} ×", number(RATIO_GOAL));
    for (way, other) in ways.iter().zip(all).skip(1) {
        let pairs = all[0].runs.iter().zip(&other.runs);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours.rate / theirs.rate).collect();
        cells.push(if ratios.is_empty() { String::new() } else { format!("{} ×", spread(&ratios)) });
        if workers == MOST_WORKERS && way.is_rival {
            let reached = !ratios.is_empty() && median(&ratios) >= RATIO_GOAL;
            met.push(sheet.verdict(&format!("rate beside {} with {workers} workers: {goal}", way.title), reached));
        }
    }
    if !met.is_empty() {
        cells.extend([goal, met.join(", ")]);
    }
    table.row(cells);
}
