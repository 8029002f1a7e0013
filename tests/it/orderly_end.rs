//! A server of PostgreSQL whose shutdown never ends, when its Tandem was killed: it ends by the rungs of Tandem's own stop,
//! and the next start has every row.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::pitr::{sql, superuser};
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LINES: &str = "migrations.run = 'none'\nworkers.count = 1\nstop.postgres_grace = '1s'";
/// 1 s for the fast shutdown, 6 s for the immediate one, and what a busy machine takes.
const GONE_LIMIT: Duration = Duration::from_secs(40);

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A project whose server has committed a row.
fn up(lines: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", &format!("{LINES}\n{lines}"));
    let tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    (project, tandem)
}

/// End Tandem by `signal`, of which Rust's own handler takes the first SIGSEGV for nothing.
fn slay(tandem: &mut Tandem, signal: Signal) {
    wait_for("the end of the supervisor", || {
        tandem.signal(signal);
        tandem.ended()
    });
}

/// Everything of the server's ends by itself, and the next start has the row.
fn ends_and_starts_again(project: &Project, mut tandem: Tandem, signal: Signal) {
    let killed = Instant::now();
    slay(&mut tandem, signal);
    loop {
        let left = tandem::left_in(project.dir());
        if left.is_empty() {
            break;
        }
        assert!(killed.elapsed() < GONE_LIMIT, "left {:?} after {signal}: {left:#?}", killed.elapsed());
    }
    has_the_row(project);
}

fn has_the_row(project: &Project) {
    let mut tandem = Tandem::up(project);
    assert_eq!(sql(project, "SELECT n FROM t"), "1");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

fn process_of_server(project: &Project, tandem: &Tandem, title: &str) -> i32 {
    let postmaster = tandem.postmaster(project);
    let find = || {
        let mut all = tandem.descendants().into_iter();
        all.find(|process| process.parent == postmaster && process.args.contains(title)).map(|process| process.pid)
    };
    wait_for(title, || find().is_some());
    find().unwrap()
}

/// A session that sleeps, and the process that serves it.
fn session(project: &Project) -> (Child, i32) {
    let mut client = tandem::command(project);
    client.args(["psql", "-Xqc", "SELECT pg_sleep(1000)"]).stdout(Stdio::null()).stderr(Stdio::null());
    let client = client.spawn().unwrap();
    let asleep = || sql(project, "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1000)'");
    wait_for("the session", || !asleep().is_empty());
    (client, asleep().parse().unwrap())
}

#[test]
fn a_backend_that_is_stopped_holds_the_end_of_its_server_for_a_while_and_not_for_ever() {
    let (project, tandem) = up("");
    let (mut client, backend) = session(&project);
    send(backend, Signal::SIGSTOP);
    ends_and_starts_again(&project, tandem, Signal::SIGKILL);
    assert!(!client.wait().unwrap().success());
}

#[test]
fn neither_does_a_checkpointer_that_is_stopped() {
    let (project, tandem) = up("");
    send(process_of_server(&project, &tandem, "checkpointer"), Signal::SIGSTOP);
    ends_and_starts_again(&project, tandem, Signal::SIGSEGV);
}

/// Archives nothing, and leaves a process behind that has a session of its own.
const ENDLESS: &str = "postgres.settings.archive_mode = 'on'\n\
                       postgres.settings.archive_command = 'setsid sleep 7654398 & exec sleep 7654399'";

fn archiving() -> (Project, Tandem) {
    let (project, tandem) = up(ENDLESS);
    superuser(&project, "SELECT pg_switch_wal()");
    let runs = |words: &str| tandem.descendants().iter().any(|process| process.args == words);
    wait_for("the archive command", || runs("sleep 7654398") && runs("sleep 7654399"));
    (project, tandem)
}

#[test]
fn nor_an_archive_command_that_never_ends_and_what_it_started_goes_too() {
    let (project, tandem) = archiving();
    ends_and_starts_again(&project, tandem, Signal::SIGKILL);
}

#[test]
fn without_a_keeper_the_next_start_does_the_same_and_says_so() {
    let (project, mut tandem) = archiving();
    let keeper = tandem.descendants().into_iter().find(|process| process.name == "keeper").unwrap();
    send(keeper.pid, Signal::SIGKILL);
    slay(&mut tandem, Signal::SIGKILL);
    let mut next = Tandem::up(&project);
    let log = next.log();
    assert!(
        log.contains("of an earlier run still works in") && log.contains("within 1s (stop.postgres_grace)"),
        "{log}"
    );
    assert_eq!(sql(&project, "SELECT n FROM t"), "1");
    let escaped = || tandem::left_in(project.dir()).into_iter().any(|process| process.parent == 1);
    assert!(!escaped(), "{:#?}", tandem::left_in(project.dir()));
    assert_eq!(next.stop(), 0, "{}", next.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_stop_is_heard_while_the_next_start_waits_for_the_server_of_the_last() {
    let (project, mut tandem) = up("");
    project.reconfigure(|text| text.replace("stop.postgres_grace = '1s'", "stop.postgres_grace = '10m'"));
    let (mut client, backend) = session(&project);
    send(backend, Signal::SIGSTOP);
    let keeper = tandem.descendants().into_iter().find(|process| process.name == "keeper").unwrap();
    send(keeper.pid, Signal::SIGKILL);
    slay(&mut tandem, Signal::SIGKILL);
    let mut next = Tandem::start(&project);
    next.wait_log("within 600s (stop.postgres_grace)");
    let asked = Instant::now();
    next.signal(Signal::SIGTERM);
    next.wait_exit();
    assert!(asked.elapsed() < GONE_LIMIT, "{:?}", asked.elapsed());
    send(backend, Signal::SIGCONT);
    assert!(!client.wait().unwrap().success());
    wait_for("the end of the server", || tandem::left_in(project.dir()).is_empty());
    has_the_row(&project);
}

#[test]
fn a_reload_gives_the_server_another_grace_after_a_kill_too() {
    let (project, mut tandem) = up("");
    project.reconfigure(|text| text.replace("stop.postgres_grace = '1s'", "stop.postgres_grace = '10m'"));
    assert!(tandem::run(&project, &["reload"]).status.success(), "{}", tandem.log());
    let (mut client, backend) = session(&project);
    send(backend, Signal::SIGSTOP);
    let postmaster = tandem.postmaster(&project);
    slay(&mut tandem, Signal::SIGKILL);
    let killed = Instant::now();
    // The old grace, the immediate shutdown, and as much again.
    while killed.elapsed() < Duration::from_secs(9) {
        assert!(tandem::lives(postmaster), "ended after {:?}", killed.elapsed());
        tandem::pause();
    }
    send(backend, Signal::SIGCONT);
    assert!(!client.wait().unwrap().success());
    wait_for("the end of the server", || tandem::left_in(project.dir()).is_empty());
    has_the_row(&project);
}
