//! Readiness follows the database at once: when one of its processes dies, between two probes.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backups::as_superuser;
use crate::common::project::Project;
use crate::common::readiness::{Course, Idle, follow, of_server};
use crate::common::refusal;
use crate::common::tandem::{self, LIMIT, Tandem, processes, wait_for};

/// No probe comes by itself while a test looks: what is noticed, the session's end has told.
const SELDOM: &str = "workers.count = 1\nmigrations.run = 'none'\npostgres.probe_interval = '60s'";
/// Ten milliseconds are promised, on a machine that is not busy; without the alarm it would be a minute.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long a withdrawal is waited for.
const A_WHILE: Duration = Duration::from_secs(20);
/// In which a withdrawal is looked for that is not to come.
const A_MOMENT: Duration = Duration::from_secs(1);

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn assert_noticed(course: &Course, what: &str) {
    let withdrawn = course.withdrawn.unwrap_or_else(|| panic!("{what}: /ready said yes all the while"));
    assert!(withdrawn < AT_ONCE, "{what}: withdrawn after {withdrawn:?}");
    assert!(course.back.is_some(), "{what}: not ready again: {course:?}");
    let refuses = course.missing.iter().any(|missing| missing.contains("refuses connections"));
    assert!(!refuses || what == "the postmaster", "a server that recovers says so: {course:?}");
}

