//! The terminal of `tandem top`: taken as a whole, and given back as it was, however the command ends.

use std::io::{self, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Whether the terminal is taken: it is given back once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is taken.
pub struct Taken {
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Taken {
    /// Take the terminal: no echo, every key at once, a screen of its own.
    ///
    /// # Errors
    /// It is no terminal, or is gone.
    pub fn take() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // First, so that what is said of the panic is read.
            give_back();
            before(info);
        }));
        TAKEN.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing back.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::tcgetattr;

    use super::*;

    const ON_A_TERMINAL: &str = "TANDEM_TEST_ON_A_TERMINAL";

    /// In a process of its own, on a terminal of its own: this very test, which panics there.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        #[expect(clippy::disallowed_methods, reason = "a test asks which of its two processes it is")]
        let is_there = std::env::var_os(ON_A_TERMINAL).is_some();
        if is_there {
            let _taken = Taken::take().unwrap();
            panic!("told");
        }
        let pair = openpty(None, None).unwrap();
        let terminal = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = tcgetattr(&pair.slave).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(std::env::current_exe().unwrap()).args([
            "--exact",
            "commands::top::terminal::tests::a_panic_gives_the_terminal_back_before_it_is_told",
            "--nocapture",
        ]);
        let mut child =
            command.env(ON_A_TERMINAL, "1").stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
        let mut output = File::from(pair.master);
        let reading = std::thread::spawn(move || {
            let mut shown = Vec::new();
            // Ends with an error when nobody has the terminal any more.
            let _ = output.read_to_end(&mut shown);
            String::from_utf8_lossy(&shown).into_owned()
        });
        assert!(!child.wait().unwrap().success());
        assert_eq!(tcgetattr(&pair.slave).unwrap(), before, "echo and lines are as they were");
        drop((command, pair.slave));
        let shown = reading.join().unwrap();
        let at = |what: &str| shown.find(what).unwrap_or_else(|| panic!("{what:?} is not in {shown:?}"));
        assert!(at("\u{1b}[?1049h") < at("\u{1b}[?1049l") && at("\u{1b}[?1049l") < at("told"), "{shown:?}");
    }
}
