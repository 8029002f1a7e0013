//! How each kind of fault is brought about.

use std::cell::Cell;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::gauge::{self, Live};
use super::ground::{AUXILIARY_WORDS, COMPANION, Ground, HOOK};
use super::plan::{Blow, Fault, Victim};
use super::rest;
use crate::common::tandem::{descendants, lives};

/// How long a victim is waited for.
const VICTIM_LIMIT: Duration = Duration::from_secs(8);
/// How long a command may take to end, whatever happens to it or to the server.
const COMMAND_LIMIT: Duration = Duration::from_secs(40);
/// How long what a killed command has started may take to end.
const FAMILY_LIMIT: Duration = Duration::from_secs(5);
/// How long the supervisor may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How soon `/live` must answer while nothing reads the log.
const LIVE_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);
/// Between two SIGSEGV, of which Rust's own handler takes the first for nothing.
const SEGV_PAUSE: Duration = Duration::from_millis(20);
/// A line of a flood has about 150 bytes.
const FLOOD: u32 = 10_000;

/// What came of a fault.
pub enum Came {
    /// It hit; these processes must be gone before all is as before.
    Hit(Vec<i32>),
    /// There was no victim, and why.
    Missed(String),
}

/// What one fault needs.
pub struct Strike<'a> {
    pub ground: &'a mut Ground,
    pub live: &'a Live,
    pub fault: Fault,
    /// The last fault has not healed: a command may fail by it.
    pub lenient: bool,
    pub slack: u32,
}

