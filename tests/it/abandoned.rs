//! Processes that outlive SIGKILL: they are named until they are gone, and what was wanted of them happens then.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::project::{Project, root};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, lives, wait_for};

const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1";

/// Holds a process until it is dropped.
struct Tracer(Child);

impl Tracer {
    /// `None` where the kernel does not let us.
    fn hold(pid: i32) -> Option<Self> {
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests with")]
        let mut command = Command::new("python3");
        command.arg(root().join("tests/fixtures/tracer.py")).arg(pid.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let tracer = Self(child);
        if said.trim() == "holds" {
            return Some(tracer);
        }
        skip("the kernel lets nobody hold another process (ptrace)");
        None
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The service `name` as `tandem status` shows it.
fn service(project: &Project, name: &str) -> serde_json::Value {
    let status = control::status(project);
    let services = status["services"].as_array().unwrap().clone();
    services.into_iter().find(|service| service["name"] == name).unwrap()
}

fn wait_abandoned(project: &Project, name: &str) {
    wait_for(&format!("{name} abandoned"), || service(project, name)["state"] == "abandoned");
}

/// It is named wherever a person may look.
fn assert_named(tandem: &Tandem, project: &Project, name: &str, pid: i32) {
    let of_it = format!("process {pid}");
    assert!(tandem.log().contains(&format!("{of_it} is still there")), "{}", tandem.log());
    let reasons = tandem.health()["reasons"].to_string();
    assert!(reasons.contains(&format!("{name}: {of_it} does not end")), "{reasons}");
    let shown = service(project, name);
    assert_eq!(shown["pid"], pid);
    assert!(shown["last_reason"].as_str().unwrap().contains(&of_it), "{shown}");
}

#[test]
fn a_worker_that_outlives_sigkill_is_replaced_once_it_is_gone() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 2\nworkers.watchdog = '1s'"));
    let mut tandem = Tandem::up(&project);
    wait_for("both workers", || tandem.workers().len() == 2);
    let held = i32::try_from(service(&project, "worker-0")["pid"].as_i64().unwrap()).unwrap();
    let Some(tracer) = Tracer::hold(held) else { return };
    wait_abandoned(&project, "worker-0");
    assert_named(&tandem, &project, "worker-0", held);
    assert_eq!(tandem.ready(), Some(true), "the other one serves");
    drop(tracer);
    wait_for("another worker", || tandem.workers().len() == 2 && !tandem.workers().contains(&held));
    tandem.wait_log(&format!("process {held} is gone at last"));
    assert!(!tandem.health()["reasons"].to_string().contains("does not end"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_server_that_outlives_sigkill_ends_tandem_in_the_end_and_orders_are_answered() {
    let lines = "postgres.probe_deadline = '1s'\npostgres.hang_limit = '4s'\nstop.postgres_grace = '1s'";
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 1\n{lines}"));
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    let Some(tracer) = Tracer::hold(postmaster) else { return };
    wait_abandoned(&project, "postgres");
    assert_named(&tandem, &project, "postgres", postmaster);
    assert_eq!(tandem.ready(), Some(false));
    let asked = control::run(&project, &["restart", "postgres"]);
    asked.expect(1, &[&format!("process {postmaster} does not end"), "once that process is gone"]);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    assert!(log.contains(&format!("gives up: its process {postmaster} does not end")), "{log}");
    assert!(log.contains(&format!("process {postmaster} of postgres could not be killed and is left behind")), "{log}");
    drop(tracer);
    wait_for("the server's end", || !lives(postmaster));
    // The next start finds nothing that holds it up.
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_server_that_is_let_go_in_time_comes_back() {
    let lines = "postgres.probe_deadline = '1s'\npostgres.hang_limit = '60s'\nstop.postgres_grace = '1s'";
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 1\n{lines}"));
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    let Some(tracer) = Tracer::hold(postmaster) else { return };
    let asked = control::start(&project, &["restart", "postgres"]);
    wait_abandoned(&project, "postgres");
    control::said(asked).expect(1, &[&format!("process {postmaster} does not end")]);
    drop(tracer);
    tandem.wait_ready();
    assert_ne!(tandem.postmaster(&project), postmaster);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_companion_that_outlives_sigkill_holds_neither_an_order_nor_the_stop() {
    let companion = "[[process]]\nname = 'sleeper'\ncommand = ['sleep', '1000']\nstop_grace = '1s'";
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 1"));
    project.reconfigure(|text| format!("{text}\n{companion}\n"));
    let mut tandem = Tandem::up(&project);
    let pid = || service(&project, "sleeper")["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap());
    let held = pid().unwrap();
    let Some(tracer) = Tracer::hold(held) else { return };
    control::run(&project, &["restart", "sleeper"]).expect(1, &[&format!("process {held} does not end")]);
    assert_named(&tandem, &project, "sleeper", held);
    drop(tracer);
    wait_for("another sleeper", || pid().is_some_and(|pid| pid != held));
    let held = pid().unwrap();
    let Some(tracer) = Tracer::hold(held) else { return };
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let left = format!("process {held} of sleeper could not be killed and is left behind");
    assert!(tandem.log().contains(&left), "{}", tandem.log());
    drop(tracer);
    wait_for("its end", || !lives(held));
}

#[test]
fn a_stop_does_not_wait_for_a_template_that_does_not_fork() {
    let lines = "workers.count = 1\nworkers.preload = true\nstop.grace = '1s'";
    let project = Project::app_with("plain:app", &format!("{BARE}\n{lines}"));
    let mut tandem = Tandem::up(&project);
    let pid = |name| i32::try_from(service(&project, name)["pid"].as_i64().unwrap()).unwrap();
    let signal = |pid, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    signal(pid("template"), nix::sys::signal::Signal::SIGSTOP);
    signal(pid("worker-0"), nix::sys::signal::Signal::SIGKILL);
    wait_for("the fork", || service(&project, "worker-0")["state"] == "spawning");
    let began = Instant::now();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!tandem.log().contains("it is spawned instead"), "{}", tandem.log());
    assert!(began.elapsed() < Duration::from_secs(9), "a fork is waited for up to ten seconds: {:?}", began.elapsed());
    assert!(tandem::left_in(project.dir()).is_empty());
}
