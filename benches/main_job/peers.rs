//! What people run instead: the same programs, started by hand.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{self, Session, http_ok, wait_until};
use crate::common::project::{Project, root};
use crate::common::tandem;

const POLL: Duration = Duration::from_millis(1);
const CLIENTS: u32 = 4;

/// The cluster that Tandem made in a project, and the programs it runs there.
#[derive(Clone)]
pub struct Cluster {
    pub bin: PathBuf,
    pub data: PathBuf,
    pub socket: PathBuf,
    port: u16,
}

/// A child, killed on drop.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    pub fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
fn program(path: impl AsRef<Path>) -> Command {
    let mut command = Command::new(path.as_ref());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn succeed(command: &mut Command) {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}

impl Cluster {
    /// That of a project whose Tandem runs right now.
    pub fn of(project: &Project) -> Self {
        let data = project.data();
        let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let exe = fs::read_link(format!("/proc/{}/exe", pid.lines().next().unwrap())).unwrap();
        let lines: Vec<&str> = pid.lines().collect();
        let port: u16 = lines[3].parse().unwrap();
        let socket = Path::new(lines[4]).join(format!(".s.PGSQL.{port}"));
        Self { bin: exe.parent().unwrap().to_path_buf(), data, socket, port }
    }

    /// A command line of one of PostgreSQL's programs, as the data directory's owner.
    fn tool(&self, name: &str) -> Command {
        let owner = fs::metadata(&self.data).unwrap();
        let mut command = program(self.bin.join(name));
        command.uid(owner.uid()).gid(owner.gid()).current_dir("/").process_group(0);
        command.env("LD_LIBRARY_PATH", self.bin.parent().unwrap().join("lib"));
        command
    }

    /// The bare server, on the configuration that Tandem wrote.
    pub fn postgres(&self, args: &[&str]) -> Running {
        Running(self.tool("postgres").arg("-D").arg(&self.data).args(args).spawn().unwrap())
    }

    pub fn pg_ctl(&self, args: &[&str]) {
        succeed(self.tool("pg_ctl").arg("-D").arg(&self.data).args(["-l", "/dev/null"]).args(args));
    }

    pub fn ask(&self, database: &str, sql: &str) -> String {
        Session::open(&self.socket, database).unwrap().ask(sql).unwrap()
    }

    fn pgbench(&self, args: &[&str]) -> Command {
        let mut command = program(self.bin.join("pgbench"));
        let host = self.socket.parent().unwrap();
        command.args(["-U", "postgres", "-p", &self.port.to_string(), "-h"]).arg(host).args(args).arg("bench");
        command
    }

    /// Make the tables that [`Cluster::load`] writes into.
    pub fn prepare_load(&self) {
        if Session::open(&self.socket, "bench").is_err() {
            self.ask("postgres", "CREATE DATABASE bench");
            succeed(&mut self.pgbench(&["-i", "-q", "-s", "5"]));
        }
    }

    /// Four clients that write as fast as they can, for a moment already.
    pub fn load(&self) -> Running {
        let count = CLIENTS.to_string();
        let running = Running(self.pgbench(&["-n", "-N", "-T", "60", "-c", &count]).spawn().unwrap());
        client::pause(Duration::from_millis(1500));
        running
    }

    pub fn postmaster(&self) -> i32 {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

/// The environment of the reference backend with Alembic beside it, made once.
pub fn venv() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-venv");
    let done = venv.join("done");
    if !done.exists() {
        println!("making a Python environment for the peers");
        succeed(program("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        let requirements = root().join("examples/backend/requirements.txt");
        succeed(program(venv.join("bin/pip")).args(["install", "-q", "-r"]).arg(requirements));
        succeed(program(venv.join("bin/pip")).args(["install", "-q", "alembic"]));
        File::create(done).unwrap();
    }
    venv
}

/// The application's database URL, as SQLAlchemy wants it.
pub fn database_url(project: &Project) -> String {
    let output = tandem::run(project, &["url", "--scheme", "postgresql+psycopg2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// `alembic upgrade head`.
pub fn alembic(venv: &Path, url: &str) {
    let dir = root().join("benches/main_job/alembic");
    let mut command = program(venv.join("bin/alembic"));
    succeed(command.args(["upgrade", "head"]).current_dir(dir).env("DATABASE_URL", url));
}

/// `uvicorn app:app --workers 4`.
pub struct Uvicorn {
    pub running: Running,
    log: PathBuf,
}

impl Uvicorn {
    pub fn start(project: &Project, venv: &Path, url: &str) -> Self {
        let log = project.dir().join(format!("uvicorn-{}.log", rand::random::<u32>()));
        let file = File::create(&log).unwrap();
        let mut command = program(venv.join("bin/uvicorn"));
        command.args(["app:app", "--workers", "4", "--no-access-log", "--port", &project.app.to_string()]);
        command.current_dir(root().join("examples/backend")).env("DATABASE_URL", url).process_group(0);
        Self { running: Running(command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap()), log }
    }

    /// Wait until `count` workers have started in all, and one has answered.
    pub fn wait_started(&self, project: &Project, count: usize) {
        wait_until("Uvicorn's workers", POLL, || {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            log.matches("Application startup complete").count() >= count && http_ok(project.app, "/pid")
        });
    }

    pub fn workers(&self) -> Vec<i32> {
        let children = tandem::descendants(self.running.pid());
        children.into_iter().filter(|child| child.args.contains("spawn_main")).map(|child| child.pid).collect()
    }

    pub fn stop(mut self) {
        self.running.signal(Signal::SIGTERM);
        self.running.wait();
    }
}

/// Seconds that a bare interpreter needs to import the application and its server.
pub fn import_time(venv: &Path, url: &str) -> Duration {
    let began = std::time::Instant::now();
    let mut command = program(venv.join("bin/python"));
    succeed(
        command
            .args(["-c", "import uvicorn, app"])
            .current_dir(root().join("examples/backend"))
            .env("DATABASE_URL", url),
    );
    began.elapsed()
}
