//! New workers for old ones while clients watch: nobody may lose a request.

use std::fs;

use crate::common::control;
use crate::common::project::{Project, root};
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{self, Tandem, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No database work of its own, and pools so small that drains may overlap.
const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1";

/// A crowd with each habit that a client may have.
const CROWD: [(Habit, usize); 4] = [(Habit::Close, 2), (Habit::Busy, 2), (Habit::Idle, 4), (Habit::Pipelined, 1)];

/// A project whose application is a copy of its own, so that a test can deploy another.
fn deployable(lines: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", &format!("{BARE}\n{lines}"));
    deploy(&project, "plain.py");
    let mut command = tandem::command(&project);
    command.env("TANDEM_WORKERS__APP_DIR", project.dir().join("app")).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    wait_for("every worker", || tandem.health()["status"] == "healthy");
    (project, tandem)
}

/// Put the fixture `name` in the place of the application.
fn deploy(project: &Project, name: &str) {
    let text = fs::read_to_string(root().join("tests/fixtures/apps").join(name)).unwrap();
    project.write("app/plain.py", &text);
}

/// The pids of the workers that hold a slot, by slot.
fn slots(tandem: &Tandem) -> Vec<i32> {
    let health = tandem.health();
    let workers = health["workers"].as_array().unwrap().iter();
    let mut slots: Vec<_> = workers
        .filter(|worker| worker["state"] == "ready")
        .map(|worker| (worker["slot"].as_i64().unwrap(), i32::try_from(worker["pid"].as_i64().unwrap()).unwrap()))
        .collect();
    slots.sort_unstable();
    slots.into_iter().map(|(_, pid)| pid).collect()
}

fn crowd(tandem: &Tandem) -> Crowd {
    Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", Some("ok"), &CROWD)
}

/// Roll `rolls` times under a crowd, and let nobody lose anything.
fn roll_under_a_crowd(project: &Project, tandem: &Tandem, rolls: usize) {
    let crowd = crowd(tandem);
    wait_for("the crowd at work", || crowd.answers() > 50);
    for _ in 0..rolls {
        let before = slots(tandem);
        let said = control::run(project, &["reload"]);
        said.expect(0, &["replaced 4 workers"]);
        let after = slots(tandem);
        assert_eq!(after.len(), 4, "{after:?}");
        assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}\n{}", tandem.log());
        assert_eq!(tandem.ready(), Some(true));
    }
    let answers = crowd.answers();
    wait_for("more answers", || crowd.answers() > answers + 50);
    let outcome = crowd.finish();
    assert_eq!(outcome.failures(), Vec::<String>::new(), "of {} requests\n{}", outcome.requests(), tandem.log());
    assert!(outcome.tallies.values().all(|tally| tally.requests > 0), "{outcome:?}");
}

