//! What all parts of a run share: what is resolved before the first child, what the boot's steps find out, and the current
//! configuration.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::jobs::{self, Resolved};
use crate::boot;
use crate::config::{Debugger, Effect, Loaded, Postgres, PostgresMode, Settings, Source, changes};
use crate::durable;
use crate::event_loop::{Hangs, elsewhere, within};
use crate::health::picture::Migrations;
use crate::plan::{CommandLine, DatabaseUrl, Identity, Place, Rung, Secret};
use crate::postgres;
use crate::postgres::binaries::Installation;
use crate::postgres::home::Home;
use crate::postgres::secret::Password;
use crate::postgres::service::DatabaseStage;
use crate::postgres::stale;
use crate::process::keeper::ServerEnd;
use crate::workers::surroundings::Surroundings;

/// How long reading the configuration again may take: its files may lie on a disk that hangs.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long a look at what a command line needs may take: whether a program is in the Python environment.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// How long a worker that is debugged may take to get ready.
const DEBUGGED_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The keys that give the password.
const PASSWORD_KEYS: [&str; 2] = ["postgres.password", "postgres.password_file"];

/// The configuration, and its sources, from which it can be read again.
pub struct Configuration {
    pub source: Source,
    pub loaded: Loaded,
    /// Whether saved sources replace the workers (`tandem up --reload`).
    pub reload: bool,
    pub debugger: Debugger,
}

/// The current configuration. Keys that only a restart of Tandem can change are as they were at the start.
#[derive(Clone)]
pub struct Current {
    loaded: Rc<Loaded>,
    settings: Rc<Settings>,
}

impl Current {
    pub fn settings(&self) -> Rc<Settings> {
        self.settings.clone()
    }

    pub fn loaded(&self) -> Rc<Loaded> {
        self.loaded.clone()
    }
}

/// A configuration that was read again, and which of its changes take effect when.
pub struct Reread {
    pub current: Current,
    /// Changed keys that take effect at once.
    pub live: Vec<String>,
    /// Changed keys that take effect in workers started from now on.
    pub rolled: Vec<String>,
    /// Changed keys that take effect only after a restart of Tandem.
    pub restart: Vec<String>,
    pub notices: Vec<String>,
}

/// What all parts of a run share.
pub struct Context {
    source: Source,
    /// Whether saved sources replace the workers: then a boot whose workers cannot start waits for a save too.
    pub reload: bool,
    debugger: Debugger,
    started: Rc<Loaded>,
    current: RefCell<Current>,
    server_end: watch::Sender<Vec<Rung>>,
    pub home: Home,
    /// Where the application's database is, password included; what watches the server reads it too.
    url: Rc<RefCell<DatabaseUrl>>,
    /// The password of the application's role; `None` where the server is not ours.
    pub password: RefCell<Option<Password>>,
    pub installation: Rc<RefCell<Option<Installation>>>,
    pub python: Rc<RefCell<PathBuf>>,
    /// The user of the workers.
    pub worker_identity: Rc<RefCell<Option<Identity>>>,
    /// Whether the cluster was made by this run, and is empty.
    pub fresh: Cell<bool>,
    /// Why `hooks.after_ready` last failed, for the health port: without what it printed, which may hold a secret.
    pub hook_failure: RefCell<Option<String>>,
    /// Until when the certificate holds with which workers are started, for the health port.
    pub certificate: Cell<Option<SystemTime>>,
    /// The same of PostgreSQL's, where that serves over TLS.
    pub database_certificate: Cell<Option<SystemTime>>,
    /// The step of the deployment that is under way, for the status page.
    pub deployment_step: RefCell<Option<String>>,
    /// What the migrations did, for the health port.
    pub migrations: RefCell<Migrations>,
    /// How far the database is set up, for the probe.
    pub database: Rc<Cell<DatabaseStage>>,
}

