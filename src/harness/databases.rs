//! The databases of one throwaway server: carries out what each pool decides, and hands them out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::cleaning;
use super::of_test::{Census, OfTest};
use super::pool::{Action, Bounds, Event, Pool, Ticket};
use super::put_back::SharedObjects;
use super::shared_objects::Hold;
use super::superuser::{READ_ONLY, Superuser};
use super::template::DATABASE;
use crate::config::Settings;
use crate::exit::{Code, Failure, in_words};
use crate::plan::{DatabaseUrl, Secret};
use crate::postgres::home::Home;
use crate::postgres::provision::identifier;
use crate::room::FileSystem;

/// What ready-made databases are called, before their number.
const PREFIX: &str = "test_";
/// The one that read-only tests share.
const SHARED: &str = "test_shared";
/// How long to wait for a database: clients have limits of their own, and this one says why.
const FRESH_LIMIT: Duration = Duration::from_secs(60);
/// About what a database takes, in bytes: the catalogs of an empty one.
const DATABASE_SIZE: u64 = 8 * 1024 * 1024;
/// Most databases that are made ahead, or wait to be dropped, however much room there is.
const DATABASES_MAX: usize = 128;
/// How long to wait before a clone that failed is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// When the connections that make databases are opened, unless one is asked for before. A command that is over by then, such as
/// psql with one statement, need not share the processors with five new server processes.
const CONNECT_PAUSE: Duration = Duration::from_millis(150);

/// A database that is handed out.
#[derive(Clone, Serialize, Deserialize)]
pub struct Lease {
    pub name: String,
    /// Password included.
    pub url: String,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Lease").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What became of a database that was given back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// Whether it is kept for a person to look at.
    pub kept: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The databases. A clone of it is another handle to the same.
#[derive(Clone)]
pub struct Databases(Arc<Inner>);

pub(super) struct Inner {
    /// The run's directory, for messages.
    dir: PathBuf,
    /// Of the session's database, in the tests' dialect.
    url: DatabaseUrl,
    max_connections: u32,
    bounds: Bounds,
    pub(super) catalog: Superuser,
    /// What belongs to the whole server.
    objects: SharedObjects,
    /// The database that read-only tests share, and how many there have been.
    shared: AsyncMutex<(Option<String>, u32)>,
    handout: Mutex<Handout>,
    pub(super) events: mpsc::UnboundedSender<(String, Event)>,
    /// Databases that came back, each with its template's name.
    returned: mpsc::UnboundedSender<(String, String)>,
    /// The runtime that does all the work: the caller's may end sooner.
    runtime: Handle,
}

/// The databases by template, and the callers that wait for one.
#[derive(Default)]
struct Handout {
    pools: BTreeMap<String, Pool>,
    waiting: BTreeMap<Ticket, oneshot::Sender<Result<String, String>>>,
    tickets: u64,
    /// What those who got a database call themselves, by its name.
    labels: BTreeMap<String, String>,
    /// Why the last clone could not be made.
    trouble: String,
}

impl Databases {
    /// The databases of the server in `home`, whose session's database is at `url`; `unlogged`: the template holds unlogged
    /// tables. Must be called within the runtime.
    pub fn open(home: &Home, url: DatabaseUrl, unlogged: bool, settings: &Settings) -> Self {
        let unlogged = unlogged.then(|| DATABASE.to_owned()).into_iter().collect();
        let catalog = Superuser::new(home, url.port, &url.user, &[DATABASE, SHARED], unlogged);
        let (events, mut inbox) = mpsc::unbounded_channel::<(String, Event)>();
        let (returned, back) = mpsc::unbounded_channel();
        let databases = Self(Arc::new(Inner {
            dir: home.state.clone(),
            url,
            max_connections: settings.test.max_connections,
            bounds: bounds(home, settings),
            catalog,
            objects: SharedObjects::default(),
            shared: AsyncMutex::default(),
            handout: Mutex::default(),
            events,
            returned,
            runtime: Handle::current(),
        }));
        let weak = Arc::downgrade(&databases.0);
        tokio::spawn(async move {
            tokio::time::sleep(CONNECT_PAUSE).await;
            let Some(inner) = weak.upgrade() else { return };
            inner.catalog.connect().await;
        });
        let weak = Arc::downgrade(&databases.0);
        tokio::spawn(async move {
            while let Some((template, event)) = inbox.recv().await {
                let Some(inner) = weak.upgrade() else { return };
                Self(inner).step(&template, event);
            }
        });
        tokio::spawn(cleaning::clean(Arc::downgrade(&databases.0), back));
        databases
    }

