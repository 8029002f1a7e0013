//! `tandem top` on a pseudo-terminal, whose screen is read as a person sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, ttyname};

use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1";
/// What a terminal over ssh has.
const SIZE: (u16, u16) = (24, 80);

fn lines(count: u16) -> NonZero<u16> {
    NonZero::new(count).unwrap()
}

/// A terminal with `tandem top` on it.
struct Screen {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    shown: Arc<Mutex<vt100::Parser>>,
    before: Termios,
}

impl Screen {
    fn open(project: &Project) -> Self {
        Self::open_with(project, SIZE, &[])
    }

    fn open_with(project: &Project, (rows, columns): (u16, u16), environment: &[(&str, &str)]) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        let terminal = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = tcgetattr(&pair.slave).unwrap();
        // A session of its own, whose terminal this is.
        let mut command = tandem::command_as("setsid", project.dir());
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_tandem"), "top"]).env("TERM", "xterm-256color");
        command.envs(environment.iter().copied());
        let child = command.stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
        let shown = Arc::new(Mutex::new(vt100::Parser::new(lines(rows), lines(columns), 0)));
        let (parser, mut output) = (Arc::clone(&shown), File::from(pair.master.try_clone().unwrap()));
        // Ends with the terminal's last user.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                parser.lock().unwrap().process(&bytes[..length]);
            }
        });
        Self { child, keys: File::from(pair.master), terminal: pair.slave, shown, before }
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().screen().contents()
    }

    fn wait(&mut self, words: &str) {
        let mut ended = None;
        wait_for(&format!("{words:?} on the screen"), || {
            ended = self.child.try_wait().unwrap();
            ended.is_some() || self.text().contains(words)
        });
        assert!(self.text().contains(words), "{words:?}: ended with {ended:?}\n{}", self.text());
    }

    /// Wait for a line of the table of services, which stands above the log that has the same words.
    fn wait_row(&self, service: &str) {
        wait_for(&format!("a line of the table for {service}"), || {
            self.text().lines().take_while(|line| !line.contains("LOG of")).any(|line| line.contains(service))
        });
    }

    fn wait_gone(&self, words: &str) {
        wait_for(&format!("a screen without {words:?}"), || !self.text().contains(words));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// As a window that is drawn larger or smaller.
    fn resize(&mut self, (rows, columns): (u16, u16)) {
        self.shown.lock().unwrap().screen_mut().set_size(lines(rows), lines(columns));
        let name = ttyname(&self.terminal).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test prepares what it tests")]
        let mut stty = Command::new("stty");
        let size = ["rows", &rows.to_string(), "columns", &columns.to_string()].map(str::to_owned);
        assert!(stty.arg("-F").arg(name).args(size).status().unwrap().success());
    }

    /// Wait for its end; the terminal is as it was before.
    fn ends(&mut self) -> i32 {
        let mut code = None;
        wait_for("the end of top", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        wait_for("the screen that there was before", || !self.shown.lock().unwrap().screen().alternate_screen());
        assert!(!self.shown.lock().unwrap().screen().hide_cursor(), "the cursor is shown");
        assert_eq!(tcgetattr(&self.terminal).unwrap(), self.before, "echo and lines are as they were");
        code.unwrap().code().unwrap_or(-1)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_shows_what_runs_and_gives_an_order_only_after_a_yes() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let worker = tandem.workers()[0];
    let mut top = Screen::open(&project);
    for words in [
        "serving",
        "SERVICE",
        "database: answers in ",
        "worker-0",
        &worker.to_string(),
        "LOG of all services",
        "is ready after",
    ] {
        top.wait(words);
    }
    top.press("?");
    top.wait("restart the selected service");
    top.press("x");
    top.wait_gone("restart the selected service");

    top.press("+");
    top.wait("one worker more? [y/N]");
    top.press("n");
    top.wait_gone("[y/N]");
    assert_eq!(tandem.workers(), [worker], "nothing was ordered");
    top.press("+");
    top.wait("[y/N]");
    top.press("y");
    top.wait_row("worker-1");
    wait_for("two workers", || tandem.workers().len() == 2);
    top.wait("done: ");

    // The last line of the table is the second worker.
    top.press("\u{1b}[B\u{1b}[B\u{1b}[B\u{1b}[B\u{1b}[BR");
    top.wait("Restart worker-1: replace its process? [y/N]");
    let (before, second) = (tandem.workers(), |workers: &[i32]| workers.iter().find(|pid| **pid != worker).copied());
    top.press("y");
    wait_for("another process", || {
        let now = tandem.workers();
        now.len() == 2 && second(&now) != second(&before)
    });
    top.wait("done: ");
    top.press("\r");
    top.wait("LOG of worker-1");
    top.press("q");
    assert_eq!(top.ends(), 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends_and_whatever_its_size() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let mut top = Screen::open(&project);
    top.wait("worker-0");
    top.resize((5, 30));
    top.wait("is too small");
    top.resize((40, 120));
    top.wait("IN FLIGHT");
    top.wait("worker-0");
    top.press("\u{3}");
    assert_eq!(top.ends(), 0, "Ctrl-C");
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut top = Screen::open(&project);
        top.wait("worker-0");
        top.signal(signal);
        assert_eq!(top.ends(), 0, "{signal}");
    }
    // In the middle of a question, with no colour anywhere.
    let mut top = Screen::open_with(&project, SIZE, &[("NO_COLOR", "1")]);
    top.wait("worker-0");
    top.press("r");
    top.wait("replace every worker? [y/N]");
    {
        let shown = top.shown.lock().unwrap();
        let cells = (0..SIZE.0).flat_map(|row| (0..SIZE.1).map(move |column| (row, column)));
        let coloured = cells
            .filter_map(|(row, column)| shown.screen().cell(row, column))
            .filter(|cell| (cell.fgcolor(), cell.bgcolor()) != (vt100::Color::Default, vt100::Color::Default));
        assert_eq!(coloured.count(), 0);
    }
    top.signal(Signal::SIGTERM);
    assert_eq!(top.ends(), 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn it_waits_for_a_tandem_that_has_ended_and_shows_the_next_one() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let mut top = Screen::open(&project);
    top.wait("worker-0");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    top.wait("waiting for a tandem, q quits: no tandem runs here");
    top.press("r");
    let mut tandem = Tandem::up(&project);
    let worker = tandem.workers()[0].to_string();
    top.wait(&worker);
    top.wait_gone("waiting for a tandem");
    assert!(!top.text().contains("[y/N]"), "nothing was there to take an order");
    top.press("q");
    assert_eq!(top.ends(), 0);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn without_a_terminal_or_a_tandem_it_says_what_to_do_instead() {
    let project = Project::app_with("plain:app", BARE);
    refusal::run(&project, &["top"]).expect(64, &["needs a terminal", "`tandem status --watch`"]);
    let mut top = Screen::open(&project);
    top.wait("no tandem runs here");
    assert_eq!(top.ends(), 1);
}
