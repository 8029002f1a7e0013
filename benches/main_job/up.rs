//! A `tandem` process that is measured, and what its log says.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{http_ok, wait_for};
use crate::common::project::Project;
use crate::common::tandem;

/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(1);

pub struct Up {
    child: Child,
    log: PathBuf,
    pub began: Instant,
}

/// A line of the log.
pub struct Line {
    pub when: SystemTime,
    pub message: String,
    steps: Option<String>,
}

impl Up {
    /// Start `tandem` with `args`.
    pub fn start(project: &Project, args: &[&str]) -> Self {
        let log = project.dir().join(format!("bench-{}.log", rand::random::<u32>()));
        let file = File::create(&log).unwrap();
        let mut command = tandem::command(project);
        command.args(args).args(["--log-format", "json"]).stdout(file.try_clone().unwrap()).stderr(file);
        let began = Instant::now();
        Self { child: command.process_group(0).spawn().unwrap(), log, began }
    }

    /// Start `tandem up` and wait until every worker is ready and one has answered.
    pub fn ready(project: &Project) -> (Self, Duration) {
        let mut up = Self::start(project, &["up"]);
        let ready = up.wait_ready(project);
        (up, ready)
    }

    /// Wait for the banner, which comes when all workers are ready.
    pub fn wait_ready(&mut self, project: &Project) -> Duration {
        wait_for("the banner", POLL, || {
            if let Some(status) = self.child.try_wait()? {
                panic!("tandem ended with {status}:\n{}", fs::read_to_string(&self.log)?);
            }
            let ready = fs::read_to_string(&self.log)?.contains("\"banner\"") && http_ok(project.app, "/pid");
            if ready { Ok(self.began.elapsed()) } else { Err(std::io::Error::other("not yet")) }
        })
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Wait for its end.
    pub fn wait(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    pub fn lines(&self) -> Vec<Line> {
        let text = fs::read_to_string(&self.log).unwrap();
        let objects = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        objects
            .filter_map(|object| {
                Some(Line {
                    when: humantime::parse_rfc3339(object["timestamp"].as_str()?).ok()?,
                    message: object["message"].as_str()?.to_owned(),
                    steps: object["banner"]["steps"].as_str().map(str::to_owned),
                })
            })
            .collect()
    }

    /// How long each step of the boot took, in milliseconds.
    pub fn steps(&self) -> HashMap<String, f64> {
        let steps = self.lines().into_iter().find_map(|line| line.steps).expect("the banner has the steps");
        let pairs = steps.split(", ").filter_map(|step| step.split_once(' '));
        pairs.map(|(name, took)| (name.to_owned(), parse(took))).collect()
    }

    /// SIGTERM, and wait for the end.
    pub fn stop(mut self) -> Stopped {
        let asked = SystemTime::now();
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        assert!(self.wait(), "tandem stops cleanly:\n{}", fs::read_to_string(&self.log).unwrap());
        let whole = ms(began.elapsed());
        let lines = self.lines();
        // The workers' part ends where PostgreSQL is told, whose own lines say when it was and when it was down.
        let at = |text: &str| {
            let line = lines.iter().rev().find(|line| line.message.contains(text));
            line.map_or(f64::NAN, |line| ms(line.when.duration_since(asked).unwrap_or_default()))
        };
        let (told, down) = (at("received fast shutdown request"), at("database system is shut down"));
        Stopped { whole, workers: told, postgres: down - told }
    }
}

/// How long a stop took, in milliseconds.
pub struct Stopped {
    pub whole: f64,
    pub workers: f64,
    pub postgres: f64,
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let left = tandem::descendants(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// A duration as `Debug` writes it, in milliseconds.
fn parse(text: &str) -> f64 {
    let units = [("ms", 1.0), ("µs", 0.001), ("ns", 0.000_001), ("s", 1000.0)];
    units
        .iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
        .unwrap_or_else(|| panic!("{text:?} is no duration"))
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