impl Context {
    /// End the server of an earlier run, and resolve the password and the port: after this every URL is known, before any
    /// process runs.
    ///
    /// # Errors
    /// The port is taken and was chosen by hand; the state directory cannot be used.
    pub(super) async fn resolve(configuration: Configuration, home: Home) -> anyhow::Result<Self> {
        let Configuration { source, mut loaded, reload, debugger } = configuration;
        wait_for_person(&mut loaded.settings, debugger);
        let (read, place) = (loaded.clone(), home.clone());
        let resolved = elsewhere(move || async move {
            let settings = &read.settings;
            durable::keep_reserve(&place.run.join("reserve"));
            if settings.postgres.mode == PostgresMode::Managed {
                // A server that outlives a killed Tandem by a moment still has the port that is to be chosen now.
                // Blocks: elsewhere.
                stale::end_leftover(&place, settings.stop.postgres_grace).await?;
            }
            jobs::resolve_database(&read, &place)
        });
        let Resolved { url, password, certificate } = resolved.await?;
        let loaded = Rc::new(loaded);
        let current = Current { settings: Rc::new(loaded.settings.clone()), loaded: loaded.clone() };
        Ok(Self {
            source,
            reload,
            debugger,
            started: loaded,
            server_end: watch::Sender::new(rungs(&current.settings)),
            current: RefCell::new(current),
            home,
            url: Rc::new(RefCell::new(url)),
            password: RefCell::new(password),
            installation: Rc::default(),
            python: Rc::default(),
            worker_identity: Rc::default(),
            hook_failure: RefCell::default(),
            certificate: Cell::default(),
            database_certificate: Cell::new(certificate),
            deployment_step: RefCell::default(),
            migrations: RefCell::default(),
            fresh: Cell::new(false),
            database: Rc::default(),
        })
    }

    /// Call `work` with what all children get, as it is now.
    pub fn around<T>(&self, work: impl FnOnce(Surroundings<'_>) -> T) -> T {
        let (python, identity) = (self.python.borrow(), self.worker_identity.borrow());
        let (settings, url) = (&*self.settings(), &self.url());
        work(Surroundings { settings, url, python: &python, identity: identity.as_ref(), of_tests: settings.in_test() })
    }

    /// As [`Context::around`], on another thread: for `work` that looks at the disk, such as where a program is.
    ///
    /// # Errors
    /// The disk does not answer.
    pub async fn around_aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(Surroundings<'_>) -> T + Send + 'static,
    ) -> Result<T, Hangs> {
        let python = self.python.borrow().clone();
        self.around_aside_in((*self.settings()).clone(), self.url(), python, work).await
    }

    /// As [`Context::around_aside`], as it will be with these `settings`, the database at `url` and the environment of the
    /// interpreter `python`.
    ///
    /// # Errors
    /// As [`Context::around_aside`].
    pub async fn around_aside_in<T: Send + 'static>(
        &self,
        settings: Settings,
        url: DatabaseUrl,
        python: PathBuf,
        work: impl FnOnce(Surroundings<'_>) -> T + Send + 'static,
    ) -> Result<T, Hangs> {
        let identity = self.worker_identity.borrow().clone();
        let what = format!("look into the Python environment of {}", python.display());
        let call = move || {
            let of_tests = settings.in_test();
            work(Surroundings {
                settings: &settings,
                url: &url,
                python: &python,
                identity: identity.as_ref(),
                of_tests,
            })
        };
        within(COMMAND_LIMIT, what, call).await
    }

    /// `command` with what tells it, and a `tandem` in it, where this deployment is.
    pub fn whereabouts(&self, command: CommandLine) -> CommandLine {
        let settings = self.settings();
        let command = command
            .env("TANDEM_BASE_URL", settings.base_url())
            .env("TANDEM_STATE_DIR", &self.home.state)
            .env("TANDEM_CACHE_DIR", &settings.cache_dir);
        match &settings.file {
            Some(file) => command.env("TANDEM_CONFIG", file),
            None => command,
        }
    }

    /// Where the application's database is, password included, for what is started or connects now.
    pub fn url(&self) -> DatabaseUrl {
        self.url.borrow().clone()
    }

    /// The same, as it will be.
    pub fn urls(&self) -> Rc<RefCell<DatabaseUrl>> {
        self.url.clone()
    }

    /// Let what is started or connects from now on log in as `user` with `password`.
    pub fn log_in_as(&self, user: &str, password: &Secret) {
        let mut url = self.url.borrow_mut();
        (url.user, url.password) = (user.to_owned(), Some(password.clone()));
    }

    /// What the configuration came to at the start.
    pub fn started(&self) -> Rc<Loaded> {
        self.started.clone()
    }

    /// What the configuration was read from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The configuration that holds now.
    pub fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// The current settings.
    pub fn settings(&self) -> Rc<Settings> {
        self.current.borrow().settings.clone()
    }

    /// Whether the configuration may be read from `file`.
    pub fn reads(&self, file: &Path) -> bool {
        let settings = self.settings();
        let is_dotenv = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".env"));
        is_dotenv || settings.file.as_ref().is_some_and(|own| own == file)
    }

    /// Read the configuration again, and adopt nothing of it.
    ///
    /// # Errors
    /// Every error of the configuration at once; [`Hangs`] when a file does not answer.
    pub async fn read_again(&self) -> anyhow::Result<Reread> {
        let source = self.source.clone();
        let loaded = within(READ_LIMIT, "read the configuration again", move || crate::config::load(&source)).await??;
        loaded.settings.hide_secrets();
        let current = self.current.borrow();
        let keys = |old: &Loaded, wanted| -> Vec<String> {
            let of = changes(old, &loaded).into_iter().filter(|change| change.effect == wanted);
            of.map(|change| change.key).collect()
        };
        let (live, mut rolled) = (keys(&current.loaded, Effect::Live), keys(&current.loaded, Effect::Roll));
        let mut restart = keys(&self.started, Effect::Restart);
        if self.started.settings.postgres.mode == PostgresMode::Attach {
            restart.extend(rolled.extract_if(.., |key| PASSWORD_KEYS.contains(&key.as_str())));
        }
        let mut settings = merge(&self.started.settings, &loaded.settings);
        // A socket that was handed down keeps its address.
        settings.workers.listen = current.settings.workers.listen.clone();
        if !live.iter().any(|key| key == "workers.count") {
            // A reload that is about something else does not undo a `tandem scale`.
            settings.workers.count = current.settings.workers.count;
        }
        wait_for_person(&mut settings, self.debugger);
        let notices = loaded.notices.iter().cloned().chain(boot::stop_ladder(&settings).notice()).collect();
        let current = Current { settings: Rc::new(settings), loaded: Rc::new(loaded) };
        Ok(Reread { current, live, rolled, restart, notices })
    }

    /// Make `current` the configuration; returns the one before it.
    pub fn adopt(&self, current: Current) -> Current {
        self.server_end.send_replace(rungs(&current.settings));
        self.current.replace(current)
    }

    /// The rungs by which the server ends if Tandem is killed, as the configuration has them.
    pub fn server_end(&self) -> ServerEnd {
        self.server_end.subscribe()
    }

    /// Set the number of workers.
    pub fn set_worker_count(&self, count: u32) {
        self.change(|settings| settings.workers.count = count);
    }

    /// Set where the application is served, whatever the configuration says.
    pub fn set_listen(&self, places: Vec<Place>) {
        self.change(|settings| settings.workers.listen = places);
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut current = self.current.borrow_mut();
        let mut settings = (*current.settings).clone();
        change(&mut settings);
        current.settings = Rc::new(settings);
    }
}

