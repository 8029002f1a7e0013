//! What is opened once, before any child: the application's socket, the health port and the control socket, and the tasks
//! behind them.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch as channel;

use super::shell::Sidecar;
use super::{Context, disks};
use crate::backup::pitr::{self, backlog::Watch};
use crate::config::{PostgresMode, WorkerSocket};
use crate::event_loop;
use crate::exit::{Code, Failure};
use crate::health::picture::Fault;
use crate::health::server as health;
use crate::plan::Place;
use crate::postgres::probe::{Probe, Sample, Woken};
use crate::postgres::service::DatabaseReading;
use crate::process::ports;
use crate::supervise::tree::TreeEvent;
use crate::watch;
use crate::workers::care;
use crate::workers::launch::{self, Launch};
use crate::workers::life::Roster;
use crate::workers::listener::{self, Door};
use crate::{control, systemd};

/// Length of the health port's listening queue.
const HEALTH_BACKLOG: u32 = 128;
/// How soon at most a server elsewhere that does not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);

impl Sidecar {
    /// Bind the application's socket and the health port, and look after the workers.
    pub(super) fn open_doors(&mut self) -> anyhow::Result<()> {
        let doors = self.application_sockets()?;
        let settings = self.context.settings();
        let port = listener::bind_place(&settings.health.listen, HEALTH_BACKLOG, "health.listen", ports::holder)?;
        let port = tokio::net::TcpListener::from_std(port.try_clone_std()?)?;
        // What a Tandem that was killed left there.
        // Blocks: before the loop turns.
        let _ = std::fs::remove_dir_all(&self.context.home.notify);
        launch::write_files(&self.context.home.run)?;
        *self.services.launch().borrow_mut() = Some(Rc::new(Launch {
            settings: settings.clone(),
            url: self.context.url.clone(),
            run: self.context.home.run.clone(),
            notify: self.context.home.notify.clone(),
            listeners: Rc::new(RefCell::new(doors.iter().map(Door::inherited).collect())),
            python: self.context.python.clone(),
            identity: self.context.worker_identity.clone(),
        }));
        // Their descriptors are closed when the stop begins; their files go with the shell.
        self.application = doors.into_iter().filter_map(Door::into_file).collect();
        let roster = self.services.roster();
        self.tasks.push(event_loop::spawn("the care of workers", self.tend(roster.clone())));
        let pictures = self.view.pictures();
        let picture = self.view.picture();
        self.tasks.push(event_loop::spawn("the picture", self.view.follow(self.samples.subscribe(), roster)));
        let room = disks::follow_room(picture.clone(), self.context.clone());
        self.tasks.push(event_loop::spawn("the room on disks", room));
        if settings.postgres.mode == PostgresMode::Managed {
            let kept = disks::follow_kept_databases(picture.clone(), self.context.clone());
            self.tasks.push(event_loop::spawn("what restores replaced", kept));
        }
        let pitr = &settings.backup.pitr;
        if pitr.enabled && settings.postgres.mode == PostgresMode::Managed {
            let wal = self.context.home.data.join("pg_wal");
            let watch = Watch::new(wal, pitr.clone(), SystemTime::now());
            self.tasks.push(event_loop::spawn("the archiving of WAL", disks::follow_archiving(picture.clone(), watch)));
            let archive = pitr::archive(&settings, &self.context.home);
            self.tasks.push(event_loop::spawn("base backups", disks::follow_bases(picture, archive)));
        }
        if self.context.reload {
            let sources = self.sources()?;
            self.tasks.push(event_loop::spawn("saved sources", self.operator.clone().follow(sources)));
        }
        let never = std::future::pending();
        self.tasks.push(event_loop::spawn("the health port", health::serve(port, pictures, never)));
        if settings.postgres.mode == PostgresMode::Attach {
            let probe = Probe::attached(&self.context.url);
            let (context, samples) = (self.context.clone(), self.samples.clone());
            self.tasks.push(event_loop::spawn("the probe", sample(probe, context, samples, self.events.clone())));
        }
        Ok(())
    }

    /// The application's sources, without what Tandem itself makes beside them.
    fn sources(&self) -> anyhow::Result<watch::Watch> {
        let settings = self.context.settings();
        let made = [Some(self.context.home.state.clone()), settings.python.venv.clone()].into_iter().flatten();
        let made: Vec<_> = made.map(|path| settings.directory.join(path)).collect();
        let workers = &settings.workers;
        let roots: Vec<_> = std::iter::once(&workers.app_dir).chain(&workers.reload_dirs).cloned().collect();
        let watch = watch::Watch::open(&roots, &settings.directory, &workers.reload_include, &made)?;
        let (files, dirs) = watch.counts();
        let roots: Vec<_> = watch.roots().iter().map(|root| root.display().to_string()).collect();
        tracing::info!("watching {files} files in {dirs} directories below {}", roots.join(", "));
        Ok(watch)
    }

