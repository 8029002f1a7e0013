//! The postmaster as a supervised service: clear what a dead one left, start it, watch it, report when it answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal as OsSignal;
use tokio::sync::{Notify, watch};

use super::binaries::Installation;
use super::home::Home;
use super::log_message::Messages;
use super::pauses::{due_after, due_when, retry};
use super::probe::{Probe, Sample, Woken};
use super::settings::SUPERUSER;
use super::trouble::{self, Lasting, Meaning, lines};
use super::{conf, full, lock, log, server, stale};
use crate::config::Postgres as Settings;
use crate::event_loop::{self, elsewhere, within};
use crate::exit::{Code, Failure, code_of, in_words, is_disk_full};
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::process::{self, Exit};
use crate::service::{self, ProcessReporter, Reporter, Start, Tail};
use crate::supervise::state::{ChildAction, Ending};

/// The service's name, in the log and everywhere else.
pub const NAME: &str = "postgres";

/// How long the look at the data directory may take before a start, the end of what an earlier server left included: that
/// has limits of its own, which add up to half a minute.
const PREPARE_LIMIT: Duration = Duration::from_secs(40);
/// How long a file of the data directory may take to be read.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// How far the application's database has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DatabaseStage {
    /// It may not exist yet.
    #[default]
    Unknown,
    Provisioned,
    Migrated,
}

/// A sample, and when it was taken; `None` while no server runs.
pub type DatabaseReading = Option<(Instant, Sample)>;

/// What the postmaster is started with and how it is watched.
pub struct PostmasterSetup {
    pub home: Home,
    /// Set by the install job.
    pub installation: Rc<RefCell<Option<Installation>>>,
    /// The workers' way to the application's database, which does not exist yet in a new cluster. Their role and its password
    /// may change.
    pub url: Rc<RefCell<DatabaseUrl>>,
    pub stocked: Rc<Cell<DatabaseStage>>,
    pub settings: Settings,
    /// How long a server of an earlier run gets to stop (`stop.postgres_grace`).
    pub grace: Duration,
    /// Whether the server waits while the disk is full. A command with one job ends instead and releases the lock.
    pub waits_for_room: bool,
    pub samples: watch::Sender<DatabaseReading>,
}

/// The service.
pub struct Postmaster(Rc<Shared>);

/// What the service shares with the task that runs one server.
struct Shared {
    launch: PostmasterSetup,
    reporter: Reporter,
    tail: Tail,
    server: Cell<ServerProcess>,
    last_exit: Cell<Option<Exit>>,
    /// Notified when the probe is no longer needed.
    unwatch: Notify,
    start: Start,
    /// Why the server cannot run until a person does something.
    lasting: RefCell<Option<Lasting>>,
    full: full::RoomWait,
}

/// Whether there is a process to signal and to probe.
#[derive(Clone, Copy, Debug, Default)]
enum ServerProcess {
    #[default]
    Absent,
    Running(i32),
    /// It was told to stop: it refuses connections, and probing it would only fill its log.
    Told(i32),
}

impl Postmaster {
    pub fn new(launch: PostmasterSetup, reporter: Reporter) -> Self {
        Self(Rc::new(Shared {
            launch,
            reporter,
            tail: Tail::default(),
            server: Cell::default(),
            last_exit: Cell::default(),
            unwatch: Notify::default(),
            start: Start::default(),
            lasting: RefCell::default(),
            full: full::RoomWait::default(),
        }))
    }

    /// The exit of the last server process.
    pub fn last_exit(&self) -> Option<Exit> {
        self.0.last_exit.get()
    }

    /// Why the server cannot run until a person does something.
    pub fn lasting(&self) -> Option<Lasting> {
        self.0.lasting.borrow().clone()
    }

    /// Close the probe's session before the shutdown, which would terminate it with a FATAL in the log.
    pub fn unwatch(&self) {
        self.0.unwatch.notify_one();
    }
}

