//! Workers, measured: Tandem against what else runs four of them, each with the same small application, in one run.
//!
//! `cargo bench --bench workers` prints a table; `-- --write` puts it into `benches/README.md`; `-- --only` takes names of
//! servers and of sections, and `peers` for all servers but Tandem; `-- --all` has the peers that are left out otherwise;
//! `-- --quick` takes less time for everything.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on shall say where")]

#[path = "../../tests/it/common/mod.rs"]
mod common;
mod faults;
#[path = "../figures/mod.rs"]
mod figures;
mod load;
mod peers;
mod preload;
mod rest;
mod rolls;
mod server;
mod sheet;
mod slow;
mod throughput;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use peers::{PEERS, Peer, Site};
use sheet::Sheet;

/// How long the sections look.
#[derive(Clone, Copy)]
pub struct Pace {
    pub quick: bool,
    pub starts: usize,
    pub rolling: Duration,
    pub kills: usize,
    pub blocked: Duration,
    pub broken: Duration,
    pub rest: Duration,
    pub spread: Duration,
    pub spreads: usize,
    pub swaps: usize,
    pub requests: u64,
    pub slow: Duration,
    pub turns: usize,
    pub turn: Duration,
}

const FULL: Pace = Pace {
    quick: false,
    starts: 3,
    rolling: Duration::from_secs(15),
    kills: 3,
    blocked: Duration::from_secs(35),
    broken: Duration::from_secs(15),
    rest: Duration::from_secs(15),
    spread: Duration::from_millis(1500),
    spreads: 5,
    swaps: 150,
    requests: 200_000,
    slow: Duration::from_secs(45),
    turns: 5,
    turn: Duration::from_millis(1500),
};

const QUICK: Pace = Pace {
    quick: true,
    starts: 1,
    rolling: Duration::from_secs(3),
    kills: 1,
    blocked: Duration::from_secs(20),
    broken: Duration::from_secs(4),
    rest: Duration::from_secs(2),
    spread: Duration::from_millis(500),
    spreads: 3,
    swaps: 20,
    requests: 10_000,
    slow: Duration::from_secs(5),
    turns: 2,
    turn: Duration::from_millis(500),
};

/// One section for one server: it fills its cells of the column.
pub struct Turn<'a> {
    pub peer: &'a Peer,
    pub venv: &'a Path,
    pub pace: Pace,
    sheet: &'a mut Sheet,
    column: usize,
}

impl Turn<'_> {
    pub fn put(&mut self, row: &str, text: &str) {
        self.sheet.put(row, self.column, text);
    }

    /// A goal, which is Tandem's alone.
    pub fn goal(&mut self, what: &str, met: bool) {
        if self.peer.is_tandem() {
            self.sheet.goal(what, met);
        }
    }

    pub fn site(&self) -> Result<Site> {
        Site::new(self.venv, "")
    }
}

/// One section for all servers, which stand side by side.
pub struct Together<'a> {
    pub peers: &'a [Peer],
    pub venv: &'a Path,
    pub pace: Pace,
    sheet: &'a mut Sheet,
}

impl Together<'_> {
    pub fn put(&mut self, row: &str, column: usize, text: &str) {
        self.sheet.put(row, column, text);
    }

    pub fn goal(&mut self, what: &str, met: bool) {
        self.sheet.goal(what, met);
    }
}

#[derive(Clone, Copy)]
enum Work {
    /// For one server after the other.
    Each(fn(&mut Turn) -> Result<()>),
    /// For Tandem alone.
    Tandem(fn(&mut Turn) -> Result<()>),
    /// For all at once.
    Together(fn(&mut Together) -> Result<()>),
}

/// What is measured together: `row` says so when it fails.
struct Section {
    name: &'static str,
    row: &'static str,
    work: Work,
}

const fn section(name: &'static str, row: &'static str, work: Work) -> Section {
    Section { name, row, work }
}

/// In the order of the table.
const SECTIONS: [Section; 10] = [
    section("rolls", rolls::FAILED, Work::Each(rolls::rolls)),
    section("slow", slow::FAILED, Work::Together(slow::slow)),
    section("broken", rolls::BROKEN, Work::Each(rolls::broken)),
    section("kill", faults::KILLED, Work::Each(faults::kill_worker)),
    section("blocked", faults::BLOCKED, Work::Each(faults::block)),
    section("orphans", faults::ORPHANS, Work::Each(faults::kill_supervisor)),
    section("rest", rest::STARTED, Work::Each(rest::rest)),
    section("throughput", throughput::MEASURED, Work::Together(throughput::throughput)),
    section("long", rolls::LONG, Work::Tandem(rolls::long)),
    section("preload", preload::STARTED, Work::Tandem(preload::preload)),
];

