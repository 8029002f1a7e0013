//! The services there are: what the tree knows by a number, with the process behind it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedSender;

use crate::companions::Companion;
use crate::health::picture;
use crate::http::{Counts, Unfinished};
use crate::metrics::names::{DRAINS_CUT, REPLACEMENTS};
use crate::metrics::registry;
use crate::plan::{KILL_AGAIN, Signal};
use crate::postgres::service::{self as postmaster, Postmaster};
use crate::service::Reporter;
use crate::supervise::state::ChildAction;
use crate::supervise::tree::{Origin, ServiceId, Tree, TreeEvent};
use crate::workers::launch::Launch;
use crate::workers::life::{Life, Roster};
use crate::workers::notify::StartErrorKind;
use crate::workers::slot::{self, Slot};
use crate::workers::template::{self, Template};

/// One service.
pub enum Service {
    Postgres(Postmaster),
    Template(Template),
    Worker(Slot),
    Companion(Companion),
}

/// What kind of service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    Postgres,
    Template,
    Worker,
    Companion,
}

impl ServiceKind {
    /// The word that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Template => "template",
            Self::Worker => "worker",
            Self::Companion => "process",
        }
    }
}

/// All of them.
pub struct Services {
    all: BTreeMap<ServiceId, Service>,
    roster: Roster,
    events: UnboundedSender<TreeEvent>,
    /// What new workers are started with; none where there are no workers.
    launch: Rc<RefCell<Option<Rc<Launch>>>>,
    /// Processes that outlived SIGKILL, with the name of their service.
    abandoned: BTreeMap<i32, (ServiceId, String)>,
}

impl Services {
    pub fn new(roster: Roster, events: UnboundedSender<TreeEvent>) -> Self {
        Self { all: BTreeMap::new(), roster, events, launch: Rc::default(), abandoned: BTreeMap::new() }
    }

    /// The workers and the template that there are.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// What new workers are started with. A change holds for all workers that come after it.
    pub fn launch(&self) -> Rc<RefCell<Option<Rc<Launch>>>> {
        self.launch.clone()
    }

    /// Tells the tree what happens to the service `id`.
    pub fn reporter(&self, id: ServiceId) -> Reporter {
        Reporter::new(id, self.events.clone())
    }

    /// Keep a service.
    pub fn insert(&mut self, id: ServiceId, service: Service) {
        self.all.insert(id, service);
    }

    /// Make the service that the tree has added.
    pub fn add(&mut self, id: ServiceId, origin: Origin) {
        let Some(launch) = self.launch.borrow().clone() else { return };
        let reporter = self.reporter(id);
        let worker = |number| {
            let template = self.newest_template().filter(|_| self.forks());
            Service::Worker(Slot::new(number, launch.clone(), template, self.roster.clone(), reporter.clone()))
        };
        let template = || Service::Template(Template::new(launch.clone(), self.roster.clone(), reporter.clone()));
        let service = match origin {
            Origin::Template => template(),
            Origin::Slot(number) => worker(number),
            Origin::Replaces(old) => match self.all.get(&old) {
                Some(Service::Worker(slot)) => worker(slot.number()),
                Some(Service::Template(_)) => template(),
                Some(Service::Companion(_) | Service::Postgres(_)) | None => return,
            },
        };
        self.all.insert(id, service);
    }

    /// Whether workers are forked off a template.
    fn forks(&self) -> bool {
        self.launch
            .borrow()
            .as_ref()
            .is_some_and(|launch| launch.settings.workers.preload != crate::config::Preload::Off)
    }

    fn newest_template(&self) -> Option<Template> {
        let templates = self.all.values().rev().filter_map(|service| match service {
            Service::Template(template) => Some(template),
            Service::Worker(_) | Service::Companion(_) | Service::Postgres(_) => None,
        });
        templates.into_iter().next().cloned()
    }

    /// `new` has taken the place of `old`.
    pub fn swapped(&mut self, new: ServiceId, old: ServiceId) {
        let (Some(new), Some(old)) = (self.life(new), self.life(old)) else { return };
        let reason = old.noted().unwrap_or_else(|| "reload".into());
        registry().count(&REPLACEMENTS, &[old.why_replaced().word()]);
        tracing::info!({ service.name = %new.name() }, "replaced ({reason}); the old one finishes what it has");
        new.replaced(format!("replaced: {reason}"));
    }

