//! The postmaster as a supervised service: clear what a dead one left, start, watch, and say when it answers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal as OsSignal;
use sea_orm::sqlx::ConnectOptions;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::binaries::Installation;
use super::home::Home;
use super::probe::{Probe, Sample};
use super::settings::SUPERUSER;
use super::{provision, server, stale};
use crate::exit::{in_words, what_the_server_said};
use crate::process::{self, Exit};
use crate::supervise::service::{self, Reporter, Service, Tail};
use crate::supervise::state::{Action, Ending, Event};

/// The service's name, in the log and everywhere else.
pub const NAME: &str = "postgres";

/// How often a server that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(20);

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
pub type Reading = Option<(std::time::Instant, Sample)>;

/// What the postmaster is started with and how it is watched.
pub struct Launch {
    pub home: Home,
    /// Known once the install job has found it.
    pub installation: Rc<RefCell<Option<Installation>>>,
    pub port: u16,
    /// The application's database, which a fresh cluster does not have.
    pub database: String,
    pub stocked: Rc<Cell<Stocked>>,
    pub probe_interval: Duration,
    pub probe_deadline: Duration,
    pub samples: watch::Sender<Reading>,
}

/// The service.
pub struct Postmaster {
    launch: Rc<Launch>,
    reporter: Reporter,
    tail: Tail,
    server: Rc<Cell<Server>>,
    last_exit: Rc<Cell<Option<Exit>>>,
    /// Told when nobody wants to know any more whether the server answers.
    unwatch: Rc<Notify>,
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
    pub fn new(launch: Rc<Launch>, reporter: Reporter) -> Self {
        Self {
            launch,
            reporter,
            tail: Tail::default(),
            server: Rc::default(),
            last_exit: Rc::default(),
            unwatch: Rc::default(),
        }
    }

    /// How the last server ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit.get()
    }

    /// Close the probe's connection ahead of the shutdown, which would terminate it with a FATAL in the log.
    pub fn unwatch(&self) {
        self.unwatch.notify_one();
    }
}

impl Service for Postmaster {
    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(_) => {
                let (launch, reporter) = (self.launch.clone(), self.reporter.clone());
                let (tail, server, unwatch) = (self.tail.clone(), self.server.clone(), self.unwatch.clone());
                let last_exit = self.last_exit.clone();
                tokio::task::spawn_local(async move {
                    match run(&launch, &reporter, &tail, &server, &unwatch).await {
                        Ok(exit) => {
                            last_exit.set(Some(exit));
                            reporter.say(Event::Exited(Ending::Ended));
                        }
                        Err(error) => {
                            tracing::error!({ service.name = NAME }, "start PostgreSQL: {}", in_words(&error));
                            reporter.say(Event::SpawnFailed);
                        }
                    }
                });
            }
            Action::Signal(rung) => {
                if let Server::Running(pid) | Server::Told(pid) = self.server.get() {
                    self.server.set(Server::Told(pid));
                    service::signal(pid, rung);
                }
            }
            Action::Restart(delay) => {
                tracing::warn!({ service.name = NAME }, "ended; restart {}", service::after(delay))
            }
            Action::GiveUp => tracing::error!({ service.name = NAME }, "failed too often, gives up"),
            Action::Withdraw | Action::Release => {}
        }
    }

    fn tail(&self) -> Vec<String> {
        self.tail.lines()
    }
}

/// Run one postmaster from spawn to its end, probing it all the while.
async fn run(
    launch: &Launch,
    reporter: &Reporter,
    tail: &Tail,
    state: &Cell<Server>,
    unwatch: &Notify,
) -> anyhow::Result<Exit> {
    let installation =
        launch.installation.borrow().clone().ok_or_else(|| anyhow::anyhow!("no PostgreSQL was installed"))?;
    let environment = stale::clear(&launch.home).await?;
    let command = server::command(&launch.home, &installation, &environment);
    // SIGINT is the fast shutdown: should Tandem be killed, the server stops cleanly and needs no recovery.
    let (child, output) = process::spawn(&command, &[], OsSignal::SIGINT)?;
    let own = child.pid();
    server::oom_protect(own);
    state.set(Server::Running(own));
    reporter.say(Event::Spawned(own));
    let watch = async {
        tokio::select! {
            never = watch_over(launch, reporter, state, own) => match never {},
            () = unwatch.notified() => std::future::pending::<std::convert::Infallible>().await,
        }
    };
    let exit = tokio::select! {
        exit = service::attend(child, output, NAME, tail, Duration::ZERO) => exit,
        never = watch => match never {},
    };
    state.set(Server::Absent);
    launch.samples.send_replace(None);
    if !exit.success() {
        tracing::warn!({ service.name = NAME }, "PostgreSQL ended: {exit}");
        // A busy backend would block every restart ("pre-existing shared memory block is still in use").
        if let Err(error) = stale::end_orphaned_backends(&launch.home.data).await {
            tracing::error!({ service.name = NAME }, "{}", in_words(&error));
        }
    }
    Ok(exit)
}

/// Say when the server answers, when it stops answering, and when it answers again.
async fn watch_over(launch: &Launch, reporter: &Reporter, state: &Cell<Server>, pid: i32) -> std::convert::Infallible {
    server::wait_ready(&launch.home.data, pid).await;
    let mut stocked = launch.stocked.get();
    let mut probe = probe(launch, stocked);
    let mut answered = false;
    loop {
        if launch.stocked.get() != stocked {
            // A new probe looks at everything anew: the database that is there now, the tables that it has now.
            stocked = launch.stocked.get();
            probe = self::probe(launch, stocked);
        }
        if matches!(state.get(), Server::Told(_)) {
            std::future::pending::<()>().await;
        }
        let sample = probe.sample(launch.probe_deadline).await;
        let answers = sample.available;
        match &sample.error {
            Some(error) if answered && matches!(state.get(), Server::Running(_)) => {
                tracing::warn!({ service.name = NAME }, "does not answer, readiness is withdrawn: {error}");
            }
            None if !answered => tracing::debug!({ service.name = NAME }, "answers after {:?}", sample.latency),
            Some(_) | None => {}
        }
        launch.samples.send_replace(Some((std::time::Instant::now(), sample)));
        if answers != answered {
            reporter.say(if answers { Event::Ready } else { Event::Hung });
        }
        answered = answers;
        sleep(if answers { launch.probe_interval } else { RETRY }).await;
    }
}

fn probe(launch: &Launch, stocked: Stocked) -> Probe {
    let database = if stocked == Stocked::Unknown { SUPERUSER } else { &launch.database };
    Probe::managed(&launch.home, launch.port, database)
}

/// Write out what is dirty, so that the shutdown finds little left to write. Best effort.
pub async fn checkpoint(home: Home, port: u16) {
    let options = provision::superuser_options(&home, port, SUPERUSER);
    let done = async { sea_orm::sqlx::query("CHECKPOINT").execute(&mut options.connect().await?).await };
    if let Err(error) = done.await {
        tracing::debug!({ service.name = NAME }, "checkpoint before the shutdown: {}", what_the_server_said(&error));
    }
}
