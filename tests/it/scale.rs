//! More workers and fewer, other settings, and planned restarts, while it runs.

use crate::common::control;
use crate::common::project::Project;
use crate::common::strict::{Crowd, Habit};
use crate::common::tandem::{Tandem, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;

const BARE: &str = "migrations.run = 'none'\npool.size = 1\npool.overflow = 1\nworkers.count = 2";

fn up(project: &Project) -> Tandem {
    let tandem = Tandem::up(project);
    wait_for("every worker", || tandem.health()["status"] == "healthy");
    tandem
}

#[test]
fn scaling_up_and_down_fails_no_request() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = up(&project);
    let members = [(Habit::Close, 1), (Habit::Busy, 2), (Habit::Idle, 3), (Habit::Pipelined, 1)];
    let crowd = Crowd::start(([127, 0, 0, 1], tandem.app()).into(), "/", Some("ok"), &members);
    let first = tandem.workers();
    control::run(&project, &["scale", "5"]).expect(0, &["2 workers before, 5 now"]);
    assert_eq!((tandem.workers().len(), &tandem.health()["workers_wanted"]), (5, &json!(5)));
    control::run(&project, &["scale", "1"]).expect(0, &["5 workers before, 1 now"]);
    wait_for("one worker, the first", || tandem.workers() == first[..1]);
    wait_for("the others gone", || tandem.health()["workers"].as_array().unwrap().len() == 1);
    // A reload that is about something else keeps what was scaled.
    control::run(&project, &["scale", "3"]).expect(0, &["3 now"]);
    control::run(&project, &["reload"]).expect(0, &["replaced 3 workers"]);
    tandem.signal(Signal::SIGTTIN);
    wait_for("a fourth", || tandem.workers().len() == 4);
    tandem.signal(Signal::SIGTTOU);
    wait_for("three", || tandem.workers().len() == 3 && tandem.health()["workers_wanted"] == 3);
    assert_eq!(crowd.finish().failures(), Vec::<String>::new(), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn scaling_to_nothing_and_beyond_the_budget_is_refused_with_the_sum() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nhealth.workers_min = 2"));
    let mut tandem = up(&project);
    control::run(&project, &["scale", "0"]).expect(64, &["no worker would be left to answer"]);
    control::run(&project, &["scale", "1"]).expect(64, &["health.workers_min asks for at least 2"]);
    let words = ["60 workers × (1 + 1)", "max_connections is 100", "let workers.count be at most"];
    control::run(&project, &["scale", "60"]).expect(64, &words);
    assert_eq!(tandem.workers().len(), 2);
    control::run(&project, &["restart", "redis"])
        .expect(64, &["no service \"redis\"", "postgres", "worker-0", "worker-1"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn one_service_is_restarted_and_the_others_stay() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.preload = true"));
    let mut tandem = up(&project);
    let (workers, postmaster) = (tandem.workers(), tandem.postmaster(&project));
    control::run(&project, &["restart", "worker-1"]).expect(0, &["replaced 1 workers"]);
    let now = tandem.workers();
    assert!(now.contains(&workers[0]) && !now.contains(&workers[1]), "{workers:?} {now:?}");
    control::run(&project, &["restart", "postgres"]).expect(0, &["restarted postgres"]);
    assert_ne!(tandem.postmaster(&project), postmaster);
    control::run(&project, &["restart", "template"]).expect(0, &["restarted template"]);
    wait_for("all well", || tandem.ready() == Some(true));
    assert_eq!(tandem.workers(), now, "the workers stay");
    assert!(!tandem.log().contains("was not properly shut down"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_lets_each_key_hold_when_it_can() {
    let project =
        Project::app_with("plain:app", &format!("{BARE}\nworkers.env.COLOUR = 'red'\nhealth.workers_min = 1"));
    let mut tandem = up(&project);
    assert_eq!(tandem.get("/env?name=COLOUR").unwrap().1, "red");
    let old = format!("127.0.0.1:{}", project.app);
    project.reconfigure(|text| {
        let text = text.replace("'red'", "'green'").replace("workers_min = 1", "workers_min = 2");
        text.replace("workers.count = 2", "workers.count = 3").replace(&old, "127.0.0.1:1")
    });
    let said = control::run(&project, &["reload"]);
    let words = [
        "workers.count, health.workers_min: holds at once",
        "workers.env.COLOUR: holds in the workers that come now",
        "workers.listen: holds only after a restart of Tandem",
        "replaced",
    ];
    said.expect(0, &words);
    assert_eq!(tandem.get("/env?name=COLOUR").unwrap().1, "green");
    wait_for("three workers", || tandem.workers().len() == 3);
    let readiness: serde_json::Value =
        serde_json::from_str(&crate::common::tandem::get(project.health, "/ready").unwrap().1).unwrap();
    assert_eq!(readiness["workers_min"], 2, "{readiness:#}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_of_a_broken_file_changes_nothing_and_says_why() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.env.COLOUR = 'red'"));
    let mut tandem = up(&project);
    let before = tandem.workers();
    project.reconfigure(|text| text.replace("'red'", "'green'\nworkers.cuont = 7"));
    let said = control::run(&project, &["reload"]);
    said.expect(78, &["workers.cuont", "workers.count", "nothing was changed"]);
    tandem.signal(Signal::SIGHUP);
    wait_for("the same by signal", || tandem.log().matches("nothing was changed").count() == 2);
    assert_eq!((tandem.workers(), tandem.ready()), (before, Some(true)));
    assert_eq!(tandem.get("/env?name=COLOUR").unwrap().1, "red");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_whose_roll_fails_puts_the_old_configuration_back() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.env.COLOUR = 'red'"));
    let mut tandem = up(&project);
    let before = tandem.workers();
    project.reconfigure(|text| text.replace("'red'", "'green'").replace("plain:app", "broken_import:app"));
    control::run(&project, &["reload"]).expect(1, &["TRADING_KEY is missing", "serve on"]);
    assert_eq!(tandem.workers(), before);
    // One that dies now comes back as it was, and more of them are as they were.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    wait_for("another", || tandem.workers().len() == 2 && !tandem.workers().contains(&before[0]));
    control::run(&project, &["scale", "3"]).expect(0, &["3 now"]);
    assert_eq!(tandem.get("/env?name=COLOUR").unwrap().1, "red");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_that_what_was_scaled_does_not_fit_is_refused() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nhealth.workers_min = 1"));
    let mut tandem = up(&project);
    control::run(&project, &["scale", "6"]).expect(0, &["6 now"]);
    project.reconfigure(|text| text.replace("pool.size = 1", "pool.size = 20"));
    let said = control::run(&project, &["reload"]);
    said.expect(78, &["6 workers, as there are", "6 workers × (20 + 1)", "nothing was changed"]);
    control::run(&project, &["scale", "1"]).expect(0, &["1 now"]);
    project.reconfigure(|text| {
        text.replace("pool.size = 20", "pool.size = 1").replace("workers_min = 1", "workers_min = 2")
    });
    control::run(&project, &["reload"]).expect(78, &["health.workers_min asks for at least 2"]);
    assert_eq!(tandem.ready(), Some(true));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn scaling_up_onto_broken_code_says_so_and_can_be_taken_back() {
    let project = Project::app_with("plain:app", BARE);
    let code = std::fs::read_to_string(crate::common::project::root().join("tests/fixtures/apps/plain.py")).unwrap();
    project.write("app/plain.py", &code);
    let mut command = crate::common::tandem::command(&project);
    command.env("TANDEM_WORKERS__APP_DIR", project.dir().join("app"));
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    wait_for("every worker", || tandem.health()["status"] == "healthy");
    project.write("app/plain.py", "raise RuntimeError('broken')\n");
    let said = control::run(&project, &["scale", "3"]);
    said.expect(1, &["worker-2 does not get ready", "`tandem scale 2` takes the new ones back"]);
    assert_eq!(tandem.ready(), Some(true));
    control::run(&project, &["scale", "2"]).expect(0, &["3 workers before, 2 now"]);
    wait_for("all well", || tandem.health()["status"] == "healthy");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restart_in_place_that_fails_says_so() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nworkers.preload = true"));
    let code = std::fs::read_to_string(crate::common::project::root().join("tests/fixtures/apps/plain.py")).unwrap();
    project.write("app/plain.py", &code);
    let mut command = crate::common::tandem::command(&project);
    command.env("TANDEM_WORKERS__APP_DIR", project.dir().join("app"));
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    project.write("app/plain.py", "raise RuntimeError('broken')\n");
    control::run(&project, &["restart", "template"]).expect(1, &["template does not start again"]);
    assert_eq!(tandem.get("/").unwrap().0, 200, "the workers outlive it");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn orders_during_the_boot_are_told_to_wait() {
    let lines = format!("{BARE}\nworkers.env.SLOW_IMPORT_SECONDS = '3'");
    let project = Project::app_with("slow_import:app", &lines);
    let mut tandem = Tandem::start(&project);
    wait_for("the boot", || {
        let said = control::run(&project, &["reload"]);
        said.code == 75 && said.said.contains("does not serve; ask again when it does")
    });
    tandem.wait_ready();
    control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
