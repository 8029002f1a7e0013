//! What a worker is launched with: the launcher, written into the run directory, and each slot's environment.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use super::notify::NotifySocket;
use super::serving;
use super::surroundings::{Surroundings, Variables};
use crate::config::{Debugger, Preload, Readiness, Settings, WorkerSocket};
use crate::durable::{self, WriteOptions};
use crate::event_loop::within;
use crate::exit::{Code, Failure};
use crate::plan::{CommandLine, DatabaseUrl, Identity, Place};
use crate::process::InheritedFd;
use crate::process::identity;

/// Runs one ASGI application on an inherited socket; see its own head for the protocol.
const LAUNCHER: &str = "launcher.py";
/// Imports the application once and forks workers.
const TEMPLATE: &str = "template.py";

/// What a worker consists of, by file name. The launcher loads the others from beside it, by path and not by import:
/// the run directory is in no process's `sys.path`.
const FILES: &[(&str, &str)] = &[
    (LAUNCHER, include_str!("launcher.py")),
    ("drain.py", include_str!("drain.py")),
    ("startup.py", include_str!("startup.py")),
    ("notify.py", include_str!("notify.py")),
    ("debugger.py", include_str!("debugger.py")),
    (TEMPLATE, include_str!("template.py")),
    ("options.py", include_str!("options.py")),
    ("listening.py", include_str!("listening.py")),
];

/// The variable that says in a worker, and to the hook at its end, which slot it has.
pub const WORKER_SLOT: &str = "TANDEM_WORKER_SLOT";

/// How long a look for what a start needs may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Users that a web application may run as where root starts it, the better one first.
const USERS: [&str; 2] = ["www-data", "nobody"];

/// What every worker of one reading of the configuration is started with.
#[derive(Clone)]
pub struct Launch {
    pub settings: Rc<Settings>,
    pub url: DatabaseUrl,
    /// Where the launcher was written.
    pub run: PathBuf,
    /// Where the sockets lie on which other servers say that they are ready.
    pub notify: PathBuf,
    /// The application's sockets, until the stop begins; none where the workers bind them themselves.
    pub listeners: Rc<RefCell<Vec<InheritedFd>>>,
    /// The interpreter of the Python environment, known once that is made.
    pub python: Rc<RefCell<PathBuf>>,
    /// The user that workers run as, known once the interpreter is.
    pub identity: Rc<RefCell<Option<Identity>>>,
}

impl Launch {
    /// The same with other settings, and the database at `url`.
    pub fn with(&self, settings: Rc<Settings>, url: DatabaseUrl) -> Self {
        Self { settings, url, ..self.clone() }
    }