impl Postmaster {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        let shared = self.0.clone();
        match action {
            ChildAction::Spawn(generation, _) => {
                let reporter = shared.reporter.of(generation);
                let task = event_loop::spawn("the postmaster's life", async move {
                    match shared.run(&reporter).await {
                        Ok(ending) => reporter.exited(ending),
                        Err(error) => reporter.failed(shared.judge(&error)),
                    }
                });
                self.0.start.begun(&task);
            }
            ChildAction::CancelSpawn(generation) => {
                if shared.start.cancel() {
                    shared.reporter.of(generation).failed(Ending::Ended);
                }
            }
            ChildAction::Disown(pid) => process::signal(pid, OsSignal::SIGKILL),
            ChildAction::Signal { pid, rung, .. } => {
                if let ServerProcess::Running(own) | ServerProcess::Told(own) = shared.server.get()
                    && own == pid
                {
                    if matches!(shared.server.replace(ServerProcess::Told(pid)), ServerProcess::Running(_)) {
                        // It ends every session, and takes no other.
                        shared.show(Fault::Down);
                    }
                    service::signal(pid, rung);
                }
            }
            // The wait for room logs this itself.
            ChildAction::Restart(_) if shared.full.is_on() => {}
            ChildAction::Restart(delay) => {
                tracing::warn!({ service.name = NAME }, "ended; restart {}", service::after(delay))
            }
            ChildAction::GiveUp => match self.lasting() {
                Some(Lasting { why, .. }) => tracing::error!({ service.name = NAME }, "gives up: {why}"),
                None => tracing::error!({ service.name = NAME }, "failed too often, gives up"),
            },
            ChildAction::Abandon { .. }
            | ChildAction::Unheard { .. }
            | ChildAction::Withdraw
            | ChildAction::Release => {}
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }
}

impl Shared {
    /// Run one postmaster from spawn to exit, and probe it meanwhile.
    async fn run(&self, reporter: &ProcessReporter) -> anyhow::Result<Ending> {
        let home = &self.launch.home;
        if let Some(shortage) = self.full.still(&home.data).await {
            self.show(shortage.fault());
            return Err(full::StillFull(shortage.why).into());
        }
        let installation = self.launch.installation.borrow().clone().context("no PostgreSQL was installed")?;
        let (place, programs, grace) = (home.clone(), installation.clone(), self.launch.grace);
        let command = elsewhere(move || async move {
            // Before any process is ended: after a restore, this may be another directory than at the start.
            lock::hold_data(&place.data)?;
            let environment = stale::clear(&place, grace).await?;
            anyhow::Ok(server::command(&place, &programs, &environment))
        });
        let late = |_| anyhow::anyhow!("{} does not answer (looked for {PREPARE_LIMIT:?})", home.data.display());
        let command = tokio::time::timeout(PREPARE_LIMIT, command).await.map_err(late)??;
        let lines = self.tail.count();
        // SIGINT is the fast shutdown: if Tandem is killed, the server shuts down cleanly and needs no recovery.
        let (child, output) = process::spawn_aside(&command, &[], OsSignal::SIGINT).await?;
        let own = child.pid();
        server::oom_protect(own);
        self.server.set(ServerProcess::Running(own));
        self.start.done();
        self.show(Fault::Starting);
        reporter.spawned(own);
        let answered = Cell::new(false);
        let watch = async {
            tokio::select! {
                never = self.watch_over(own, reporter, &installation, lines, &answered) => match never {},
                () = self.unwatch.notified() => std::future::pending::<std::convert::Infallible>().await,
            }
        };
        let messages = Messages::of(NAME);
        let log = |stream, line: &str| {
            // The probe's session ends as well, and a new one is refused; on a busy machine that takes longer.
            if answered.get() && log::Line::of(line).ends_every_session() {
                self.show(Fault::Starting);
            }
            messages.take(stream, line);
        };
        let exit = tokio::select! {
            exit = service::attend_with(child, output, &self.tail, OUTPUT_LIMIT, &log) => exit,
            never = watch => match never {},
            never = messages.log_in_time() => match never {},
        };
        messages.log();
        let told = matches!(self.server.replace(ServerProcess::Absent), ServerProcess::Told(_));
        self.last_exit.set(Some(exit));
        if !exit.success() {
            tracing::warn!({ service.name = NAME }, "PostgreSQL ended: {exit}");
            // A busy backend would block every restart ("pre-existing shared memory block is still in use").
            let data = home.data.clone();
            if let Err(error) = elsewhere(move || async move { stale::end_orphaned_backends(&data).await }).await {
                tracing::error!({ service.name = NAME }, "{}", in_words(&error));
            }
        }
        let ending = if exit.success() || (told && self.lasting.borrow().is_none()) {
            Ending::Ended
        } else {
            self.why(&self.tail.since(lines), answered.get()).await
        };
        match (ending, self.lasting.borrow().is_some()) {
            (Ending::Starved, _) | (_, true) => {}
            _ => drop(self.launch.samples.send_replace(None)),
        }
        Ok(if self.lasting.borrow().is_some() { Ending::Unstartable } else { ending })
    }

