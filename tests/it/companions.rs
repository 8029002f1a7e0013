//! Processes beside the workers, and hooks at the turns of the life of all.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::control;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, lives, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1";

/// A project with one worker and `more` behind its configuration.
fn project(more: &str) -> Project {
    let project = Project::app_with("plain:app", BARE);
    project.reconfigure(|text| format!("{text}\n{more}\n"));
    project
}

fn service(project: &Project, name: &str) -> serde_json::Value {
    let status = control::status(project);
    let services = status["services"].as_array().unwrap();
    services.iter().find(|service| service["name"] == name).unwrap_or_else(|| panic!("no {name}: {status:#}")).clone()
}

fn pid(project: &Project, name: &str) -> Option<i32> {
    service(project, name)["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap())
}

#[test]
fn a_companion_starts_after_the_workers_is_kept_and_stops_before_them() {
    let script = "trap 'echo companion leaves; exit 0' TERM; echo companion of $PGAPPNAME, $COLOUR; \
                  while :; do sleep 0.05; done";
    let project = project(&format!(
        "[[process]]\nname = 'queue'\ncommand = ['/bin/sh', '-c', \"{script}\"]\nenv = {{ COLOUR = 'blue' }}"
    ));
    let mut tandem = Tandem::up(&project);
    let name = project.dir().file_name().unwrap().to_string_lossy().into_owned();
    tandem.wait_log(&format!("queue     | companion of {name}-queue, blue"));
    let log = tandem.log();
    assert!(log.find("Application startup complete") < log.find("companion of"), "{log}");

    // It dies and comes back; it is restarted when asked for.
    let first = pid(&project, "queue").unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_for("another queue", || pid(&project, "queue").is_some_and(|now| now != first));
    let shown = service(&project, "queue");
    assert_eq!(
        (&shown["kind"], &shown["restarts"], &shown["last_reason"]),
        (&"process".into(), &1.into(), &"SIGKILL".into())
    );
    let second = pid(&project, "queue").unwrap();
    control::run(&project, &["restart", "queue"]).expect(0, &["restarted queue"]);
    assert!(!lives(second) && pid(&project, "queue").is_some_and(|now| now != second));

    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let log = tandem.log();
    let (leaves, worker) = (log.rfind("companion leaves"), log.rfind("Application shutdown complete"));
    assert!(leaves.is_some() && leaves < worker, "{log}");
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_companion_that_cannot_be_kept_rests_and_everything_else_serves() {
    let project = project("workers.restart_intensity = 2\n").without("nothing");
    project.reconfigure(|text| {
        format!(
            "{text}\n[[process]]\nname = 'sick'\ncommand = ['/bin/sh', '-c', 'echo no luck; exit 4']\n\
             [[process]]\nname = 'missing'\ncommand = ['no-such-program']\n"
        )
    });
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("failed too often, rests service.name=sick");
    tandem.wait_log("start no-such-program ([[process]] missing)");
    assert_eq!(service(&project, "sick")["last_reason"], "exit status 4");
    assert_eq!((tandem.ready(), tandem.get("/").unwrap().0), (Some(true), 200));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn the_hook_after_the_start_runs_once_the_application_serves() {
    let project = Project::app_with("plain:app", BARE);
    let out = project.dir().join("hooked");
    let program = format!(
        "import urllib.request, os; body = urllib.request.urlopen(os.environ['TANDEM_BASE_URL'] + '/pid').read().decode(); \
         print('agent started', os.environ['PGAPPNAME'][-5:]); open('{}', 'a').write(body + chr(10))",
        out.display()
    );
    project
        .configure(&format!("hooks.after_ready = ['python', '-c', \"{program}\"]\nhooks.after_ready_on = 'replaced'"));
    // The workers' user writes here.
    fs::set_permissions(project.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut tandem = Tandem::up(&project);
    let runs = || fs::read_to_string(&out).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    wait_for("the hook", || runs().len() == 1);
    let worker = tandem.workers()[0];
    assert_eq!(runs(), [worker.to_string()], "it reached the application");
    tandem.wait_log("hook:after_ready | agent started -hook");

    // What the hook started lived in the worker: it runs again for each that takes its place.
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    wait_for("the hook again", || runs().len() == 2);
    assert_ne!(runs()[1], worker.to_string());
    kill(Pid::from_raw(tandem.workers()[0]), Signal::SIGKILL).unwrap();
    wait_for("the hook after a crash", || runs().len() == 3);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_hook_that_fails_warns_or_stops() {
    let hook = "hooks.after_ready = ['/bin/sh', '-c', 'echo no agent; exit 3']";
    let warned = Project::app_with("plain:app", &format!("{BARE}\n{hook}"));
    let mut tandem = Tandem::up(&warned);
    tandem.wait_log("WARN hooks.after_ready (`/bin/sh -c echo no agent; exit 3`) ended with exit status 3: no agent");
    assert_eq!(tandem.ready(), Some(true));
    wait_for("health to tell", || tandem.health()["status"] == "degraded");
    let reasons = tandem.health()["reasons"].to_string();
    assert!(
        reasons.contains("hooks.after_ready ended with exit status 3") && !reasons.contains("no agent"),
        "{reasons}"
    );
    control::run(&warned, &["status"]).expect(0, &["hooks.after_ready ended with exit status 3"]);
    // The next one that goes well heals it.
    warned.reconfigure(|text| {
        text.replace("exit 3", "exit 0")
            .replace("hooks.after_ready", "hooks.after_ready_on = 'replaced'\nhooks.after_ready")
    });
    control::run(&warned, &["reload"]).expect(0, &["replaced 1 workers"]);
    wait_for("health to be healed", || tandem.health()["status"] == "healthy");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let stopped = Project::app_with("plain:app", &format!("{BARE}\n{hook}\nhooks.on_failure = 'stop'"));
    let mut tandem = Tandem::start(&stopped);
    assert_eq!(tandem.wait_code(), 1, "{}", tandem.log());
    assert!(tandem.log().contains("tandem: hooks.after_ready"), "{}", tandem.log());
    assert!(tandem::left_in(stopped.dir()).is_empty());
}

#[test]
fn a_hook_that_hangs_is_killed_at_its_limit_with_all_it_started() {
    let lines = format!("{BARE}\nhooks.after_ready = ['/bin/sh', '-c', 'sleep 1000 & sleep 1000']\nhooks.limit = '1s'");
    let project = Project::app_with("plain:app", &lines);
    let mut tandem = Tandem::up(&project);
    let sleeps = |tandem: &Tandem| tandem.descendants().iter().filter(|process| process.name == "sleep").count();
    wait_for("the hook at work", || sleeps(&tandem) == 2);
    tandem.wait_log("did not end within 1s (hooks.limit) and was killed");
    wait_for("the end of what it started", || sleeps(&tandem) == 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn the_hook_before_the_stop_finds_the_application_serving() {
    let project = Project::app_with("plain:app", BARE);
    let (out, port) = (project.dir().join("farewell"), project.app);
    let program = format!(
        "import urllib.request; body = urllib.request.urlopen('http://127.0.0.1:{port}/').read().decode(); \
         open('{}', 'w').write(body)",
        out.display()
    );
    project.configure(&format!("hooks.before_stop = ['python', '-c', \"{program}\"]"));
    // The workers' user writes here.
    fs::set_permissions(project.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(fs::read_to_string(&out).unwrap(), "ok", "{}", tandem.log());

    // One that hangs holds the stop for its limit, and a second signal does not wait for it.
    let hangs = "hooks.before_stop = ['/bin/sh', '-c', 'echo hook waits; sleep 1000']\nhooks.limit = '200s'";
    let project = Project::app_with("plain:app", &format!("{BARE}\n{hangs}"));
    let mut tandem = Tandem::up(&project);
    tandem.signal(Signal::SIGTERM);
    tandem.wait_log("hook waits");
    assert_eq!(tandem.ready(), Some(false));
    assert_eq!(tandem.get("/").unwrap().0, 200, "it still serves");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn killed_with_9_tandem_takes_companions_and_hooks_along_with_all_that_they_started() {
    let project = project(
        "hooks.after_ready = ['/bin/sh', '-c', 'sleep 1000 & sleep 1000']\n\
         [[process]]\nname = 'queue'\ncommand = ['/bin/sh', '-c', 'sleep 1000 & sleep 1000']",
    );
    let mut tandem = Tandem::up(&project);
    let sleeps = |tandem: &Tandem| tandem.descendants().iter().filter(|process| process.name == "sleep").count();
    wait_for("both at work", || sleeps(&tandem) == 4);
    let family = tandem.descendants();
    tandem.signal(Signal::SIGKILL);
    assert!(tandem.wait_exit().code().is_none());
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
}
