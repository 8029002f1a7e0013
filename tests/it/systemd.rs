//! Under a supervisor above that speaks as systemd does: the test is that supervisor, with a socket of its own to hand
//! down and one to be told on.

use std::cell::RefCell;
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::common::project::{Project, root};
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::strict::Connection;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::scaffold::systemd as units;
use expect_test::expect_file;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2";

/// Puts its standard input at 3 and becomes the command, as systemd's own executor does.
const HAND_DOWN: &str = "import os, sys\nos.dup2(0, 3)\nos.dup2(os.open('/dev/null', os.O_RDONLY), 0)\n\
    os.set_inheritable(3, True)\n\
    os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\nos.execv(sys.argv[1], sys.argv[1:])";

/// `tandem`, with `fd` handed down to it. It travels as standard input: an inheritable descriptor of this process would
/// reach the children of every other test too.
fn with_socket(project: &Project, fd: impl AsFd) -> Command {
    let plain = tandem::command(project);
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut command = Command::new("python3");
    command.args(["-c", HAND_DOWN]).arg(plain.get_program()).current_dir(project.dir());
    command.stdin(fd.as_fd().try_clone_to_owned().unwrap());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// The datagram socket of a supervisor above, and what it was told so far.
struct Above {
    socket: UnixDatagram,
    path: PathBuf,
    told: RefCell<Vec<String>>,
}

impl Above {
    fn new(project: &Project) -> Self {
        let path = project.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, path, told: RefCell::default() }
    }

    /// Everything it was told, oldest first.
    fn told(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            self.told.borrow_mut().push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        self.told.borrow().clone()
    }

    fn count(&self, line: &str) -> usize {
        self.told().iter().filter(|told| told.lines().any(|one| one.starts_with(line))).count()
    }
}

#[test]
fn it_serves_on_the_socket_handed_down_and_a_restart_refuses_no_connection() {
    let project = Project::app_with("plain:app", BARE);
    let listener = TcpListener::bind(("127.0.0.1", project.app)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut tandem = Tandem::start_as(&project, with_socket(&project, &listener));
    tandem.wait_ready();
    assert_eq!(tandem.get("/"), Some((200, "ok".into())));
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
        assert_eq!(tandem.get(&format!("/env?name={name}")).unwrap().0, 404, "{name} is Tandem's own");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem.log().contains("is the one that was handed down"), "{}", tandem.log());

    // Nobody is there now, and nobody is refused: who connects waits for the next one.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = Connection::open(address).unwrap();
            connection.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
            connection
        })
        .collect();
    let mut tandem = Tandem::start_as(&project, with_socket(&project, &listener));
    tandem.wait_ready();
    for mut connection in waiting {
        assert_eq!(connection.read_answer().unwrap().body, "ok", "{}", tandem.log());
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn the_supervisor_above_is_told_of_ready_reload_watchdog_and_stop() {
    let project = Project::app_with("plain:app", BARE);
    let above = Above::new(&project);
    let mut command = tandem::command(&project);
    command.env("NOTIFY_SOCKET", &above.path).env("WATCHDOG_USEC", "200000");
    let mut tandem = Tandem::start_as(&project, command);
    wait_for("a word of the boot", || above.count("STATUS=") > 0);
    assert_eq!(above.count("READY=1"), 0, "{:?}", above.told());
    tandem.wait_ready();
    wait_for("READY=1", || above.count("READY=1") == 1);
    let told = above.told().join("\n");
    assert!(told.contains("2 of 2 workers ready") || above.count("STATUS=serving") > 0, "{told}");
    let beats = above.count("WATCHDOG=1");
    wait_for("signs of life", || above.count("WATCHDOG=1") >= beats + 3);

    tandem.signal(Signal::SIGHUP);
    wait_for("the reload's end", || above.count("READY=1") == 2);
    assert_eq!((above.count("RELOADING=1"), above.count("MONOTONIC_USEC=")), (1, 1), "{:?}", above.told());
    assert_eq!(above.count("STOPPING=1"), 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(above.count("STOPPING=1"), 1, "{:?}", above.told());
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!fs::read_to_string(project.dir().join("tandem.toml")).unwrap().contains(name));
    }
}

