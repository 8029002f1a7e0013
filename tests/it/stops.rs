//! It stops well: what a signal does to a Tandem that serves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, descendants, lives, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2";

/// Longer than any test may take: a wait this long must be skipped, or the test fails.
const FOR_EVER: u32 = 3600;

/// A project that waits for nothing after the requests in flight.
fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("{BARE}\n{lines}"))
}

/// A request that has been sent, with its answer still to come.
struct InFlight(TcpStream);

impl InFlight {
    fn send(port: u16, path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        Self(stream)
    }

    /// Send a request for `/slow` and wait until a worker has it.
    fn begun(tandem: &mut Tandem, port: u16, path: &str) -> Self {
        let request = Self::send(port, path);
        tandem.wait_log("began /slow");
        request
    }

    /// Wait until the first of the answer has come.
    fn first_bytes(&mut self) {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
    }

    /// All that comes until the connection closes.
    fn rest(mut self) -> String {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = self.0.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Nothing of the run is left, and PostgreSQL had the time to shut down.
fn assert_clean(tandem: &Tandem, project: &Project) {
    let log = tandem.log();
    assert!(log.contains("database system is shut down"), "{log}");
    assert!(!log.contains("left behind"), "{log}");
    assert_eq!(tandem::left_in(project.dir()).iter().map(|process| &process.args).collect::<Vec<_>>(), [""; 0]);
    assert!(!project.data().join("postmaster.pid").exists());
}

#[test]
fn each_signal_that_asks_for_a_stop_gets_one() {
    let project = project("");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut tandem = Tandem::up(&project);
        let family = tandem.descendants();
        tandem.signal(signal);
        assert_eq!(tandem.wait_code(), 0, "{signal}:\n{}", tandem.log());
        assert!(!family.iter().any(still_lives), "{signal}");
        assert_clean(&tandem, &project);
        let log = tandem.log();
        assert!(!log.contains("not properly shut down"), "the stop before was clean:\n{log}");
        assert!(!log.contains("restart in"), "nothing was started again on the way down:\n{log}");
    }
}

#[test]
fn a_request_of_three_seconds_is_answered() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let request = InFlight::begun(&mut tandem, project.app, "/slow?seconds=3");
    tandem.signal(Signal::SIGTERM);
    wait_for("new connections refused, the request still running", || {
        TcpStream::connect(("127.0.0.1", project.app)).is_err()
    });
    let answer = request.rest();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer:?}\n{}", tandem.log());
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn an_event_stream_does_not_hold_the_stop() {
    let project = project("stop.grace = '1s'");
    let mut tandem = Tandem::up(&project);
    let mut stream = InFlight::send(project.app, "/stream");
    stream.first_bytes();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(stream.rest().contains("data: 1"), "it was served up to the stop");
    assert!(!tandem.log().contains("Traceback"), "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn a_second_signal_skips_the_waits() {
    let project = project(&format!("stop.grace = '{FOR_EVER}s'"));
    let mut tandem = Tandem::up(&project);
    let _request = InFlight::begun(&mut tandem, project.app, &format!("/slow?seconds={FOR_EVER}"));
    tandem.signal(Signal::SIGTERM);
    wait_for("the stop", || tandem::get(project.health, "/health").is_some_and(|(_, body)| body.contains("stopping")));
    tandem.signal(Signal::SIGTERM);
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn a_worker_that_is_deaf_or_stopped_is_killed_at_the_end_of_the_grace() {
    let project = project("stop.grace = '1s'");
    let mut tandem = Tandem::up(&project);
    wait_for("both workers", || tandem.workers().len() == 2);
    assert_eq!(tandem.get("/deaf").unwrap().0, 200);
    let workers = tandem.workers();
    kill(Pid::from_raw(workers[0]), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(workers[1]), Signal::SIGSTOP).unwrap();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn a_worker_whose_event_loop_is_blocked_is_killed_at_the_end_of_the_grace() {
    let project = project("stop.grace = '1s'");
    let mut tandem = Tandem::up(&project);
    let _request = InFlight::send(project.app, "/block");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn what_workers_started_is_gone_in_a_session_of_its_own_too() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let spawn = |path: &str| tandem.get(path).unwrap().1.parse::<i32>().unwrap();
    let started = [spawn("/spawn"), spawn("/spawn?session=new")];
    assert!(started.into_iter().all(lives));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!started.into_iter().any(lives), "{}", tandem.log());
}

#[test]
fn before_the_stop_readiness_is_withdrawn_and_requests_are_served() {
    let project = project("stop.drain_delay = '2s'");
    let mut tandem = Tandem::up(&project);
    tandem.signal(Signal::SIGTERM);
    wait_for("readiness withdrawn", || tandem.ready() == Some(false));
    assert_eq!(tandem.health()["phase"], "draining");
    assert_eq!(tandem.get("/").map(|(status, _)| status), Some(200), "{}", tandem.log());
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}

#[test]
fn the_health_port_answers_until_the_end() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let request = InFlight::begun(&mut tandem, project.app, "/slow?seconds=2");
    tandem.signal(Signal::SIGTERM);
    wait_for("the stop in /health", || tandem.health()["phase"] == "stopping");
    assert_eq!((tandem.ready(), tandem::get(project.health, "/live").unwrap().0), (Some(false), 200));
    assert!(request.rest().ends_with("ok"));
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
}

#[test]
fn a_stop_while_the_server_comes_back_is_a_stop() {
    let project = project("");
    for signal in [Signal::SIGKILL, Signal::SIGQUIT] {
        let mut tandem = Tandem::up(&project);
        kill(Pid::from_raw(tandem.postmaster(&project)), signal).unwrap();
        tandem.wait_log("ended; restart at once");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
        assert!(descendants(tandem.pid()).is_empty());
    }
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_clean(&tandem, &project);
}
