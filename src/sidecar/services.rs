//! The services there are: what the tree knows by a number, with the process behind it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedSender;

use super::POSTGRES;
use crate::companions::Companion;
use crate::http::Counts;
use crate::postgres::service::{self as postmaster, Postmaster};
use crate::supervise::service::{Reporter, Service};
use crate::supervise::state;
use crate::supervise::tree::{Event, Origin, ServiceId};
use crate::workers::launch::Launch;
use crate::workers::life::{Life, Roster};
use crate::workers::slot::{self, Slot};
use crate::workers::template::{self, Template};

/// One service.
pub enum Kept {
    Template(Template),
    Worker(Slot),
    Companion(Companion),
}

/// All of them.
pub struct Services {
    pub postmaster: Postmaster,
    others: BTreeMap<ServiceId, Kept>,
    roster: Roster,
    events: UnboundedSender<Event>,
    /// What new workers are started with; none where there are no workers.
    launch: Rc<RefCell<Option<Rc<Launch>>>>,
}

impl Services {
    pub fn new(postmaster: Postmaster, roster: Roster, events: UnboundedSender<Event>) -> Self {
        Self { postmaster, others: BTreeMap::new(), roster, events, launch: Rc::default() }
    }

    /// The workers and the template that there are.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// What new workers are started with; whoever changes it changes all that come from then on.
    pub fn launch(&self) -> Rc<RefCell<Option<Rc<Launch>>>> {
        self.launch.clone()
    }

    /// Keep a companion.
    pub fn insert(&mut self, id: ServiceId, companion: Companion) {
        self.others.insert(id, Kept::Companion(companion));
    }

    /// Make the service that the tree has added.
    pub fn add(&mut self, id: ServiceId, origin: Origin) {
        let Some(launch) = self.launch.borrow().clone() else { return };
        let reporter = Reporter::new(id, self.events.clone());
        let worker = |number| {
            let template = self.newest_template().filter(|_| self.forks());
            Kept::Worker(Slot::new(number, launch.clone(), template, self.roster.clone(), reporter.clone()))
        };
        let template = || Kept::Template(Template::new(launch.clone(), self.roster.clone(), reporter.clone()));
        let kept = match origin {
            Origin::Template => template(),
            Origin::Slot(number) => worker(number),
            Origin::Replaces(old) => match self.others.get(&old) {
                Some(Kept::Worker(slot)) => worker(slot.number()),
                Some(Kept::Template(_)) => template(),
                Some(Kept::Companion(_)) | None => return,
            },
        };
        self.others.insert(id, kept);
    }

    /// Whether workers are forked off a template.
    fn forks(&self) -> bool {
        self.launch
            .borrow()
            .as_ref()
            .is_some_and(|launch| launch.settings.workers.preload != crate::config::Preload::Off)
    }

    fn newest_template(&self) -> Option<Template> {
        let templates = self.others.values().rev().filter_map(|kept| match kept {
            Kept::Template(template) => Some(template),
            Kept::Worker(_) | Kept::Companion(_) => None,
        });
        templates.into_iter().next().cloned()
    }

    /// `new` has taken the place of `old`.
    pub fn swapped(&mut self, new: ServiceId, old: ServiceId) {
        let (Some(new), Some(old)) = (self.life(new), self.life(old)) else { return };
        let reason = old.noted().unwrap_or_else(|| "reload".into());
        tracing::info!({ service.name = %new.name() }, "replaced ({reason}); the old one finishes what it has");
        new.replaced(format!("replaced: {reason}"));
    }

    pub fn remove(&mut self, id: ServiceId) {
        self.others.remove(&id);
    }

    /// Carry out what the tree decided for one of them.
    pub fn act(&mut self, id: ServiceId, action: state::Action) {
        match self.others.get_mut(&id) {
            _ if id == POSTGRES => self.postmaster.act(action),
            Some(Kept::Template(template)) => template.act(action),
            Some(Kept::Worker(slot)) => slot.act(action),
            Some(Kept::Companion(companion)) => companion.act(action),
            None => {}
        }
    }

    /// The life of a worker or a template.
    pub fn life(&self, id: ServiceId) -> Option<Life> {
        match self.others.get(&id)? {
            Kept::Template(template) => Some(template.life().clone()),
            Kept::Worker(slot) => Some(slot.life().clone()),
            Kept::Companion(_) => None,
        }
    }

    /// What it is called, in the log and everywhere else.
    pub fn name(&self, id: ServiceId) -> String {
        match self.others.get(&id) {
            _ if id == POSTGRES => postmaster::NAME.into(),
            Some(Kept::Template(_)) => template::NAME.into(),
            Some(Kept::Worker(slot)) => slot::name(slot.number()),
            Some(Kept::Companion(companion)) => companion.name().to_owned(),
            None => format!("service {}", id.0),
        }
    }

    /// What kind it is, in a word.
    pub fn kind(&self, id: ServiceId) -> &'static str {
        match self.others.get(&id) {
            Some(Kept::Template(_)) => "template",
            Some(Kept::Worker(_)) => "worker",
            Some(Kept::Companion(_)) => "process",
            None => "postgres",
        }
    }

    /// Why its last process ended or was replaced.
    pub fn last_reason(&self, id: ServiceId) -> Option<String> {
        match self.others.get(&id) {
            Some(Kept::Companion(companion)) => companion.last_exit().map(|exit| exit.to_string()),
            _ if id == POSTGRES => self.postmaster.last_exit().map(|exit| exit.to_string()),
            _ => self.life(id)?.last_reason(),
        }
    }

    /// What its event loop last reported.
    pub fn counts(&self, id: ServiceId) -> Option<Counts> {
        self.life(id)?.counts()
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self, id: ServiceId) -> Vec<String> {
        match self.others.get(&id) {
            _ if id == POSTGRES => self.postmaster.tail(),
            Some(Kept::Template(template)) => template.tail(),
            Some(Kept::Worker(slot)) => slot.tail(),
            Some(Kept::Companion(companion)) => companion.tail(),
            None => Vec::new(),
        }
    }

    /// Why a replacement came to nothing, for whoever asked for it.
    pub fn failure(&self, id: ServiceId) -> String {
        let (name, life) = (self.name(id), self.life(id));
        if let Some(traceback) = life.as_ref().and_then(Life::import_error) {
            return format!("{name}: the application cannot be imported:\n{}", traceback.trim_end());
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
        let tail = self.tail(id);
        match (self.life(id).and_then(|life| life.import_error()), &*self.launch.borrow()) {
            (Some(traceback), Some(launch)) => {
                let last = traceback.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
                format!(
                    ": {} cannot be imported (the traceback is above): {}",
                    launch.settings.workers.app,
                    last.trim()
                )
            }
            _ if tail.is_empty() => ", having printed nothing".into(),
            _ => format!("; the last it printed:\n  {}", tail.join("\n  ")),
        }
    }
}
