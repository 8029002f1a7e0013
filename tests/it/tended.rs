//! Workers are looked after: those that hang are replaced, those that have had enough make room, and all that they
//! leave behind goes.

use crate::common::control;
use crate::common::project::Project;
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, get, lives, processes, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1";

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Ask for what is never answered.
fn ask_in_vain(tandem: &Tandem, path: &'static str) {
    let port = tandem.app();
    std::thread::spawn(move || get(port, path));
}

/// Wait until the worker `old` was replaced by another that is ready.
fn replaced(tandem: &Tandem, old: i32, count: usize) {
    wait_for("another worker", || {
        let now = tandem.workers();
        now.len() == count && !now.contains(&old)
    });
}

/// The reason that `tandem status` shows for the service `name`.
fn reason(project: &Project, name: &str) -> String {
    let status = control::status(project);
    let services = status["services"].as_array().unwrap().iter();
    let shown = services.filter(|service| service["name"] == name && service["role"] == "standing");
    shown.map(|service| service["last_reason"].as_str().unwrap_or_default().to_owned()).next().unwrap()
}

#[test]
fn a_blocked_event_loop_shows_its_stack_and_is_replaced() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.count = 1\nworkers.watchdog = '1s'"));
    let mut tandem = Tandem::up(&project);
    let worker = tandem.workers()[0];
    ask_in_vain(&tandem, "/block");
    replaced(&tandem, worker, 1);
    let log = tandem.log();
    for word in ["its event loop has been silent for", "in block_the_loop", "Fatal Python error: Aborted"] {
        assert!(log.contains(word), "{word:?} is not in:\n{log}");
    }
    assert!(reason(&project, "worker-0").starts_with("hung: its event loop was silent for"));
    assert_eq!(tandem.get("/").unwrap().0, 200);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_stopped_worker_is_noticed_and_one_that_ignores_the_abort_is_killed() {
    let project = Project::app_with("careless:app", &format!("{BARE}\nworkers.count = 2\nworkers.watchdog = '1s'"));
    let mut tandem = Tandem::up(&project);
    wait_for("two workers", || tandem.workers().len() == 2);
    let stopped = tandem.workers()[0];
    send(stopped, Signal::SIGSTOP);
    replaced(&tandem, stopped, 2);
    assert!(!lives(stopped));
    ask_in_vain(&tandem, "/wedge");
    wait_for("the second one", || tandem.log().matches("its event loop has been silent for").count() == 2);
    wait_for("two workers again", || tandem.workers().len() == 2 && tandem.get("/").is_some());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_long_import_and_a_tandem_that_stood_still_are_no_hang() {
    let lines = format!("{BARE}\nworkers.count = 2\nworkers.watchdog = '1s'\nworkers.env.SLOW_IMPORT_SECONDS = '3'");
    let project = Project::app_with("slow_import:app", &lines);
    let mut tandem = Tandem::up(&project);
    wait_for("two workers", || tandem.workers().len() == 2);
    let workers = tandem.workers();
    tandem.signal(Signal::SIGSTOP);
    let began = std::time::Instant::now();
    wait_for("more than a watchdog's time", || began.elapsed().as_secs() >= 3);
    tandem.signal(Signal::SIGCONT);
    let began = std::time::Instant::now();
    wait_for("another look at them", || began.elapsed().as_secs() >= 2 && tandem.ready() == Some(true));
    assert_eq!(tandem.workers(), workers, "{}", tandem.log());
    assert!(!tandem.log().contains("silent"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn recycling_by_requests_memory_and_age_fails_no_request() {
    let limits = [
        ("workers.max_requests = 200", "requests (its limit was"),
        ("workers.max_age = '2s'", "age of"),
        ("workers.max_memory = '150MB'", "(its limit is 150 MB)"),
    ];
    for (limit, why) in limits {
        let project = Project::app_with("stubborn:app", &format!("{BARE}\nworkers.count = 2\n{limit}"));
        let mut tandem = Tandem::up(&project);
        wait_for("two workers", || tandem.workers().len() == 2);
        let first = tandem.workers();
        let members = [(Habit::Close, 1), (Habit::Busy, 1), (Habit::Idle, 2)];
        let crowd = Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", Some("ok"), &members);
        if limit.contains("memory") {
            wait_for("workers that have grown", || {
                tandem.get("/grow?megabytes=60");
                control::status(&project)["services"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|service| service["kind"] == "worker" && service["memory_bytes"].as_u64() > Some(150 << 20))
                    || tandem.log().contains("due for replacement")
            });
        }
        wait_for("a replacement", || tandem.log().contains("replaced (") && tandem.log().contains(why));
        wait_for("two workers", || tandem.workers().len() == 2);
        assert!(tandem.workers() != first, "{}", tandem.log());
        let shown = ["worker-0", "worker-1"].map(|name| reason(&project, name));
        assert!(shown.iter().any(|reason| reason.starts_with("replaced: ") && reason.contains(why)), "{shown:?}");
        let outcome = crowd.finish();
        assert_eq!(outcome.failures(), Vec::<String>::new(), "{limit}: {}", tandem.log());
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn a_worker_that_ignores_sigterm_goes_with_the_stop() {
    let lines = format!("{BARE}\nworkers.count = 1\nstop.grace = '1s'\nworkers.drain = '1s'");
    let project = Project::app_with("stubborn:app", &lines);
    let mut tandem = Tandem::up(&project);
    tandem.get("/ignore?signals=SIGTERM,SIGINT,SIGWINCH,SIGABRT");
    let deaf = tandem.workers()[0];
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    assert!(!tandem.workers().contains(&deaf));
    tandem.get("/ignore?signals=SIGTERM,SIGINT,SIGWINCH,SIGABRT");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!lives(deaf) && tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_bomb_of_grandchildren_in_sessions_of_their_own_is_gone_after_the_stop() {
    let project = Project::app_with("stubborn:app", &format!("{BARE}\nworkers.count = 2"));
    let mut tandem = Tandem::up(&project);
    let loner: i32 = tandem.get("/spawn?session=new").unwrap().1.parse().unwrap();
    assert_eq!(tandem.get("/bomb?count=100").unwrap().0, 200);
    let below = |tandem: &Tandem| tandem.descendants().iter().filter(|process| process.args.contains("-S -c")).count();
    wait_for("the whole bomb", || below(&tandem) == 100);
    let family: Vec<i32> = tandem.descendants().iter().map(|process| process.pid).collect();
    assert!(family.contains(&loner));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let left: Vec<_> = processes().into_iter().filter(|process| family.contains(&process.pid)).collect();
    assert!(left.is_empty(), "{left:#?}");
}
