//! The ground of the schedule: a project, the supervisor that runs it, and the pipe its log goes through.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::Value;

use super::{gauge, rest};
use crate::common::project::Project;
use crate::common::tandem::{self, descendants, lives, processes};

/// How many workers there are.
pub const WORKERS: u64 = 2;
/// What the hook runs, so that it is found.
pub const HOOK: &str = "sleep 0.43";
/// The companion's name.
pub const COMPANION: &str = "queue";
/// What the titles of PostgreSQL's processes say that are no sessions of clients.
pub const AUXILIARY_WORDS: [&str; 11] = [
    "checkpointer",
    "walwriter",
    "autovacuum",
    "background writer",
    "archiver",
    "logical replication",
    "walsender",
    "startup",
    "logger",
    "parallel worker",
    "postgres -D",
];
/// Longest first start: it makes a cluster, and perhaps fetches what the tests share.
const FIRST_START_LIMIT: Duration = Duration::from_secs(240);
/// Longest wait for an answer of the health port, and for one of a command that only asks.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const ASKING_LIMIT: &str = "15";
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);
/// How long what a killed supervisor has started may take to end.
const ORPHANS_LIMIT: Duration = Duration::from_secs(20);

/// Short limits, so that what takes long takes seconds; no limit on how often workers fail.
const LINES: &str = "workers.count = 2\nworkers.preload = true\nworkers.watchdog = '3s'\n\
    workers.restart_intensity = 1000\nworkers.restart_period = '10s'\nworkers.backoff_max = '500ms'\n\
    workers.drain = '2s'\nstop.grace = '3s'\nstop.postgres_grace = '5s'\n\
    pool.size = 4\npool.overflow = 2\npool.timeout = '3s'\n\
    postgres.shared_buffers = '32MB'\n\
    backup.schedule = 'never'\nbackup.pitr.enabled = true\n\
    hooks.after_ready = ['/bin/sh', '-c', 'exec sleep 0.43']\nhooks.after_ready_on = 'replaced'\nhooks.limit = '10s'";

/// A project, its supervisor, and where its log goes.
pub struct Ground {
    project: Project,
    pub tandem: Child,
    reader: Child,
    /// Keeps the pipe open while there is no supervisor, and fills it.
    pipe: File,
}

impl Ground {
    /// Make the project, start it, and have a backup that takes a moment to restore.
    pub fn make() -> Result<Self> {
        let project = Project::backend_with(LINES);
        project.reconfigure(|text| {
            let loops = "while :; do sleep 0.2; done";
            format!("{text}\n[[process]]\nname = '{COMPANION}'\ncommand = ['/bin/sh', '-c', '{loops}']\n")
        });
        let path = project.dir().join("log.pipe");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
        // Reading and writing, so that it opens at once.
        let pipe = File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(&path)?;
        #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it measures")]
        let mut reader = Command::new("cat");
        let log = File::create(log(&project))?;
        let reader = reader.stdin(File::open(&path)?).stdout(log).process_group(0).spawn().context("start cat")?;
        let tandem = start(&project)?;
        let mut ground = Self { project, tandem, reader, pipe };
        ground.wait("the first start", FIRST_START_LIMIT, |ground| Ok(ground.is_ready()))?;
        let ballast = "CREATE TABLE ballast AS SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 30000) AS n";
        ground.succeed(&["psql", "-XAtqc", ballast])?;
        ground.succeed(&["backup"])?;
        ground.succeed(&["backup", "base"])?;
        Ok(ground)
    }

    pub fn dir(&self) -> &Path {
        self.project.dir()
    }

    pub fn app(&self) -> u16 {
        self.project.app
    }

    pub fn port(&self) -> u16 {
        self.project.health
    }

    pub fn pid(&self) -> i32 {
        self.tandem.id().cast_signed()
    }

