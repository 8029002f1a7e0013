//! Where the application listens: every address, several, unix sockets, and what a supervisor above hands down.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use ::tandem::process::identity;
use nix::sys::signal::Signal;

use crate::common::control;
use crate::common::exchange::{self, Answer};
use crate::common::ports::free_port;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, pause, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1";
/// What a proxy beside the application says of a client.
const FORWARDED: &str = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n";

/// A project of `app` that listens at `listen`, as TOML.
fn listening(app: &str, listen: &str, lines: &str) -> Project {
    let project = Project::app_with(app, &format!("{BARE}\n{lines}")).without("workers.listen");
    project.configure(&format!("workers.listen = {listen}"));
    project
}

fn over_tcp(address: impl Into<SocketAddr>, headers: &str) -> Answer {
    exchange::get(TcpStream::connect(address.into()).unwrap(), "/", headers).unwrap()
}

fn over_unix(path: &Path, headers: &str) -> Answer {
    exchange::get(UnixStream::connect(path).unwrap(), "/", headers).unwrap()
}

fn has_ipv6() -> bool {
    let has = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !has {
        skip("this machine has no IPv6");
    }
    has
}

/// Both families, on the application's port and on the health port; and a client of IPv4 looks like one.
#[test]
fn every_address_is_that_of_both_families() {
    if !has_ipv6() {
        return;
    }
    for preload in ["false", "true"] {
        let (app, health) = (free_port(), free_port());
        let project = listening("reflect:app", &format!("':{app}'"), &format!("workers.preload = {preload}"));
        let mut project = project.without("health.listen");
        project.health = health;
        project.configure(&format!("health.listen = ':{health}'"));
        let mut command = tandem::command(&project);
        command.env("TANDEM_WORKERS__EVENT_LOOP", if preload == "true" { "asyncio" } else { "uvloop" });
        let mut tandem = Tandem::start_as(&project, command);
        tandem.wait_ready();
        for host in [([127, 0, 0, 1], app).into(), SocketAddr::from((Ipv6Addr::LOCALHOST, app))] {
            let plain = over_tcp(host, "").json();
            assert_eq!(plain["client"][0], host.ip().to_string(), "{plain}");
            assert_eq!((&plain["server"][0], &plain["scheme"]), (&host.ip().to_string().into(), &"http".into()));
            let forwarded = over_tcp(host, FORWARDED).json();
            assert_eq!((&forwarded["client"][0], &forwarded["scheme"]), (&"203.0.113.9".into(), &"https".into()));
        }
        let ready = TcpStream::connect((Ipv6Addr::LOCALHOST, health)).unwrap();
        assert_eq!(exchange::get(ready, "/ready", "").unwrap().status, 200);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

/// What the environment names as trusted stays so where both families come in by one socket.
#[test]
fn a_trusted_proxy_is_known_by_its_plain_address() {
    let app = free_port();
    let listen = if has_ipv6() { format!("'[::]:{app}'") } else { return };
    let project = listening("reflect:app", &listen, "");
    let mut command = tandem::command(&project);
    command.env("FORWARDED_ALLOW_IPS", "127.0.0.1");
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert_eq!(over_tcp(([127, 0, 0, 1], app), FORWARDED).json()["client"][0], "203.0.113.9");
    assert_eq!(over_tcp((Ipv6Addr::LOCALHOST, app), FORWARDED).json()["client"][0], "::1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Clients of the unix socket that count what fails.
struct UnixCrowd {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl UnixCrowd {
    fn start(path: &Path) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let work = |_| {
            let (path, stop, answers) = (path.to_owned(), stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    match UnixStream::connect(&path).and_then(|stream| exchange::get(stream, "/", "")) {
                        Ok(answer) if answer.status == 200 => drop(answers.fetch_add(1, Relaxed)),
                        other => failures.push(format!("{other:?}")),
                    }
                    pause();
                }
                failures
            })
        };
        let threads = (0..3).map(work).collect();
        Self { stop, answers, threads }
    }

    fn answers(&self) -> usize {
        self.answers.load(Relaxed)
    }

    fn failures(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// A unix socket beside an address, with its mode: rolls fail no request on either, a proxy behind it is believed, and the
/// file comes and goes with Tandem, one that was killed included.
#[test]
fn a_unix_socket_is_served_beside_an_address() {
    for lines in ["workers.event_loop = 'asyncio'", "workers.preload = true"] {
        let app = free_port();
        let project = listening("reflect:app", &format!("['127.0.0.1:{app}', 'unix:app.sock']"), lines);
        project.configure("workers.socket_mode = '0640'");
        let path = project.dir().join("app.sock");
        let mut tandem = Tandem::up(&project);
        let meta = path.symlink_metadata().unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o640);
        let plain = over_unix(&path, "").json();
        assert!(plain["client"].is_null(), "{plain}");
        let forwarded = over_unix(&path, FORWARDED).json();
        assert_eq!((&forwarded["client"][0], &forwarded["scheme"]), (&"203.0.113.9".into(), &"https".into()));
        // Of the other socket's clients none pretends to be one of this one's.
        assert_eq!(over_tcp(([127, 0, 0, 1], app), "").json()["client"][0], "127.0.0.1");

        let crowd = Crowd::start(([127, 0, 0, 1], app).into(), "/", None, &[(Habit::Close, 1), (Habit::Busy, 1)]);
        let unix = UnixCrowd::start(&path);
        for _ in 0..3 {
            let (tcp_before, before) = (crowd.answers(), unix.answers());
            wait_for("answers on both", || crowd.answers() > tcp_before + 20 && unix.answers() > before + 20);
            control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
        }
        assert_eq!(crowd.finish().failures(), [""; 0]);
        assert_eq!(unix.failures(), [""; 0]);

        tandem.signal(Signal::SIGKILL);
        assert!(tandem.wait_exit().code().is_none());
        wait_for("the end of all it had started", || tandem::left_in(project.dir()).is_empty());
        assert!(path.exists(), "what is to be replaced");
        let mut tandem = Tandem::up(&project);
        assert_eq!(over_unix(&path, "").status, 200);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(!path.exists());
    }
}

#[test]
fn a_unix_socket_gets_its_owner() {
    if !identity::is_root() {
        return skip("only root gives files away");
    }
    let project = listening("reflect:app", "'unix:app.sock'", "workers.socket_owner = 'nobody:0'");
    let nobody = identity::lookup("nobody").unwrap().uid;
    let path = project.dir().join("app.sock");
    let mut tandem = Tandem::up(&project);
    let meta = path.symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (nobody, 0, 0o666));
    assert_eq!(over_unix(&path, "").status, 200);
    assert!(tandem.log().contains("unix:"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    refusal::run(&project, &["up", "--set", "workers.socket_owner=nosuchuser"]).expect(78, &["no user `nosuchuser`"]);
}

/// What lies where a unix socket is to be is left alone, and named.
#[test]
fn what_is_in_a_unix_sockets_place_is_refused() {
    let project = listening("reflect:app", "'unix:app.sock'", "");
    let path = project.dir().join("app.sock");
    let refused = |code: i32, words: &[&str]| refusal::up(&project).expect(code, words);
    let shown = path.display().to_string();

    project.write("app.sock", "kept");
    refused(78, &["workers.listen", &shown, "no socket", "remove it"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused(78, &["a directory"]);
    fs::remove_dir(&path).unwrap();

    let live = UnixListener::bind(&path).unwrap();
    refused(75, &[&shown, &format!("(pid {})", std::process::id()), "stop that"]);
    UnixStream::connect(&path).unwrap();
    drop(live);

    if identity::is_root() {
        // Stale, and somebody else's.
        chown(&path, Some(identity::lookup("nobody").unwrap().uid), None).unwrap();
        refused(78, &["belongs to user nobody", "remove it"]);
    }
    fs::remove_file(&path).unwrap();

    let with = |listen: &str, code: i32, words: &[&str]| {
        let project = listening("reflect:app", listen, "");
        for command in ["check", "up"] {
            refusal::run(&project, &[command]).expect(code, words);
        }
    };
    with(&format!("'unix:/nowhere/{}'", "d".repeat(120)), 78, &["at most 107", "tandem.toml:1"]);
    with("'/run/app.sock'", 78, &["expected an address", "unix:/run/app.sock"]);
    with("[]", 78, &["expected an address"]);
    with("['127.0.0.1:8000', ':8000']", 78, &["one place"]);
    let nowhere = listening("reflect:app", "'unix:none/app.sock'", "");
    refusal::up(&nowhere).expect(78, &["none is not there", "RuntimeDirectory="]);
}

/// Puts a TCP and a unix socket of its own at 3 and 4 and becomes the command, as systemd's own executor does.
const HAND_DOWN: &str = "import os, socket, sys\n\
    tcp = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
    unix = socket.socket(socket.AF_UNIX)\nunix.bind(sys.argv[2])\nunix.listen()\n\
    fds = [os.dup(tcp.fileno()), os.dup(unix.fileno())]\n\
    tcp.close(); unix.close()\n\
    high = [__import__('fcntl').fcntl(fd, 0, 50) for fd in fds]\n\
    [os.close(fd) for fd in fds]\n\
    [os.dup2(fd, number) for fd, number in zip(high, (3, 4))]\n\
    os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='app.socket:app.socket')\n\
    os.execv(sys.argv[3], sys.argv[3:])";

#[test]
fn the_sockets_of_a_unit_are_all_served() {
    let project = listening("reflect:app", "'127.0.0.1:1'", "");
    let (app, path) = (free_port(), project.dir().join("handed.sock"));
    let plain = tandem::command(&project);
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("python3");
    command.args(["-c", HAND_DOWN, &app.to_string()]).arg(&path).arg(plain.get_program()).current_dir(project.dir());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert_eq!(over_tcp(([127, 0, 0, 1], app), "").status, 200);
    assert_eq!(over_unix(&path, FORWARDED).json()["client"][0], "203.0.113.9");
    let holds = format!("the sockets handed down are on 127.0.0.1:{app}, unix:{}, which hold", path.display());
    assert!(tandem.log().contains(&holds), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(path.exists(), "it is not Tandem's to remove");
}

/// Two places of one port, one for each family.
#[test]
fn several_addresses_are_served_at_once() {
    if !has_ipv6() {
        return;
    }
    let app = free_port();
    let project = listening("reflect:app", &format!("['0.0.0.0:{app}', '[::]:{app}']"), "");
    let mut tandem = Tandem::up(&project);
    assert_eq!(over_tcp(([127, 0, 0, 1], app), "").json()["client"][0], "127.0.0.1");
    assert_eq!(over_tcp((Ipv6Addr::LOCALHOST, app), "").json()["client"][0], "::1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Another server inherits a unix socket, and is ready when it answers there.
#[tokio::test]
async fn another_server_is_served_on_a_unix_socket() {
    let command = "['uvicorn', 'plain:app', '--fd', '{fd}']";
    let project = crate::other_servers::project(command, "workers.ready = '/'").await.without("workers.listen");
    project.configure("workers.listen = 'unix:app.sock'");
    let path: PathBuf = project.dir().join("app.sock");
    let mut tandem = Tandem::up(&project);
    assert_eq!(over_unix(&path, "").body, "ok");
    control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
    assert_eq!(over_unix(&path, "").body, "ok");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let more = project.without("workers.listen");
    more.configure("workers.listen = ['unix:app.sock', 'unix:more.sock']");
    refusal::up(&more).expect(78, &["would leave unix:", "more.sock unserved", "{fd2}"]);
}
