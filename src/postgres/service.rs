//! The postmaster as a supervised service: clear what a dead one left, start, watch, and say when it answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::Signal as OsSignal;
use sea_orm::sqlx::ConnectOptions;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::binaries::Installation;
use super::home::Home;
use super::probe::{Probe, Sample};
use super::settings::SUPERUSER;
use super::trouble::{self, Lasting, Meaning, lines};
use super::{conf, full, lock, provision, server, stale};
use crate::config::Postgres as Settings;
use crate::exit::{Code, Failure, code_of, in_words, is_disk_full, what_the_server_said};
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::process::{self, Exit};
use crate::service::{self, ProcessReporter, Reporter, Tail};
use crate::supervise::state::{ChildAction, Ending, Generation};

/// The service's name, in the log and everywhere else.
pub const NAME: &str = "postgres";

/// How far the application's database has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stocked {
    /// It may not exist yet.
    #[default]
    Unknown,
    Provisioned,
    Migrated,
}

/// A sample, and when it was taken; `None` while no server runs.
pub type Reading = Option<(Instant, Sample)>;

/// What the postmaster is started with and how it is watched.
pub struct Launch {
    pub home: Home,
    /// Known once the install job has found it.
    pub installation: Rc<RefCell<Option<Installation>>>,
    /// Where the workers find the application's database, which a fresh cluster does not have.
    pub url: DatabaseUrl,
    pub stocked: Rc<Cell<Stocked>>,
    pub settings: Settings,
    /// How long a server of an earlier run gets to stop (`stop.postgres_grace`).
    pub grace: Duration,
    /// Whether a full disk is waited for. A command with one job ends instead, and lets go of the lock.
    pub waits_for_room: bool,
    pub samples: watch::Sender<Reading>,
}

/// The service.
pub struct Postmaster(Rc<Shared>);

/// What the service shares with the task that runs one server.
struct Shared {
    launch: Launch,
    reporter: Reporter,
    tail: Tail,
    server: Cell<Server>,
    last_exit: Cell<Option<Exit>>,
    /// Told when nobody wants to know any more whether the server answers.
    unwatch: Notify,
    /// The task that runs the server, and which one that is.
    task: RefCell<Option<(Generation, AbortHandle)>>,
    /// Why it cannot run, once that is known to last.
    lasting: RefCell<Option<Lasting>>,
    full: full::Wait,
}

/// The process, as far as signals and probes go.
#[derive(Clone, Copy, Debug, Default)]
enum Server {
    #[default]
    Absent,
    Running(i32),
    /// It was told to end: it refuses connections, and a probe would only fill its log.
    Told(i32),
}

impl Postmaster {
    pub fn new(launch: Launch, reporter: Reporter) -> Self {
        Self(Rc::new(Shared {
            launch,
            reporter,
            tail: Tail::default(),
            server: Cell::default(),
            last_exit: Cell::default(),
            unwatch: Notify::default(),
            task: RefCell::default(),
            lasting: RefCell::default(),
            full: full::Wait::default(),
        }))
    }

    /// How the last server ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.0.last_exit.get()
    }

    /// Why it cannot run, where that lasts until a person does something.
    pub fn lasting(&self) -> Option<Lasting> {
        self.0.lasting.borrow().clone()
    }

    /// Close the probe's connection ahead of the shutdown, which would terminate it with a FATAL in the log.
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
                let task = tokio::task::spawn_local(async move {
                    match shared.run(&reporter).await {
                        Ok(ending) => reporter.exited(ending),
                        Err(error) => reporter.failed(shared.judge(&error)),
                    }
                });
                *self.0.task.borrow_mut() = Some((generation, task.abort_handle()));
            }
            ChildAction::CancelSpawn(generation) => {
                if let Some((of, task)) = shared.task.take()
                    && of == generation
                    && !task.is_finished()
                {
                    task.abort();
                    shared.reporter.of(generation).failed(Ending::Ended);
                }
            }
            ChildAction::Disown(pid) => process::signal(pid, OsSignal::SIGKILL),
            ChildAction::Signal { pid, rung, .. } => {
                if let Server::Running(own) | Server::Told(own) = shared.server.get()
                    && own == pid
                {
                    shared.server.set(Server::Told(pid));
                    service::signal(pid, rung);
                }
            }
            // The wait for room says itself what it does.
            ChildAction::Restart(_) if shared.full.is_on() => {}
            ChildAction::Restart(delay) => {
                tracing::warn!({ service.name = NAME }, "ended; restart {}", service::after(delay))
            }
            ChildAction::GiveUp => match self.lasting() {
                Some(Lasting { why, .. }) => tracing::error!({ service.name = NAME }, "gives up: {why}"),
                None => tracing::error!({ service.name = NAME }, "failed too often, gives up"),
            },
            ChildAction::Abandon { .. } | ChildAction::Withdraw | ChildAction::Release => {}
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }
}