#[test]
fn the_supervisor_above_gives_a_long_start_and_a_long_stop_their_time() {
    let lines = format!("{BARE}\nstop.grace = '100s'\nstop.drain_delay = '7s'");
    let project = Project::app_with("plain:app", &lines).without("python.venv");
    let above = Above::new(&project);
    // A start that waits.
    let state = project.state();
    fs::create_dir_all(&state).unwrap();
    let lock = File::create(state.join(".venv.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error).unwrap();
    let mut command = tandem::command(&project);
    command.env("NOTIFY_SOCKET", &above.path);
    let mut tandem = Tandem::start_as(&project, command);
    wait_for("another extension", || above.count("EXTEND_TIMEOUT_USEC=30000000") >= 3);
    assert_eq!(above.count("READY=1"), 0, "{:?}", above.told());
    drop(lock);
    tandem.wait_ready();
    wait_for("READY=1", || above.count("READY=1") == 1);
    let of_start = above.count("EXTEND_TIMEOUT_USEC=");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(above.count("EXTEND_TIMEOUT_USEC="), of_start + 1, "once, with the whole stop: {:?}", above.told());
    let whole = above.told().into_iter().find(|told| told.contains("STOPPING=1")).unwrap();
    let extension = whole.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap();
    let extension = Duration::from_micros(extension.parse().unwrap());
    assert!(extension > Duration::from_secs(100), "longer than one grace: {extension:?}");
}

#[test]
fn a_socket_that_cannot_serve_is_refused_with_the_way_out() {
    let project = Project::app_with("plain:app", BARE);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = refusal::up_as(&project, with_socket(&project, &udp));
    refused.expect(78, &["handed down with LISTEN_FDS, is a UDP socket", "ListenStream="]);
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut tandem = Tandem::start_as(&project, with_socket(&project, &elsewhere));
    tandem.wait_ready();
    let port = elsewhere.local_addr().unwrap().port();
    assert_eq!(tandem::get(port, "/"), Some((200, "ok".into())));
    assert!(tandem.log().contains(&format!("the socket handed down is on 127.0.0.1:{port}, which holds")));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// The worst that `systemd-analyze security` may say of a unit, in tenths: 100 is a service without any walls.
const EXPOSURE_MAX: [(&str, u32); 2] = [("packaged", 18), ("init", 26)];
/// The same of root's, who changes to other users.
const EXPOSURE_OF_ROOT_MAX: u32 = 48;

/// What `systemd-analyze` says of `args`, if this machine has it.
fn analyze(args: &[&str]) -> Option<std::process::Output> {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let ran = Command::new("systemd-analyze").arg("--no-pager").args(args).output();
    ran.inspect_err(|error| skip(&format!("systemd-analyze: {error}"))).ok()
}

#[test]
fn the_units_of_the_repository_and_of_the_book_are_those_of_the_code() {
    let unit = units::unit(&units::PACKAGED);
    expect_file!["../../config/systemd/tandem.service"].assert_eq(&unit);
    expect_file!["../../config/systemd/tandem.socket"].assert_eq(units::SOCKET);
    let page = fs::read_to_string(root().join("docs/systemd.md")).unwrap();
    let shown: Vec<&str> = page.split("```ini\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(shown, [&*unit, units::SOCKET]);
    assert!(!unit.contains("TimeoutStartSec="), "Tandem extends it, for as long as it works:\n{unit}");
    for line in
        ["Type=notify", "KillMode=mixed", "ExecReload=", "WatchdogSec=", "TimeoutStopSec=", "OOMPolicy=continue"]
    {
        assert!(unit.contains(line), "{line} is missing in:\n{unit}");
    }
}

/// By systemd's own verifier and its own judgement, where this machine has them.
#[test]
fn units_are_sound_and_keep_their_score() {
    let project = Project::app("plain:app");
    let is_root = nix::unistd::Uid::effective().is_root();
    for (name, exposure_max) in EXPOSURE_MAX {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("tandem.service");
        match name {
            "packaged" => {
                let here = units::Service { user: "daemon", dir: "/", program: "/bin/true", ..units::PACKAGED };
                fs::write(&unit, units::unit(&here)).unwrap();
                fs::write(dir.path().join("tandem.socket"), units::SOCKET).unwrap();
            }
            _ => {
                refusal::run(&project, &["init", "--systemd"]).expect(0, &["tandem.service"]);
                fs::copy(project.dir().join("tandem.service"), &unit).unwrap();
            }
        }
        let unit = unit.to_str().unwrap();
        let Some(verified) = analyze(&["verify", unit]) else { return };
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains("tandem."), "{name}: {said}");
        // It fails where the exposure is above the threshold.
        let exposure_max = if is_root && name == "init" { EXPOSURE_OF_ROOT_MAX } else { exposure_max };
        let threshold = format!("--threshold={exposure_max}");
        let Some(judged) = analyze(&["security", "--offline=true", &threshold, unit]) else { return };
        let said = String::from_utf8_lossy(&judged.stdout).into_owned();
        assert!(judged.status.success(), "{name}: {said}");
        println!("{name}: {}", said.lines().rfind(|line| line.contains("exposure")).unwrap_or_default());
    }
}