    /// Begin to make databases ahead, unless that has begun. A run that never asks for one does not wait for them.
    pub fn fill(&self) {
        {
            let mut handout = self.handout();
            if handout.pools.contains_key(DATABASE) {
                return;
            }
            handout.pools.insert(DATABASE.to_owned(), Pool::new(PREFIX, self.0.bounds));
        }
        let this = self.clone();
        self.0.runtime.spawn(async move {
            if let Err(error) = this.0.catalog.warm(DATABASE).await {
                tracing::debug!("connect to the template: {}", in_words(&error));
            }
            this.step(DATABASE, Event::Resumed);
        });
    }

    /// `count` databases will be asked for in all: as many are made ahead as there is room for.
    pub fn expect(&self, count: usize) {
        self.fill();
        self.step(DATABASE, Event::Expected(count));
    }

    /// Begin to make clones of `template`, called `prefix` and a number.
    pub fn add_pool(&self, template: &str, prefix: &str) {
        self.handout().pools.insert(template.to_owned(), Pool::new(prefix, self.0.bounds));
        self.step(template, Event::Resumed);
    }

    /// The pool of `template` makes no more clones, and hands none out.
    pub fn remove_pool(&self, template: &str) {
        self.handout().pools.remove(template);
    }

    /// A database that no other caller has: a clone of the migrated template.
    ///
    /// # Errors
    /// Clones cannot be made, and why.
    pub async fn fresh(&self, hold: Hold) -> anyhow::Result<Lease> {
        self.fill();
        self.fresh_of(DATABASE, hold).await
    }

    /// As [`Databases::fresh`], a clone of `template`.
    ///
    /// # Errors
    /// As [`Databases::fresh`]; there is no such pool.
    pub async fn fresh_of(&self, template: &str, hold: Hold) -> anyhow::Result<Lease> {
        let (sender, given) = oneshot::channel();
        let ticket = {
            let mut handout = self.handout();
            if !handout.pools.contains_key(template) {
                bail!("there is no pool of {template}");
            }
            handout.tickets += 1;
            let ticket = Ticket(handout.tickets);
            handout.waiting.insert(ticket, sender);
            ticket
        };
        let mut leaving = Leaving(self, template, Some(ticket));
        self.step(template, Event::Asked(ticket));
        let Ok(given) = timeout(FRESH_LIMIT, given).await else {
            let trouble = self.handout().trouble.clone();
            let why = if trouble.is_empty() { "the server does not answer".to_owned() } else { trouble };
            bail!(Failure::new(Code::Temporary, format!("no database came within {FRESH_LIMIT:?}: {why}")));
        };
        leaving.2 = None;
        let name = match given {
            Ok(Ok(name)) => name,
            Ok(Err(why)) => bail!(Failure::new(Code::Temporary, format!("no database can be made: {why}"))),
            Err(_) => bail!(Failure::new(Code::Temporary, "the test server is ending")),
        };
        let unused = Unused(self, Some(name.clone()));
        let (this, of) = (self.clone(), name.clone());
        let noted = self.0.runtime.spawn(async move { this.0.objects.given(&this.0.catalog, &of, hold).await });
        noted.await.context("the test server is ending")?;
        unused.taken();
        Ok(self.lease(name))
    }