    /// Let `make` look for what a start needs, a program in the Python environment for example, on another thread: the
    /// disk that it is on may hang.
    ///
    /// # Errors
    /// The disk does not answer.
    pub async fn aside<T: Send + 'static>(&self, make: impl FnOnce(&Self) -> T + Send + 'static) -> io::Result<T> {
        let (settings, url, run, notify) =
            ((*self.settings).clone(), self.url.clone(), self.run.clone(), self.notify.clone());
        let listeners = self.listeners.borrow().clone();
        let (python, identity) = (self.python.borrow().clone(), self.identity.borrow().clone());
        let what = format!("look into the Python environment of {}", python.display());
        let call = move || {
            let (listeners, python) = (Rc::new(RefCell::new(listeners)), Rc::new(RefCell::new(python)));
            let identity = Rc::new(RefCell::new(identity));
            make(&Self { settings: Rc::new(settings), url, run, notify, listeners, python, identity })
        };
        within(LOOK_LIMIT, what, call).await.map_err(io::Error::other)
    }

    /// The application's sockets.
    ///
    /// # Errors
    /// They are closed already.
    pub fn listeners(&self) -> std::io::Result<Vec<InheritedFd>> {
        let listeners = self.listeners.borrow().clone();
        if listeners.is_empty() {
            Err(std::io::Error::other("the listening sockets are closed"))
        } else {
            Ok(listeners)
        }
    }

    /// The environment of the worker in `slot`, the launcher's protocol included, but for the descriptors.
    pub fn environment(&self, slot: usize) -> Variables {
        let mut variables = self.around(|around| around.variables(&self.application(slot)));
        variables.0.extend(protocol(&self.settings));
        variables.0.push(of_slot(slot));
        variables
    }

    fn application(&self, slot: usize) -> String {
        format!("{}-worker-{slot}", self.settings.name)
    }

    /// The socket on which another server's process of `service` says READY=1, where that is what is waited for: gunicorn
    /// says it before its worker has begun.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn notify_socket(&self, service: &str) -> std::io::Result<Option<NotifySocket>> {
        if self.settings.workers.ready != Readiness::Notify {
            return Ok(None);
        }
        NotifySocket::in_dir(&self.notify, service, self.identity.borrow().as_ref()).map(Some)
    }

    /// The environment of another server in `slot`, which says READY=1 at `notify`. Its own way to the application is the
    /// working directory; `workers.app_dir` may be another.
    fn other_environment(&self, slot: usize, notify: Option<&Path>) -> Variables {
        let mut variables = self.around(|around| around.importing(&self.application(slot)));
        variables.0.push(("PYTHONUNBUFFERED".to_owned(), Some("1".to_owned())));
        variables.0.push(of_slot(slot));
        if let Some(notify) = notify {
            variables.0.push(("NOTIFY_SOCKET".to_owned(), Some(notify.display().to_string())));
        }
        variables
    }

    /// The environment of the template: a worker's, without what only one slot has.
    pub fn template_environment(&self) -> Variables {
        let settings = &self.settings;
        let mut variables = self.around(|around| around.variables(&format!("{}-template", settings.name)));
        let strict = if settings.workers.preload == Preload::Strict { "strict" } else { "warn" };
        variables.0.extend(protocol(settings));
        variables.0.push(("TANDEM_PRELOAD".to_owned(), Some(strict.to_owned())));
        variables
    }

    /// The command that runs the launcher.
    pub fn launcher(&self) -> CommandLine {
        self.python(LAUNCHER)
    }

    /// The command that runs the template.
    pub fn template(&self) -> CommandLine {
        self.python(TEMPLATE)
    }

    fn python(&self, script: &str) -> CommandLine {
        self.as_worker(CommandLine::new(self.python.borrow().clone()).arg(self.run.join(script)))
    }

    /// Another server's command (`workers.command`), for `slot`. In its words `{fd}` is the number of the first listening
    /// socket, `{fd2}` that of the second; `{host}`, `{port}`, `{slot}`, `{tls_cert}` and `{tls_key}` are what they say. A
    /// program of the Python environment is found there first. It says READY=1 at `notify`.
    pub fn other_server(
        &self,
        words: &[String],
        slot: usize,
        listeners: &[InheritedFd],
        notify: Option<&Path>,
    ) -> CommandLine {
        let known = self.placeholders(slot, listeners);
        let fill = |word: &String| known.iter().fold(word.clone(), |word, (name, value)| word.replace(name, value));
        let mut filled = words.iter().map(fill).collect::<Vec<_>>().into_iter();
        let program = filled.next().unwrap_or_default();
        let command = CommandLine::new(self.around(|around| around.program(&program))).args(filled);
        self.other_environment(slot, notify).apply(self.as_worker(command))
    }

    /// What stands for what in `workers.command`.
    fn placeholders(&self, slot: usize, listeners: &[InheritedFd]) -> Vec<(String, String)> {
        let workers = &self.settings.workers;
        // An address that stands for every one is told as it is.
        let (host, port) = match workers.listen.first() {
            Some(Place::At(address)) => (address.ip().to_string(), address.port().to_string()),
            Some(Place::Every(port)) => ("::".to_owned(), port.to_string()),
            Some(Place::Unix(_)) | None => Default::default(),
        };
        let numbers = listeners.iter().enumerate().map(|(at, fd)| {
            let name = if at == 0 { "{fd}".to_owned() } else { format!("{{fd{}}}", at + 1) };
            (name, fd.number().to_string())
        });
        let mut known: Vec<_> = numbers.collect();
        known
            .extend([("{slot}", slot.to_string()), ("{host}", host), ("{port}", port)].map(|(n, v)| (n.to_owned(), v)));
        if let Some(tls) = &workers.serving.tls {
            known.push(("{tls_cert}".to_owned(), tls.cert.display().to_string()));
            known.push(("{tls_key}".to_owned(), tls.key.display().to_string()));
        }
        known
    }

    fn as_worker(&self, command: CommandLine) -> CommandLine {
        self.around(|around| around.as_worker(command.many_files(), around.work_dir()))
    }

    fn around<T>(&self, work: impl FnOnce(Surroundings<'_>) -> T) -> T {
        let (python, identity) = (self.python.borrow(), self.identity.borrow());
        let (settings, url) = (&*self.settings, &self.url);
        work(Surroundings { settings, url, python: &python, identity: identity.as_ref(), of_tests: settings.in_test() })
    }

    /// Whether a worker is handed the application's socket.
    pub fn hands_down_socket(&self) -> bool {
        self.settings.workers.socket == WorkerSocket::Inherited
    }
}

