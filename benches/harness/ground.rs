//! Where the comparison takes place: one user, one PostgreSQL, one Python environment and two directories for everybody.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use tempfile::TempDir;

use crate::common::project::{Project, root};
use crate::common::tandem;

/// Longest wait for any command; the slowest takes less than a minute.
pub const LIMIT: Duration = Duration::from_secs(300);
/// What of a failed command's output is shown, in bytes.
const TAIL: u64 = 2000;

/// The ground that all stand on.
pub struct Ground {
    pub project: Project,
    /// The user that runs everything, when we are root: PostgreSQL refuses root.
    user: Option<User>,
    pub venv: PathBuf,
    /// Programs of the PostgreSQL that Tandem runs, which peers get too where they take one.
    pub bin: PathBuf,
    /// Directories for temporary files: in memory, where there is such a file system, and on disk.
    pub memory: Option<TempDir>,
    pub disk: PathBuf,
}

impl Ground {
    /// Make what is missing: the environment, the first time, and PostgreSQL.
    pub fn prepare() -> Result<Self> {
        let user = match Uid::effective().is_root() {
            true => ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten()),
            false => None,
        };
        let venv = venv(user.is_some())?;
        let project = Project::app_with("app:app", "python.managed = false\npostgres.source = 'package'\n");
        let project = project.without("python.requirements").without("python.venv").without("workers.app_dir");
        let dir = project.dir().to_path_buf();
        let (home, disk) = (dir.join("home"), dir.join("disk"));
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-harness/cache");
        project.configure(&format!("python.venv = '{}'\ncache_dir = '{}'", venv.display(), cache.display()));
        let shm = Path::new("/dev/shm");
        let memory = tempfile::Builder::new().prefix("tandem-bench-").tempdir_in(shm).ok();
        let mut ground = Self { project, user, venv, bin: PathBuf::new(), memory, disk };
        copy(&root().join("benches/harness"), &dir)?;
        copy(&root().join("tests/fixtures/alembic"), &dir.join("alembic"))?;
        fs::write(ground.schema(), schema()?)?;
        for mine in [&dir, &home, &ground.disk, &cache] {
            fs::create_dir_all(mine)?;
            ground.give(mine)?;
        }
        if let Some(memory) = &ground.memory {
            ground.give(memory.path())?;
        }
        ground.bin = ground.installed()?;
        Ok(ground)
    }

    /// Let the user that runs everything own `path`.
    fn give(&self, path: &Path) -> Result<()> {
        if let Some(user) = &self.user {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        Ok(())
    }

    /// A new directory below `parent` of the user that runs everything.
    pub fn dir(&self, parent: &Path, name: &str) -> Result<PathBuf> {
        let dir = parent.join(name);
        fs::create_dir_all(&dir)?;
        self.give(&dir)?;
        Ok(dir)
    }

    /// Where temporary files may go, and what that is called.
    pub fn places(&self) -> Vec<(&'static str, PathBuf)> {
        let memory = self.memory.iter().map(|memory| ("in memory", memory.path().to_path_buf()));
        memory.chain([("on disk", self.disk.clone())]).collect()
    }

    /// The best place for temporary files.
    pub fn best(&self) -> PathBuf {
        self.memory.as_ref().map_or_else(|| self.disk.clone(), |memory| memory.path().to_path_buf())
    }

    /// FFE's schema, as any client can run it.
    pub fn schema(&self) -> PathBuf {
        self.project.dir().join("schema.sql")
    }

    /// A file of this benchmark, where everybody can read it.
    pub fn script(&self, name: &str) -> PathBuf {
        self.project.dir().join(name)
    }

    /// The program `path` as the user that runs everything, with temporary files in `tmp`.
    pub fn program(&self, path: impl AsRef<Path>, tmp: &Path) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
        let mut command = Command::new(path.as_ref());
        self.own(&mut command, tmp);
        command.env("PATH", format!("{}:{}", self.bin.display(), search_path()));
        command
    }

    pub fn python(&self, tmp: &Path) -> Command {
        self.program(self.venv.join("bin/python"), tmp)
    }

    /// `tandem test OPTIONS --`, whose server lives in `tmp`; what it runs follows.
    pub fn tandem_test(&self, tmp: &Path, options: &[&str]) -> Command {
        let mut command = tandem::command(&self.project);
        self.own(&mut command, tmp);
        command.arg("test").args(options).arg("--").env("TANDEM_TEST__DIR", tmp);
        command
    }

    fn own(&self, command: &mut Command, tmp: &Path) {
        let home = self.project.dir().join("home");
        command.current_dir(self.project.dir()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("HOME", home).env("TMPDIR", tmp).env("PYTHONDONTWRITEBYTECODE", "1");
        for name in [
            "DATABASE_URL",
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGPASSWORD",
            "PGDATABASE",
            "XDG_CACHE_HOME",
            "XDG_RUNTIME_DIR",
        ] {
            command.env_remove(name);
        }
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("USER", &user.name).env("LOGNAME", &user.name);
        }
    }

    /// The client of all: one `SELECT 1`.
    pub fn client(&self) -> [String; 3] {
        [self.bin.join("psql").display().to_string(), "-XAtc".into(), "SELECT 1".into()]
    }

    /// The version of a package of the environment, as it is pinned.
    pub fn version(&self, package: &str) -> Result<String> {
        let text = fs::read_to_string(requirements())?;
        let pinned = text.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix("=="));
        Ok(pinned.with_context(|| format!("{package} is not pinned"))?.to_owned())
    }

    /// Programs of the PostgreSQL that Tandem runs, fetched the first time.
    fn installed(&self) -> Result<PathBuf> {
        let mut command = tandem::command(&self.project);
        self.own(&mut command, &self.disk);
        command.args(["install", "--json"]);
        let said = self.output(command)?;
        let said: serde_json::Value = serde_json::from_str(&said).context("read what `tandem install --json` says")?;
        Ok(said["postgres"]["bin"].as_str().context("no directory of programs")?.into())
    }

    /// Run `command` to its successful end; what it printed.
    pub fn output(&self, command: Command) -> Result<String> {
        let mut file = tempfile::tempfile()?;
        self.finish(command, file.try_clone()?.into())?;
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Run `command` to its successful end, printing to `stdout`; how long it took.
    pub fn finish(&self, mut command: Command, stdout: Stdio) -> Result<Duration> {
        let mut errors = tempfile::tempfile()?;
        let began = Instant::now();
        let child = command.stdout(stdout).stderr(errors.try_clone()?).spawn();
        let child = child.with_context(|| format!("start {:?}", command.get_program()))?;
        let (status, ended) = wait(child, LIMIT)?;
        ensure!(status.success(), "{:?}: {status}\n{}", command.get_program(), tail(&mut errors)?);
        Ok(ended - began)
    }
}