    /// What the last `lines` of a server mean for the next start; `answered`: this server had answered queries.
    async fn why(&self, lines: &[String], answered: bool) -> Ending {
        let home = &self.launch.home;
        let no_room = lines::no_room(lines);
        if let Some(no_room) = no_room.filter(|_| !self.launch.waits_for_room) {
            let data = home.data.display();
            let why = format!(
                "{no_room}, and PostgreSQL cannot start in {data}: make room, and try again; `tandem doctor` shows what of Tandem's can go"
            );
            self.lasting.replace(Some(Lasting { code: Code::CannotCreate, why }));
            return Ending::Ended;
        }
        if let Some(no_room) = no_room {
            let shortage = self.full.begin(&home.data, no_room).await;
            self.show(shortage.fault());
            return Ending::Starved;
        }
        self.full.end();
        if answered || self.lasting.borrow().is_some() {
            return Ending::Ended;
        }
        let lasting = self.lasting_in(lines).await;
        if lasting.is_some() {
            self.show(Fault::Lasting("PostgreSQL cannot start, as the log says", None));
        }
        self.lasting.replace(lasting);
        Ending::Ended
    }

    /// What an error before the spawn means for the next start.
    fn judge(&self, error: &anyhow::Error) -> Ending {
        if error.is::<full::StillFull>() {
            return Ending::Starved;
        }
        tracing::error!({ service.name = NAME }, "start PostgreSQL: {}", in_words(error));
        let code = code_of(error);
        // A full disk has this code too, and may pass.
        if is_disk_full(error) || !error.is::<Failure>() || !matches!(code, Code::CannotCreate | Code::Config) {
            return Ending::Ended;
        }
        self.lasting.replace(Some(Lasting { code, why: in_words(error) }));
        Ending::Unstartable
    }

    async fn lasting_in(&self, lines: &[String]) -> Option<Lasting> {
        let (lines, data) = (lines.to_vec(), self.launch.home.data.clone());
        let given = self.launch.settings.settings.clone();
        let what = format!("read postgresql.auto.conf in {}", data.display());
        let judge = move || {
            // Blocks: called by `within`.
            let settings = lines::SettingSources { given: &given, altered: &conf::altered(&data), data: &data };
            lines::lasting(&lines, settings)
        };
        within(READ_LIMIT, what, judge).await.ok().flatten()
    }

    fn show(&self, fault: Fault) {
        self.launch.samples.send_replace(Some((Instant::now(), Sample::failed(fault))));
    }

