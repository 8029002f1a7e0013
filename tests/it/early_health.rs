//! From the first moment on the health port says that Tandem lives, that it is not ready, and what it waits for; the control
//! socket answers; and a stop is heard. What an earlier run left behind may take its time to end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::plain::Plain;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, descendants, left_in, lives, wait_for};
use ::tandem::postgres::home::Home;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\n";
/// What is heard at once is heard sooner; what is not takes as long as the server's grace.
const AT_ONCE: Duration = Duration::from_secs(15);

/// A server of an earlier run that does not end before its grace has passed: one of its processes is stopped.
struct Leftover {
    server: Plain,
    stopped: Pid,
}

impl Leftover {
    async fn of(project: &Project) -> Self {
        let mut tandem = Tandem::up(project);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        let server = Plain::start(project, &[]).await;
        let postmaster: i32 = server.pid_file().lines().next().unwrap().parse().unwrap();
        let find = || descendants(postmaster).into_iter().find(|process| process.args.contains("walwriter"));
        wait_for("the WAL writer", || find().is_some());
        let stopped = Pid::from_raw(find().unwrap().pid);
        kill(stopped, Signal::SIGSTOP).unwrap();
        Self { server, stopped }
    }

    fn goes_on(&self) {
        let _ = kill(self.stopped, Signal::SIGCONT);
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        self.goes_on();
    }
}

/// Wait until `/ready` says no and names `work`, with `/live` saying yes.
fn says(tandem: &mut Tandem, project: &Project, work: &str) {
    wait_for(&format!("{work:?} in the answer of /ready"), || {
        let answer = tandem::get(project.health, "/ready");
        assert!(answer.is_some() || !tandem.ended(), "{}", tandem.log());
        answer.is_some_and(|(status, body)| {
            assert_ne!(status, 200, "{body}");
            body.contains(work)
        })
    });
    assert_eq!(tandem::get(project.health, "/live").map(|(status, _)| status), Some(200));
    let health = tandem.health();
    assert!(health["status"] == "unhealthy" && health["reasons"].to_string().contains(work), "{health:#}");
}

/// Its commands reach a Tandem that has not begun to start anything, and a second one is kept from taking its socket.
fn answers_control(project: &Project, tandem: &Tandem) {
    let status = control::status(project);
    assert_eq!((&status["phase"], &status["pid"]), (&"installing".into(), &tandem.pid().into()), "{status:#}");
    assert!(status["under_way"].to_string().contains("of an earlier run still works in "), "{status:#}");
    control::run(project, &["status"]).expect(0, &["installing", "under way: a PostgreSQL server of an earlier run"]);
    control::run(project, &["logs"]).expect(0, &["of an earlier run still works in "]);
    for order in [&["reload"][..], &["restart", "workers"], &["scale", "3"], &["deploy"]] {
        control::run(project, order).expect(75, &["Tandem is still starting and has no workers yet"]);
    }
    control::run(project, &["up"]).expect(73, &["holds", &format!("pid {}", tandem.pid())]);
    assert_eq!(control::status(project)["pid"], tandem.pid(), "the socket is still the first one's");
}

