//! What signals mean where there is a terminal: its end, and its driver's own.

use std::process::Command;

use crate::common::project::{Project, root};
use crate::common::tandem::{self, Tandem, lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1";

/// A Tandem on a terminal of its own; what the test holds is the other end.
struct OnTerminal {
    terminal: Tandem,
    tandem: i32,
}

impl OnTerminal {
    fn up(project: &Project, mode: &str, before: &[&str]) -> Self {
        let plain = tandem::command(project);
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new("python3");
        command.arg(root().join("tests/fixtures/terminal.py")).arg(mode).args(before).arg(plain.get_program());
        command.current_dir(project.dir());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut terminal = Tandem::start_as(project, command);
        terminal.wait_ready();
        let found = terminal.descendants().into_iter().find(|process| process.name == "tandem");
        let tandem = found.unwrap_or_else(|| panic!("no tandem:\n{}", terminal.log())).pid;
        Self { terminal, tandem }
    }

    /// Send Tandem a signal, as another process does.
    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.tandem), signal).unwrap();
    }

    fn count(&self, text: &str) -> usize {
        self.terminal.log().matches(text).count()
    }

    /// End it in an orderly way.
    fn stop(mut self) {
        self.send(Signal::SIGTERM);
        assert_eq!(self.terminal.wait_code(), 0, "{}", self.terminal.log());
        assert!(!lives(self.tandem));
    }
}

#[test]
fn a_hangup_is_a_reload_until_the_terminal_is_gone() {
    let project = Project::app_with("plain:app", BARE);
    let mut on = OnTerminal::up(&project, "foreground", &[]);
    on.send(Signal::SIGHUP);
    on.terminal.wait_log("SIGHUP: reload");
    assert_eq!(on.terminal.ready(), Some(true));
    on.terminal.signal(Signal::SIGUSR1);
    assert_eq!(on.terminal.wait_code(), 0, "{}", on.terminal.log());
    assert!(!lives(on.tandem));
}

#[test]
fn nohup_holds_when_the_terminal_goes() {
    let project = Project::app_with("plain:app", BARE);
    // Standard output is a terminal no more after the hangup: with nohup(1) it is a file.
    let out = project.dir().join("nohup.log");
    let script = format!("exec nohup \"$0\" \"$@\" > '{}' 2>&1", out.display());
    let on = OnTerminal::up(&project, "foreground", &["/bin/sh", "-c", &script]);
    let said = |text: &str| std::fs::read_to_string(&out).unwrap().contains(text);
    on.terminal.signal(Signal::SIGUSR1);
    wait_for("the hangup", || said("the terminal is gone; SIGHUP was ignored"));
    on.send(Signal::SIGHUP);
    wait_for("the reload", || said("SIGHUP: reload"));
    assert_eq!(on.terminal.ready(), Some(true));
    on.stop();
}

#[test]
fn only_processes_scale_and_a_background_job_goes_on_writing() {
    let project = Project::app_with("plain:app", BARE);
    // Ready at all: with `tostop` its first line would have stopped it.
    let mut on = OnTerminal::up(&project, "background", &[]);
    on.terminal.signal(Signal::SIGUSR2);
    let neighbour = || on.terminal.descendants().iter().filter(|process| process.name.starts_with("python")).count();
    // The launcher's worker is one more.
    wait_for("the neighbour to be sent SIGTTIN", || neighbour() <= 2);
    on.send(Signal::SIGHUP);
    on.terminal.wait_log("SIGHUP: reload");
    assert_eq!(on.count("SIGTTIN"), 0, "{}", on.terminal.log());
    on.send(Signal::SIGTTIN);
    on.terminal.wait_log("SIGTTIN: one worker more");
    on.send(Signal::SIGTTOU);
    on.terminal.wait_log("SIGTTOU: one worker less");
    on.stop();
}