    /// A command of the binary, ready to start.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tandem::command(&self.project);
        command.args(args).process_group(0);
        command
    }

    /// Run a command of the binary, which must succeed; what it printed.
    pub fn succeed(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Fails when the supervisor has ended, with its last words.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.tandem.try_wait()? {
            bail!("the supervisor ended by itself: {status}: {}", self.log_end(6));
        }
        Ok(())
    }

    /// Start another supervisor, after the last one has ended and all that it had started.
    pub fn start(&mut self) -> Result<()> {
        self.tandem = start(&self.project)?;
        Ok(())
    }

    /// Kill the supervisor by `signal`. All that it had started must end as well; the error says what did not.
    pub fn kill(&mut self, signal: Signal) -> Result<()> {
        let family = descendants(self.pid());
        let began = Instant::now();
        // Rust's own handler takes the first SIGSEGV that is not a fault of its stack for nothing.
        while self.tandem.try_wait()?.is_none() {
            ensure!(began.elapsed() < ORPHANS_LIMIT, "the supervisor outlived {signal}");
            let _ = kill(Pid::from_raw(self.pid()), signal);
            rest(POLL);
        }
        let outlives = |process: &&tandem::Process| lives(process.pid);
        while family.iter().any(|process| outlives(&process)) && began.elapsed() < ORPHANS_LIMIT {
            rest(POLL);
        }
        let left: Vec<_> = family.iter().filter(outlives).collect();
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        ensure!(left.is_empty(), "left {ORPHANS_LIMIT:?} after {signal} to the supervisor: {left:?}");
        Ok(())
    }

    /// Ask the supervisor to end, and wait for its exit code.
    pub fn stop(&mut self, limit: Duration) -> Result<i32> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.tandem.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(began.elapsed() < limit, "the supervisor did not stop within {limit:?}");
            rest(POLL);
        }
    }

    pub fn is_ready(&self) -> bool {
        gauge::ask(self.port(), "/ready", ANSWER_LIMIT).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// `/health`, if it answers.
    pub fn health(&self) -> Option<Value> {
        let answer = gauge::ask(self.port(), "/health", ANSWER_LIMIT)?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The ready workers.
    pub fn workers(&self) -> Vec<i32> {
        let health = self.health().unwrap_or_default();
        let workers = health["workers"].as_array().into_iter().flatten().filter(|worker| worker["state"] == "ready");
        workers.filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect()
    }

    /// `tandem status --json`, if it answers.
    pub fn status(&self) -> Option<Value> {
        let program = self.command(&[]).get_program().to_owned();
        let mut command = tandem::command_as("timeout", self.dir());
        let output = command.arg(ASKING_LIMIT).arg(program).args(["status", "--json"]).output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// The process of the service that `field` calls `value`.
    pub fn service(&self, field: &str, value: &str) -> Option<i32> {
        let status = self.status()?;
        let found = status["services"].as_array()?.iter().find(|service| service[field] == value)?;
        i32::try_from(found["pid"].as_i64()?).ok()
    }

    pub fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.project.data().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok().filter(|pid| lives(*pid))
    }

    /// The server's processes and their titles, the postmaster left out.
    pub fn server(&self) -> Vec<(i32, String)> {
        let Some(postmaster) = self.postmaster() else { return Vec::new() };
        let children = processes().into_iter().filter(|process| process.parent == postmaster);
        children.map(|process| (process.pid, process.args)).collect()
    }

    /// What reads the log.
    pub fn reader(&self) -> i32 {
        self.reader.id().cast_signed()
    }

    /// Write into the pipe of the log until nothing more fits.
    pub fn fill_pipe(&mut self) {
        let filler = [b'.'; 4095];
        while self.pipe.write_all(&filler).and_then(|()| self.pipe.write_all(b"\n")).is_ok() {}
        while self.pipe.write_all(b"\n").is_ok() {}
    }

    /// The last lines of the log that say something.
    pub fn log_end(&self, count: usize) -> String {
        let text = fs::read(log(&self.project)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(1 << 16)..]).into_owned();
        let says =
            |line: &&str| !line.trim().is_empty() && !line.contains("....") && !line.contains("flood of the log");
        let lines: Vec<&str> = text.lines().filter(says).collect();
        lines[lines.len().saturating_sub(count)..].join("\n    ")
    }

    /// Wait until `condition` holds; an error where it does not within `limit`, or the supervisor ends.
    pub fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let began = Instant::now();
        while !condition(self)? {
            self.check()?;
            ensure!(began.elapsed() < limit, "waited {limit:?} for {what}");
            rest(POLL);
        }
        Ok(began.elapsed())
    }

    /// Every process that belongs to the project: it works there, has its path among its arguments, or in its
    /// environment.
    pub fn left(&self) -> Vec<(i32, String)> {
        let marker = self.dir().as_os_str().as_encoded_bytes().to_owned();
        let holds =
            |path: PathBuf| fs::read(path).is_ok_and(|text| text.windows(marker.len()).any(|part| part == marker));
        let belongs = |pid: i32| {
            let place = PathBuf::from(format!("/proc/{pid}"));
            let works = fs::read_link(place.join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.dir()));
            works || holds(place.join("cmdline")) || holds(place.join("environ"))
        };
        let found = processes().into_iter().filter(|process| process.pid != self.reader() && belongs(process.pid));
        found.map(|process| (process.pid, format!("{} {}", process.name, process.args))).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.reader()), Signal::SIGCONT);
        if self.tandem.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.stop(Duration::from_secs(20));
        }
        let family = descendants(self.pid());
        let _ = self.tandem.kill();
        let _ = self.tandem.wait();
        for process in family.iter().map(|process| process.pid).chain(self.left().into_iter().map(|(pid, _)| pid)) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        let _ = self.reader.kill();
        let _ = self.reader.wait();
    }
}

/// `tandem up`, which writes its log into the project's pipe.
fn start(project: &Project) -> Result<Child> {
    let pipe = File::options().write(true).open(project.dir().join("log.pipe"))?;
    // SIGSEGV shall leave no core files.
    let mut command = tandem::command_as("sh", project.dir());
    command.args(["-c", "ulimit -c 0; exec \"$@\"", "sh"]).arg(tandem::command(project).get_program()).arg("up");
    let command = command.stdout(Stdio::from(pipe.try_clone()?)).stderr(Stdio::from(pipe));
    command.process_group(0).spawn().context("start `tandem up`")
}

fn log(project: &Project) -> PathBuf {
    project.dir().join("tandem.log")
}