/// Where programs are looked for.
pub fn search_path() -> String {
    #[expect(clippy::disallowed_methods, reason = "as the shell that started us does")]
    std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into())
}

/// Wait for the end of `child`, which is killed after `limit`; when it ended.
pub fn wait(mut child: std::process::Child, limit: Duration) -> Result<(ExitStatus, Instant)> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let (tell, told) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let status = child.wait();
        let _ = tell.send(Instant::now());
        status
    });
    let Ok(ended) = told.recv_timeout(limit) else {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waiting.join();
        bail!("did not end within {limit:?}");
    };
    match waiting.join() {
        Ok(status) => Ok((status?, ended)),
        Err(_) => bail!("the thread that waits has panicked"),
    }
}

/// The end of what was written into `file`.
pub fn tail(file: &mut File) -> Result<String> {
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn requirements() -> PathBuf {
    root().join("benches/harness/requirements.txt")
}

/// The Python environment of all, made anew when its requirements change.
fn venv(everybody: bool) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-harness");
    let (venv, done, wanted) = (dir.join("venv"), dir.join("requirements.txt"), fs::read_to_string(requirements())?);
    if fs::read_to_string(&done).is_ok_and(|made| made == wanted) {
        return Ok(venv);
    }
    eprintln!("making a Python environment for the peers");
    // Another user may not reach an interpreter that lies in root's home.
    let open = everybody.then(|| Path::new("/usr/bin/python3")).filter(|python| python.exists());
    let succeed = |program: &Path, args: &[&str]| -> Result<()> {
        #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
        let status = Command::new(program).args(args).status().with_context(|| format!("run {}", program.display()))?;
        ensure!(status.success(), "{} {}: {status}", program.display(), args.join(" "));
        Ok(())
    };
    let (place, list) = (venv.display().to_string(), requirements().display().to_string());
    succeed(open.unwrap_or(Path::new("python3")), &["-m", "venv", "--clear", &place])?;
    succeed(&venv.join("bin/pip"), &["install", "-q", "-r", &list])?;
    fs::write(done, wanted)?;
    Ok(venv)
}

/// FFE's schema without the lines that only psql understands.
fn schema() -> Result<String> {
    let text = fs::read_to_string(root().join("tests/fixtures/ffe/schema_004.sql"))?;
    Ok(text.lines().filter(|line| !line.starts_with('\\')).map(|line| format!("{line}\n")).collect())
}

/// Copy what lies in `from` into `to`, for everybody to read.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            fs::set_permissions(target, fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}
