//! A schedule of faults: rows are written through the application while process after process is killed, stopped or
//! broken, and after each fault everything must be as before.
//!
//! `plan` says which fault comes when, `blows` brings it about, `clients` write meanwhile, `gauge` looks at the supervisor,
//! and `ground` is the project that all of it happens to. The bench runs all of it and a test runs a short one.

mod blows;
mod clients;
mod gauge;
mod ground;
pub mod plan;

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::strict::Connection;
use crate::common::tandem::processes;
use blows::{Came, Strike};
use clients::Clients;
use gauge::{LIVE_LIMIT, Live};
pub use gauge::{StallWatch, Stalls, Taken};
use ground::{AUXILIARY_WORDS, COMPANION, Ground, WORKERS};
use plan::{Fault, Schedule};

/// How often the server's processes may end before Tandem gives it up, within this time.
const POSTMASTER_ENDS: (usize, Duration) = (4, Duration::from_secs(65));
/// How long the supervisor gets to become quiet before it is looked at.
const QUIET: Duration = Duration::from_secs(2);
/// How long the last stop may take, and what it leaves may live.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const LEFT_LIMIT: Duration = Duration::from_secs(20);
/// How long readiness may take to return, and how long a withdrawal is looked for: PostgreSQL is back before long.
const READY_LIMIT: Duration = Duration::from_secs(10);
const WITHDRAWN_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);
/// Faults that came before the last one had healed.
const SEVERAL: &str = "several at once";
/// How the name of a fault begins that pauses the supervisor.
const PAUSED: &str = "supervisor: SIGSTOP";

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub faults: usize,
    /// How often a backend is killed to see when readiness is withdrawn.
    pub withdrawals: usize,
    /// Limits count so often: a machine with other work is slower.
    pub slack: u32,
    /// Say what is done.
    pub say: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub acknowledged: usize,
    pub refused: u64,
    pub lost: usize,
    /// Processes that were left after the last stop.
    pub left: Vec<String>,
    /// By kind of fault: the seconds until all was as before.
    pub healed: BTreeMap<String, Vec<f64>>,
    /// By kind of fault: how often there was no victim, and why the last time.
    pub missed: BTreeMap<String, (usize, String)>,
    pub hits: usize,
    /// What did not go as it must.
    pub troubles: Vec<String>,
    /// The longest wait for `/live`, and during which fault.
    pub live: (Duration, String),
    /// The stalls that the loop has measured.
    pub stalls: StallWatch,
    /// The supervisor that all later faults met: at its start, and after the last fault.
    pub taken: Option<(Taken, Taken)>,
    /// Milliseconds from `kill -9` of a backend until `/ready` said no.
    pub withdrawn: Vec<f64>,
}

/// Let time pass.
#[expect(clippy::disallowed_methods, reason = "a benchmark's clock is the real one")]
fn rest(time: Duration) {
    std::thread::sleep(time);
}

/// Run a schedule.
///
/// # Errors
/// It cannot go on.
pub fn run(options: Options) -> Result<Outcome> {
    let mut course = Course::begin(options)?;
    let mut schedule = Schedule::new(options.seed);
    // Faults that find no victim do not count, and there are not many of them.
    for _ in 0..options.faults * 2 {
        if course.outcome.hits >= options.faults {
            break;
        }
        let fault = schedule.next(course.outcome.hits, options.faults);
        course.meet(fault)?;
    }
    course.finish()
}

/// A schedule that is under way.
struct Course {
    options: Options,
    ground: Ground,
    clients: Clients,
    live: Live,
    outcome: Outcome,
    began: Instant,
    /// What has come since all was last as before: kinds, processes that must be gone.
    open: Vec<(String, Duration)>,
    gone: Vec<i32>,
    postmaster: Option<i32>,
    postmaster_ends: Vec<Instant>,
    /// What the supervisor took when the faults that leave it alone began.
    first: Option<(i32, Taken)>,
}

impl Course {
    fn begin(options: Options) -> Result<Self> {
        let ground = Ground::make()?;
        let clients = Clients::start(ground.app());
        let live = Live::start(ground.port());
        let postmaster = ground.postmaster();
        let mut course = Self {
            options,
            ground,
            clients,
            live,
            outcome: Outcome::default(),
            began: Instant::now(),
            open: Vec::new(),
            gone: Vec::new(),
            postmaster,
            postmaster_ends: Vec::new(),
            first: None,
        };
        course.clients.mark();
        course.heal(Duration::from_secs(30))?;
        Ok(course)
    }

    fn say(&self, text: &str) {
        if self.options.say {
            eprintln!(
                "{:7.1} s, {} of {}: {text}",
                self.began.elapsed().as_secs_f64(),
                self.outcome.hits,
                self.options.faults
            );
        }
    }

    fn trouble(&mut self, fault: &str, error: &anyhow::Error) {
        let text = format!("fault {} ({fault}): {error:#}", self.outcome.hits + 1);
        self.say(&format!("TROUBLE: {text}"));
        self.outcome.troubles.push(text);
    }