    /// Probe the server, and report when it begins and when it ceases to answer.
    async fn watch_over(
        &self,
        pid: i32,
        reporter: &ProcessReporter,
        installation: &Installation,
        lines: usize,
        has_answered: &Cell<bool>,
    ) -> std::convert::Infallible {
        let launch = &self.launch;
        let data = launch.home.data.clone();
        elsewhere(move || async move { server::wait_ready(&data, pid).await }).await;
        let mut stocked = launch.stocked.get();
        let mut url = launch.url.borrow().clone();
        let mut probe = launch.probe(stocked);
        let mut answered = false;
        let mut silent_since = Instant::now();
        let mut woken = Woken::Due;
        loop {
            if launch.stocked.get() != stocked || *launch.url.borrow() != url {
                // The database has been created or migrated: probe it, and read its tables again. Or workers log in otherwise.
                (stocked, url) = (launch.stocked.get(), launch.url.borrow().clone());
                probe = launch.probe(stocked);
            }
            if matches!(self.server.get(), ServerProcess::Told(_)) {
                std::future::pending::<()>().await;
            }
            let (deadline, was_answered) = (launch.settings.probe_deadline, answered);
            let sample = match woken {
                Woken::Due => probe.sample(deadline).await,
                Woken::Alarm => {
                    let withdraw = |sample| {
                        self.take(reporter, sample, &mut answered);
                    };
                    probe.sample_after_alarm(deadline, withdraw).await
                }
            };
            let lasting = match has_answered.get() || sample.available {
                true => None,
                // The server may restart its processes over and over, and never answer.
                false => match self.lasting(&sample, stocked, installation) {
                    None => self.lasting_in(&self.tail.since(lines)).await,
                    lasting => lasting,
                },
            };
            self.take(reporter, sample, &mut answered);
            if let Some(lasting) = lasting {
                self.lasting.replace(Some(lasting));
                reporter.unfit();
                std::future::pending::<()>().await;
            }
            if answered {
                has_answered.set(true);
                self.full.end();
            } else if was_answered {
                silent_since = Instant::now();
            }
            woken = match answered {
                // Before the migrations are in, nothing serves, and a restore into an empty database ends its sessions.
                true if launch.waits_for_room && stocked == DatabaseStage::Migrated => {
                    probe.pause(launch.settings.probe_interval).await
                }
                // Asked at once when the migrations are in, and watched from then on: workers serve soon.
                true if launch.waits_for_room => {
                    due_when(|| launch.stocked.get() != stocked, launch.settings.probe_interval).await
                }
                // A command with one job is over before anything could be noticed.
                true => due_after(launch.settings.probe_interval).await,
                false => due_after(retry(silent_since.elapsed(), has_answered.get())).await,
            };
        }
    }

    /// Publish `sample`, and tell the tree and the log where it says otherwise than the last one, which `answered` or did not.
    fn take(&self, reporter: &ProcessReporter, sample: Sample, answered: &mut bool) {
        if matches!(self.server.get(), ServerProcess::Told(_)) {
            // It was asked before it was told to end.
            return;
        }
        if sample.fault == Some(Fault::NoDescriptors) && *answered {
            // Nothing speaks against the server.
            return;
        }
        let answers = sample.available;
        match &sample.error {
            Some(error) if *answered => {
                tracing::warn!({ service.name = NAME }, "does not answer, readiness is withdrawn: {error}");
            }
            None if !*answered => tracing::debug!({ service.name = NAME }, "answers after {:?}", sample.latency),
            Some(_) | None => {}
        }
        self.launch.samples.send_replace(Some((Instant::now(), sample)));
        if answers != *answered {
            if answers {
                reporter.ready();
            } else {
                reporter.hung();
            }
        }
        *answered = answers;
    }

    /// The lasting error in the answer of a server that has never served.
    fn lasting(&self, sample: &Sample, stocked: DatabaseStage, installation: &Installation) -> Option<Lasting> {
        let answer = sample.answer.as_ref()?;
        // An interrupted restore may be putting the application's database back.
        if stocked != DatabaseStage::Unknown && answer.from == trouble::AnswerSource::Server(*b"3D000") {
            return None;
        }
        let (postgres, data) = (installation.tool("postgres"), &self.launch.home.data);
        match answer.meaning(trouble::AskedServer::Own { postgres: &postgres, data }) {
            Meaning::Lasting(lasting) => Some(lasting),
            Meaning::Passing | Meaning::Full => None,
        }
    }
}

/// How long output is read after the server's exit.
const OUTPUT_LIMIT: Duration = Duration::from_millis(50);

impl PostmasterSetup {
    fn probe(&self, stocked: DatabaseStage) -> Probe {
        let url = self.url.borrow();
        if stocked == DatabaseStage::Unknown {
            return Probe::managed(&self.home, url.port, SUPERUSER);
        }
        Probe::managed(&self.home, url.port, &url.database).at_the_door(&url)
    }
}
