//! The servers that are compared, and how each is started and told to roll: as its own documentation says, and at its best.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::common::project::{Project, root};
use crate::common::tandem;

/// One server of the comparison.
#[derive(Clone, Copy)]
pub struct Peer {
    /// What `--only` calls it.
    pub name: &'static str,
    /// Heads its column; the version of `package` follows.
    pub label: &'static str,
    /// Of PyPI.
    pub package: &'static str,
    pub start: fn(&Site) -> Command,
    pub roll: Roll,
    /// Not in the table unless it is asked for.
    pub left_out: bool,
}

/// How new code gets in.
#[derive(Clone, Copy)]
pub enum Roll {
    /// A signal to the supervisor.
    Signal(Signal),
    /// Commands that return when it is done, one after the other.
    Commands(fn(&Site) -> Vec<Command>),
}

/// Tandem, then those that can be had from PyPI.
pub const PEERS: [Peer; 8] = [
    peer("tandem", "Tandem", "", tandem_up, Roll::Commands(tandem_reload)),
    peer("uvicorn", "uvicorn", "uvicorn", uvicorn, HUP),
    peer("gunicorn", "gunicorn", "gunicorn", gunicorn, HUP),
    peer("granian", "granian", "granian", granian, HUP),
    peer("hypercorn", "hypercorn", "hypercorn", hypercorn, HUP),
    left_out(peer("gunicorn-asgi", "gunicorn `-k asgi`", "gunicorn", gunicorn_asgi, HUP)),
    left_out(peer("circus", "circus", "circus", circus, Roll::Commands(circus_reload))),
    left_out(peer("supervisord", "supervisord", "supervisor", supervisord, Roll::Commands(supervisord_restart))),
];

const fn peer(
    name: &'static str,
    label: &'static str,
    package: &'static str,
    start: fn(&Site) -> Command,
    roll: Roll,
) -> Peer {
    Peer { name, label, package, start, roll, left_out: false }
}

const fn left_out(peer: Peer) -> Peer {
    Peer { left_out: true, ..peer }
}

const HUP: Roll = Roll::Signal(Signal::SIGHUP);

/// Everything that is installed for the comparison. Tandem's workers run on the same.
const PACKAGES: [&str; 7] =
    ["uvicorn[standard]", "uvicorn-worker", "gunicorn", "granian", "hypercorn", "circus", "supervisor"];

impl Peer {
    pub fn is_tandem(&self) -> bool {
        self.name == "tandem"
    }

    /// The head of its column.
    pub fn title(&self, venv: &Path) -> String {
        if self.is_tandem() {
            return self.label.to_owned();
        }
        let code = format!("import importlib.metadata as m; print(m.version('{}'))", self.package);
        let output = program(venv.join("bin/python")).args(["-c", &code]).stdout(Stdio::piped()).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        format!("{} {}", self.label, version.unwrap_or_default()).trim().to_owned()
    }
}

/// A command without input or output.
#[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
pub fn program(path: impl AsRef<Path>) -> Command {
    let mut command = Command::new(path.as_ref());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1").env_remove("WEB_CONCURRENCY");
    command
}

/// The Python environment of the comparison, made once. A package that cannot be installed is missed by its peer alone.
pub fn venv() -> Result<PathBuf> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-workers");
    let done = venv.join("done");
    if !done.exists() {
        eprintln!("making a Python environment for the peers");
        let made = program("python3").args(["-m", "venv", "--clear"]).arg(&venv).status().context("run python3")?;
        ensure!(made.success(), "python3 -m venv: {made}");
        for package in PACKAGES {
            let status = program(venv.join("bin/pip")).args(["install", "-q", package]).status().context("run pip")?;
            if !status.success() {
                eprintln!("{package} could not be installed");
            }
        }
        File::create(done)?;
    }
    Ok(venv)
}

const SMALL_POOLS: &str = "pool.size = 1\npool.overflow = 1\n";

/// A directory with the application in it, and what belongs to one server that runs there.
pub struct Site {
    pub project: Project,
    pub venv: PathBuf,
}

impl Site {
    /// With the small application of this benchmark; `lines` are more of Tandem's configuration.
    pub fn new(venv: &Path, lines: &str) -> Result<Self> {
        let project =
            // The application opens no connection, and small pools let as many workers drain side by side as will.
            Project::app_with("app:app", &format!("{SMALL_POOLS}migrations.run = 'none'\npython.managed = false\n{lines}"));
        let project = project.without("python.requirements").without("python.venv").without("workers.app_dir");
        let site = Self { venv: venv.to_path_buf(), project };
        let (app, venv) = (site.app_dir(), venv.display());
        site.project.configure(&format!("workers.app_dir = '{}'\npython.venv = '{venv}'", app.display()));
        fs::create_dir(app)?;
        site.write_app(&fs::read_to_string(root().join("benches/workers/app/app.py"))?)?;
        Ok(site)
    }

    fn app_dir(&self) -> PathBuf {
        self.project.dir().join("app")
    }

    /// Put `code` in the place of the application.
    pub fn write_app(&self, code: &str) -> Result<()> {
        Ok(fs::write(self.app_dir().join("app.py"), code)?)
    }

