//! A running Tandem is asked and ordered: the control socket and its commands.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::project::Project;
use crate::common::refusal::{Refusal, run, said};
use crate::common::tandem::{self, Tandem, lives, still_lives, wait_for};
use ::tandem::postgres::home::Home;
use ::tandem::process::identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2";

fn project() -> Project {
    Project::app_with("plain:app", BARE)
}

/// A command that must succeed, and what it printed.
fn ask(project: &Project, args: &[&str]) -> String {
    let Refusal { code, said } = run(project, args);
    assert_eq!(code, 0, "{args:?}: {said}");
    said
}

fn status(project: &Project) -> Value {
    serde_json::from_str(&ask(project, &["status", "--json"])).unwrap()
}

/// A command that goes on, with what it prints in a file.
fn begin(project: &Project, args: &[&str]) -> (Child, PathBuf) {
    let path = project.dir().join(format!("said-{}.log", rand::random::<u32>()));
    let file = File::create(&path).unwrap();
    let child = tandem::command(project).args(args).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    (child, path)
}

/// As another user, connect to the socket at `path` and ask for the status; what came of it, in Python's words.
fn ask_as_nobody(path: &Path) -> String {
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.settimeout(30)\n\
        try:\n\
        \x20   s.connect(sys.argv[1])\n\
        \x20   s.sendall(b'GET /status HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')\n\
        \x20   print('got', s.recv(100))\n\
        except OSError as error:\n\
        \x20   print(type(error).__name__)\n";
    #[expect(clippy::disallowed_methods, reason = "a test plays another user")]
    let mut python = Command::new("/usr/bin/python3");
    let output = python.args(["-c", script]).arg(path).current_dir("/").uid(65_534).gid(65_534).output().unwrap();
    let Refusal { code, said } = said(output);
    assert_eq!(code, 0, "{said}");
    said.trim().to_owned()
}

#[test]
fn status_shows_every_process_its_restarts_and_its_memory() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let victim = tandem.workers()[1];
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    wait_for("another worker", || {
        let now = tandem.workers();
        now.len() == 2 && !now.contains(&victim)
    });
    tandem.get("/");

    let all = status(&project);
    assert_eq!((&all["phase"], &all["pid"]), (&Value::from("serving"), &Value::from(tandem.pid())), "{all:#}");
    let services = all["services"].as_array().unwrap();
    let column = |key: &str| services.iter().map(|service| service[key].clone()).collect::<Vec<_>>();
    assert_eq!(column("name"), ["postgres", "worker-0", "worker-1"]);
    assert_eq!(column("kind"), ["postgres", "worker", "worker"]);
    assert_eq!(column("restarts"), [0, 0, 1]);
    assert_eq!(services[2]["last_reason"], "SIGKILL", "{all:#}");
    assert_eq!(services[0]["pid"], tandem.postmaster(&project));
    for service in services {
        assert_eq!((&service["state"], &service["role"]), (&"ready".into(), &"standing".into()), "{service:#}");
        assert!(service["memory_bytes"].as_u64().unwrap() > 1_000_000, "{service:#}");
        assert!(service["uptime_seconds"].as_f64().unwrap() >= 0.0, "{service:#}");
    }
    wait_for("the request's count", || {
        let all = status(&project);
        let answered = all["services"].as_array().unwrap().iter().filter_map(|service| service["requests"].as_u64());
        answered.sum::<u64>() == 1
    });

    let table = ask(&project, &["status"]);
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].starts_with("SERVICE ") && rows[0].ends_with("MEMORY"), "{table}");
    for (row, words) in rows[1..].iter().zip(["tandem", "postgres", "worker-0", "worker-1", "total"]) {
        assert!(row.contains(words) && row.ends_with(" MB"), "{table}");
    }
    assert!(rows[4].contains("1 (SIGKILL)"), "{table}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn the_control_socket_is_closed_to_every_other_user() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let path = project.state().join("run/control.sock");
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    if identity::is_root() {
        assert_eq!(ask_as_nobody(&path), "PermissionError", "by the kernel");
        // Where somebody opened the file, Tandem itself still asks the kernel who comes.
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let refused = ask_as_nobody(&path);
        assert!(refused == "got b''" || refused.starts_with("Connection") || refused == "BrokenPipeError", "{refused}");
        tandem.wait_log("refused user id 65534 on the control socket");
        status(&project);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!path.exists());
}

#[test]
fn the_socket_of_a_killed_tandem_is_recognised_by_commands_and_by_the_next_start() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    tandem.signal(Signal::SIGKILL);
    tandem.wait_exit();
    assert!(project.state().join("run/control.sock").exists(), "SIGKILL lets nobody tidy up");
    run(&project, &["status"]).expect(1, &["no tandem runs here", "was killed", "`tandem up`"]);

    let mut tandem = Tandem::up(&project);
    assert_eq!(status(&project)["pid"], tandem.pid());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn commands_without_a_running_tandem_say_so() {
    let project = project();
    for args in [&["status"][..], &["status", "--watch"], &["reload"], &["scale", "2"], &["stop"], &["logs", "-f"]] {
        run(&project, args).expect(1, &["no tandem runs here", "control.sock", "`tandem up`"]);
    }
    run(&project, &["scale", "many"]).expect(64, &["\"many\" is no number of workers"]);
    assert!(!project.state().exists(), "asking made something");
}

