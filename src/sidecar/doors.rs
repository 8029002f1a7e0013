//! What is opened once, before any child: the application's socket, and the tasks behind it and behind the health port, which
//! is open already.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::SystemTime;

use super::shell::Sidecar;
use super::{attached, away, database_tls, disks, measuring};
use crate::backup::pitr::{self, backlog::Watch};
use crate::config::{PostgresMode, WorkerSocket};
use crate::event_loop;
use crate::exit::{Code, Failure};
use crate::plan::Place;
use crate::postgres::probe::Probe;
use crate::process::ports;
use crate::systemd;
use crate::watch;
use crate::workers::care;
use crate::workers::launch::Launch;
use crate::workers::life::Roster;
use crate::workers::listener::{self, Door};

impl Sidecar {
    /// Bind the application's socket, and look after the workers.
    pub(super) fn open_doors(&mut self) -> anyhow::Result<()> {
        let doors = self.application_sockets()?;
        let settings = self.context.settings();
        *self.services.launch().borrow_mut() = Some(Rc::new(Launch {
            settings: settings.clone(),
            url: self.context.url(),
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
        let picture = self.view.picture();
        self.tasks.push(event_loop::spawn("the picture", self.view.follow(self.samples.subscribe(), roster)));
        let measured = measuring::follow(self.context.clone(), picture.clone());
        self.tasks.push(event_loop::spawn("the samples for /metrics", measured));
        let room = disks::follow_room(picture.clone(), self.context.clone());
        self.tasks.push(event_loop::spawn("the room on disks", room));
        if settings.postgres.mode == PostgresMode::Managed {
            if database_tls::has_certificate(&settings) {
                let keep = self.operator.clone().keep_certificate();
                self.tasks.push(event_loop::spawn("the certificate of PostgreSQL", keep));
            }
            let kept = disks::follow_kept_databases(picture.clone(), self.context.clone());
            self.tasks.push(event_loop::spawn("what restores replaced", kept));
            let sorting = disks::follow_sorting(picture.clone(), self.context.clone());
            self.tasks.push(event_loop::spawn("databases that are sorted otherwise", sorting));
        }
        let pitr = &settings.backup.pitr;
        if pitr.enabled && settings.postgres.mode == PostgresMode::Managed {
            let wal = self.context.home.data.join("pg_wal");
            let watch = Watch::new(wal, pitr.clone(), SystemTime::now());
            let archiving = disks::follow_archiving(picture.clone(), watch, self.context.clone());
            self.tasks.push(event_loop::spawn("the archiving of WAL", archiving));
            self.tasks.push(event_loop::spawn("what goes to destinations", away::keep(self.context.clone())));
            let archive = pitr::archive(&settings, &self.context.home);
            self.tasks.push(event_loop::spawn("base backups", disks::follow_bases(picture, archive)));
        }
        if self.context.reload {
            let sources = self.sources()?;
            self.tasks.push(event_loop::spawn("saved sources", self.operator.clone().follow(sources)));
        }
        if settings.postgres.mode == PostgresMode::Attach {
            let probe = Probe::attached(&self.context.url());
            let (context, samples) = (self.context.clone(), self.samples.clone());
            self.tasks
                .push(event_loop::spawn("the probe", attached::sample(probe, context, samples, self.events.clone())));
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

    /// Look after the workers for ever.
    fn tend(&self, roster: Roster) -> impl Future<Output = ()> + use<> {
        let (context, due, cut) = (self.context.clone(), self.operator.clone(), self.operator.clone());
        care::tend(roster, move || context.settings(), move |id| due.recycle(id), move |id| cut.cut(id))
    }
}