    pub fn port(&self) -> u16 {
        self.project.app
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// A program of the environment, run beside the application.
    fn tool(&self, name: &str) -> Command {
        let mut command = program(self.venv.join("bin").join(name));
        command.current_dir(self.app_dir());
        command
    }

    /// A file of the server's own.
    fn file(&self, name: &str) -> PathBuf {
        self.project.dir().join(name)
    }
}

fn tandem_up(site: &Site) -> Command {
    let mut command = tandem::command(&site.project);
    command.args(["up", "--log-format", "text"]);
    command
}

fn tandem_reload(site: &Site) -> Vec<Command> {
    let mut command = tandem::command(&site.project);
    command.arg("reload");
    vec![command]
}

fn gunicorn_with(site: &Site, worker: &str) -> Command {
    let mut command = site.tool("gunicorn");
    command.args(["-w", "4", "-b", &site.address(), "-k", worker, "--no-control-socket", "app:app"]);
    command
}

fn gunicorn(site: &Site) -> Command {
    gunicorn_with(site, "uvicorn_worker.UvicornWorker")
}

fn gunicorn_asgi(site: &Site) -> Command {
    gunicorn_with(site, "asgi")
}

fn uvicorn(site: &Site) -> Command {
    let mut command = site.tool("uvicorn");
    command.args(["--workers", "4", "--no-access-log", "--port", &site.port().to_string(), "app:app"]);
    command
}

fn granian(site: &Site) -> Command {
    let mut command = site.tool("granian");
    command.args(["--interface", "asgi", "--workers", "4", "--respawn-failed-workers"]);
    command.args(["--host", "127.0.0.1", "--port", &site.port().to_string(), "app:app"]);
    command
}

fn hypercorn(site: &Site) -> Command {
    let mut command = site.tool("hypercorn");
    command.args(["-w", "4", "-k", "uvloop", "-b", &site.address(), "app:app"]);
    command
}

/// Circus holds the socket; each worker is a Uvicorn on it.
fn circus(site: &Site) -> Command {
    let (uvicorn, app, socket) = (site.venv.join("bin/uvicorn"), site.app_dir(), site.file("circus.sock"));
    let text = format!(
        "[circus]\nendpoint = ipc://{socket}\npubsub_endpoint = ipc://{socket}-pub\nstatsd = false\n\n\
         [watcher:web]\ncmd = {uvicorn} --fd $(circus.sockets.web) --no-access-log app:app\nworking_dir = {app}\n\
         numprocesses = 4\nuse_sockets = true\ncopy_env = true\nwarmup_delay = 1\n\n\
         [socket:web]\nhost = 127.0.0.1\nport = {port}\nbacklog = 2048\n",
        socket = socket.display(),
        uvicorn = uvicorn.display(),
        app = app.display(),
        port = site.port(),
    );
    let config = site.file("circus.ini");
    fs::write(&config, text).unwrap();
    let mut command = site.tool("circusd");
    command.arg(config);
    command
}

/// One by one, with a second for each to start: all at once stops the old ones before the new ones can answer.
fn circus_reload(site: &Site) -> Vec<Command> {
    let mut command = site.tool("circusctl");
    command.arg("--endpoint").arg(format!("ipc://{}", site.file("circus.sock").display()));
    command.args(["--timeout", "60", "reload", "web", "--waiting", "--sequential"]);
    vec![command]
}

/// Supervisord holds the socket; each worker is a Uvicorn on it.
fn supervisord(site: &Site) -> Command {
    let (uvicorn, app, socket) = (site.venv.join("bin/uvicorn"), site.app_dir(), site.file("supervisor.sock"));
    let text = format!(
        "[supervisord]\nnodaemon = true\nuser = root\nlogfile = {log}\npidfile = {pidfile}\n\n\
         [unix_http_server]\nfile = {socket}\n\n\
         [rpcinterface:supervisor]\n\
         supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
         [supervisorctl]\nserverurl = unix://{socket}\n\n\
         [fcgi-program:web]\nsocket = tcp://127.0.0.1:{port}\nsocket_backlog = 2048\n\
         command = {uvicorn} --fd 0 --no-access-log app:app\ndirectory = {app}\n\
         process_name = web_%(process_num)d\nnumprocs = 4\nstdout_logfile = NONE\nstderr_logfile = NONE\n",
        log = site.file("supervisord.log").display(),
        pidfile = site.file("supervisord.pid").display(),
        socket = socket.display(),
        port = site.port(),
        uvicorn = uvicorn.display(),
        app = app.display(),
    );
    // As another user, `user` is not ours to set.
    let text = if nix::unistd::Uid::effective().is_root() { text } else { text.replace("user = root\n", "") };
    fs::write(site.file("supervisord.conf"), text).unwrap();
    let mut command = site.tool("supervisord");
    command.arg("-c").arg(site.file("supervisord.conf"));
    command
}

fn supervisord_restart(site: &Site) -> Vec<Command> {
    let one = |number| {
        let mut command = site.tool("supervisorctl");
        command.arg("-c").arg(site.file("supervisord.conf")).args(["restart", &format!("web:web_{number}")]);
        command
    };
    (0..4).map(one).collect()
}