impl Strike<'_> {
    /// Bring it about.
    ///
    /// # Errors
    /// What did not go as it must.
    pub fn strike(&mut self) -> Result<Came> {
        let came = match self.fault.kind.victim {
            Victim::Postmaster => self.hurt_one("a postmaster", |ground, _| ground.postmaster()),
            Victim::Backend => self.server(|title| !AUXILIARY_WORDS.iter().any(|word| title.contains(word))),
            Victim::Auxiliary(name) => self.server(|title| title.contains(name)),
            Victim::Worker => self.hurt_one("a worker", a_worker),
            Victim::Template => self.hurt_one("a template", |ground, _| ground.service("kind", "template")),
            Victim::Companion => self.hurt_one("a companion", |ground, _| ground.service("name", COMPANION)),
            Victim::Hook => self.hook(),
            Victim::Dump => self.child_of(&["backup"], "pg_dump"),
            Victim::BaseBackup => self.command(&["backup", "base"]),
            Victim::WalSender => self.wal_sender(),
            Victim::Restore | Victim::RestoreChild => self.restore(),
            Victim::Verify => self.verify(),
            Victim::Order(order) | Victim::WorkerDuring(order) => self.order(order),
            Victim::Supervisor => self.supervisor(),
            Victim::ServerLog => self.flood(),
            Victim::LogReader | Victim::LogPipe => self.unread(),
        };
        let _ = kill(Pid::from_raw(self.ground.reader()), Signal::SIGCONT);
        came
    }

    fn limit(&self, limit: Duration) -> Duration {
        limit * self.slack
    }

    /// Let the blow of the fault fall on `pid`.
    fn hurt(&self, pid: i32) {
        let send = |signal| {
            let _ = kill(Pid::from_raw(pid), signal);
        };
        match self.fault.kind.blow {
            Blow::Kill => send(Signal::SIGKILL),
            Blow::Segv => {
                for _ in 0..3 {
                    send(Signal::SIGSEGV);
                    rest(SEGV_PAUSE);
                    if !lives(pid) {
                        break;
                    }
                }
            }
            Blow::Freeze => send(Signal::SIGSTOP),
            _ => {
                send(Signal::SIGSTOP);
                rest(self.fault.pause);
                send(Signal::SIGCONT);
            }
        }
    }

    fn is_deadly(&self) -> bool {
        self.fault.kind.blow != Blow::Pause
    }

    /// The victim that `find` finds, which may take a moment.
    fn await_victim(&self, find: impl Fn(&Ground, usize) -> Option<i32>) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < VICTIM_LIMIT {
            if let Some(pid) = find(self.ground, self.fault.choice).filter(|pid| *pid > 1) {
                return Some(pid);
            }
            rest(POLL);
        }
        None
    }

    fn hurt_one(&self, what: &str, find: impl Fn(&Ground, usize) -> Option<i32>) -> Result<Came> {
        let Some(pid) = self.await_victim(find) else { return Ok(Came::Missed(format!("{what} was not there"))) };
        self.hurt(pid);
        Ok(Came::Hit(if self.is_deadly() { vec![pid] } else { Vec::new() }))
    }

    /// One of the server's processes whose title is as `chosen` says.
    fn server(&self, chosen: impl Fn(&str) -> bool) -> Result<Came> {
        let beside = Cell::new(None);
        let one = |ground: &Ground, choice: usize| {
            let server = ground.server();
            let found: Vec<i32> = server.iter().filter(|(_, title)| chosen(title)).map(|(pid, _)| *pid).collect();
            beside.set(ends_too(&server));
            found.get(choice % found.len().max(1)).copied()
        };
        let mut came = self.hurt_one("that process of the server", one)?;
        if let Came::Hit(gone) = &mut came
            && !gone.is_empty()
        {
            gone.extend(beside.get());
        }
        Ok(came)
    }

    /// The hook runs after a worker was replaced.
    fn hook(&self) -> Result<Came> {
        let Some(worker) = self.await_victim(a_worker) else { return Ok(Came::Missed("no worker".into())) };
        kill(Pid::from_raw(worker), Signal::SIGKILL)?;
        let mut came = self.hurt_one("a hook", |ground, _| {
            let children = descendants(ground.pid());
            children.iter().find(|process| process.name == "sleep" && process.args == HOOK).map(|process| process.pid)
        })?;
        if let Came::Hit(gone) = &mut came {
            gone.push(worker);
        }
        Ok(came)
    }

    /// Start a command of the binary.
    fn begin(&self, args: &[&str]) -> Result<Child> {
        let mut command = self.ground.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().with_context(|| format!("start {args:?}"))
    }

    /// The descendant of `command` that is called `name`, once it is there.
    fn descendant(&self, command: &mut Child, name: &str) -> Result<Option<i32>> {
        let began = Instant::now();
        while began.elapsed() < VICTIM_LIMIT && command.try_wait()?.is_none() {
            let below = descendants(command.id().cast_signed());
            if let Some(process) = below.iter().find(|process| process.name == name) {
                return Ok(Some(process.pid));
            }
            rest(POLL);
        }
        Ok(None)
    }

    /// Wait for the end of a command: its exit code, if it has one, and what it said.
    fn end(&self, mut command: Child, what: &str) -> Result<(Option<i32>, String)> {
        let (began, limit) = (Instant::now(), self.limit(COMMAND_LIMIT));
        while command.try_wait()?.is_none() {
            if began.elapsed() > limit {
                let _ = command.kill();
                let said = String::from_utf8_lossy(&command.wait_with_output()?.stderr).into_owned();
                anyhow::bail!("{what} did not end within {limit:?}: {said}");
            }
            rest(POLL);
        }
        let output = command.wait_with_output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).trim_end().to_owned()))
    }

    /// Wait for the end of a command that must succeed, or must fail.
    fn end_as(&self, command: Child, what: &str, succeeds: bool) -> Result<Came> {
        let (code, said) = self.end(command, what)?;
        if !self.lenient {
            ensure!((code == Some(0)) == succeeds, "{what} ended with {code:?}: {said}");
        }
        Ok(Came::Hit(Vec::new()))
    }

    /// Hurt the child `name` of a command: it fails if the child has died, and succeeds if not.
    fn child_of(&self, args: &[&str], name: &str) -> Result<Came> {
        let mut command = self.begin(args)?;
        let Some(pid) = self.descendant(&mut command, name)? else {
            let (code, said) = self.end(command, name)?;
            return Ok(Came::Missed(format!("no {name}: {args:?} ended with {code:?}: {said}")));
        };
        self.hurt(pid);
        self.end_as(command, &format!("{args:?}"), !self.is_deadly())
    }

    /// Hurt a command itself; what it has started ends with it.
    fn command(&self, args: &[&str]) -> Result<Came> {
        let mut command = self.begin(args)?;
        rest(self.fault.delay);
        if command.try_wait()?.is_some() {
            let (code, said) = self.end(command, "the command")?;
            return Ok(Came::Missed(format!("{args:?} had ended with {code:?}: {said}")));
        }
        self.hurt_command(command, &format!("{args:?}"))
    }

    fn hurt_command(&self, command: Child, what: &str) -> Result<Came> {
        let pid = command.id().cast_signed();
        let family = descendants(pid);
        self.hurt(pid);
        if !self.is_deadly() {
            return self.end_as(command, what, true);
        }
        self.end(command, what)?;
        let (began, limit) = (Instant::now(), self.limit(FAMILY_LIMIT));
        let left = || family.iter().filter(|process| lives(process.pid)).collect::<Vec<_>>();
        while !left().is_empty() {
            ensure!(began.elapsed() < limit, "{what} was killed, and after {limit:?} this was left: {:?}", left());
            rest(POLL);
        }
        Ok(Came::Hit(Vec::new()))
    }

    fn wal_sender(&self) -> Result<Came> {
        let mut command = self.begin(&["backup", "base"])?;
        let began = Instant::now();
        while began.elapsed() < VICTIM_LIMIT && command.try_wait()?.is_none() {
            let server = self.ground.server();
            if let Some((pid, _)) = server.iter().find(|(_, title)| title.contains("walsender")) {
                self.hurt(*pid);
                // A session that dies after its last byte takes nothing along.
                let (code, said) = self.end(command, "backup base")?;
                ensure!(self.is_deadly() || self.lenient || code == Some(0), "backup base ended with {code:?}: {said}");
                return Ok(Came::Hit(if self.is_deadly() { vec![*pid] } else { Vec::new() }));
            }
            rest(POLL);
        }
        let (code, said) = self.end(command, "backup base")?;
        Ok(Came::Missed(format!("no walsender: `tandem backup base` ended with {code:?}: {said}")))
    }

    /// A restore that goes on would put older rows in the place of those that are written: it stands still until it is
    /// certain that the blow comes before the swap.
    fn restore(&self) -> Result<Came> {
        let mut command = self.begin(&["restore", "latest", "--yes"])?;
        let Some(child) = self.descendant(&mut command, "psql")? else {
            let (code, said) = self.end(command, "the restore")?;
            return Ok(Came::Missed(format!("no psql: the restore ended with {code:?}: {said}")));
        };
        let pid = command.id().cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        if !lives(child) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            self.end(command, "the restore")?;
            return Ok(Came::Missed("the copy was filled already".into()));
        }
        if self.fault.kind.victim == Victim::Restore {
            if self.fault.kind.blow != Blow::Kill {
                // A stopped process takes no other signal before it goes on; without psql it does not get far.
                kill(Pid::from_raw(child), Signal::SIGSTOP)?;
                kill(Pid::from_raw(pid), Signal::SIGCONT)?;
            }
            return self.hurt_command(command, "the restore");
        }
        self.hurt(child);
        kill(Pid::from_raw(pid), Signal::SIGCONT)?;
        self.end_as(command, "the restore", false)
    }

    /// Killed with a throwaway server at work, which must end as well.
    fn verify(&self) -> Result<Came> {
        let mut command = self.begin(&["backup", "verify", "--latest"])?;
        if self.descendant(&mut command, "postgres")?.is_none() {
            let (code, said) = self.end(command, "the verification")?;
            return Ok(Came::Missed(format!("no server: the verification ended with {code:?}: {said}")));
        }
        self.hurt_command(command, "the verification")
    }

    /// An order, and a blow to its client or to a worker while it is carried out.
    fn order(&mut self, order: &str) -> Result<Came> {
        let services = ["worker-0", COMPANION, "postgres"];
        let args: &[&str] = match order {
            "scale" => &["scale", "3"],
            "restart" => &["restart", services[self.fault.choice % services.len()]],
            _ => &["reload"],
        };
        let command = self.begin(args)?;
        rest(self.fault.delay);
        let mut gone = Vec::new();
        if matches!(self.fault.kind.victim, Victim::WorkerDuring(_)) {
            if let Some(pid) = a_worker(self.ground, self.fault.choice) {
                self.hurt(pid);
                gone.push(pid);
            }
            // Whether it counts as done is its own matter; that it is answered is not.
            self.end(command, order)?;
        } else {
            self.hurt(command.id().cast_signed());
            let (code, said) = self.end(command, order)?;
            ensure!(self.is_deadly() || self.lenient || code == Some(0), "{args:?} ended with {code:?}: {said}");
        }
        if order == "scale" {
            self.scale_back()?;
        }
        Ok(Came::Hit(gone))
    }

    /// Two workers again, however busy the supervisor is with three.
    fn scale_back(&self) -> Result<()> {
        let (began, limit) = (Instant::now(), self.limit(COMMAND_LIMIT));
        loop {
            let (code, said) = self.end(self.begin(&["scale", "2"])?, "scale 2")?;
            if code == Some(0) {
                return Ok(());
            }
            ensure!(began.elapsed() < limit, "scale 2 ended with {code:?} for {limit:?}: {said}");
            rest(SEGV_PAUSE * 5);
        }
    }

    fn supervisor(&mut self) -> Result<Came> {
        self.live.away();
        let came = match self.fault.kind.blow {
            Blow::Kill => self.ground.kill(Signal::SIGKILL),
            Blow::Segv => self.ground.kill(Signal::SIGSEGV),
            Blow::Term => self.term(),
            _ => {
                self.hurt(self.ground.pid());
                self.live.back();
                return Ok(Came::Hit(Vec::new()));
            }
        };
        self.ground.start()?;
        came.map(|()| Came::Hit(Vec::new()))
    }

    fn term(&mut self) -> Result<()> {
        let limit = self.limit(STOP_LIMIT);
        let code = self.ground.stop(limit).inspect_err(|_| drop(self.ground.kill(Signal::SIGKILL)))?;
        ensure!(code == 0, "the stop ended with {code}");
        Ok(())
    }

    fn flooding(&self) -> Result<Child> {
        let line = "flood of the log ' || repeat('x', 100)";
        let sql = format!("DO $$ BEGIN FOR i IN 1..{FLOOD} LOOP RAISE LOG '%', i || '{line}; END LOOP; END $$");
        self.begin(&["psql", "-Xqc", &sql])
    }

    fn flood(&self) -> Result<Came> {
        let flooding = self.flooding()?;
        self.end_as(flooding, "the flood", true)
    }

    /// Nothing reads the log, and more of it comes.
    fn unread(&mut self) -> Result<Came> {
        let reader = Pid::from_raw(self.ground.reader());
        kill(reader, Signal::SIGSTOP)?;
        let (mut gone, mut flooding) = (Vec::new(), None);
        if self.fault.kind.victim == Victim::LogReader {
            flooding = Some(self.flooding()?);
        } else {
            self.ground.fill_pipe();
        }
        if self.fault.kind.blow == Blow::FullTerm {
            self.live.away();
            let stopped = self.term();
            kill(reader, Signal::SIGCONT)?;
            self.ground.start()?;
            return stopped.context("while the pipe of the log is full").map(|()| Came::Hit(Vec::new()));
        }
        if flooding.is_none()
            && let Some(pid) = a_worker(self.ground, self.fault.choice)
        {
            // So that the supervisor has something to say.
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            gone.push(pid);
        }
        let began = Instant::now();
        let mut silent = false;
        while began.elapsed() < self.fault.pause.max(Duration::from_millis(400)) && !silent {
            silent = !gauge::live(self.ground.port(), self.limit(LIVE_LIMIT));
            rest(SEGV_PAUSE);
        }
        kill(reader, Signal::SIGCONT)?;
        if let Some(flooding) = flooding {
            self.end(flooding, "the flood")?;
        }
        ensure!(!silent, "/live did not answer within {LIVE_LIMIT:?} while nothing read the log");
        Ok(Came::Hit(gone))
    }
}

fn a_worker(ground: &Ground, choice: usize) -> Option<i32> {
    let workers = ground.workers();
    workers.get(choice % workers.len().max(1)).copied()
}

/// The checkpointer among the processes of a `server`, which ends all others when one was killed: with it the old memory is
/// gone. While the server starts or resets itself, what is killed may be a session that it refuses anyway, and then it goes
/// on with the checkpointer that it has just started.
fn ends_too(server: &[(i32, String)]) -> Option<i32> {
    let find = |word: &str| server.iter().find(|(_, title)| title.contains(word)).map(|(pid, _)| *pid);
    find("checkpointer").filter(|_| find("postgres: startup").is_none())
}