    /// The database that all read-only tests share. It refuses to be written to; once a test wrote to it all the same, there is
    /// another one.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn shared(&self) -> anyhow::Result<Lease> {
        let this = self.clone();
        let found = async move {
            let mut shared = this.0.shared.lock().await;
            if let Some(name) = &shared.0
                && this.0.catalog.is_read_only(name).await?
            {
                return anyhow::Ok(name.clone());
            }
            shared.1 += 1;
            let name = if shared.1 == 1 { SHARED.to_owned() } else { format!("{SHARED}_{}", shared.1) };
            this.0.catalog.clone_as(&name, DATABASE).await?;
            let read_only = format!("ALTER DATABASE {} SET {READ_ONLY}", identifier(&name));
            this.0.catalog.run(read_only).await?;
            shared.0 = Some(name.clone());
            Ok(name)
        };
        let name = self.0.runtime.spawn(found).await.context("the test server is ending")??;
        Ok(self.lease(name))
    }

    /// Take the database `name` back; nothing is waited for.
    ///
    /// # Errors
    /// It is not handed out.
    pub fn give_back(&self, name: &str, failed: bool) -> anyhow::Result<Returned> {
        self.begin_return(name, failed).map(|(returned, _)| returned)
    }

    /// As [`Databases::give_back`]; what its test changed of the server is put back then.
    ///
    /// # Errors
    /// It is not handed out.
    pub async fn take_back(&self, name: &str, failed: bool) -> anyhow::Result<Returned> {
        let (returned, settled) = self.begin_return(name, failed)?;
        if let Some(settled) = settled {
            settled.await.context("the test server is ending")?;
        }
        Ok(returned)
    }

    fn begin_return(&self, name: &str, failed: bool) -> anyhow::Result<(Returned, Option<JoinHandle<()>>)> {
        if name.starts_with(SHARED) {
            return Ok((Returned::default(), None));
        }
        let template = self.handout().pools.iter().find(|(_, pool)| pool.is_out(name)).map(|(name, _)| name.clone());
        let Some(template) = template else { bail!("{name} is not handed out") };
        self.step(&template, Event::Returned { name: name.to_owned(), failed });
        let kept = self.handout().pools.get(&template).is_some_and(|pool| pool.kept().iter().any(|kept| kept == name));
        let (this, of) = (self.clone(), name.to_owned());
        let settled = self.0.runtime.spawn(async move { this.0.objects.returned(&this.0.catalog, &of).await });
        Ok((Returned { kept, url: kept.then(|| self.url_of(name)) }, Some(settled)))
    }

    pub fn census(&self) -> Census {
        let handout = self.handout();
        let pool = handout.pools.get(DATABASE);
        let kept = handout.pools.values().flat_map(Pool::kept).map(|name| self.url_of(name)).collect();
        Census {
            url: self.0.url.expose().expose().to_owned(),
            ready: pool.map_or(0, Pool::ready),
            out: handout.pools.values().map(Pool::out).sum(),
            kept,
            of_tests: self.of_tests(&handout),
            max_connections: self.0.max_connections,
        }
    }

    fn of_tests(&self, handout: &Handout) -> Vec<OfTest> {
        let pools = || handout.pools.values();
        let is_kept = |name: &String| pools().any(|pool| pool.kept().contains(name));
        let there = handout.labels.iter().filter(|(name, _)| is_kept(name) || pools().any(|pool| pool.is_out(name)));
        let of_test = |(name, test): (&String, &String)| OfTest {
            test: test.clone(),
            url: self.url_of(name),
            failed: is_kept(name),
        };
        there.map(of_test).collect()
    }

    /// Whoever got the database `name` calls itself `label`.
    pub fn label(&self, name: &str, label: String) {
        self.handout().labels.insert(name.to_owned(), label);
    }

    /// What the superuser may do with databases that are no pool's.
    pub fn catalog(&self) -> &Superuser {
        &self.0.catalog
    }

    /// Where the session's own database is.
    pub fn session_url(&self) -> &DatabaseUrl {
        &self.0.url
    }

    fn lease(&self, name: String) -> Lease {
        Lease { url: self.url_of(&name), name }
    }