/// How long the control socket takes to answer, from the connection on.
fn control_latency(project: &Project) -> Duration {
    let asked = Instant::now();
    let mut stream = UnixStream::connect(Home::at(&project.state(), None).control).unwrap();
    stream.set_read_timeout(Some(AT_ONCE)).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: tandem\r\nConnection: close\r\n\r\n").unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    asked.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_leftover_server_ends_the_control_socket_answers_at_once_and_a_stop_by_it_is_carried_out() {
    let project = Project::app_with("plain:app", &format!("{BARE}stop.postgres_grace = '100s'"));
    let mut leftover = Leftover::of(&project).await;
    let mut tandem = Tandem::start(&project);
    says(&mut tandem, &project, "a PostgreSQL server of an earlier run still works in ");
    // The shortest: this machine may be busy.
    let latencies: Vec<_> = (0..9).map(|_| control_latency(&project)).collect();
    assert!(latencies.iter().min() < Some(&Duration::from_millis(100)), "{latencies:?}");
    let mut follower = control::start(&project, &["logs", "-f"]);
    let mut followed = BufReader::new(follower.stdout.take().unwrap());
    let mut text = String::new();
    // It is connected once it shows something.
    followed.read_line(&mut text).unwrap();
    let asked = Instant::now();
    control::run(&project, &["stop"]).expect(0, &["stopped"]);
    assert!(asked.elapsed() < AT_ONCE, "{:?}\n{}", asked.elapsed(), tandem.log());
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    followed.read_to_string(&mut text).unwrap();
    assert!(follower.wait().unwrap().success(), "{text}");
    assert!(text.contains("stop asked for before anything was started"), "{text}");
    assert!(!Home::at(&project.state(), None).control.exists(), "its file is gone");
    control::run(&project, &["status"]).expect(1, &["no tandem runs here"]);
    assert!(leftover.server.lives());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_leftover_server_ends_the_health_port_answers_and_a_stop_is_heard() {
    let project = Project::app_with("plain:app", &format!("{BARE}stop.postgres_grace = '100s'"));
    let mut leftover = Leftover::of(&project).await;
    let mut tandem = Tandem::start(&project);
    says(&mut tandem, &project, "a PostgreSQL server of an earlier run still works in ");
    let told = tandem::run(&project, &["health", "--ready"]);
    assert_eq!((told.status.code(), &*told.stdout), (Some(1), &b"not ready (503)\n"[..]), "{told:?}");
    answers_control(&project, &tandem);
    let asked = Instant::now();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(asked.elapsed() < AT_ONCE, "{:?}\n{}", asked.elapsed(), tandem.log());
    assert!(tandem.log().contains("stop asked for before anything was started"), "{}", tandem.log());
    assert!(leftover.server.lives());

    // A command that starts a server for itself waits for the same.
    let status = ["migrate", "status", "--set", "migrations.run=seaorm"];
    let mut migrate = Tandem::start_with(&project, tandem::command(&project), &status);
    migrate.wait_log("a PostgreSQL server of an earlier run still works in ");
    let asked = Instant::now();
    migrate.signal(Signal::SIGINT);
    assert_eq!(migrate.wait_code(), 1, "{}", migrate.log());
    assert!(asked.elapsed() < AT_ONCE, "{:?}\n{}", asked.elapsed(), migrate.log());
    assert!(migrate.log().contains("nothing was done"), "{}", migrate.log());

    let mut tandem = Tandem::start(&project);
    says(&mut tandem, &project, "a PostgreSQL server of an earlier run still works in ");
    leftover.goes_on();
    tandem.wait_ready();
    assert!(!leftover.server.lives());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(left_in(project.dir()).is_empty());
}

#[test]
fn while_a_server_that_cannot_be_seen_is_waited_for_the_health_port_answers() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    // What such a server shows: its file, and a catalog that somebody has open for writing.
    let data = project.data();
    let open = File::options().write(true).open(data.join("global/1262")).unwrap();
    let own = std::process::id().cast_signed();
    let gone = (1..).map(|step| own + step).find(|pid| !lives(*pid)).unwrap();
    fs::write(data.join("postmaster.pid"), format!("{gone}\n{}\n", data.display())).unwrap();
    let mut tandem = Tandem::start(&project);
    says(&mut tandem, &project, "the end of a PostgreSQL server of another container or namespace");
    drop(open);
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn ready_says_what_the_boot_waits_for() {
    let project = Project::app_with("plain:app", BARE).without("python.venv");
    let state = project.state();
    fs::create_dir_all(&state).unwrap();
    let lock = File::create(state.join(".venv.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error).unwrap();
    let mut tandem = Tandem::start(&project);
    says(&mut tandem, &project, "before I make the Python environment");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    drop(lock);
}
