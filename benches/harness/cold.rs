//! From nothing to the first answer: a command that starts a server, asks it `SELECT 1` once and ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Pace;
use crate::common::tandem::left_in;
use crate::figures::median;
use crate::ground::{Ground, LIMIT, tail, wait};
use crate::peers::{self, Contestant};
use crate::sheet::{Sheet, Table, spread};

/// The client may end after its answer, and the caller be woken, but no server be stopped: at its fastest, that takes
/// PostgreSQL 12 ms.
const PROMPT_MAX: f64 = 10.0;
/// Longest wait for what a contestant does in the background after its end.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// How one command went, in milliseconds.
struct Start {
    /// From its start to the client's answer.
    answer: f64,
    /// From then to its end.
    prompt: f64,
}

/// All starts of one contestant in one place.
#[derive(Default)]
struct Series {
    answers: Vec<f64>,
    prompts: Vec<f64>,
    failed: Option<String>,
}

pub fn part(ground: &Ground, pace: Pace, sheet: &mut Sheet) -> Result<()> {
    let (contestants, places) = (peers::contestants(ground, sheet), ground.places());
    let mut series: Vec<Vec<Series>> = Vec::new();
    series.resize_with(contestants.len(), || places.iter().map(|_| Series::default()).collect());
    // The first round makes templates and spare directories, and is not counted.
    for round in 0..=pace.starts {
        for (contestant, series) in contestants.iter().zip(&mut series) {
            for ((_, place), series) in places.iter().zip(series) {
                attempt(ground, contestant, place, series, round > 0);
            }
        }
    }
    let mut head = vec!["cold start, ms".to_owned()];
    for (place, _) in &places {
        head.push(format!("{place}: start to the first `SELECT 1`"));
        head.push("from then to the prompt".into());
    }
    head.extend(["goal".into(), "met".into()]);
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for (contestant, series) in contestants.iter().zip(&series) {
        table.row(row(contestant, series, sheet));
    }
    sheet.add(table);
    for contestant in &contestants {
        end(ground, contestant, &places)?;
    }
    Ok(())
}

/// One more start, unless an earlier one has failed.
fn attempt(ground: &Ground, contestant: &Contestant, place: &Path, series: &mut Series, counted: bool) {
    if series.failed.is_some() {
        return;
    }
    let tmp = ground.dir(place, contestant.name);
    let result = tmp.and_then(|tmp| {
        let start = once((contestant.command)(ground, &tmp)?)?;
        settle(contestant, &tmp)?;
        Ok(start)
    });
    match result {
        Ok(start) if counted => {
            series.answers.push(start.answer);
            series.prompts.push(start.prompt);
        }
        Ok(_) => {}
        Err(error) => series.failed = Some(format!("{error:#}")),
    }
}

/// Start `command` and wait for the client's line and for the end.
fn once(mut command: Command) -> Result<Start> {
    let mut errors = tempfile::tempfile()?;
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(errors.try_clone()?).spawn().context("start it")?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let (tell, told) = mpsc::channel();
    // Servers that stay keep the pipe open, so its end is not waited for.
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let answered = Instant::now();
            if line == "1" && tell.send(answered).is_err() {
                break;
            }
        }
    });
    let answer = told.recv_timeout(LIMIT);
    let (status, ended) = wait(child, LIMIT)?;
    ensure!(status.success(), "{status}: {}", tail(&mut errors)?.trim());
    let Ok(answered) = answer else { bail!("the client had no answer: {}", tail(&mut errors)?.trim()) };
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
    Ok(Start { answer: ms(began, answered), prompt: ms(answered, ended) })
}

/// Wait for what it does in the background, so that it does not slow down the next in line.
fn settle(contestant: &Contestant, tmp: &Path) -> Result<()> {
    let began = Instant::now();
    while !(contestant.settled)(tmp) {
        ensure!(
            began.elapsed() < SETTLE_LIMIT,
            "after {SETTLE_LIMIT:?} it has no spare directory, or the last one is still there"
        );
        crate::common::tandem::pause();
    }
    Ok(())
}

/// Wait until its last server is gone, and remove what it has left.
fn end(ground: &Ground, contestant: &Contestant, places: &[(&str, PathBuf)]) -> Result<()> {
    for (_, place) in places {
        let (tmp, began) = (ground.dir(place, contestant.name)?, Instant::now());
        while !left_in(&tmp).is_empty() && began.elapsed() < SETTLE_LIMIT {
            crate::common::tandem::pause();
        }
        let _ = fs::remove_dir_all(tmp);
    }
    Ok(())
}

fn row(contestant: &Contestant, series: &[Series], sheet: &mut Sheet) -> Vec<String> {
    let mut cells = vec![contestant.title.clone()];
    for series in series {
        if let Some(failed) = &series.failed {
            sheet.note(&format!("{}: not measured: {failed}", contestant.title));
            cells.extend(["not measured".to_owned(), String::new()]);
        } else {
            cells.extend([spread(&series.answers), spread(&series.prompts)]);
        }
    }
    let (Some(limit), Some(best)) = (contestant.goal, series.first()) else { return cells };
    let stop = if contestant.waits_for_nothing { "; stop never waited for" } else { "" };
    let goal = format!("< {limit} ms{stop}");
    let fast = best.failed.is_none() && !best.answers.is_empty() && median(&best.answers) < limit;
    let unwaited = !contestant.waits_for_nothing || best.failed.is_none() && median(&best.prompts) < PROMPT_MAX;
    let verdict = sheet.verdict(&format!("{}: {goal}", contestant.title), fast && unwaited);
    cells.extend([goal, verdict]);
    cells
}