/// Write the launcher and what belongs to it into `run`.
///
/// # Errors
/// A file cannot be written.
pub fn write_files(run: &Path) -> anyhow::Result<()> {
    for (name, text) in FILES {
        let path = run.join(name);
        // A worker that starts at this moment reads the old text or the new; on a full disk the same text is not written again.
        durable::replace_if_changed(&path, text.as_bytes(), &WriteOptions::default().mode(0o644).unflushed())
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Which worker it is, for the application: the one variable of that prefix, beside the mark of the run, that a child keeps.
fn of_slot(slot: usize) -> (String, Option<String>) {
    (WORKER_SLOT.to_owned(), Some(slot.to_string()))
}

/// How long requests in flight may take, so that the worker itself cuts what is left and ends before SIGKILL comes:
/// clients need half a second to notice the cut, tasks half a second to be cancelled, the application its own shutdown.
fn drain_limit(grace: Duration) -> Duration {
    grace.saturating_sub(Duration::from_secs(2)).max(grace / 2)
}

/// As the launcher reads a limit.
fn seconds_or_never(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "inf".to_owned(), |limit| format!("{:.3}", limit.as_secs_f64()))
}

/// The launcher's own variables, the same for every slot.
fn protocol(settings: &Settings) -> Vec<(String, Option<String>)> {
    let (workers, stop) = (&settings.workers, &settings.stop);
    let mut pairs = vec![
        ("TANDEM_APP", workers.app.clone()),
        ("TANDEM_APP_DIR", workers.app_dir.display().to_string()),
        ("TANDEM_PREIMPORT", workers.preimport.join(",")),
        ("TANDEM_LOOP", workers.event_loop.clone()),
        ("TANDEM_ACCESS_LOG", if workers.access_log { "1" } else { "0" }.to_owned()),
        ("TANDEM_GRACE", format!("{:.3}", drain_limit(stop.grace).as_secs_f64())),
        ("TANDEM_IDLE_DRAIN", format!("{:.3}", stop.idle_drain.as_secs_f64())),
        ("TANDEM_DRAIN", seconds_or_never(Some(workers.drain))),
        ("TANDEM_DRAIN_BUSY", seconds_or_never(workers.drain_busy)),
        ("TANDEM_DRAIN_STREAMS", seconds_or_never(workers.drain_streams)),
        ("TANDEM_FACTORY", workers.factory.word().to_owned()),
        ("TANDEM_LIFESPAN", workers.lifespan.clone()),
        ("TANDEM_INTERFACE", workers.interface.clone()),
        ("TANDEM_CHECK", workers.check.clone().unwrap_or_default()),
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    match workers.debugger {
        Debugger::None => {}
        Debugger::Terminal => pairs.push(("TANDEM_DEBUGGER", "terminal".to_owned())),
        Debugger::Listen(port) => pairs.push(("TANDEM_DEBUGGER", port.to_string())),
    }
    if let Some(watchdog) = workers.watchdog {
        pairs.push(("WATCHDOG_USEC", watchdog.as_micros().to_string()));
    }
    pairs.push(("TANDEM_UVICORN", serving::for_launcher(&workers.serving)));
    pairs.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect()
}

/// The user that workers run as, where Tandem runs as root. `python` is the environment's interpreter, which may really
/// lie in a home directory.
///
/// # Errors
/// `workers.run_as` names no user, or one that cannot reach the code.
pub fn identity_for(settings: &Settings, run: &Path, python: &Path) -> anyhow::Result<Option<Identity>> {
    if !identity::is_root() {
        return Ok(None);
    }
    let places = || {
        let dirs = [Some(&settings.workers.app_dir), settings.workers.dir.as_ref()].into_iter().flatten();
        dirs.map(PathBuf::as_path).chain([run, python])
    };
    // Blocks: for the boot's first job, which runs elsewhere.
    if let Some(name) = &settings.workers.run_as {
        let text = format!("workers.run_as: there is no user `{name}` on this machine");
        // Blocks: for that job.
        let found = identity::lookup(name).ok_or_else(|| Failure::new(Code::Config, text))?;
        if let Some(barrier) = places().find_map(|path| identity::barrier(path, &found)) {
            let barrier = barrier.display();
            let text = format!(
                "workers.run_as: `{name}` may not pass {barrier}, where the application, the state directory or the interpreter lies; \
                 open it (chmod o+x {barrier}) or move it"
            );
            return Err(Failure::new(Code::CannotCreate, text).into());
        }
        return Ok(Some(found));
    }
    // Blocks: for that job.
    let barred = |user: &Identity| places().find_map(|path| identity::barrier(path, user));
    let found = USERS.iter().filter_map(|name| identity::lookup(name)).find(|user| barred(user).is_none());
    if found.is_none() {
        let user = USERS.iter().find_map(|name| identity::lookup(name));
        let why = user.and_then(|user| barred(&user)).map(|dir| format!(" ({} bars the way)", dir.display()));
        tracing::warn!(
            "workers run as root: no other user reaches the application{}; set workers.run_as and open the way",
            why.unwrap_or_default()
        );
    }
    Ok(found)
}
