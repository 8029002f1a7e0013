//! Files and directories that do not answer, and the question whether Tandem still does.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ::tandem::process::identity;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::project::Project;
use super::skip::skip;
use super::tandem::{self, Tandem};

/// What hangs does so for longer. How quickly answers come is for a benchmark to say: this machine may be busy.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long the health port took to answer `GET path` with `status`; panics when that took too long.
pub fn answers(tandem: &Tandem, port: u16, path: &str, status: u16) {
    let began = Instant::now();
    let head = ask(port, path).unwrap_or_default();
    let said = format!("HTTP/1.1 {status} ");
    assert!(head.starts_with(&said), "{path}: {head:?} after {:?}\n{}", began.elapsed(), tandem.log());
}

/// The first bytes of an answer, if they come in time.
fn ask(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: tandem\r\n\r\n").as_bytes())?;
    let mut head = [0; 64];
    let length = stream.read(&mut head)?;
    Ok(String::from_utf8_lossy(&head[..length]).into_owned())
}

/// `/live`, `/ready` and the control socket answer, again and again.
pub fn all_answer(tandem: &Tandem, project: &Project) {
    for _ in 0..5 {
        answers(tandem, project.health, "/live", 200);
        answers(tandem, project.health, "/ready", 200);
        tandem::pause();
    }
    let mut status = tandem::command(project);
    status.arg("status").stdout(Stdio::null()).stderr(Stdio::null());
    let mut status = status.spawn().unwrap();
    let ended = ends_within(&mut status, 20 * ANSWER_LIMIT);
    let _ = status.kill();
    let _ = status.wait();
    assert!(ended, "the control socket does not answer\n{}", tandem.log());
}

/// Whether `child` ends with success in time.
pub fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        tandem::pause();
    }
    false
}

/// A pipe in a file's place: whoever opens it to read waits, until the test releases it.
pub struct HungFile {
    path: PathBuf,
    /// Our end, once there is a reader: it waits for as long as this is open.
    writer: RefCell<Option<File>>,
}

impl HungFile {
    /// Replaces what is at `path`.
    pub fn at(path: &Path) -> Self {
        let owner = fs::metadata(path).ok().map(|meta| (meta.uid(), meta.gid()));
        let _ = fs::remove_file(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mkfifo(path, Mode::from_bits_truncate(0o600)).unwrap();
        if let Some((uid, gid)) = owner.filter(|_| identity::is_root()) {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        }
        Self { path: path.to_owned(), writer: RefCell::new(None) }
    }

    /// Whether somebody waits for it.
    pub fn has_reader(&self) -> bool {
        let mut writer = self.writer.borrow_mut();
        if writer.is_none() {
            let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
            *writer = File::options().write(true).custom_flags(nonblocking).open(&self.path).ok();
        }
        writer.is_some()
    }

    /// Put a file with `text` into its place, and let go whoever waits for the pipe, with the same text.
    pub fn release(self, text: &str) {
        let waited = self.has_reader();
        fs::remove_file(&self.path).unwrap();
        fs::write(&self.path, text).unwrap();
        if let Some(mut writer) = self.writer.take().filter(|_| waited) {
            writer.write_all(text.as_bytes()).unwrap();
        }
    }
}

/// A mount whose file system answers nothing at all, as a network mount does whose server is gone: FUSE, with nobody who
/// reads its requests. It lies over a directory, in the mount namespace of one process. Dropped, it is gone again.
pub struct HungMount {
    holder: Child,
    pid: i32,
    dir: PathBuf,
    _said: BufReader<ChildStdout>,
}

impl HungMount {
    /// Lay it over `dir` for the process `pid`, which has a mount namespace of its own; `None` where the kernel does not let
    /// this user do that.
    pub fn over(pid: i32, dir: &Path) -> Option<Self> {
        // A container may have the right to mount it, and no device node.
        let script = "device=/dev/fuse
            [ -e $device ] || { device=\"$0\".fuse; mknod \"$device\" c 10 229; }
            exec 3<>\"$device\"
            mount -i -t fuse -o fd=3,rootmode=40000,user_id=$(id -u),group_id=$(id -g) hung \"$0\"
            echo mounted; exec sleep 1000";
        let mut command = enter(pid);
        command.args(["sh", "-euc", script]).arg(dir).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().unwrap();
        let mut said = BufReader::new(holder.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        if line != "mounted\n" {
            holder.wait().unwrap();
            skip("this kernel lets this user mount no FUSE file system");
            return None;
        }
        Some(Self { holder, pid, dir: dir.to_owned(), _said: said })
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        // With the last descriptor of it, every request is answered with an error.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = enter(self.pid).args([OsStr::new("umount"), OsStr::new("-l"), self.dir.as_os_str()]).output();
    }
}

/// A command in the mount namespace of process `pid`.
fn enter(pid: i32) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("nsenter");
    command.args(["--mount", &format!("--target={pid}"), "--wdns=/"]).stdin(Stdio::null());
    if !identity::is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command
}
