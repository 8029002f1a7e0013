//! A server of the comparison at work: its processes, from the start to the last of them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::common::tandem::{Process, descendants};
use crate::load::{Group, Kind, Load};
use crate::peers::{Peer, Roll, Site};

pub const WORKERS: usize = 4;
/// Longest start; the first of Tandem makes a cluster, and perhaps fetches PostgreSQL.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(20);
const ROLL_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);
/// Just enough requests to see which workers answer.
pub const PROBES: [Group; 1] = [Group { kind: Kind::New, clients: 4, pause: (5_000, 15_000) }];

/// A server with its four workers.
pub struct Server<'a> {
    child: Child,
    peer: &'a Peer,
    pub site: &'a Site,
    /// From the spawn to answers of four workers.
    pub started: Duration,
}

/// How a command of a roll ended.
pub struct Told {
    /// 0 for a signal, which says nothing back.
    pub code: i32,
    pub said: String,
}

impl<'a> Server<'a> {
    /// Start it and wait until four workers have answered.
    pub fn start(peer: &'a Peer, site: &'a Site) -> Result<Self> {
        let log = File::create(log(site))?;
        let began = Instant::now();
        let mut command = (peer.start)(site);
        // A group of its own: what it signals as its group is not us.
        let child = command.stdout(log.try_clone()?).stderr(log).process_group(0).spawn();
        let child = child.with_context(|| format!("start {:?}", command.get_program()))?;
        let mut server = Self { child, peer, site, started: Duration::ZERO };
        let load = Load::start(site.port(), &PROBES);
        wait_until("four workers", START_LIMIT, || {
            server.check()?;
            Ok(load.seen().len() >= WORKERS)
        })
        .with_context(|| server.log_end())?;
        // Counted to the answer of the fourth, not to our look.
        let firsts = load.seen();
        server.started = firsts.iter().map(|(_, first)| *first - began).max().unwrap_or_default();
        Ok(server)
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Fails when the server has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server has ended with {status}");
        }
        Ok(())
    }

    pub fn runs(&mut self) -> bool {
        self.check().is_ok()
    }

    /// Its processes: the server itself, and all below it.
    pub fn tree(&self) -> Vec<i32> {
        let below = descendants(self.pid());
        std::iter::once(self.pid()).chain(below.iter().filter(|process| !is_database(process)).map(|p| p.pid)).collect()
    }

    /// PostgreSQL's processes below it.
    pub fn database(&self) -> Vec<i32> {
        descendants(self.pid()).iter().filter(|process| is_database(process)).map(|process| process.pid).collect()
    }

    /// Tell it to roll; wait until the command returns, if it is one.
    pub fn roll(&self) -> Result<Told> {
        match self.peer.roll {
            Roll::Signal(signal) => {
                kill(Pid::from_raw(self.pid()), signal)?;
                Ok(Told { code: 0, said: String::new() })
            }
            Roll::Commands(commands) => {
                let mut told = Told { code: 0, said: String::new() };
                for mut command in commands(self.site) {
                    let one = run(&mut command)?;
                    told.code = if told.code == 0 { one.code } else { told.code };
                    told.said.push_str(&one.said);
                }
                Ok(told)
            }
        }
    }

    /// Ask it to stop, and see to it that nothing is left.
    pub fn stop(mut self) -> Result<()> {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        wait_until("the stop", STOP_LIMIT, || Ok(!self.runs()))
    }

    /// The last lines of what it printed.
    fn log_end(&self) -> String {
        let text = fs::read(log(self.site)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        end_all();
    }
}

fn log(site: &Site) -> std::path::PathBuf {
    site.project.dir().join("server.log")
}

fn is_database(process: &Process) -> bool {
    process.name.starts_with("postgres")
}

/// Kill whatever is left below this process, which takes in the orphans of its children (it is their subreaper).
pub fn end_all() {
    let began = Instant::now();
    while began.elapsed() < STOP_LIMIT {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let left = descendants(std::process::id().cast_signed());
        if left.is_empty() {
            return;
        }
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        pause(POLL);
    }
    eprintln!("processes are left that nobody can kill");
}

/// Run a command to its end, within [`ROLL_LIMIT`].
fn run(command: &mut Command) -> Result<Told> {
    // A few lines, which a pipe holds.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let ended = wait_until("the command", ROLL_LIMIT, || Ok(child.try_wait()?.is_some()));
    if ended.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    ended.with_context(|| format!("{:?}", command.get_program()))?;
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said)?;
    }
    Ok(Told { code: status.code().unwrap_or(-1), said })
}

/// Whether a process lives; a zombie does not.
pub fn lives(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.state != 'Z')
}

/// The workers that have answered and still live.
pub fn workers(load: &Load) -> BTreeSet<i32> {
    load.seen().into_iter().map(|(pid, _)| pid).filter(|pid| lives(*pid)).collect()
}

/// Wait until `condition` holds, for at most `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !condition()? {
        ensure!(began.elapsed() < limit, "waited {limit:?} for {what}");
        pause(POLL);
    }
    Ok(())
}

/// Let time pass.
#[expect(clippy::disallowed_methods, reason = "a benchmark's clock is the real one")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Proportional memory of processes, in MB. One that has just ended counts nothing.
pub fn memory(pids: &[i32]) -> f64 {
    let one = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        value.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    pids.iter().filter_map(one).sum::<f64>() / 1024.0
}

/// CPU time of all threads of processes, in seconds.
pub fn cpu(pids: &[i32]) -> f64 {
    // In nanoseconds; /proc/pid/stat counts in hundredths of a second.
    let spent = |task: &Path| {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    let tasks = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    tasks.filter_map(|task| spent(&task.path())).sum::<f64>() / 1e9
}
