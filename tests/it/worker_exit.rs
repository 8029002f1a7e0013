//! What belongs to one worker and outlives it: the hook at its end, its slot, and the processes that it started.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::common::control;
use crate::common::deployed::{self, BARE, plain};
use crate::common::project::{Project, root};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the hook has written: a line for each worker that has ended.
fn ended(project: &Project) -> BTreeSet<(String, i32)> {
    let text = fs::read_to_string(project.dir().join("ended")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(slot, pid)| Some((slot.to_owned(), pid.parse().ok()?))).collect()
}

const HOOK: &str = "hooks.worker_exit = ['sh', '-c', 'echo $TANDEM_WORKER_SLOT $TANDEM_WORKER_PID >> ended']";

/// Where another user than the tests' own runs the hook, it may write there.
fn writable(project: &Project) {
    project.write("ended", "");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(project.dir().join("ended"), everybody).unwrap();
}

#[test]
fn the_hook_runs_for_every_worker_that_has_ended_and_says_which() {
    for preload in [false, true] {
        let lines = format!("{BARE}\nworkers.count = 2\n{HOOK}\nworkers.preload = {preload}");
        let project = deployed::project(&lines, &plain("", "ok"));
        writable(&project);
        let mut tandem = Tandem::up(&project);
        wait_for("two workers", || tandem.workers().len() == 2);
        let mut all: BTreeSet<i32> = tandem.workers().into_iter().collect();
        control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
        wait_for("the hook for both", || ended(&project).len() == 2);
        let (slots, pids): (BTreeSet<_>, BTreeSet<_>) = ended(&project).into_iter().unzip();
        assert_eq!((slots, pids), (["0".to_owned(), "1".to_owned()].into(), all.clone()));
        let crashed = tandem.workers()[0];
        kill(Pid::from_raw(crashed), Signal::SIGKILL).unwrap();
        wait_for("the hook for the one that crashed", || ended(&project).iter().any(|(_, pid)| *pid == crashed));
        wait_for("two workers", || tandem.workers().len() == 2);
        all.extend(tandem.workers());
        all.insert(crashed);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        let (_, pids): (Vec<_>, BTreeSet<_>) = ended(&project).into_iter().unzip();
        assert!(all.iter().all(|pid| pids.contains(pid)), "{all:?} {pids:?}: {}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_hook_that_fails_or_hangs_is_named_and_a_stop_does_not_wait_for_it() {
    let hook = "hooks.worker_exit = ['sh', '-c', 'echo no such file; exit 3']";
    let project = deployed::project(&format!("{BARE}\nworkers.count = 1\n{hook}"), &plain("", "ok"));
    let mut tandem = Tandem::up(&project);
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    tandem.wait_log("hooks.worker_exit (`sh -c");
    assert!(tandem.log().contains("ended with exit status 3: no such file"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let hook = "hooks.worker_exit = ['sleep', '1000']";
    let project = deployed::project(&format!("{BARE}\nworkers.count = 1\n{hook}"), &plain("", "ok"));
    let mut tandem = Tandem::up(&project);
    refusal::run(&project, &["check"]).expect(0, &["hooks.worker_exit 3s"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem.log().contains("hooks.worker_exit did not end within 3s"), "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_worker_knows_its_slot_and_its_hook_and_companions_nothing_else_of_tandems() {
    for lines in
        ["", "workers.preload = true", "workers.command = ['uvicorn', '--fd', '{fd}', 'main:app']\nworkers.ready = '/'"]
    {
        let project = deployed::project(&format!("{BARE}\nworkers.count = 2\n{lines}"), &plain("", "ok"));
        let mut command = tandem::command(&project);
        command.env("TANDEM_WORKER_SLOT", "9").env("TANDEM_LOG__RING", "1MB");
        let mut tandem = Tandem::start_as(&project, command);
        tandem.wait_ready();
        let mut seen = BTreeSet::new();
        wait_for("both slots", || {
            seen.insert(tandem.get("/env?name=TANDEM_WORKER_SLOT").unwrap().1);
            seen.len() == 2
        });
        assert_eq!(seen, ["0".to_owned(), "1".to_owned()].into(), "{lines}");
        assert_eq!(tandem.get("/env?name=TANDEM_LOG__RING").unwrap().0, 404, "{lines}");
        assert_eq!(tandem.get("/env?name=TANDEM_CHECK").unwrap().0, 404, "{lines}");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

/// At its import, as a helper that an application keeps beside it.
const WITH_CHILD: &str = "import subprocess\nsubprocess.Popen(['sleep', '1234'], start_new_session=True)";

#[test]
fn processes_in_sessions_of_their_own_end_with_their_worker() {
    let project = deployed::project(&format!("{BARE}\nworkers.count = 1"), &plain(WITH_CHILD, "ok"));
    let mut tandem = Tandem::up(&project);
    let children = |tandem: &Tandem| {
        let all = tandem.descendants().into_iter().filter(|process| process.args == "sleep 1234");
        all.map(|process| process.pid).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let before = children(&tandem);
        assert_eq!(before.len(), 1);
        control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
        wait_for("its end", || !lives(before[0]));
        wait_for("the one of the new worker alone", || children(&tandem).len() == 1);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

/// As `multiprocessing` does: a process that starts no program, and so has the environment of its worker's template.
const WITH_FORK: &str = "
respond_as_before = respond
async def respond(scope, receive, send):
    if scope['path'] == '/fork':
        pid = os.fork()
        if pid == 0:
            os.setsid()
            time.sleep(1000)
            os._exit(0)
        print('forked', pid, flush=True)
    await respond_as_before(dict(scope, path='/'), receive, send)
";

#[test]
fn a_process_that_was_only_forked_ends_with_its_worker_too() {
    for preload in [false, true] {
        let lines = format!("{BARE}\nworkers.count = 2\nworkers.preload = {preload}");
        let project = deployed::project(&lines, &plain(WITH_FORK, "ok"));
        let mut tandem = Tandem::up(&project);
        let parent_of =
            |tandem: &Tandem, pid| tandem.descendants().into_iter().find(|it| it.pid == pid).unwrap().parent;
        let forked = |tandem: &Tandem| {
            let log = tandem.log();
            let pids = log.lines().filter_map(|line| line.split_once("forked ")?.1.trim().parse::<i32>().ok());
            pids.collect::<Vec<_>>()
        };
        wait_for("a child of each worker", || {
            tandem.get("/fork");
            let parents: BTreeSet<i32> = forked(&tandem).into_iter().map(|pid| parent_of(&tandem, pid)).collect();
            parents.len() == 2
        });
        let first = parent_of(&tandem, forked(&tandem)[0]);
        let (its, others): (Vec<i32>, Vec<i32>) =
            forked(&tandem).into_iter().partition(|pid| parent_of(&tandem, *pid) == first);
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        wait_for("the end of what it had forked", || its.iter().all(|pid| !lives(*pid)));
        assert!(others.iter().all(|pid| lives(*pid)), "the other worker's are left alone");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

/// As `docs/workers.md` has it for Prometheus' multiprocess mode.
#[test]
fn a_gauge_over_live_workers_stays_right_over_reloads() {
    const GAUGE: &str = "
from prometheus_client import CollectorRegistry, Gauge, generate_latest, multiprocess
gauge = Gauge('alive', 'one a worker', multiprocess_mode='livesum')
respond_as_before = respond
async def respond(scope, receive, send):
    gauge.set(1)
    if scope['path'] != '/metrics':
        return await respond_as_before(scope, receive, send)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    content = generate_latest(registry)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': content})
";
    let hook = "import os; from prometheus_client import multiprocess; \
        multiprocess.mark_process_dead(int(os.environ['TANDEM_WORKER_PID']))";
    let lines = format!("{BARE}\nworkers.count = 2\nhooks.worker_exit = ['python', '-c', \"{hook}\"]");
    let project = deployed::project(&lines, &plain(GAUGE, "ok")).without("python.venv").without("python.requirements");
    let venv = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("venv-prometheus");
    let requirements = root().join("tests/fixtures/prometheus.txt");
    let files = project.dir().join("metrics");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(&files, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    project.configure(&format!(
        "python.venv = '{}'\npython.requirements = '{}'\nworkers.env.PROMETHEUS_MULTIPROC_DIR = '{}'",
        venv.display(),
        requirements.display(),
        files.display()
    ));
    let mut tandem = Tandem::up(&project);
    for reload in 0..=5 {
        if reload > 0 {
            control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
        }
        // None while a worker's file is being made or removed.
        let value = || {
            let text = tandem.get("/metrics")?.1;
            text.lines().find_map(|line| Some(line.strip_prefix("alive ")?.to_owned()))
        };
        wait_for("one for each worker", || value().as_deref() == Some("2.0"));
    }
    let gauges = || {
        let names = fs::read_dir(&files).unwrap().map(|file| file.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("gauge_livesum_")).count()
    };
    // The hook of the last ones may still be at it.
    wait_for("the end of the files of workers that are gone", || gauges() == 2);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
