//! Debuggers, and what else a person meets who looks at a worker closely: its lines, its descriptors.

use std::fs;
use std::net::TcpStream;
use std::process::Output;
use std::thread::JoinHandle;

use crate::common::control;
use crate::common::project::{Project, root};
use crate::common::refusal::said;
use crate::common::tandem::{self, LIMIT, Tandem, command_as, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\n";
const TANDEM: &str = env!("CARGO_BIN_EXE_tandem");

/// An application whose `/` does `body`, which sets `answer`.
fn source(body: &str) -> String {
    format!(
        "import os, sys\nasync def app(scope, receive, send):\n    if scope['type'] != 'http': return\n    answer = 0\n    \
         if scope['path'] == '/':\n        {body}\n    \
         if scope['path'] == '/end':\n        print('done with', 'it', flush=True)\n    \
         await send({{'type': 'http.response.start', 'status': 200, 'headers': []}})\n    \
         await send({{'type': 'http.response.body', 'body': str(answer).encode()}})\n"
    )
}

fn project(body: &str, more: &str) -> Project {
    let project = Project::app_with("main:app", &format!("{BARE}{more}"));
    project.reconfigure(|text| {
        let lines = text.lines().map(|line| match line.starts_with("workers.app_dir") {
            true => "workers.app_dir = '.'\n".to_owned(),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
    project.write("main.py", &source(body));
    project
}

/// Run `command` on a terminal, and type the second of each pair when the first has been shown.
fn typed(project: &Project, turns: &[(&str, &str)], command: &[&str]) -> JoinHandle<Output> {
    let mut typist = command_as("python3", project.dir());
    typist.arg(root().join("tests/fixtures/typist.py")).arg(serde_json::to_string(turns).unwrap()).args(command);
    std::thread::spawn(move || typist.output().unwrap())
}

/// What the application answers, however long a person keeps it.
fn ask(project: &Project, path: &str) -> String {
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build());
    let mut answer = agent.get(format!("http://127.0.0.1:{}{path}", project.app)).call().unwrap();
    answer.body_mut().read_to_string().unwrap()
}

#[test]
fn a_breakpoint_gets_the_terminal_and_gives_it_back() {
    for (how, value) in [("breakpoint()", 42), ("import pdb; pdb.set_trace()", 43)] {
        // In the middle of it a Ctrl-C is the debugger's; afterwards it is Tandem's again.
        let project = project(&format!("answer = 1; {how}\n        answer += 1"), "");
        let set = format!("answer = {}\r", value - 1);
        let turns = [
            // Between the prompt and the wait for a key Python only notes a signal, until the next key.
            ("(Pdb) ", "\u{3}\r"),
            ("(Pdb) ", "p 'typ' + 'ed'\r"),
            ("typed", ""),
            ("(Pdb) ", &set[..]),
            ("(Pdb) ", "c\r"),
            ("done with it", "\u{3}"),
        ];
        let run = typed(&project, &turns, &[TANDEM, "up", "--reload", "--log-format", "text"]);
        wait_for("the application", || tandem::get(project.health, "/ready").is_some_and(|(status, _)| status == 200));
        assert_eq!(ask(&project, "/"), value.to_string());
        let worker = control::status(&project)["services"].as_array().unwrap().iter().any(|it| it["restarts"] == 1);
        assert!(!worker, "the debugger's Ctrl-C ended the worker");
        assert_eq!(ask(&project, "/end"), "0");
        said(run.join().unwrap()).expect(0, &["typed", "done with it"]);
    }
}

#[test]
fn a_breakpoint_in_a_thread_and_one_at_import_get_the_terminal_too() {
    let project = project("import asyncio; answer = await asyncio.to_thread(look)", "");
    let app = fs::read_to_string(project.dir().join("main.py")).unwrap();
    let early =
        format!("import time\nVALUE = 1\nbreakpoint()\n\ndef look():\n    breakpoint()\n    return VALUE\n\n{app}");
    project.write("main.py", &early);
    let turns = [("(Pdb) ", "VALUE = 5\r"), ("(Pdb) ", "c\r"), ("(Pdb) ", "c\r"), ("done with it", "\u{3}")];
    let run = typed(&project, &turns, &[TANDEM, "up", "--reload", "--log-format", "text"]);
    wait_for("the application", || tandem::get(project.health, "/ready").is_some_and(|(status, _)| status == 200));
    assert_eq!(ask(&project, "/"), "5");
    assert_eq!(ask(&project, "/end"), "0");
    said(run.join().unwrap()).expect(0, &["done with it"]);
}

#[test]
fn a_breakpoint_without_a_terminal_is_passed_over_with_a_word() {
    let project = project("answer = 7; breakpoint()", "");
    let mut tandem =
        Tandem::start_with(&project, tandem::command(&project), &["up", "--reload", "--log-format", "text"]);
    tandem.wait_ready();
    assert_eq!((ask(&project, "/"), ask(&project, "/")), ("7".into(), "7".into()));
    tandem.wait_log("main.py:6 is passed over: it works under `tandem up --reload --workers 1` on a terminal");
    assert_eq!(tandem.log().matches("is passed over").count(), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn an_editor_attaches_through_debugpy_or_is_told_what_is_missing() {
    let project = project("answer = os.getpid()", "");
    let up = ["up", "--attach-debugger", "--log-format", "text"];
    let mut tandem = Tandem::start_with(&project, tandem::command(&project), &up);
    assert_eq!(tandem.wait_code(), 78, "{}", tandem.log());
    let log = tandem.log();
    assert!(log.contains("--attach-debugger needs debugpy") && log.contains("-m pip install debugpy"), "{log}");
    let mut tandem = Tandem::start_with(&project, tandem::command(&project), &[&up[..], &["--workers", "2"]].concat());
    assert_eq!(tandem.wait_code(), 64, "{}", tandem.log());

    // One that listens as debugpy does.
    project.write(
        "tools/debugpy/__init__.py",
        "import socket\ndef listen(address):\n    global held\n    held = socket.socket()\n    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n    held.bind(address)\n    held.listen()\n",
    );
    let port = crate::common::ports::free_port();
    let mut command = tandem::command(&project);
    command.env("PYTHONPATH", project.dir().join("tools"));
    let port_text = port.to_string();
    let up = ["up", "--reload", "--attach-debugger", &port_text, "--log-format", "text"];
    let mut tandem = Tandem::start_with(&project, command, &up);
    tandem.wait_ready();
    let attached = format!("a debugger can attach at 127.0.0.1:{port}");
    tandem.wait_log(&attached);
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    // The next worker gets the port when the one before it has ended.
    let first = ask(&project, "/");
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    wait_for("the next worker's debugger", || tandem.log().matches(&attached).count() == 2);
    assert_ne!(ask(&project, "/"), first);
    drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn long_lines_keep_their_characters_and_unfinished_ones_are_shown() {
    let body = "sys.stdout.write('\u{65e5}' * 30_000 + '\\n' + 'Password: '); sys.stdout.flush()";
    let project = project(body, "");
    let mut tandem = Tandem::up(&project);
    assert_eq!(ask(&project, "/"), "0");
    tandem.wait_log("Password: ");
    let log = tandem.log();
    assert!(log.matches('\u{65e5}').count() == 30_000 && !log.contains('\u{fffd}'));
    assert_eq!(tandem.stop(), 0);
}

/// The limit of open files of the process `pid`: soft and hard.
fn open_files(pid: i32) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn tandem_and_its_workers_may_open_many_files_and_other_children_what_was_given() {
    let project = project("answer = 1", "hooks.after_ready = ['/bin/sh', '-c', 'echo hook has $(ulimit -n)']\n");
    let mut command = command_as("sh", project.dir());
    command.args(["-c", "ulimit -Sn 512; ulimit -Hn 4096; exec \"$@\"", "sh", TANDEM]);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert_eq!(open_files(tandem.pid()), (4096, 4096));
    assert_eq!(open_files(tandem.workers()[0]), (4096, 4096));
    assert_eq!(open_files(tandem.postmaster(&project)), (512, 4096));
    tandem.wait_log("hook has 512");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn who_has_no_files_left_to_open_is_named() {
    // The worker.
    let greedy = "answer = len([globals().setdefault('held', []).append(open('/dev/null')) for _ in range(400)])";
    let project = project(greedy, "");
    let mut command = command_as("sh", project.dir());
    command.args(["-c", "ulimit -n 256; exec \"$@\"", "sh", TANDEM]);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let _ = tandem.get("/");
    tandem.wait_log("worker-0 itself has as many files open as it may");

    // Tandem: whatever its clients do, the database is not to blame.
    let pid = tandem.pid().to_string();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = format!("--nofile={open}:256");
    assert!(command_as("prlimit", project.dir()).args(["--pid", &pid, &limit]).status().unwrap().success());
    let clients: Vec<_> = (0..10).map(|_| TcpStream::connect(("127.0.0.1", project.health)).unwrap()).collect();
    tandem.wait_log(&format!("Tandem itself has all {open} files open that it may"));
    assert!(!tandem.log().contains("readiness is withdrawn"), "{}", tandem.log());
    drop(clients);
    let back = "--nofile=256:256";
    assert!(command_as("prlimit", project.dir()).args(["--pid", &pid, back]).status().unwrap().success());
    wait_for("the health port", || tandem.ready() == Some(true));
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