    /// One fault, and its healing, unless the next one comes at once.
    fn meet(&mut self, fault: Fault) -> Result<()> {
        let name = fault.kind.name();
        self.spare_the_postmaster(fault);
        if !fault.kind.ends_the_supervisor()
            && self.outcome.hits * 10 >= self.options.faults * 3
            && self.open.is_empty()
        {
            self.look_first();
        }
        self.live.during(&name);
        let lenient = !self.open.is_empty();
        let mut strike =
            Strike { ground: &mut self.ground, live: &self.live, fault, lenient, slack: self.options.slack };
        match strike.strike() {
            Ok(Came::Hit(gone)) => self.gone.extend(gone),
            Ok(Came::Missed(why)) => {
                self.say(&format!("{name}: missed: {why}"));
                let missed = self.outcome.missed.entry(name).or_default();
                *missed = (missed.0 + 1, why);
                return self.close(fault.kind.limit());
            }
            Err(error) => self.trouble(&name, &error),
        }
        self.outcome.hits += 1;
        self.clients.mark();
        self.open.push((name, fault.kind.limit() * self.options.slack));
        let last = self.outcome.hits == self.options.faults;
        if fault.pressed && !last { Ok(()) } else { self.close(Duration::ZERO) }
    }

    /// Wait until all is as before; where that does not happen, begin anew with another supervisor.
    fn close(&mut self, least: Duration) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        let limit = open.iter().map(|(_, limit)| *limit).sum::<Duration>().max(least);
        let names: Vec<&str> = open.iter().map(|(name, _)| name.as_str()).collect();
        let name = if names.len() == 1 { names[0].to_owned() } else { SEVERAL.to_owned() };
        let healed = self.heal(limit);
        self.gone.clear();
        match healed {
            Ok(time) => {
                self.say(&format!("{}: {:.0} ms", names.join(", then "), time.as_secs_f64() * 1000.0));
                if !open.is_empty() {
                    self.outcome.healed.entry(name).or_default().push(time.as_secs_f64());
                }
            }
            Err(error) => {
                let end = self.ground.log_end(8);
                self.trouble(&names.join(", then "), &error.context(format!("the log ends with\n    {end}\n   ")));
                self.begin_anew()?;
            }
        }
        self.look_at_the_stall(&names.join(", then "));
        let postmaster = self.ground.postmaster();
        if postmaster != self.postmaster {
            self.postmaster = postmaster;
            self.postmaster_ends.push(Instant::now());
        }
        Ok(())
    }

    /// How long it takes until all is as before: ready, with all workers and a row that was sent since; and then the rest.
    fn heal(&mut self, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let mut ready = None;
        loop {
            self.ground.check()?;
            let missing = match ready {
                None => self.what_is_missing(),
                Some(_) => self.what_else_is_missing(),
            };
            match (missing, ready) {
                (None, None) => ready = Some(began.elapsed()),
                (None, Some(ready)) => return Ok(ready),
                (Some(missing), _) => ensure!(began.elapsed() < limit, "after {limit:?} {missing}"),
            }
            rest(POLL);
        }
    }

    /// Why it does not serve as before.
    fn what_is_missing(&self) -> Option<String> {
        if let Some(left) = processes().into_iter().find(|process| self.gone.contains(&process.pid)) {
            return Some(format!("process {} was still there ({})", left.pid, left.args));
        }
        let Some(health) = self.ground.health() else { return Some("/health did not answer".into()) };
        self.live.back();
        if !self.ground.is_ready() {
            return Some(format!("it was not ready: {}", health["reasons"]));
        }
        if health["workers_ready"] != WORKERS || health["workers_wanted"] != WORKERS {
            return Some(format!("there were {} of {} workers", health["workers_ready"], health["workers_wanted"]));
        }
        (!self.clients.write_again()).then(|| "no row was acknowledged".to_owned())
    }

    /// What beside the service is not as before.
    fn what_else_is_missing(&self) -> Option<String> {
        let Some(status) = self.ground.status() else { return Some("`tandem status` did not answer".into()) };
        if !status["roll"].is_null() {
            return Some(format!("a roll was under way: {}", status["roll"]));
        }
        let services = status["services"].as_array().cloned().unwrap_or_default();
        for (field, value) in [("kind", "postgres"), ("kind", "template"), ("name", COMPANION)] {
            let stands = |service: &&serde_json::Value| service[field] == value && service["state"] == "ready";
            if !services.iter().any(|service| stands(&service)) {
                return Some(format!("there was no {value} that is ready: {}", status["services"]));
            }
        }
        let odd = services.iter().find(|service| service["state"] != "ready");
        odd.map(|service| format!("{} was {}", service["name"], service["state"]))
    }

    fn begin_anew(&mut self) -> Result<()> {
        self.live.away();
        if let Err(error) = self.ground.kill(Signal::SIGKILL) {
            self.say(&format!("{error:#}"));
        }
        self.ground.start()?;
        self.postmaster_ends.clear();
        self.first = None;
        self.clients.mark();
        self.heal(Duration::from_secs(60)).map(drop).context("another supervisor does not get ready")
    }

    /// A server whose postmaster ends too often is given up, as it should be: keep below that.
    fn spare_the_postmaster(&mut self, fault: Fault) {
        if fault.kind.ends_the_supervisor() {
            self.postmaster_ends.clear();
        }
        let (often, period) = POSTMASTER_ENDS;
        while fault.kind.ends_the_postmaster() {
            self.postmaster_ends.retain(|end| end.elapsed() < period);
            if self.postmaster_ends.len() < often {
                break;
            }
            rest(QUIET / 10);
        }
    }

    fn look_first(&mut self) {
        let pid = self.ground.pid();
        if self.first.is_none_or(|(first, _)| first != pid) {
            rest(QUIET);
            self.first = Some((pid, Taken::by(pid)));
        }
    }

    fn look_at_the_stall(&mut self, fault: &str) {
        if let Some(told) = Stalls::told(self.ground.port()) {
            self.outcome.stalls.see((self.ground.pid(), told), fault, fault.contains(PAUSED));
        }
    }

    /// The last looks, the stop, and what is left.
    fn finish(mut self) -> Result<Outcome> {
        self.clients.stop();
        self.withdraw()?;
        rest(QUIET);
        let pid = self.ground.pid();
        self.outcome.taken = self.first.filter(|(first, _)| *first == pid).map(|(_, first)| (first, Taken::by(pid)));
        self.outcome.live = self.live.longest();
        if self.outcome.live.0 >= LIVE_LIMIT * self.options.slack {
            let during = self.outcome.live.1.clone();
            self.trouble(&during, &anyhow!("/live did not answer within {LIVE_LIMIT:?}"));
        }
        let rows = self.ground.succeed(&["psql", "-XAtqc", "SELECT id FROM decision_cache"])?;
        let rows: HashSet<&str> = rows.lines().collect();
        let acknowledged = self.clients.rows();
        self.outcome.acknowledged = acknowledged.len();
        self.outcome.lost = acknowledged.iter().filter(|row| !rows.contains(row.as_str())).count();
        self.outcome.refused = self.clients.refused();
        self.live.away();
        match self.ground.stop(STOP_LIMIT * self.options.slack) {
            Ok(0) => {}
            Ok(code) => self.trouble("the last stop", &anyhow!("it ended with {code}: {}", self.ground.log_end(5))),
            Err(error) => self.trouble("the last stop", &error),
        }
        let began = Instant::now();
        while !self.ground.left().is_empty() && began.elapsed() < LEFT_LIMIT {
            rest(POLL);
        }
        self.outcome.left = self.ground.left().into_iter().map(|(pid, what)| format!("{pid} {what}")).collect();
        Ok(std::mem::take(&mut self.outcome))
    }

    /// When `/ready` says no after `kill -9` of a backend.
    fn withdraw(&mut self) -> Result<()> {
        self.live.during("kill -9 of a backend, again and again");
        let mut unseen = 0;
        for _ in 0..self.options.withdrawals {
            self.ground.wait("readiness", READY_LIMIT * self.options.slack, |ground| Ok(ground.is_ready()))?;
            rest(QUIET / 10);
            let is_session = |title: &str| !AUXILIARY_WORDS.iter().any(|word| title.contains(word));
            let server = self.ground.server();
            let (victim, _) = server.iter().find(|(_, title)| is_session(title)).context("no backend")?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ground.port()));
            let mut connection = Connection::open(address).map_err(|error| anyhow!(error))?;
            connection.get("/ready").map_err(|error| anyhow!(error))?;
            let killed = Instant::now();
            kill(Pid::from_raw(*victim), Signal::SIGKILL)?;
            loop {
                let answer = connection.get("/ready").map_err(|error| anyhow!(error))?;
                if answer.status != 200 {
                    self.outcome.withdrawn.push(killed.elapsed().as_secs_f64() * 1000.0);
                    break;
                }
                if killed.elapsed() > WITHDRAWN_LIMIT {
                    unseen += 1;
                    break;
                }
                rest(POLL / 20);
            }
        }
        if unseen > 0 {
            let all = self.options.withdrawals;
            let text = format!("{unseen} of {all} times /ready said yes all the time after kill -9 of a backend");
            self.outcome.troubles.push(text);
        }
        Ok(())
    }
}

impl Outcome {
    /// What is not as promised, beside the troubles.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = self.troubles.clone();
        if self.lost > 0 {
            broken.push(format!("{} of {} acknowledged rows are lost", self.lost, self.acknowledged));
        }
        if !self.left.is_empty() {
            broken.push(format!("processes are left after the stop: {}", self.left.join("; ")));
        }
        broken
    }
}
