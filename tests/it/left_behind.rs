//! What the processes of a run start, wherever it goes: it ends with the process that started it, and with Tandem.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::project::Project;
use crate::common::skip::skip;
use crate::common::tandem::{self, Process, Tandem, processes, still_lives, wait_for};
use crate::identity::open_project;
use crate::other_servers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ten times what it should take.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// `escape.py WORDS…`: two processes that leave everything behind by which a child is known: parent, session, process
/// group, descriptors, death signal. The parent of the one ends at once, that of the other lives on.
const ESCAPE: &str = r#"
import ctypes, os, sys, time

def escape(words, environment=None, middle_lives=(False, True)):
    for lives in middle_lives:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                libc = ctypes.CDLL(None)
                libc.prctl(1, 0)  # PR_SET_PDEATHSIG
                libc.prctl(0x59616d61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, any
                os.closerange(0, 4096)
                os.execvpe(words[0], words, os.environ if environment is None else environment)
            libc = ctypes.CDLL(None)
            libc.prctl(1, 0)
            os.closerange(0, 4096)
            while lives:
                time.sleep(1000)
            os._exit(0)

if __name__ == "__main__":
    escape(sys.argv[1:])
"#;

/// The server of a slot: escapes, and serves.
const SERVER: &str = "
import sys, uvicorn
from escape import escape
escape(sys.argv[2:])
uvicorn.run('plain:app', fd=int(sys.argv[1]), app_dir='.')
";

fn send(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// `sleep` with a number of seconds that no other test's has.
fn words(project: &Project, kind: u32) -> String {
    format!("sleep {}", 10_000_000 + u32::from(project.app) * 10 + kind)
}

/// The processes whose command is that of `kind`, or that wait for one.
fn escaped(project: &Project, kind: u32) -> Vec<Process> {
    let words = words(project, kind);
    processes().into_iter().filter(|process| process.args == words).collect()
}

/// A project whose workers, companion and hook let processes escape: kinds 0, 1 and 2. As root it starts them as others.
fn project() -> Project {
    let project = open_project("migrations.run = 'none'\nworkers.ready = '/'").without("workers.app");
    project.write("escape.py", ESCAPE);
    project.write("server.py", SERVER);
    let dir = project.dir().display().to_string();
    let of =
        |kind: u32| words(&project, kind).split(' ').map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    project.configure(&format!(
        "workers.command = ['python', '{dir}/server.py', '{{fd}}', {}]\nhooks.after_ready = ['python', '{dir}/escape.py', {}]",
        of(0),
        of(2)
    ));
    let companion = format!(
        "import sys, time; sys.path[:0] = ['{dir}']; from escape import escape; escape(sys.argv[1:]); time.sleep(1000)"
    );
    let companion = format!("\n[[process]]\nname = 'queue'\ncommand = ['python', '-c', \"{companion}\", {}]\n", of(1));
    project.reconfigure(|text| text.to_owned() + &companion);
    project
}

/// Kill Tandem where it stands, `with` others at the same moment; how long it takes until nothing is left.
fn kill_9(tandem: &mut Tandem, project: &Project, with: &[i32]) -> Duration {
    let family = tandem.descendants();
    for pid in with.iter().chain(&[tandem.pid()]) {
        send(*pid, Signal::SIGKILL);
    }
    let killed = Instant::now();
    assert!(tandem.wait_exit().code().is_none());
    let left = || {
        let escaped = (0..3).flat_map(|kind| escaped(project, kind));
        let family = family.iter().filter(|process| process.name != "postgres" && still_lives(process));
        family.cloned().chain(escaped).collect::<Vec<_>>()
    };
    while !left().is_empty() {
        assert!(killed.elapsed() < GONE_LIMIT, "left after {GONE_LIMIT:?}: {:#?}", left());
        tandem::pause();
    }
    let took = killed.elapsed();
    wait_for("the end of PostgreSQL", || !family.iter().any(still_lives));
    took
}

/// Kill Tandem several times, as `start` starts it, with processes escaped from all that it started.
fn kills(start: impl Fn(&Project) -> Tandem) {
    let project = project();
    for round in 0..4 {
        let mut tandem = start(&project);
        tandem.wait_ready();
        for kind in 0..3 {
            wait_for(&format!("what escapes, kind {kind}"), || escaped(&project, kind).len() == 2);
        }
        // In each other round the parents that live die at the same moment.
        let of_tandem = (0..3).flat_map(|kind| escaped(&project, kind));
        let middles = of_tandem.map(|process| process.parent).filter(|&parent| parent != tandem.pid());
        let middles: Vec<i32> = middles.filter(|_| round % 2 == 1).collect();
        let took = kill_9(&mut tandem, &project, &middles);
        println!("nothing left after {took:?}");
    }
}

#[test]
fn killed_with_9_tandem_leaves_nothing_of_a_command_a_companion_or_a_hook_however_far_it_went() {
    kills(Tandem::start);
}

#[test]
fn the_same_without_the_right_to_look_at_other_users_processes() {
    if !::tandem::process::identity::is_root() {
        // It has no such right, and starts nothing as another user.
        return;
    }
    kills(|project| Tandem::start_as(project, crate::fewer_rights::without_ptrace(project)));
}

#[tokio::test]
async fn killed_with_9_over_and_over_tandem_takes_hypercorns_children_along() {
    let command = "['hypercorn', '--workers', '2', '--bind', 'fd://{fd}', 'plain:app']";
    let project = other_servers::project(command, "workers.ready = '/'").await;
    for _ in 0..6 {
        let mut tandem = Tandem::up(&project);
        wait_for("hypercorn's workers", || {
            tandem.descendants().iter().filter(|one| one.args.contains("spawn_main")).count() >= 4
        });
        let held = semaphores(&tandem);
        kill_9(&mut tandem, &project, &[]);
        assert_eq!(tandem.get("/"), None, "the port is free");
        // Python's own tracker removes their names, unless it is ended before: on a busy machine it is.
        held.iter().for_each(|name| drop(fs::remove_file(name)));
    }
}

/// The names of the semaphores of Python's multiprocessing that processes below Tandem have open (sem_overview(7)).
fn semaphores(tandem: &Tandem) -> BTreeSet<PathBuf> {
    let maps = tandem.descendants().into_iter().map(|one| format!("/proc/{}/maps", one.pid));
    let maps: String = maps.filter_map(|maps| fs::read_to_string(maps).ok()).collect();
    let name = |line: &str| Some(PathBuf::from(&line[line.find("/dev/shm/sem.mp-")?..]));
    maps.lines().filter_map(name).collect()
}

#[test]
fn what_a_process_leaves_behind_ends_with_it_while_tandem_serves() {
    for lines in ["workers.preload = false", "workers.preload = true"] {
        let project = Project::app_with("plain:app", &format!("migrations.run = 'none'\nworkers.count = 2\n{lines}"));
        let script = "setsid sleep 7654321 & while [ ! -e gone ]; do sleep 0.05; done";
        project.reconfigure(|text| {
            format!("{text}\n[[process]]\nname = 'queue'\ncommand = ['/bin/sh', '-c', '{script}']\n")
        });
        let mut tandem = Tandem::up(&project);
        let spawned: i32 = tandem.get("/spawn?session=new").unwrap().1.parse().unwrap();
        let of_companion = || tandem.descendants().into_iter().find(|process| process.args == "sleep 7654321");
        wait_for("the companion's child", || of_companion().is_some());
        let worker = tandem.descendants().into_iter().find(|process| process.pid == spawned).unwrap().parent;
        send(worker, Signal::SIGKILL);
        wait_for("the end of what the worker started", || !tandem::lives(spawned));
        let first = of_companion().unwrap();
        assert_eq!(first.parent, companion(&project), "the others' are left alone");
        send(first.parent, Signal::SIGKILL);
        wait_for("the end of what the companion started", || !still_lives(&first));
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(tandem.log().contains("ended what it left behind: sleep (pid "), "{}", tandem.log());
    }
}

fn companion(project: &Project) -> i32 {
    let status = control::status(project);
    let services = status["services"].as_array().unwrap();
    let pid = services.iter().find(|service| service["name"] == "queue").unwrap()["pid"].as_i64().unwrap();
    i32::try_from(pid).unwrap()
}

#[test]
fn the_next_start_ends_what_a_run_left_whose_keeper_was_killed_too() {
    let (project, other) = (project(), project());
    let mut bystander = Tandem::up(&other);
    let escaped_of = |project: &Project| (0..3).flat_map(|kind| escaped(project, kind)).collect::<Vec<_>>();
    wait_for("what escapes from another Tandem", || escaped_of(&other).len() == 6);
    let theirs = escaped_of(&other);

    let mut tandem = Tandem::up(&project);
    wait_for("what escapes", || escaped_of(&project).len() == 6);
    let left = escaped_of(&project);
    let keeper = tandem.descendants().into_iter().find(|process| process.name == "keeper").unwrap();
    send(keeper.pid, Signal::SIGKILL);
    send(tandem.pid(), Signal::SIGKILL);
    tandem.wait_exit();
    assert!(left.iter().all(still_lives), "nothing looks for them now");
    let mut tandem = Tandem::up(&project);
    wait_for("their end", || !left.iter().any(still_lives));
    assert!(tandem.log().contains("a run of Tandem that was killed left processes behind"), "{}", tandem.log());
    assert!(theirs.iter().all(still_lives), "another Tandem's are not touched");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(escaped_of(&project).is_empty());
    assert!(theirs.iter().all(still_lives));
    assert_eq!(bystander.stop(), 0, "{}", bystander.log());
    assert!(escaped_of(&other).is_empty());
}

#[test]
fn a_keeper_that_dies_is_replaced() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let keeper = || tandem.descendants().into_iter().find(|process| process.name == "keeper");
    let first = keeper().unwrap();
    send(first.pid, Signal::SIGKILL);
    wait_for("another keeper", || keeper().is_some_and(|now| now.pid != first.pid));
    wait_for("what escapes", || escaped(&project, 2).len() == 2);
    kill_9(&mut tandem, &project, &[]);
}

/// Holds process `sys.argv[1]` as a debugger at its prompt does, until its own end.
const TRACER: &str = "
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(16, int(sys.argv[1]), None, None):  # PTRACE_ATTACH
    sys.exit(3)
print('attached', flush=True)
time.sleep(1000)
";

#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
fn what_cannot_be_ended_holds_a_stop_for_a_moment_and_is_named() {
    use std::io::BufRead;
    let project = project();
    for again in [false, true] {
        let mut tandem = Tandem::up(&project);
        wait_for("what escapes", || escaped(&project, 2).len() == 2);
        // One that fell to Tandem, and that a wait for the end of all its children would wait for.
        let held = escaped(&project, 2).into_iter().find(|process| process.parent == tandem.pid()).unwrap();
        let mut tracer = std::process::Command::new("python3")
            .args(["-c", TRACER, &held.pid.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(tracer.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "attached" {
            let _ = tracer.wait();
            return skip("this user may trace no process here");
        }
        let asked = Instant::now();
        tandem.signal(Signal::SIGTERM);
        if again {
            tandem.wait_log("that the services left behind");
            tandem.signal(Signal::SIGTERM);
        }
        assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
        assert!(asked.elapsed() < Duration::from_secs(60), "{:?}:\n{}", asked.elapsed(), tandem.log());
        let log = tandem.log();
        assert!(log.contains(&format!("sleep (pid {})", held.pid)) && log.contains("not gone") || again, "{log}");
        assert!(!again || log.contains("asked to stop again") || log.contains("not gone"), "{log}");
        let _ = tracer.kill();
        let _ = tracer.wait();
        wait_for("the end of what was held", || !still_lives(&held));
    }
}

#[test]
fn a_command_that_ended_has_ended_though_a_child_holds_its_output() {
    let lines = "workers.count = 1\nmigrations.run = ['/bin/sh', '-c', 'sleep 7654322 & exit 0']\n\
                 hooks.after_ready = ['/bin/sh', '-c', 'sleep 7654322 & echo hook ran']\n\
                 hooks.before_stop = ['/bin/sh', '-c', 'sleep 7654322 & exit 0']\nhooks.limit = '100s'\n\
                 hooks.on_failure = 'stop'";
    let project = Project::app_with("plain:app", lines);
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("hook:after_ready");
    let asked = Instant::now();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}:\n{}", asked.elapsed(), tandem.log());
    assert!(!tandem.log().contains("did not end within"), "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty(), "{}", tandem.log());
}
