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

/// The unit files of `docs/operations.md`, where this machine has systemd's own verifier; else that they are there at all.
#[test]
fn the_documented_units_are_sound() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let (_, section) = page.split_once("## Under systemd").unwrap();
    let units: Vec<&str> = section.split("```ini\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(units.len(), 2, "a service and a socket");
    assert!(!units[0].contains("TimeoutStartSec="), "Tandem extends it, for as long as it works:\n{}", units[0]);
    for line in ["Type=notify", "KillMode=mixed", "ExecReload=", "WatchdogSec=", "TimeoutStopSec="] {
        assert!(units[0].contains(line), "{line} is missing in:\n{}", units[0]);
    }
    assert!(units[1].contains("ListenStream="), "{}", units[1]);
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("tandem.service", units[0]), ("tandem.socket", units[1])] {
        let text = text.replace("/usr/local/bin/tandem", "/bin/true").replace("User=ffe\n", "");
        fs::write(dir.path().join(name), text.replace("/srv/ffe", "/")).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let verified = Command::new("systemd-analyze").arg("verify").arg(dir.path().join("tandem.service")).output();
    match verified {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => skip(&format!("systemd-analyze: {error}")),
    }
}
