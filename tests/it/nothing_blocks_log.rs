//! Nobody has to read the log: a reader that stops reading, or is stopped, holds up neither Tandem nor its children.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::common::hang::{all_answer, answers};
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const TALKATIVE: &str = "migrations.run = 'none'\nworkers.count = 1\nworkers.access_log = true";

/// A path that makes a line of the access log long: 8 KB of it, where Uvicorn takes 64 KB.
fn long_path() -> String {
    format!("/?{}", "x".repeat(8000))
}

/// `tandem up` with standard error at a pipe that is read only while the test says so.
struct Unread {
    tandem: Tandem,
    project: Project,
    /// Dropped, what the pipe holds is read, to its end.
    held: Option<Sender<()>>,
    said: Option<JoinHandle<String>>,
}

impl Unread {
    fn up() -> Self {
        let project = Project::app_with("plain:app", TALKATIVE);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (held, release) = channel::<()>();
        let said = std::thread::spawn(move || {
            let _ = release.recv();
            let mut said = Vec::new();
            reader.read_to_end(&mut said).unwrap();
            String::from_utf8_lossy(&said).into_owned()
        });
        // Through a shell, which puts the pipe where the test's helper has its own file.
        let binary = tandem::command(&project);
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 2>&0 0</dev/null"]).arg(binary.get_program());
        command.current_dir(project.dir()).stdin(Stdio::from(writer));
        for (name, value) in binary.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut tandem = Tandem::start_as(&project, command);
        tandem.wait_ready();
        Self { tandem, project, held: Some(held), said: Some(said) }
    }

    /// Have the worker write far more than the pipe and the queue hold.
    fn flood(&self) {
        for _ in 0..400 {
            let status = self.tandem.get(&long_path()).map(|(status, _)| status);
            assert_eq!(status, Some(200), "the worker serves on");
        }
    }

    /// Everything that came through the pipe until its end.
    fn read(&mut self) -> String {
        self.held = None;
        self.said.take().unwrap().join().unwrap()
    }

    fn dropped(&self) -> u64 {
        self.tandem.health()["supervisor"]["log_lines_dropped"].as_u64().unwrap()
    }
}

#[test]
fn an_unread_log_stops_nothing_and_its_gap_is_named() {
    let mut unread = Unread::up();
    unread.flood();
    all_answer(&unread.tandem, &unread.project);
    wait_for("lines that are dropped", || unread.dropped() > 0);
    // The ring has what the pipe has not.
    let logs = tandem::run(&unread.project, &["logs", "worker-0", "-n", "3"]);
    assert!(String::from_utf8_lossy(&logs.stdout).contains("GET /?xxx"), "{logs:?}");

    let dropped = unread.dropped();
    wait_for("the number of dropped lines among the metrics", || {
        let (dropped, metrics) = (unread.dropped(), tandem::get(unread.project.health, "/metrics").unwrap().1);
        metrics.contains(&format!("tandem_log_lines_dropped_total {dropped}\n"))
    });
    unread.held = None;
    assert_eq!(unread.tandem.stop(), 0);
    let said = unread.read();
    let gaps = said.lines().filter_map(|line| line.split_once(" lines were dropped here: standard error was not read"));
    let named: u64 = gaps.map(|(before, _)| before.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    // More may be dropped until the pipe is empty.
    assert!(named >= dropped, "{named} of {dropped}");
    assert!(said.contains("stopped in"), "the last lines came through");
}

#[test]
fn a_stop_waits_for_no_reader() {
    let mut unread = Unread::up();
    unread.flood();
    answers(&unread.tandem, unread.project.health, "/live", 200);
    assert_eq!(unread.tandem.stop(), 0);
    assert!(tandem::left_in(unread.project.dir()).is_empty());
    unread.read();
}

/// A reader that is there and is stopped, as a pager in the background or a log driver that hangs.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_that_is_stopped_holds_up_no_command_that_fails() {
    let project = Project::app_with("plain:app", "workers.count = 0");
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    kill(Pid::from_raw(cat.id().cast_signed()), Signal::SIGSTOP).unwrap();
    let pipe = cat.stdin.take().unwrap();
    let _cat = Stopped(cat);
    fill(&pipe);
    let mut tandem = tandem::command(&project);
    let mut tandem = tandem
        .arg("up")
        .stdout(Stdio::null())
        .stderr(Stdio::from(File::from(std::os::fd::OwnedFd::from(pipe))))
        .spawn()
        .unwrap();
    let mut code = None;
    wait_for("the end of the command", || {
        code = tandem.try_wait().unwrap();
        code.is_some()
    });
    assert_eq!(code.unwrap().code(), Some(78), "what it could not say, its code says");
}

/// Fill `pipe`, so that the next write to it waits.
fn fill(pipe: &impl AsFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL).unwrap());
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(pipe, &[b'x'; 4096]).is_ok() {}
    fcntl(pipe, FcntlArg::F_SETFL(flags)).unwrap();
}