#[test]
fn a_killed_backend_withdraws_readiness_at_once_everywhere() {
    let project = Project::app_with("plain:app", SELDOM);
    let told = UnixDatagram::bind(project.dir().join("notify")).unwrap();
    told.set_nonblocking(true).unwrap();
    let mut command = tandem::command(&project);
    command.env("NOTIFY_SOCKET", project.dir().join("notify"));
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let (postmaster, workers) = (tandem.postmaster(&project), tandem.workers());
    let metric = |value: u8| {
        let (_, text) = tandem::get(project.health, "/metrics").unwrap();
        text.lines().any(|line| line == format!("tandem_database_available {value}"))
    };
    assert!(metric(1));

    let idle = Idle::open(&project);
    let statuses = std::cell::RefCell::new(String::new());
    let meanwhile = || {
        // It stays as it is while one looks.
        send(postmaster, Signal::SIGSTOP);
        wait_for("the other places", || {
            let health = tandem.health();
            let mut datagram = [0; 4096];
            while let Ok(length) = told.recv(&mut datagram) {
                statuses.borrow_mut().push_str(&String::from_utf8_lossy(&datagram[..length]));
            }
            health["status"] == "unhealthy"
                && health["database"]["available"] == false
                && metric(0)
                && statuses.borrow().contains("; database: the server")
        });
        send(postmaster, Signal::SIGCONT);
    };
    let course = follow(project.health, (A_WHILE, LIMIT), || send(idle.backend, Signal::SIGKILL), meanwhile);
    assert_noticed(&course, "a backend");
    assert!(metric(1));
    assert_eq!((tandem.postmaster(&project), tandem.workers()), (postmaster, workers), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_killed_auxiliary_process_withdraws_it_too_and_so_does_the_postmaster() {
    let project = Project::app_with("plain:app", SELDOM);
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    for kind in ["walwriter", "checkpointer", "autovacuum launcher"] {
        let find = || of_server(&tandem.descendants(), postmaster, kind);
        wait_for(kind, || find().is_some());
        let victim = find().unwrap();
        assert_noticed(&follow(project.health, (A_WHILE, LIMIT), || send(victim, Signal::SIGKILL), || ()), kind);
    }
    let kill = || send(postmaster, Signal::SIGKILL);
    assert_noticed(&follow(project.health, (A_WHILE, LIMIT), kill, || ()), "the postmaster");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_session_that_somebody_ends_is_no_outage_and_another_takes_its_place() {
    let project = Project::app_with("plain:app", SELDOM);
    let mut tandem = Tandem::up(&project);
    let own = "FROM pg_stat_activity WHERE application_name = 'tandem'";
    let session = || as_superuser(&project, "postgres", &format!("SELECT string_agg(pid::text, ' ') {own}"));
    wait_for("the session", || !session().is_empty());
    let before = session();
    let end = || drop(as_superuser(&project, "postgres", &format!("SELECT pg_terminate_backend(pid) {own}")));
    let ended = Instant::now();
    let course = follow(project.health, (A_MOMENT, LIMIT), end, || ());
    if let (Some(withdrawn), Some(back)) = (course.withdrawn, course.back) {
        // On a machine that has no time, a new session takes longer.
        assert!(back - withdrawn < AT_ONCE, "{course:?}");
    }
    wait_for("another session", || !session().is_empty() && session() != before);
    assert!(ended.elapsed() < A_WHILE, "the next probe found it, and no alarm: {:?}", ended.elapsed());

    // However often it is ended.
    let project = Project::app_with("plain:app", &SELDOM.replace("60s", "200ms"));
    let mut other = Tandem::up(&project);
    for _ in 0..3 {
        let session = || as_superuser(&project, "postgres", &format!("SELECT string_agg(pid::text, ' ') {own}"));
        wait_for("the session", || !session().is_empty());
        let before = session();
        let _ended = as_superuser(&project, "postgres", &format!("SELECT pg_terminate_backend(pid) {own}"));
        wait_for("another session", || !session().is_empty() && session() != before);
    }
    let idle = Idle::open(&project);
    let course = follow(project.health, (A_WHILE, LIMIT), || send(idle.backend, Signal::SIGKILL), || ());
    assert!(course.withdrawn.is_some() && course.back.is_some(), "{course:?}");
    assert_eq!(other.stop(), 0, "{}", other.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn after_a_false_alarm_the_next_one_is_heard_too() {
    let project = Project::app_with("plain:app", &SELDOM.replace("60s", "20s"));
    let mut tandem = Tandem::up(&project);
    let own = "FROM pg_stat_activity WHERE application_name = 'tandem'";
    let session = || as_superuser(&project, "postgres", &format!("SELECT string_agg(pid::text, ' ') {own}"));
    wait_for("the session", || !session().is_empty());
    let before = session();
    let _ended = as_superuser(&project, "postgres", &format!("SELECT pg_terminate_backend(pid) {own}"));
    wait_for("another session", || !session().is_empty() && session() != before);
    // Not in the same pause between two probes: a server may end idle sessions as a habit.
    let age = || tandem.health()["database"]["sample_age_seconds"].as_f64().unwrap();
    wait_for("the end of that pause", || age() > 18.0);
    wait_for("the next pause", || age() < 2.0);
    let idle = Idle::open(&project);
    let course = follow(project.health, (A_WHILE, LIMIT), || send(idle.backend, Signal::SIGKILL), || ());
    assert_noticed(&course, "a backend");
    // Not by the next probe.
    assert!(course.back.unwrap() < AT_ONCE * 4, "{course:?}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn an_attached_server_is_followed_as_closely() {
    let owner = Project::app_with("plain:app", SELDOM);
    let mut server = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    let project = Project::app_with("plain:app", SELDOM);
    let mut command = tandem::command(&project);
    command.env("DATABASE_URL", &url);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();

    let idle = Idle::open(&owner);
    let course = follow(project.health, (A_WHILE, LIMIT), || send(idle.backend, Signal::SIGKILL), || ());
    assert_noticed(&course, "a backend of the attached server");
    let postmaster = server.postmaster(&owner);
    let walwriter = || of_server(&processes(), postmaster, "walwriter");
    wait_for("the WAL writer", || walwriter().is_some());
    let victim = walwriter().unwrap();
    let course = follow(project.health, (A_WHILE, LIMIT), || send(victim, Signal::SIGKILL), || ());
    assert_noticed(&course, "the WAL writer of the attached server");

    // An orderly end of it too, and its return.
    let mut port = None;
    let stop = || port = Some(server.stop());
    let course = follow(project.health, (LIMIT, Duration::ZERO), stop, || ());
    assert!(course.withdrawn.is_some(), "{course:?}");
    assert_eq!(port, Some(0), "{}", server.log());
    let mut server = Tandem::up(&owner);
    wait_for("readiness", || tandem.ready() == Some(true));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(server.stop(), 0, "{}", server.log());
}
