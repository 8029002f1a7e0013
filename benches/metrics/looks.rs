//! What it costs to look: the page's weight, its first paint, the memory of those who watch it, the slowest of the statistics.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ::tandem::stats::Topic;
use procfs::process::Process;

use crate::common::project::{Project, root};
use crate::common::python;
use crate::common::tandem::{self, Tandem, wait_for};
use crate::figures::number;

const CHROMIUM: &str = "/usr/bin/chromium";
const VIEWERS: usize = 10;
const KILOBYTE: f64 = 1024.0;

/// A table of them, on a page that a first viewer has seen already.
pub fn table(project: &Project, tandem: &Tandem) -> String {
    let mut text = "| to look | | goal |\n|---|---|---|\n".to_owned();
    let page = get(project.health, "/", "text/html").len() as f64 / KILOBYTE;
    let _ = writeln!(text, "| the status page, whole | {} kB | ≤ 150 kB |", number(page));
    if let Some(paint) = first_paint(project) {
        let _ = writeln!(
            text,
            "| its first contentful paint in Chromium, median of 10 | {} ms | ≤ 300 ms |",
            number(paint)
        );
    }
    let (alone, watched) = with_viewers(project, tandem);
    let _ = writeln!(text, "| Tandem's memory (PSS), nobody watching | {} MB | |", number(alone));
    let _ = writeln!(text, "| — {VIEWERS} watching the page | {} MB | |", number(watched));
    let (topic, slowest) = slowest_topic(project);
    let _ = writeln!(text, "| the slowest of all `tandem stats`, `{topic}` | {} ms | ≤ 1,000 ms |", number(slowest));
    text
}

fn get(port: u16, path: &str, accept: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..head]));
    answer.split_off(head + 4)
}

/// In milliseconds; `None` where there is no Chromium.
fn first_paint(project: &Project) -> Option<f64> {
    if !Path::new(CHROMIUM).exists() {
        return None;
    }
    #[expect(clippy::disallowed_methods, reason = "a benchmark starts the browser")]
    let mut command = Command::new(python::browser().join("bin/python"));
    command.arg(root().join("tests/fixtures/page/browser.py"));
    command.arg(format!("http://127.0.0.1:{}", project.health)).arg("none").arg(project.dir()).arg("paint");
    let output = command.env("TMPDIR", project.dir()).env("HOME", project.dir()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.lines().next().unwrap().parse().ok()
}

/// Megabytes without viewers, and with them.
fn with_viewers(project: &Project, tandem: &Tandem) -> (f64, f64) {
    let alone = settled(tandem);
    let viewers: Vec<TcpStream> = (0..VIEWERS)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", project.health)).unwrap();
            write!(stream, "GET /events?page HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    // Each reads what comes, as a browser does.
    for stream in &viewers {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
    }
    let watched = settled(tandem);
    for stream in viewers {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    (alone, watched)
}

/// Tandem's memory once it has stayed the same for ten seconds, to a tenth of a megabyte; at the latest after two minutes.
fn settled(tandem: &Tandem) -> f64 {
    let now = || {
        let maps = Process::new(tandem.pid()).unwrap().smaps_rollup().unwrap();
        maps.memory_map_rollup.iter().filter_map(|map| map.extension.map.get("Pss")).sum::<u64>() as f64
            / KILOBYTE
            / KILOBYTE
    };
    let (began, mut since, mut last) = (Instant::now(), Instant::now(), now());
    wait_for("memory that stays the same", || {
        let found = now();
        if (found - last).abs() > 0.1 {
            (since, last) = (Instant::now(), found);
        }
        since.elapsed().as_secs() >= 10 || began.elapsed().as_secs() >= 50
    });
    last
}

/// Its name, and the milliseconds of the best of three.
fn slowest_topic(project: &Project) -> (&'static str, f64) {
    let time = |topic: &Topic| {
        let once = || {
            let began = Instant::now();
            assert!(tandem::run(project, &["stats", topic.name(), "--json"]).status.success(), "{}", topic.name());
            began.elapsed().as_secs_f64() * 1000.0
        };
        (0..3).map(|_| once()).fold(f64::INFINITY, f64::min)
    };
    let all = Topic::ALL.iter().map(|topic| (topic.name(), time(topic)));
    all.max_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap()
}