/// Let the workers of `settings` be debugged: one that a person looks into says nothing for as long as that takes.
fn wait_for_person(settings: &mut Settings, debugger: Debugger) {
    if debugger != Debugger::None {
        let workers = &mut settings.workers;
        (workers.debugger, workers.watchdog, workers.ready_limit) = (debugger, None, DEBUGGED_LIMIT);
    }
}

/// The rungs of the server's stop.
fn rungs(settings: &Settings) -> Vec<Rung> {
    postgres::policy::policy(&settings.postgres, &settings.stop).ladder
}

/// The values of `new` for keys that a running Tandem can change, and of `started` for the others.
fn merge(started: &Settings, new: &Settings) -> Settings {
    let workers = crate::config::Workers {
        listen: started.workers.listen.clone(),
        backlog: started.workers.backlog,
        socket: started.workers.socket,
        ..new.workers.clone()
    };
    let tls = started.postgres.tls.renewed(&new.postgres.tls);
    // Of a server elsewhere only the next start takes another password: there is no second one to change over with.
    let password = match started.postgres.mode {
        PostgresMode::Managed => new.postgres.password.clone(),
        PostgresMode::Attach => started.postgres.password.clone(),
    };
    let postgres = Postgres { tls, password, ..started.postgres.clone() };
    Settings {
        postgres,
        workers,
        pool: new.pool.clone(),
        health: crate::config::Health { workers_min: new.health.workers_min, ..started.health.clone() },
        metrics: new.metrics,
        stop: new.stop.clone(),
        hooks: new.hooks.clone(),
        backup: new.backup.clone(),
        disk: new.disk,
        ..started.clone()
    }
}