impl Shared {
    /// Run one postmaster from spawn to its end, probing it all the while.
    async fn run(&self, reporter: &ProcessReporter) -> anyhow::Result<Ending> {
        let home = &self.launch.home;
        if let Some(there) = self.full.still(&home.data).await {
            self.show(Fault::Full(there.free));
            return Err(full::StillFull.into());
        }
        let installation = self.launch.installation.borrow().clone().context("no PostgreSQL was installed")?;
        // Before anything is ended: the directory may be another one than at the start, after a restore.
        lock::hold_data(&home.data)?;
        let environment = stale::clear(home, self.launch.grace).await?;
        let command = server::command(home, &installation, &environment);
        let lines = self.tail.count();
        // SIGINT is the fast shutdown: should Tandem be killed, the server stops cleanly and needs no recovery.
        let (child, output) = process::spawn(&command, &[], OsSignal::SIGINT)?;
        let own = child.pid();
        server::oom_protect(own);
        self.server.set(Server::Running(own));
        // From here on its end ends the task.
        self.task.take();
        reporter.spawned(own);
        let answered = Cell::new(false);
        let watch = async {
            tokio::select! {
                never = self.watch_over(own, reporter, &installation, lines, &answered) => match never {},
                () = self.unwatch.notified() => std::future::pending::<std::convert::Infallible>().await,
            }
        };
        let exit = tokio::select! {
            exit = service::attend(child, output, NAME, &self.tail, OUTPUT_LIMIT) => exit,
            never = watch => match never {},
        };
        let told = matches!(self.server.replace(Server::Absent), Server::Told(_));
        self.last_exit.set(Some(exit));
        if !exit.success() {
            tracing::warn!({ service.name = NAME }, "PostgreSQL ended: {exit}");
            // A busy backend would block every restart ("pre-existing shared memory block is still in use").
            if let Err(error) = stale::end_orphaned_backends(&home.data).await {
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

    /// What the last `lines` of a server mean for the next one; `answered` says that this one had been in use.
    async fn why(&self, lines: &[String], answered: bool) -> Ending {
        let home = &self.launch.home;
        if lines::tell_of_a_full_disk(lines) && !self.launch.waits_for_room {
            let data = home.data.display();
            let why = format!("the disk is full, and PostgreSQL cannot start in {data}: make room, and try again");
            self.lasting.replace(Some(Lasting { code: Code::CannotCreate, why }));
            return Ending::Ended;
        }
        if lines::tell_of_a_full_disk(lines) {
            let there = self.full.begin(&home.data).await;
            self.show(Fault::Full(there.free));
            return Ending::Starved;
        }
        self.full.end();
        if answered || self.lasting.borrow().is_some() {
            return Ending::Ended;
        }
        let lasting = self.lasting_in(lines);
        if lasting.is_some() {
            self.show(Fault::Lasting("PostgreSQL cannot start, as the log says", None));
        }
        self.lasting.replace(lasting);
        Ending::Ended
    }

    /// What an error that came before the process means for the next one.
    fn judge(&self, error: &anyhow::Error) -> Ending {
        if error.is::<full::StillFull>() {
            return Ending::Starved;
        }
        tracing::error!({ service.name = NAME }, "start PostgreSQL: {}", in_words(error));
        let code = code_of(error);
        // A full disk has that code too, and may pass.
        if is_disk_full(error) || !error.is::<Failure>() || !matches!(code, Code::CannotCreate | Code::Config) {
            return Ending::Ended;
        }
        self.lasting.replace(Some(Lasting { code, why: in_words(error) }));
        Ending::Unstartable
    }

    fn lasting_in(&self, lines: &[String]) -> Option<Lasting> {
        let data = &self.launch.home.data;
        let (given, altered) = (&self.launch.settings.settings, &conf::altered(data));
        lines::lasting(lines, lines::Settings { given, altered, data })
    }

    fn show(&self, fault: Fault) {
        self.launch.samples.send_replace(Some((Instant::now(), Sample::failed(fault))));
    }

    /// Say when the server answers, when it stops answering, and when it answers again.
    async fn watch_over(
        &self,
        pid: i32,
        reporter: &ProcessReporter,
        installation: &Installation,
        lines: usize,
        has_answered: &Cell<bool>,
    ) -> std::convert::Infallible {
        let launch = &self.launch;
        server::wait_ready(&launch.home.data, pid).await;
        let began = Instant::now();
        let mut stocked = launch.stocked.get();
        let mut probe = launch.probe(stocked);
        let mut answered = false;
        loop {
            if launch.stocked.get() != stocked {
                // A new probe looks at everything anew: the database that is there now, the tables that it has now.
                stocked = launch.stocked.get();
                probe = launch.probe(stocked);
            }
            if matches!(self.server.get(), Server::Told(_)) {
                std::future::pending::<()>().await;
            }
            let sample = probe.sample(launch.settings.probe_deadline).await;
            let answers = sample.available;
            match &sample.error {
                Some(error) if answered && matches!(self.server.get(), Server::Running(_)) => {
                    tracing::warn!({ service.name = NAME }, "does not answer, readiness is withdrawn: {error}");
                }
                None if !answered => tracing::debug!({ service.name = NAME }, "answers after {:?}", sample.latency),
                Some(_) | None => {}
            }
            let lasting = match has_answered.get() || answers {
                true => None,
                // It may start over and over by itself, and never come to an answer.
                false => {
                    self.lasting(&sample, stocked, installation).or_else(|| self.lasting_in(&self.tail.since(lines)))
                }
            };
            launch.samples.send_replace(Some((Instant::now(), sample)));
            if let Some(lasting) = lasting {
                self.lasting.replace(Some(lasting));
                reporter.unfit();
                std::future::pending::<()>().await;
            }
            if answers {
                has_answered.set(true);
                self.full.end();
            }
            if answers != answered {
                if answers {
                    reporter.ready();
                } else {
                    reporter.hung();
                }
            }
            answered = answers;
            sleep(if answers { launch.settings.probe_interval } else { retry(began.elapsed()) }).await;
        }
    }

    /// What lasts, of what a server said that has never answered otherwise.
    fn lasting(&self, sample: &Sample, stocked: Stocked, installation: &Installation) -> Option<Lasting> {
        let answer = sample.answer.as_ref()?;
        // A restore that is being cut short may be putting the application's database back.
        if stocked != Stocked::Unknown && answer.from == trouble::From::Server(*b"3D000") {
            return None;
        }
        let (postgres, data) = (installation.tool("postgres"), &self.launch.home.data);
        match answer.meaning(trouble::Server::Own { postgres: &postgres, data }) {
            Meaning::Lasting(lasting) => Some(lasting),
            Meaning::Passing | Meaning::Full => None,
        }
    }
}

/// After its end the server has nothing more to say; a line that is on its way gets this long.
const OUTPUT_LIMIT: Duration = Duration::from_millis(50);

/// When a server that does not answer is asked again. Each question may leave a line in its log.
fn retry(waited: Duration) -> Duration {
    match waited.as_secs() {
        0 => Duration::from_millis(20),
        1..5 => Duration::from_millis(100),
        5..30 => Duration::from_millis(500),
        _ => Duration::from_secs(2),
    }
}

impl Launch {
    fn probe(&self, stocked: Stocked) -> Probe {
        let port = self.url.port;
        if stocked == Stocked::Unknown {
            return Probe::managed(&self.home, port, SUPERUSER);
        }
        Probe::managed(&self.home, port, &self.url.database).at_the_door(&self.url)
    }
}

/// Write out what is dirty, so that the shutdown finds little left to write. Best effort.
pub async fn checkpoint(home: Home, port: u16) {
    let options = provision::superuser_options(&home, port, SUPERUSER);
    let done = async { sea_orm::sqlx::query("CHECKPOINT").execute(&mut options.connect().await?).await };
    if let Err(error) = done.await {
        tracing::debug!({ service.name = NAME }, "checkpoint before the shutdown: {}", what_the_server_said(&error));
    }
}