    /// A worker that still finishes requests is ended for the sake of another.
    pub fn cut(&self, id: ServiceId) {
        registry().count(&DRAINS_CUT, &[]);
        let unfinished = self.life(id).and_then(|life| life.unfinished());
        let left = unfinished.map(|unfinished| format!(" ({})", picture::in_words(&unfinished))).unwrap_or_default();
        tracing::warn!(
            { service.name = %self.name(id) },
            "the connection budget has no room for the next worker while the old one finishes what it has{left}: it has had \
             workers.drain, and is stopped within stop.grace (more room: postgres.max_connections, a smaller pool)"
        );
    }

    pub fn remove(&mut self, id: ServiceId) {
        self.all.remove(&id);
    }

    /// Carry out what the tree decided for one of them.
    pub fn act(&mut self, id: ServiceId, action: ChildAction) {
        self.log(id, action);
        self.count(id, action);
        match self.all.get(&id) {
            Some(Service::Postgres(postmaster)) => postmaster.act(action),
            Some(Service::Template(template)) => template.act(action),
            Some(Service::Worker(slot)) => slot.act(action),
            Some(Service::Companion(companion)) => companion.act(action),
            None => {}
        }
    }

    /// Name the process that did not end in time, the limit that passed, and what comes now.
    fn log(&mut self, id: ServiceId, action: ChildAction) {
        let name = self.name(id);
        match action {
            ChildAction::Signal { pid, rung, passed: Some(passed), .. } => {
                let (sent, next, grace) = (passed.signal.name(), rung.signal.name(), passed.grace);
                tracing::warn!(
                    { service.name = %name, process.pid = pid },
                    "process {pid} did not end within {grace:?} after {sent}: it gets {next}"
                );
            }
            ChildAction::Signal { pid, rung, passed: None, .. }
                if rung.signal == Signal::Kill && !self.abandoned.contains_key(&pid) =>
            {
                tracing::warn!({ service.name = %name, process.pid = pid }, "process {pid} gets SIGKILL without a wait");
            }
            ChildAction::Abandon { pid, limit } => {
                tracing::error!(
                    { service.name = %name, process.pid = pid },
                    "process {pid} is still there {limit:?} after SIGKILL (does a disk hang? does a debugger hold it? is much \
                     memory to be freed?): it is killed again every {KILL_AGAIN:?}"
                );
                self.abandoned.insert(pid, (id, name));
            }
            ChildAction::Disown(pid) => {
                tracing::warn!({ service.name = %name, process.pid = pid }, "process {pid} came too late: it is killed");
            }
            ChildAction::GiveUp if self.abandoned_of(id).is_some() => {
                let pid = self.abandoned_of(id).unwrap_or_default();
                tracing::error!({ service.name = %name }, "gives up: its process {pid} does not end");
            }
            ChildAction::CancelSpawn(_) => tracing::debug!({ service.name = %name }, "its start is broken off"),
            ChildAction::Signal { .. }
            | ChildAction::Unheard { .. }
            | ChildAction::GiveUp
            | ChildAction::Spawn(..)
            | ChildAction::Release
            | ChildAction::Withdraw
            | ChildAction::Restart(_) => {}
        }
    }

    /// The process of `id` that outlived SIGKILL, if there is one.
    pub fn abandoned_of(&self, id: ServiceId) -> Option<i32> {
        self.abandoned.iter().find(|(_, (of, _))| *of == id).map(|(&pid, _)| pid)
    }

    /// See the tree after a step: an abandoned process may have ended at last.
    pub fn observe(&mut self, tree: &Tree) {
        self.abandoned.retain(|&pid, (id, name)| {
            let is_there =
                tree.members.get(id).is_some_and(|it| it.child.is_abandoned() && it.child.pid() == Some(pid));
            if !is_there {
                tracing::info!({ service.name = %name, process.pid = pid }, "process {pid} is gone at last");
            }
            is_there
        });
    }

    /// What is left when the tree has ended.
    pub fn name_what_is_left(&self) {
        for (pid, (_, name)) in &self.abandoned {
            tracing::error!(
                { service.name = %name, process.pid = pid },
                "process {pid} of {name} could not be killed and is left behind"
            );
        }
    }

    pub(super) fn service(&self, id: ServiceId) -> Option<&Service> {
        self.all.get(&id)
    }

    /// The postmaster with this number.
    pub fn postmaster(&self, id: ServiceId) -> Option<&Postmaster> {
        match self.all.get(&id)? {
            Service::Postgres(postmaster) => Some(postmaster),
            Service::Template(_) | Service::Worker(_) | Service::Companion(_) => None,
        }
    }

