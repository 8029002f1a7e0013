//! `/metrics` and the status page, measured: what sampling costs beside postgres_exporter at the same interval, how long a scrape
//! takes with 2,000 tables, and what it costs to look.
//!
//! `cargo bench --bench metrics` prints a table; `-- --write` puts it into `benches/README.md`; `-- --seconds N` measures each
//! way for so long. It needs Debian's `prometheus-postgres-exporter`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

#[path = "../../tests/it/common/mod.rs"]
mod common;
#[path = "../figures/mod.rs"]
#[allow(dead_code, reason = "other benchmarks use all of it")]
mod figures;
mod looks;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::backups::{as_superuser, sql};
use common::control;
use common::ports::free_port;
use common::project::Project;
use common::scraped::PROMETHEUS;
use common::tandem::{self, Tandem, wait_for};
use figures::{machine, number, quantile};
use procfs::process::Process;

/// Time between two samples and two scrapes, of all.
const INTERVAL: Duration = Duration::from_secs(5);
const SECONDS: u64 = 60;
const TABLES: u32 = 2000;
const SCRAPES: usize = 2000;

/// What one way of measuring cost, for a minute.
struct Cost {
    what: &'static str,
    /// Seconds of processor time, of what measures and of PostgreSQL.
    own: f64,
    server: f64,
    statements: f64,
    bytes: usize,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let seconds = args.iter().skip_while(|arg| *arg != "--seconds").nth(1).and_then(|text| text.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let (began, before) = (Instant::now(), machine());
    let lines = "workers.count = 1\nmigrations.run = 'none'\npool.size = 1\npool.overflow = 1\nmetrics.interval = 'never'\n\
         metrics.tables = 0\npostgres.settings.max_locks_per_transaction = '256'";
    let project = Project::app_with("plain:app", lines);
    let tandem = Tandem::up(&project);
    let create = "DO $$ BEGIN FOR n IN 1..{n} LOOP EXECUTE format('CREATE TABLE t%s (a int PRIMARY KEY, b text)', n); \
                  END LOOP; END $$";
    sql(&project, &create.replace("{n}", &TABLES.to_string()));
    sql(&project, "VACUUM ANALYZE");
    let base = cost("nothing is measured", &project, &tandem, None, project.health, time);
    let mut costs = Vec::new();
    let mut scrapes = Vec::new();
    for (what, tables) in
        [("Tandem, no tables", 0), ("Tandem, 200 of 2,000 tables", 200), ("Tandem, 1,000 of 2,000 tables", 1000)]
    {
        measure(&project, "5s", tables);
        costs.push(cost(what, &project, &tandem, None, project.health, time));
        scrapes.push((what, latencies(project.health)));
    }
    let looks = looks::table(&project, &tandem);
    measure(&project, "never", 0);
    if let Some((exporter, port)) = exporter(&project) {
        costs.push(cost("postgres_exporter, no tables", &project, &tandem, Some(&exporter.0), port, time));
    }
    let text = format!(
        "{before}; the run took {:.0} s.\n\n{}\n{}\n{looks}",
        began.elapsed().as_secs_f64(),
        costs_table(&base, &costs),
        scrapes_table(&mut scrapes)
    );
    println!("\n{text}");
    if args.iter().any(|arg| arg == "--write") {
        figures::write("metrics", |_| text);
    }
    ExitCode::SUCCESS
}

/// Let Tandem measure so often, with so many tables.
fn measure(project: &Project, interval: &str, tables: u32) {
    let own = |line: &str| line.starts_with("metrics.");
    project.reconfigure(|text| {
        let others = text.lines().filter(|line| !own(line)).collect::<Vec<_>>().join("\n");
        format!("metrics.interval = '{interval}'\nmetrics.tables = {tables}\n{others}\n")
    });
    control::run(project, &["reload"]).expect(0, &[]);
    if interval == "never" {
        return;
    }
    let samples = || {
        let text = String::from_utf8(scrape(project.health)).unwrap();
        text.lines().find_map(|line| line.strip_prefix("pg_exporter_scrapes_total ")?.parse::<f64>().ok())
    };
    let before = samples();
    wait_for("samples with these settings", || samples() > before.map(|before| before + 4.0).or(Some(4.0)));
}

/// What it costs for `time` that `port` is scraped, for a minute.
fn cost(
    what: &'static str,
    project: &Project,
    tandem: &Tandem,
    exporter: Option<&Child>,
    port: u16,
    time: Duration,
) -> Cost {
    let measuring = exporter.map_or(tandem.pid(), |exporter| exporter.id().cast_signed());
    let now = || (own_time(measuring), server_time(tandem, project), statements(project));
    let began = Instant::now();
    let before = now();
    let mut bytes = 0;
    while began.elapsed() < time {
        bytes = scrape(port).len();
        #[expect(clippy::disallowed_methods, reason = "a benchmark's clock is the real one")]
        std::thread::sleep(INTERVAL);
    }
    let (after, minutes) = (now(), began.elapsed().as_secs_f64() / 60.0);
    Cost {
        what,
        own: (after.0 - before.0) / minutes,
        server: (after.1 - before.1) / minutes,
        statements: (after.2 - before.2) / minutes,
        bytes,
    }
}

fn ticks(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

fn own_time(pid: i32) -> f64 {
    let stat = Process::new(pid).unwrap().stat().unwrap();
    ticks(stat.utime + stat.stime)
}

/// Processor time of the postmaster, its children, and those of them that have ended.
fn server_time(tandem: &Tandem, project: &Project) -> f64 {
    let postmaster = tandem.postmaster(project);
    let children = tandem::descendants(postmaster).into_iter().filter_map(|child| Process::new(child.pid).ok());
    let all = children.chain(Process::new(postmaster)).filter_map(|process| process.stat().ok());
    all.map(|stat| ticks(stat.utime + stat.stime + u64::try_from(stat.cutime + stat.cstime).unwrap_or(0))).sum()
}

/// Statements that the server has executed.
fn statements(project: &Project) -> f64 {
    as_superuser(project, "app", "SELECT sum(calls) FROM pg_stat_statements").parse().unwrap()
}

/// A program that is ended with the benchmark.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The peer, and its port.
fn exporter(project: &Project) -> Option<(Beside, u16)> {
    let (port, socket) = (free_port(), project.state().join("run/postgres"));
    let database =
        format!("host={} port={} user=postgres dbname=app sslmode=disable", socket.display(), project.postgres);
    #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
    let mut command = Command::new("prometheus-postgres-exporter");
    command.arg(format!("--web.listen-address=127.0.0.1:{port}")).env("DATA_SOURCE_NAME", database);
    let exporter = Beside(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?);
    wait_for("postgres_exporter", || {
        tandem::get(port, "/metrics").is_some_and(|(_, text)| text.contains("\npg_up 1\n"))
    });
    Some((exporter, port))
}

/// One scrape over a connection of its own: the body.
fn scrape(port: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {PROMETHEUS}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(head + 4)
}

/// How long scrapes take, in milliseconds, sorted.
fn latencies(port: u16) -> Vec<f64> {
    let mut found: Vec<f64> = (0..SCRAPES)
        .map(|_| {
            let began = Instant::now();
            scrape(port);
            began.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    found.sort_by(f64::total_cmp);
    found
}

fn costs_table(base: &Cost, costs: &[Cost]) -> String {
    let mut text =
        "| every 5 s, for a minute | processor time of what measures | of PostgreSQL | statements | text |\n\
                    |---|---|---|---|---|\n"
            .to_owned();
    for cost in std::iter::once(base).chain(costs) {
        // What is there anyway is no cost of measuring. An exporter has nothing else to do.
        let is_exporter = cost.what.starts_with("postgres_exporter");
        let own = if is_exporter || cost.what == base.what { cost.own } else { cost.own - base.own };
        let (server, statements) = match cost.what == base.what {
            true => (cost.server, cost.statements),
            false => (cost.server - base.server, cost.statements - base.statements),
        };
        let [own, server, statements] = [own * 1000.0, server * 1000.0, statements].map(number);
        let _ = writeln!(text, "| {} | {own} ms | {server} ms | {statements} | {} kB |", cost.what, cost.bytes / 1024);
    }
    text
}

fn scrapes_table(scrapes: &mut [(&str, Vec<f64>)]) -> String {
    let mut text = "| a scrape with a new connection | p50 | p99 | longest |\n|---|---|---|---|\n".to_owned();
    for (what, sorted) in scrapes {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|part| number(quantile(sorted, part)));
        let _ = writeln!(text, "| {what} | {half} ms | {most} ms | {all} ms |");
    }
    text
}
