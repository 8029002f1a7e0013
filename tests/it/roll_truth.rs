//! After a roll has returned, no new connection meets the old code; and an application that takes signals for itself is
//! replaced and stopped all the same.

use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::deployed::{self, BARE, plain};
use crate::common::tandem::{self, Tandem, lives, wait_for};

/// Rolls of one test. Before the roll waited, four of five let the next request meet the old code.
const ROLLS: usize = 8;

#[test]
fn the_next_request_after_a_reload_meets_the_new_code() {
    for lines in
        ["workers.count = 1", "workers.count = 2\nworkers.surge = 2", "workers.count = 1\nworkers.preload = true"]
    {
        let project = deployed::project(&format!("{BARE}\n{lines}"), &plain("", "version 0"));
        let mut tandem = Tandem::up(&project);
        for roll in 1..=ROLLS {
            let version = format!("version {roll}");
            deployed::deploy(&project, &plain("", &version));
            control::run(&project, &["reload"]).expect(0, &["replaced"]);
            for _ in 0..5 {
                assert_eq!(tandem.get("/").unwrap().1, version, "{lines}: {}", tandem.log());
            }
        }
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_restart_of_one_worker_and_another_server_keep_the_same_word() {
    let project = deployed::project(&format!("{BARE}\nworkers.count = 1"), &plain("", "version 0"));
    let mut tandem = Tandem::up(&project);
    for roll in 1..=ROLLS {
        let version = format!("version {roll}");
        deployed::deploy(&project, &plain("", &version));
        control::run(&project, &["restart", "worker-0"]).expect(0, &["replaced 1 workers"]);
        assert_eq!(tandem.get("/").unwrap().1, version, "{}", tandem.log());
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let lines = format!(
        "{BARE}\nworkers.count = 1\nworkers.command = ['uvicorn', '--fd', '{{fd}}', 'main:app']\nworkers.ready = '/'"
    );
    let project = deployed::project(&lines, &plain("", "version 0"));
    let mut tandem = Tandem::up(&project);
    for roll in 1..=2 {
        let version = format!("version {roll}");
        deployed::deploy(&project, &plain("", &version));
        control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
        assert_eq!(tandem.get("/").unwrap().1, version, "{}", tandem.log());
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// As prompt_toolkit and `loop.add_signal_handler` do, after the worker is ready.
const STOLEN: &str = "
import signal
def steal(*_):
    print('taken', flush=True)
respond_as_before = respond
async def respond(scope, receive, send):
    if scope['path'] == '/steal':
        for name in ('SIGWINCH', 'SIGTERM', 'SIGINT'):
            signal.signal(getattr(signal, name), steal)
        scope = dict(scope, path='/pid')
    await respond_as_before(scope, receive, send)
";

#[test]
fn an_application_that_takes_the_signals_is_retired_and_stopped_all_the_same() {
    // So that neither a drain nor a grace that passes is taken for an order that was heard.
    let lines = format!("{BARE}\nworkers.count = 1\nworkers.drain = '60s'\nstop.grace = '60s'");
    let project = deployed::project(&lines, &plain(STOLEN, "old"));
    let mut tandem = Tandem::up(&project);
    let old: i32 = tandem.get("/steal").unwrap().1.parse().unwrap();
    deployed::deploy(&project, &plain(STOLEN, "new"));
    let began = Instant::now();
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(tandem.get("/").unwrap().1, "new");
    wait_for("the old one gone", || !lives(old));
    assert_ne!(tandem.get("/steal").unwrap().1, old.to_string());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}: {}", began.elapsed(), tandem.log());
    let log = tandem.log();
    assert!(log.contains("taken") && !log.contains("did not end within"), "{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}