#[test]
fn a_roll_fails_no_request_of_any_client() {
    let (project, mut tandem) = deployable("");
    roll_under_a_crowd(&project, &tandem, 4);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_preloaded_roll_fails_no_request_either() {
    let (project, mut tandem) = deployable("workers.preload = true");
    let template = || tandem::descendants(tandem.pid()).into_iter().filter(|p| p.args.contains("template.py")).count();
    // Forked workers keep the template's command line; they are Tandem's children too.
    assert_eq!(template(), 5, "the template and four workers");
    roll_under_a_crowd(&project, &tandem, 6);
    wait_for("the old ones gone", || template() == 5);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn hangup_rolls_and_ready_never_flickers() {
    let (_project, mut tandem) = deployable("");
    let before = slots(&tandem);
    tandem.signal(Signal::SIGHUP);
    wait_for("four new workers", || {
        let health = tandem.health();
        assert_eq!((tandem.ready(), health["workers_ready"].as_i64()), (Some(true), Some(4)), "{health:#}");
        let now = slots(&tandem);
        now.len() == 4 && before.iter().all(|pid| !now.contains(pid))
    });
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_roll_onto_broken_code_keeps_the_old_workers_and_shows_the_traceback() {
    for lines in ["", "workers.preload = true"] {
        let (project, mut tandem) = deployable(lines);
        let crowd = crowd(&tandem);
        let before = slots(&tandem);
        deploy(&project, "broken_import.py");
        let said = control::run(&project, &["reload"]);
        let words = ["RuntimeError: broken_import: the setting TRADING_KEY is missing", "in load_settings", "serve on"];
        said.expect(1, &words);
        assert_eq!(slots(&tandem), before, "{lines}: {}", tandem.log());
        assert_eq!(tandem.health()["status"], "healthy");
        let log = tandem.log();
        assert_eq!(log.matches("RuntimeError: broken_import: the setting").count(), 1, "{log}");
        deploy(&project, "plain.py");
        control::run(&project, &["reload"]).expect(0, &["replaced 4 workers"]);
        assert_eq!(crowd.finish().failures(), Vec::<String>::new(), "{lines}: {}", tandem.log());
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_replacement_whose_startup_fails_or_never_ends_is_given_up() {
    let (project, mut tandem) = deployable("workers.ready_limit = '10s'");
    let before = slots(&tandem);
    deploy(&project, "broken_lifespan.py");
    let said = control::run(&project, &["reload"]);
    said.expect(1, &["startup (its lifespan) failed", "the exchange refused the connection", "serve on"]);
    project.write("app/plain.py", "import time\ntime.sleep(1000)\n");
    let said = control::run(&project, &["reload"]);
    said.expect(1, &["did not get ready in time", "serve on"]);
    wait_for("the stack of the one that hung", || tandem.log().contains("plain.py\", line 2 in <module>"));
    wait_for("the one that hung is gone", || tandem.health()["workers"].as_array().unwrap().len() == 4);
    assert_eq!(slots(&tandem), before);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_stop_interrupts_a_roll() {
    let (project, mut tandem) = deployable("");
    project.write("app/plain.py", "import time\ntime.sleep(1000)\n");
    let waiting = control::start(&project, &["reload"]);
    wait_for("a replacement on its way", || tandem.health()["workers"].as_array().unwrap().len() == 5);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    control::said(waiting).expect(75, &["a stop came first"]);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_second_reload_waits_for_the_first_and_both_are_answered() {
    let (project, mut tandem) = deployable("");
    let asked: Vec<_> = (0..3).map(|_| control::start(&project, &["reload"])).collect();
    for waiting in asked {
        control::said(waiting).expect(0, &["replaced 4 workers"]);
    }
    assert_eq!(tandem.health()["status"], "healthy");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_killed_worker_of_a_template_comes_back_and_workers_outlive_the_template() {
    let (project, mut tandem) = deployable("workers.preload = true");
    let before = slots(&tandem);
    kill(Pid::from_raw(before[1]), Signal::SIGKILL).unwrap();
    wait_for("another in its slot", || slots(&tandem).len() == 4 && !slots(&tandem).contains(&before[1]));
    assert!(tandem.log().contains("ended: SIGKILL; restart at once"), "{}", tandem.log());

    let status = control::status(&project);
    let template = i32::try_from(status["services"][1]["pid"].as_i64().unwrap()).unwrap();
    assert_eq!(status["services"][1]["name"], "template", "{status:#}");
    let workers = slots(&tandem);
    kill(Pid::from_raw(template), Signal::SIGKILL).unwrap();
    wait_for("another template", || {
        let service = &control::status(&project)["services"][1];
        service["state"] == "ready" && service["pid"] != template
    });
    assert_eq!(slots(&tandem), workers, "the workers were left alone");
    control::run(&project, &["reload"]).expect(0, &["replaced 4 workers"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn killed_with_9_tandem_takes_forked_workers_and_the_template_along() {
    let (project, mut tandem) = deployable("workers.preload = true");
    let family = tandem.descendants();
    tandem.signal(Signal::SIGKILL);
    assert!(tandem.wait_exit().code().is_none());
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
    assert!(tandem::left_in(project.dir()).is_empty());
}