/// What the command line asks for.
struct Choice {
    words: Vec<String>,
    quick: bool,
    all: bool,
    write: bool,
}

impl Choice {
    fn read(args: &[String]) -> Result<Self> {
        let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);
        let words: Vec<String> = only.iter().flat_map(|only| only.split(',')).map(str::to_owned).collect();
        for word in &words {
            let known = word == "peers"
                || PEERS.iter().any(|peer| peer.name == word)
                || SECTIONS.iter().any(|section| section.name == word);
            ensure!(known, "`{word}` is neither a server nor a section");
        }
        let given = |name: &str| args.iter().any(|arg| arg == name);
        Ok(Self { words, quick: given("--quick"), all: given("--all"), write: given("--write") })
    }

    fn says(&self, word: &str) -> bool {
        self.words.iter().any(|given| given == word)
    }

    fn peers(&self) -> Vec<Peer> {
        let usual = |peer: &Peer| self.all || !peer.left_out;
        let asked = |peer: &Peer| self.says(peer.name) || self.says("peers") && !peer.is_tandem() && usual(peer);
        let some: Vec<Peer> = PEERS.into_iter().filter(asked).collect();
        if some.is_empty() { PEERS.into_iter().filter(usual).collect() } else { some }
    }

    fn sections(&self) -> Vec<&'static Section> {
        let some: Vec<_> = SECTIONS.iter().filter(|section| self.says(section.name)).collect();
        // A blocked event loop takes longer to notice than all the rest of a quick run.
        let all = SECTIONS.iter().filter(|section| !self.quick || section.name != "blocked");
        if some.is_empty() { all.collect() } else { some }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let choice = Choice::read(&args)?;
    // Workers whose parent was killed become our children, and none of them outlives us.
    nix::sys::prctl::set_child_subreaper(true)?;
    end_with_us()?;
    let venv: PathBuf = peers::venv()?;
    let (began, before) = (Instant::now(), figures::machine());
    let peers = choice.peers();
    let mut sheet = Sheet::new(peers.iter().map(|peer| peer.title(&venv)).collect());
    let pace = if choice.quick { QUICK } else { FULL };
    for section in choice.sections() {
        let began = Instant::now();
        measure(section, &peers, &venv, pace, &mut sheet);
        eprintln!("{}: {:.0?}", section.name, began.elapsed());
    }
    ensure!(!sheet.is_empty(), "nothing was measured");
    let quick = if choice.quick { "; a quick run" } else { "" };
    let text = format!("{before}; the run took {:.0} s{quick}.\n\n{}", began.elapsed().as_secs_f64(), sheet.markdown());
    println!("\n{text}");
    for missed in &sheet.missed {
        println!("missed: {missed}");
    }
    if choice.write {
        figures::write("workers", |_| text);
    }
    Ok(())
}

/// One section, which fills its cells or says why it cannot.
fn measure(section: &Section, peers: &[Peer], venv: &Path, pace: Pace, sheet: &mut Sheet) {
    let missed = format!("{}: not measured", section.name);
    let (each, tandem_alone) = match section.work {
        Work::Each(each) => (each, false),
        Work::Tandem(each) => (each, true),
        Work::Together(work) => {
            if let Err(error) = work(&mut Together { peers, venv, pace, sheet }) {
                sheet.put(section.row, 0, &format!("not measured: {error:#}"));
                sheet.goal(&missed, false);
            }
            return server::end_all();
        }
    };
    for (column, peer) in peers.iter().enumerate().filter(|(_, peer)| !tandem_alone || peer.is_tandem()) {
        let mut turn = Turn { peer, venv, pace, sheet, column };
        if let Err(error) = each(&mut turn).with_context(|| format!("{} failed", peer.name)) {
            turn.put(section.row, &format!("not measured: {error:#}"));
            turn.goal(&missed, false);
        }
        server::end_all();
    }
}

/// End what the run has started when a signal ends it early.
fn end_with_us() -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            server::end_all();
            #[expect(clippy::disallowed_methods, reason = "the run is over, wherever it stands")]
            std::process::exit(130);
        }
    });
    Ok(())
}