    /// The postmasters there are: one, or none.
    pub fn postmasters(&self) -> impl Iterator<Item = &Postmaster> {
        self.all.keys().filter_map(|&id| self.postmaster(id))
    }

    /// The life of a worker or a template.
    pub fn life(&self, id: ServiceId) -> Option<Life> {
        match self.all.get(&id)? {
            Service::Template(template) => Some(template.life().clone()),
            Service::Worker(slot) => Some(slot.life().clone()),
            Service::Postgres(_) | Service::Companion(_) => None,
        }
    }

    /// What it is called, in the log and everywhere else.
    pub fn name(&self, id: ServiceId) -> String {
        match self.all.get(&id) {
            Some(Service::Postgres(_)) => postmaster::NAME.into(),
            Some(Service::Template(_)) => template::NAME.into(),
            Some(Service::Worker(slot)) => slot::name(slot.number()),
            Some(Service::Companion(companion)) => companion.name().to_owned(),
            None => format!("service {}", id.0),
        }
    }

    /// What kind it is.
    pub fn kind(&self, id: ServiceId) -> Option<ServiceKind> {
        self.all.get(&id).map(|service| match service {
            Service::Postgres(_) => ServiceKind::Postgres,
            Service::Template(_) => ServiceKind::Template,
            Service::Worker(_) => ServiceKind::Worker,
            Service::Companion(_) => ServiceKind::Companion,
        })
    }

    /// Why its last process ended or was replaced, or what holds it up now.
    pub fn last_reason(&self, id: ServiceId) -> Option<String> {
        if let Some(pid) = self.abandoned_of(id) {
            return Some(format!("process {pid} does not end, though it gets SIGKILL"));
        }
        match self.all.get(&id)? {
            Service::Postgres(postmaster) => postmaster.last_exit().map(|exit| exit.to_string()),
            Service::Companion(companion) => companion.last_exit().map(|exit| exit.to_string()),
            Service::Template(_) | Service::Worker(_) => self.life(id)?.last_reason(),
        }
    }

    /// What its event loop last reported.
    pub fn counts(&self, id: ServiceId) -> Option<Counts> {
        self.life(id)?.counts()
    }

    /// What it has still to finish, once it accepts no more.
    pub fn unfinished(&self, id: ServiceId) -> Option<Unfinished> {
        self.life(id)?.unfinished()
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self, id: ServiceId) -> Vec<String> {
        match self.all.get(&id) {
            Some(Service::Postgres(postmaster)) => postmaster.tail(),
            Some(Service::Template(template)) => template.tail(),
            Some(Service::Worker(slot)) => slot.tail(),
            Some(Service::Companion(companion)) => companion.tail(),
            None => Vec::new(),
        }
    }

    /// Why a replacement came to nothing, for the answer to the order that it was started for.
    pub fn failure(&self, id: ServiceId) -> String {
        let (name, life) = (self.name(id), self.life(id));
        if let Some(error) = life.as_ref().and_then(Life::start_error) {
            return format!("{name}: {}:\n{}", error.kind.words(), error.text.trim_end());
        }
        let how = life.and_then(|life| if life.pid().is_some() { None } else { life.last_reason() });
        let how =
            how.map_or("did not get ready in time".to_owned(), |reason| format!("ended before it was ready: {reason}"));
        let tail = self.tail(id);
        let tail =
            if tail.is_empty() { String::new() } else { format!("; the last it printed:\n  {}", tail.join("\n  ")) };
        format!("{name} {how}{tail}")
    }

    /// What it last had to say, as the end of a sentence about its failure.
    pub fn last_words(&self, id: ServiceId) -> String {
        if let Some(pid) = self.abandoned_of(id) {
            return format!(": its process {pid} does not end, though it gets SIGKILL (does a disk hang?)");
        }
        let tail = self.tail(id);
        match (self.life(id).and_then(|life| life.start_error()), &*self.launch.borrow()) {
            (Some(error), Some(launch)) => {
                let last = error.text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                let what = match error.kind {
                    StartErrorKind::Import => {
                        format!("{} cannot be imported (the traceback is above)", launch.settings.workers.app)
                    }
                    kind @ (StartErrorKind::Lifespan | StartErrorKind::Check) => kind.words().to_owned(),
                };
                format!(": {what}: {}", last.trim())
            }
            _ if tail.is_empty() => ", having printed nothing".into(),
            _ => format!("; the last it printed:\n  {}", tail.join("\n  ")),
        }
    }
}