    fn url_of(&self, name: &str) -> String {
        DatabaseUrl { database: name.to_owned(), ..self.0.url.clone() }.expose().expose().to_owned()
    }

    fn handout(&self) -> std::sync::MutexGuard<'_, Handout> {
        self.0.handout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, template: &str, event: Event) {
        let actions = self.handout().pools.get_mut(template).map(|pool| pool.step(event));
        self.carry_out(template, actions.unwrap_or_default());
    }

    fn carry_out(&self, template: &str, actions: Vec<Action>) {
        for action in actions {
            let this = self.clone();
            let (of, say) = (template.to_owned(), self.0.events.clone());
            let say = move |event| drop(say.send((of, event)));
            match action {
                Action::Give(ticket, name) => {
                    let asker = self.handout().waiting.remove(&ticket);
                    let gone = asker.is_none_or(|asker| asker.send(Ok(name.clone())).is_err());
                    if gone {
                        say(Event::Returned { name, failed: false });
                    }
                }
                Action::Refuse(ticket) => {
                    let mut handout = self.handout();
                    let why = handout.trouble.clone();
                    if let Some(asker) = handout.waiting.remove(&ticket) {
                        let _ = asker.send(Err(why));
                    }
                }
                Action::Keep(name) => tracing::debug!("{name} is kept"),
                Action::Make(name) => {
                    let template = template.to_owned();
                    self.0.runtime.spawn(async move {
                        say(match this.0.catalog.clone_as(&name, &template).await {
                            Ok(()) => Event::Made(name),
                            Err(error) => {
                                this.trouble(&error);
                                Event::MakeFailed
                            }
                        });
                    });
                }
                Action::Clean(name) => drop(self.0.returned.send((template.to_owned(), name))),
                Action::Drop(name) => {
                    self.0.runtime.spawn(async move {
                        if let Err(error) = this.0.catalog.destroy(&name).await {
                            tracing::debug!("drop {name}: {}", in_words(&error));
                        }
                        say(Event::Dropped);
                    });
                }
                Action::Pause => {
                    self.0.runtime.spawn(async move {
                        sleep(PAUSE).await;
                        say(Event::Resumed);
                    });
                }
            }
        }
    }

    /// Note why a clone could not be made; said once, for the same comes again and again.
    fn trouble(&self, error: &anyhow::Error) {
        let free = FileSystem::of(&self.0.dir).map_or(u64::MAX, |there| there.free);
        // The server does not always say why it could not write.
        let text = if free < 2 * DATABASE_SIZE {
            format!("{} is full ({} MB are free)", self.0.dir.display(), free >> 20)
        } else {
            in_words(error)
        };
        let mut handout = self.handout();
        if handout.trouble != text {
            tracing::warn!("no database can be made at the moment: {text}");
            handout.trouble = text;
        }
    }
}

/// How far the pools may go: their databases take an eighth of the file system's room, and as much again once used.
fn bounds(home: &Home, settings: &Settings) -> Bounds {
    let ready = settings.test.pool as usize;
    let room = FileSystem::of(&home.data).map_or(0, |there| there.free) / 8 / DATABASE_SIZE;
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(DATABASES_MAX);
    Bounds { ready, ready_max: room.max(ready), used_max: room, kept_max: settings.test.keep_failed as usize }
}

/// Takes a ticket back when its asker goes away.
struct Leaving<'a>(&'a Databases, &'a str, Option<Ticket>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.2 {
            self.0.handout().waiting.remove(&ticket);
            self.0.step(self.1, Event::Left(ticket));
        }
    }
}

/// Gives a database back that its asker never learnt of.
struct Unused<'a>(&'a Databases, Option<String>);

impl Unused<'_> {
    fn taken(mut self) {
        self.1 = None;
    }
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.1.take() {
            let _ = self.0.give_back(&name, false);
        }
    }
}

/// The password of `url`, for callers that need its parts.
pub fn password(url: &DatabaseUrl) -> &str {
    url.password.as_ref().map(Secret::expose).unwrap_or_default()
}