    /// The sockets that the supervisor above hands down, else our own; none where the workers bind theirs.
    fn application_sockets(&self) -> anyhow::Result<Vec<Door>> {
        let settings = self.context.settings();
        let workers = &settings.workers;
        let handed = systemd::inherited_listeners()?;
        match (workers.socket, handed.is_empty()) {
            (WorkerSocket::Inherited, true) => {
                listener::open(&workers.listen, workers.backlog, &workers.serving.socket_files, ports::holder)
            }
            (WorkerSocket::Inherited, false) => {
                let doors = handed.into_iter().map(Door::inherit).collect::<anyhow::Result<Vec<_>>>()?;
                self.take_places(&doors);
                Ok(doors)
            }
            (WorkerSocket::Own, true) => Ok(Vec::new()),
            (WorkerSocket::Own, false) => {
                let text = "a socket was handed down (LISTEN_FDS), which workers with workers.socket = \"own\" cannot \
                            use: set it to \"inherited\", or do without the socket unit";
                Err(Failure::new(Code::Config, text).into())
            }
        }
    }

    /// Let the places of the sockets handed down be the application's.
    fn take_places(&self, doors: &[Door]) {
        let given: Vec<Place> = doors.iter().map(|door| door.place.clone()).collect();
        let settings = self.context.settings();
        let ours = &settings.workers.listen;
        let all = |one: &[Place], other: &[Place]| one.iter().all(|place| other.iter().any(|it| it.is_same(place)));
        let list = |places: &[Place]| places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (is, are) = if let [_] = given[..] { ("is", "socket") } else { ("are", "sockets") };
        if all(ours, &given) && all(&given, ours) {
            let ones = if let [_] = given[..] { "the one that was" } else { "those that were" };
            tracing::info!("the {are} on {} {is} {ones} handed down", list(&given));
            return;
        }
        let holds = if let [_] = given[..] { "which holds" } else { "which hold" };
        tracing::warn!("workers.listen = {}, but the {are} handed down {is} on {}, {holds}", list(ours), list(&given));
        self.context.set_listen(given);
    }

    /// Let our own user and root ask and order through the control socket.
    pub(super) fn open_control(&mut self) -> anyhow::Result<()> {
        let socket = control::open(&self.context.home.control)?;
        let (asks, orders) = tokio::sync::mpsc::unbounded_channel();
        let (close, closing) = tokio::sync::oneshot::channel();
        let closing = async {
            let _ = closing.await;
        };
        let served = control::serve(socket, self.view.pictures(), asks, closing);
        let served = event_loop::spawn("the control socket", served);
        self.control = Some((close, served));
        self.tasks.push(event_loop::spawn("orders", self.operator.clone().carry_out(orders)));
        Ok(())
    }

    /// Look after the workers for ever.
    fn tend(&self, roster: Roster) -> impl Future<Output = ()> + use<> {
        let (context, operator) = (self.context.clone(), self.operator.clone());
        care::tend(roster, move || context.settings(), move |id| operator.recycle(id))
    }
}

/// Sample a server that Tandem does not run, for ever; `events` wakes the tree when it begins or ceases to serve.
async fn sample(
    mut probe: Probe,
    context: Rc<Context>,
    samples: channel::Sender<DatabaseReading>,
    events: UnboundedSender<TreeEvent>,
) {
    let settings = context.settings();
    let postgres = &settings.postgres;
    let mut stocked = context.database.get();
    let mut woken = Woken::Due;
    let publish = |sample: Sample| {
        let (serves, now) = (sample.serves(), std::time::Instant::now());
        if sample.fault == Some(Fault::NoDescriptors) && samples.borrow().is_some() {
            // It says nothing about the server.
            return;
        }
        let before = samples.send_replace(Some((now, sample))).map(|(_, sample)| sample);
        if before.is_none_or(|before| before.serves() != serves) {
            let _ = events.send(TreeEvent::Tick);
        }
    };
    loop {
        if context.database.get() != stocked {
            stocked = context.database.get();
            probe.refresh();
        }
        let sample = match woken {
            Woken::Due => probe.sample(postgres.probe_deadline).await,
            Woken::Alarm => probe.sample_after_alarm(postgres.probe_deadline, publish).await,
        };
        let answers = sample.available;
        publish(sample);
        woken = if answers {
            probe.pause(postgres.probe_interval).await
        } else {
            tokio::time::sleep(postgres.probe_interval.min(RETRY)).await;
            Woken::Due
        };
    }
}
