//! The built binary, run as a user runs it.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::leftovers;
use super::project::Project;

/// Longest wait for anything that a test expects. The first test of all makes the Python environment meanwhile.
pub const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(10);
/// How long what a test did not stop itself may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running `tandem`, ended with all its descendants on drop.
pub struct Tandem {
    child: Child,
    log: PathBuf,
    health: u16,
    app: u16,
}

/// A process as /proc shows it.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub name: String,
    pub args: String,
}

/// The command that runs the built binary in the project's directory, with nothing of our own environment that Tandem
/// would take for configuration.
pub fn command(project: &Project) -> Command {
    command_in(project.dir())
}

/// As [`command`], in any directory.
pub fn command_in(dir: &Path) -> Command {
    command_as(env!("CARGO_BIN_EXE_tandem"), dir)
}

/// As [`command_in`], of another program, which runs the binary in turn.
pub fn command_as(program: &str, dir: &Path) -> Command {
    leftovers::go_at_the_end();
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1");
    for name in ["DATABASE_URL", "POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

/// The binary in `dir`: where it was built, another user may not get.
pub fn program_in(dir: &Path) -> String {
    let (built, program) = (env!("CARGO_BIN_EXE_tandem"), dir.join("tandem"));
    if !program.exists() {
        // Where no link can be made, a child copies it: what this process has open for writing, no fork may execute.
        #[expect(clippy::disallowed_methods, reason = "a test prepares what it tests")]
        let copy = || Command::new("cp").arg(built).arg(&program).status().unwrap().success();
        assert!(fs::hard_link(built, &program).is_ok() || copy());
    }
    program.into_os_string().into_string().unwrap()
}

/// Run a command of the binary to its end.
pub fn run(project: &Project, args: &[&str]) -> Output {
    command(project).args(args).output().unwrap()
}

impl Tandem {
    /// Start `tandem up` and do not wait for it.
    pub fn start(project: &Project) -> Self {
        Self::start_as(project, command(project))
    }

    /// As [`Tandem::start`], from a command that the test has prepared.
    pub fn start_as(project: &Project, command: Command) -> Self {
        Self::start_with(project, command, &["up", "--log-format", "text"])
    }

    /// As [`Tandem::start_as`], with these arguments.
    pub fn start_with(project: &Project, command: Command, args: &[&str]) -> Self {
        let mut tandem = Self::start_in(project.dir(), command, args);
        (tandem.health, tandem.app) = (project.health, project.app);
        tandem
    }

    /// As [`Tandem::start_with`], for what has no ports: its output goes to a file in `dir`.
    pub fn start_in(dir: &Path, mut command: Command, args: &[&str]) -> Self {
        let log = dir.join(format!("up-{}.log", rand::random::<u32>()));
        let file = File::create(&log).unwrap();
        command.args(args).stdout(file.try_clone().unwrap()).stderr(file);
        // A group of its own, so that a signal to the test's terminal does not reach it.
        let child = command.process_group(0).spawn().unwrap();
        Self { child, log, health: 0, app: 0 }
    }

    /// Start `tandem up` and wait until it is ready.
    pub fn up(project: &Project) -> Self {
        let mut tandem = Self::start(project);
        tandem.wait_ready();
        tandem
    }

    /// The application's port.
    pub fn app(&self) -> u16 {
        self.app
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The warnings it has printed, without those of an event loop that stood still: on a busy machine it does.
    pub fn warnings(&self) -> Vec<String> {
        let log = self.log();
        let warnings = log.lines().filter(|line| line.contains("WARN") && !line.contains("the event loop stood still"));
        warnings.map(str::to_owned).collect()
    }

    /// Everything it has printed so far, its last lines too: a thread of its own writes them, a moment later.
    pub fn log(&self) -> String {
        let read = || fs::read(&self.log).unwrap();
        let began = Instant::now();
        let (mut printed, mut since) = (read(), Instant::now());
        while since.elapsed() < SETTLED && began.elapsed() < SETTLE_LIMIT {
            pause();
            let now = read();
            if now.len() != printed.len() {
                (printed, since) = (now, Instant::now());
            }
        }
        String::from_utf8_lossy(&printed).into_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Wait until `/ready` says yes; panics with the log should it end before.
    pub fn wait_ready(&mut self) {
        let began = Instant::now();
        while self.ready() != Some(true) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("tandem ended with {status} before it was ready:\n{}", self.log());
            }
            assert!(began.elapsed() < LIMIT, "not ready within {LIMIT:?}:\n{}", self.log());
            pause();
        }
    }

    /// What `/ready` says, if anybody answers.
    pub fn ready(&self) -> Option<bool> {
        Some(get(self.health, "/ready")?.0 == 200)
    }

    /// `/health`, parsed.
    pub fn health(&self) -> serde_json::Value {
        serde_json::from_str(&get(self.health, "/health").expect("the health port answers").1).unwrap()
    }

    /// The worker processes that are ready, by pid.
    pub fn workers(&self) -> Vec<i32> {
        let health = self.health();
        let workers = health["workers"].as_array().unwrap();
        let ready = workers.iter().filter(|worker| worker["state"] == "ready");
        ready.map(|worker| i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()).collect()
    }

    /// `GET` from the application.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.app, path)
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Wait for the process's end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < LIMIT, "did not end within {LIMIT:?}:\n{}", self.log());
            pause();
        }
    }

    /// Wait for its end and return the exit code; panics when a signal ended it.
    pub fn wait_code(&mut self) -> i32 {
        let status = self.wait_exit();
        status.code().unwrap_or_else(|| panic!("ended by signal {:?}:\n{}", status.signal(), self.log()))
    }

    /// Ask it to stop and wait for the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.wait_code()
    }

    /// Every process below it.
    pub fn descendants(&self) -> Vec<Process> {
        descendants(self.pid())
    }

    /// The postmaster.
    pub fn postmaster(&self, project: &Project) -> i32 {
        let text = fs::read_to_string(project.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// Wait until the log says `text`.
    pub fn wait_log(&mut self, text: &str) {
        wait_for(&format!("{text:?} in the log"), || self.log().contains(text));
    }
}

impl Drop for Tandem {
    fn drop(&mut self) {
        // In an orderly way if it goes that way: a server that is killed leaves shared memory behind.
        let left = self.descendants();
        let begun = Instant::now();
        let mut told = 0;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && begun.elapsed() < PATIENCE {
            if begun.elapsed() >= PATIENCE * told / 2 {
                let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
                told += 1;
            }
            pause();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        while left.iter().any(still_lives) && begun.elapsed() < 2 * PATIENCE {
            pause();
        }
        for process in left.iter().filter(|process| still_lives(process)) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// Every process below `pid`.
pub fn descendants(pid: i32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// Every process of the machine.
pub fn processes() -> Vec<Process> {
    let all = procfs::process::all_processes().unwrap().filter_map(Result::ok);
    all.filter_map(|process| {
        let stat = process.stat().ok()?;
        let args = process.cmdline().unwrap_or_default().join(" ").trim_end().to_owned();
        (stat.state != 'Z').then_some(Process { pid: stat.pid, parent: stat.ppid, name: stat.comm, args })
    })
    .collect()
}

/// Whether a process lives; a zombie does not.
pub fn lives(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Whether this very process lives: another may have its number by now.
pub fn still_lives(process: &Process) -> bool {
    processes().iter().any(|one| one.pid == process.pid && one.args == process.args)
}

/// Processes that work in, or were started from, `dir` and do not go. One that is about to end gets a moment.
pub fn left_in(dir: &Path) -> Vec<Process> {
    let began = Instant::now();
    loop {
        let left = now_in(dir);
        if left.is_empty() || began.elapsed() > LEFT_LIMIT {
            return left;
        }
        pause();
    }
}

/// A log that stays the same for so long has all that was said before, and one that never does is read all the same.
const SETTLED: Duration = Duration::from_millis(100);
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// How long a process that ends after Tandem may take, on a busy machine: its keeper does.
const LEFT_LIMIT: Duration = Duration::from_secs(5);

fn now_in(dir: &Path) -> Vec<Process> {
    let marker = dir.display().to_string();
    let works_here = |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    processes().into_iter().filter(|process| process.args.contains(&marker) || works_here(process.pid)).collect()
}

/// `GET` from a port of this machine; `None` without an answer.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = agent.get(format!("http://127.0.0.1:{port}{path}")).call().ok()?;
    let body = answer.body_mut().read_to_string().ok()?;
    Some((answer.status().as_u16(), body))
}

/// `POST` a JSON body to a port of this machine.
pub fn post(port: u16, path: &str, body: &serde_json::Value) -> Option<(u16, String)> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        .build()
        .into();
    let request = agent.post(format!("http://127.0.0.1:{port}{path}")).header("content-type", "application/json");
    let mut answer = request.send(body.to_string()).ok()?;
    let body = answer.body_mut().read_to_string().ok()?;
    Some((answer.status().as_u16(), body))
}

/// Wait until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        pause();
    }
}

/// Between two looks at a condition.
#[expect(clippy::disallowed_methods, reason = "a bounded wait inside a loop that checks a condition")]
pub fn pause() {
    std::thread::sleep(POLL);
}
