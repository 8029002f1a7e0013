//! Only a worker speaks for itself: whatever else shouts, and however loud, is not heard and harms nobody.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::project::Project;
use crate::common::skip::skip;
use crate::common::tandem::{Tandem, command_as, get, wait_for};
use procfs::process::FDTarget;
use tandem::process::identity;

const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1\nworkers.watchdog = '1s'";
/// Several of the watchdog's periods.
const WHILE: Duration = Duration::from_secs(5);

/// A server in the place of Tandem's launcher, which says what sd_notify(3) asks for. It shouts from a child in a group of
/// its own, once it is ready.
const SERVER: &str = r#"
import os, socket, sys, threading, time
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.sendto(text, to)
def live():
    while True:
        say(b"WATCHDOG=1")
        time.sleep(0.2)
def shout():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        while True:
            ear.sendto(b"x" * 100, to)
to = os.environ["NOTIFY_SOCKET"]
to = "\0" + to[1:] if to[0] == "@" else to
print("ear", to.replace("\0", "@"), flush=True)
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
say(b"READY=1")
threading.Thread(target=live, daemon=True).start()
if sys.argv[2] == "loud" and os.fork() == 0:
    os.setsid()
    shout()
while True:
    client, _ = listener.accept()
    with client:
        client.recv(10000)
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
"#;

/// Shouts for some seconds at the sockets whose inodes are given, where the kernel lists them with a name, and at whatever
/// is in a directory; says how often something took it.
const STRANGER: &str = r#"
import glob, socket, sys, time
with open("/proc/net/unix") as table:
    lines = [line.split() for line in table]
names = {line[7] for line in lines if len(line) == 8 and line[6] in sys.argv[3:]}
names |= set(glob.glob(sys.argv[2] + "/**", recursive=True))
ears, heard, end = [], 0, time.monotonic() + float(sys.argv[1])
for name in names:
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ear.connect("\0" + name[1:] if name[0] == "@" else name)
        ears.append(ear)
    except OSError:
        pass
while ears and time.monotonic() < end:
    for ear in ears:
        ear.settimeout(1)
        try:
            heard += ear.send(b"x")
        except OSError:
            pass
print("heard", heard)
"#;

/// What must stay as it is: the postmaster, and the workers.
fn processes(project: &Project, tandem: &Tandem) -> (i32, Vec<i32>) {
    let mut workers = tandem.workers();
    workers.sort_unstable();
    (tandem.postmaster(project), workers)
}

/// Nothing is restarted for a while, and the supervisor goes on answering.
fn stays(project: &Project, tandem: &Tandem, before: &(i32, Vec<i32>)) {
    let began = Instant::now();
    wait_for("several periods of the watchdog", || {
        let asked = Instant::now();
        assert_eq!(get(project.health, "/ready").map(|answer| answer.0), Some(200), "{}", tandem.log());
        assert!(asked.elapsed() < Duration::from_secs(10), "the supervisor took {:?} to answer", asked.elapsed());
        began.elapsed() >= WHILE
    });
    assert_eq!(processes(project, tandem), *before, "{}", tandem.log());
    for word in ["silent", "hung", "restart"] {
        assert!(!tandem.log().contains(word), "{word:?}: {}", tandem.log());
    }
}

#[test]
fn an_application_that_floods_its_own_socket_harms_nobody() {
    for preload in ["false", "true"] {
        let lines = format!("{BARE}\nworkers.count = 2\nworkers.preload = {preload}");
        let project = Project::app_with("loud:app", &lines);
        let mut tandem = Tandem::up(&project);
        wait_for("two workers", || tandem.workers().len() == 2);
        let before = processes(&project, &tandem);
        stays(&project, &tandem, &before);
        tandem.wait_log("something sends more notices in its name than are read");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn another_server_that_floods_its_own_socket_harms_nobody() {
    let project = server("loud", "");
    let mut tandem = Tandem::up(&project);
    wait_for("two workers", || tandem.workers().len() == 2);
    let before = processes(&project, &tandem);
    stays(&project, &tandem, &before);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let notify = project.state().join("run/notify");
    assert_eq!(fs::read_dir(&notify).map_or(0, Iterator::count), 0, "its sockets go with their processes");
}

/// A project whose workers are [`SERVER`]s.
fn server(how: &str, lines: &str) -> Project {
    let command = format!("['python3', '-c', '''{SERVER}''', '{{fd}}', '{how}']");
    let project =
        Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 2\nworkers.command = {command}\n{lines}"));
    ["python.venv", "python.requirements", "workers.app", "workers.app_dir"].into_iter().fold(project, Project::without)
}

/// Whether `tandem` hears what user `nobody` says.
fn hears_a_stranger(project: &Project, tandem: &Tandem) -> bool {
    let open = procfs::process::Process::new(tandem.pid()).unwrap().fd().unwrap().flatten();
    let inodes = open.filter_map(|fd| match fd.target {
        FDTarget::Socket(inode) => Some(inode.to_string()),
        _ => None,
    });
    let user = identity::lookup("nobody").unwrap();
    let mut stranger = command_as("python3", Path::new("/"));
    let dir = project.dir().display().to_string();
    stranger.args(["-c", STRANGER, "4", &dir]).args(inodes).uid(user.uid).gid(user.gid).stdout(Stdio::piped());
    let said = stranger.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap().trim() != "heard 0"
}

#[test]
fn another_user_is_not_heard_and_its_flood_harms_nobody() {
    if !identity::is_root() {
        return skip("only root can be somebody else");
    }
    if identity::lookup("www-data").is_none() {
        return skip("there is no www-data, whose the workers' sockets could be");
    }
    for project in [
        Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 2")),
        server("quiet", "workers.run_as = 'www-data'"),
    ] {
        let mut tandem = Tandem::up(&project);
        wait_for("two workers", || tandem.workers().len() == 2);
        let before = processes(&project, &tandem);
        assert!(!hears_a_stranger(&project, &tandem), "{}", tandem.log());
        stays(&project, &tandem, &before);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn a_child_of_the_application_does_not_say_that_the_worker_is_ready() {
    for preload in ["false", "true"] {
        let project = Project::app_with("loud:app", &format!("{BARE}\nworkers.count = 1\nworkers.preload = {preload}"));
        let (early, go_on) = (project.dir().join("early/said"), project.dir().join("go_on"));
        fs::create_dir(early.parent().unwrap()).unwrap();
        fs::set_permissions(early.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let variables =
            format!("workers.env.LOUD_EARLY = '{}'\nworkers.env.LOUD_GO_ON = '{}'", early.display(), go_on.display());
        project.configure(&variables);
        let mut tandem = Tandem::start(&project);
        wait_for("a child that says READY=1", || early.exists());
        // Heard or not: what Tandem was sent before it answered this has been read.
        let began = Instant::now();
        wait_for("Tandem to have heard it", || {
            control::status(&project);
            began.elapsed() >= Duration::from_millis(500)
        });
        assert_eq!(tandem.ready(), Some(false), "{}", tandem.log());
        fs::write(&go_on, "").unwrap();
        tandem.wait_ready();
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}