#[test]
fn stop_ends_when_nothing_is_left_and_the_next_start_may_follow() {
    let project = project();
    for _ in 0..2 {
        let mut tandem = Tandem::up(&project);
        let family = tandem.descendants();
        assert_eq!(ask(&project, &["stop"]), "stopped\n");
        assert!(!family.iter().any(still_lives), "{}", tandem.log());
        assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
        assert!(tandem.log().contains("database system is shut down"), "{}", tandem.log());
        assert!(tandem::left_in(project.dir()).is_empty());
    }
}

#[test]
fn a_second_stop_waits_for_nobody_and_both_come_to_their_end() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nstop.grace = '1h'"));
    let mut tandem = Tandem::up(&project);
    let app = project.app;
    let request = std::thread::spawn(move || tandem::get(app, "/slow?seconds=3600"));
    tandem.wait_log("began /slow");
    let (mut first, _) = begin(&project, &["stop"]);
    tandem.wait_log("stopping: ");
    assert!(first.try_wait().unwrap().is_none(), "it waits for the request");
    // Each skips one wait of the ladder.
    wait_for("the end", || run(&project, &["stop"]).code == 1 || !lives(tandem.pid()));
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    request.join().unwrap();
}

#[test]
fn logs_shows_who_was_asked_for_and_follows() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let (mut follow, followed) = begin(&project, &["logs", "-f", "-n", "0"]);
    wait_for("the follower's connection", || {
        // What comes before it is there is not new.
        tandem.get("/slow?seconds=0");
        fs::read_to_string(&followed).unwrap().contains("began /slow")
    });

    let postgres = ask(&project, &["logs", "postgres", "-n", "1000"]);
    assert!(postgres.contains("database system is ready to accept connections"), "{postgres}");
    assert!(postgres.lines().all(|line| line.contains(" postgres  | ")), "{postgres}");
    let all = ask(&project, &["logs", "-n", "1000"]);
    assert!(all.contains("Application startup complete") && all.contains("began /slow"), "{all}");
    assert!(all.contains(" tandem    | ") && all.contains("is ready after"), "{all}");
    assert_eq!(ask(&project, &["logs", "-n", "2"]).lines().count(), 2);

    // What Tandem says about a service is among that service's lines.
    kill(Pid::from_raw(tandem.workers()[0]), Signal::SIGKILL).unwrap();
    wait_for("Tandem's word on its end", || {
        let log = ask(&project, &["logs", "worker-0", "--json"]);
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut warnings = lines.filter(|line| line["level"] == "WARN" && line["service"] == "tandem");
        warnings.any(|line| line["text"].as_str().unwrap().contains("ended: SIGKILL; restart"))
    });

    let refused = run(&project, &["logs", "worker-9"]);
    refused.expect(64, &["no service \"worker-9\"", "tandem, postgres, worker-0, worker-1"]);

    // A reader that has seen enough is no failure.
    let mut piped = tandem::command(&project);
    let mut piped = piped.args(["logs", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(piped.stdout.take());
    wait_for("the end of a reader that is not read", || {
        tandem.get("/slow?seconds=0");
        piped.try_wait().unwrap().is_some()
    });
    assert_eq!(piped.wait().unwrap().code(), Some(0));

    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(follow.wait().unwrap().code(), Some(0));
    let said = fs::read_to_string(followed).unwrap();
    assert!(said.contains("stopped in ") && said.ends_with("tandem has ended\n"), "to the last line:\n{said}");
}

#[test]
fn a_broken_configuration_keeps_nobody_from_stopping_what_runs() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    project.configure("workers.cuont = 3");
    run(&project, &["stop"]).expect(0, &["the configuration has mistakes", "stopped"]);
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    run(&project, &["stop"]).expect(78, &["workers.cuont"]);
}

#[test]
fn a_state_directory_with_a_long_path_has_its_socket_elsewhere() {
    let project = project();
    let state = "d".repeat(100);
    project.configure(&format!("state_dir = '{state}'"));
    let mut tandem = Tandem::up(&project);
    assert_eq!(status(&project)["pid"], tandem.pid());
    let server = ["postgres", "nobody"].iter().find_map(|name| identity::lookup(name)).filter(|_| identity::is_root());
    let home = Home::at(&project.dir().join(state), server);
    let elsewhere = home.control.parent().unwrap();
    assert!(elsewhere.starts_with("/tmp") && !home.run.join("control.sock").exists(), "{}", elsewhere.display());
    assert_eq!(elsewhere.metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(ask(&project, &["stop"]), "stopped\n");
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    fs::remove_dir(elsewhere).unwrap();
    fs::remove_dir(home.socket_dir).unwrap();
}
