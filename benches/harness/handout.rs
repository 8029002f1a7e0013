//! How long a database takes to be handed out while the pool is full.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Pace;
use crate::common::tandem::pause;
use crate::figures::{number, quantile};
use crate::ground::{Ground, LIMIT, wait};
use crate::sheet::{Sheet, Table};

/// Databases that are ready before each batch.
const POOL: u64 = 16;
const GOAL_MS: f64 = 1.0;
const FILL_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How databases are asked for.
#[derive(Clone, Copy)]
struct Demand {
    what: &'static str,
    /// Taken in a row.
    batch: usize,
    /// From the pool's being full to the first of them, so that what was given back is gone.
    rest: Duration,
    /// Whether the goal is set beside it.
    counts: bool,
}

const DEMANDS: [Demand; 2] = [
    Demand { what: "one, at rest", batch: 1, rest: Duration::from_millis(50), counts: true },
    Demand { what: "eight in a row, while the pool fills", batch: 8, rest: Duration::ZERO, counts: false },
];

pub fn part(ground: &Ground, pace: Pace, sheet: &mut Sheet) -> Result<()> {
    let mut table = Table::new(&["hand-out of a database, ms", "p50", "p99", "longest", "goal", "met"]);
    for demand in DEMANDS {
        let python = python(ground, demand, pace.handouts).context("hand-outs to Python")?;
        row(&mut table, sheet, "a test in Python", demand, python);
        let raw = raw(ground, demand, pace.handouts).context("hand-outs to a bare client")?;
        row(&mut table, sheet, "a bare client of the unix socket", demand, raw);
    }
    sheet.add(table);
    Ok(())
}

fn row(table: &mut Table, sheet: &mut Sheet, who: &str, demand: Demand, mut seconds: Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    let ms = |part: f64| quantile(&seconds, part) * 1000.0;
    let what = format!("{who}: {}", demand.what);
    let mut cells = vec![format!("{what}, {} times", seconds.len()), format!("**{}**", number(ms(0.5)))];
    cells.extend([number(ms(0.99)), number(ms(1.0))]);
    if demand.counts {
        let goal = format!("< {} ms", number(GOAL_MS));
        let mut verdict =
            |name: &str, part: f64| sheet.verdict(&format!("hand-out to {what}, {name}: {goal}"), ms(part) < GOAL_MS);
        let verdict = format!("p50 {}, p99 {}", verdict("p50", 0.5), verdict("p99", 0.99));
        cells.extend([goal, verdict]);
    }
    table.row(cells);
}

/// `tandem test` with a pool of [`POOL`].
fn tandem(ground: &Ground) -> Result<Command> {
    let tmp = ground.dir(&ground.best(), "handout")?;
    let mut command = ground.tandem_test(&tmp, &[]);
    command.env("TANDEM_TEST__POOL", POOL.to_string());
    Ok(command)
}

fn python(ground: &Ground, demand: Demand, count: usize) -> Result<Vec<f64>> {
    let mut command = tandem(ground)?;
    command.arg(ground.venv.join("bin/python")).arg(ground.script("handout.py"));
    command.args([count.to_string(), POOL.to_string(), demand.batch.to_string()]);
    command.arg(demand.rest.as_secs_f64().to_string());
    let said = ground.output(command)?;
    serde_json::from_str(&said).context("read what handout.py says")
}

/// A harness that runs until it is dropped.
struct Harness {
    child: Option<Child>,
    socket: PathBuf,
}

impl Harness {
    fn start(ground: &Ground) -> Result<Self> {
        let mut command = tandem(ground)?;
        command.args(["sh", "-c", "echo \"$TANDEM_TEST_SOCKET\" && exec sleep 600"]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("start tandem test")?;
        let stdout = child.stdout.take().context("its output")?;
        let mut harness = Self { child: Some(child), socket: PathBuf::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(!line.trim().is_empty(), "it named no socket");
        harness.socket = line.trim().into();
        Ok(harness)
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            let _ = wait(child, LIMIT);
        }
    }
}

fn raw(ground: &Ground, demand: Demand, count: usize) -> Result<Vec<f64>> {
    let harness = Harness::start(ground)?;
    let mut client = Client::connect(&harness.socket)?;
    // A pool need not fill before it was asked once.
    let first = client.take()?;
    client.give_back(&first)?;
    let mut took = Vec::new();
    while took.len() < count {
        let began = Instant::now();
        while client.ask("GET", "/status", "")?["ready"].as_u64() < Some(POOL) {
            ensure!(began.elapsed() < FILL_LIMIT, "the pool is not full after {FILL_LIMIT:?}");
            pause();
        }
        let full = Instant::now();
        while full.elapsed() < demand.rest {
            pause();
        }
        let mut names = Vec::new();
        for _ in 0..demand.batch {
            let before = Instant::now();
            let name = client.take()?;
            took.push(before.elapsed().as_secs_f64());
            names.push(name);
        }
        for name in names {
            client.give_back(&name)?;
        }
    }
    Ok(took)
}

/// HTTP on the harness's socket, on one connection.
struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// A database's name.
    fn take(&mut self) -> Result<String> {
        let answer = self.ask("POST", "/databases", "{}")?;
        Ok(answer["name"].as_str().context("a database without a name")?.to_owned())
    }

    fn give_back(&mut self, name: &str) -> Result<()> {
        self.ask("DELETE", &format!("/databases/{name}"), "")?;
        Ok(())
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<serde_json::Value> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ended within an answer");
            let line = line.trim().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let text = String::from_utf8_lossy(&body);
        ensure!(status.contains(" 200 "), "{method} {path}: {} {text}", status.trim());
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}: {text}"))
    }
}
