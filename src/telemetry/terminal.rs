//! Writes to standard error, and the spinners of a terminal. Both go through one queue, so that lines and spinners never
//! mix, and no caller waits for the reader.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::Level;

use super::outlet::{Outlet, QueuedLine, Sink};
use super::{Look, UnderWay, file_writer, json, look};

/// How long the end of a spinner waits until it is off the terminal: otherwise it would stand in what is printed next.
const CLEAR_LIMIT: Duration = Duration::from_millis(50);

static OUTLET: LazyLock<Outlet> = LazyLock::new(|| Outlet::to(Sink::Stderr));
static FILE_OUTLET: LazyLock<Outlet> = LazyLock::new(|| Outlet::to(Sink::File));

/// The queue before standard error.
pub(super) fn outlet() -> &'static Outlet {
    &OUTLET
}

/// The queue before `log.file`, if there is one.
pub(super) fn file_outlet() -> Option<&'static Outlet> {
    file_writer::is_set().then(|| &*FILE_OUTLET)
}

/// Write a line of JSON to `log.file`, if there is one; `line` is made only then.
pub(super) fn write_to_file(line: impl FnOnce() -> String) {
    if let Some(outlet) = file_outlet() {
        outlet.put(QueuedLine::Text((line() + "\n").into_bytes()));
    }
}

/// Whether a person reads standard error.
pub(super) fn is_terminal() -> bool {
    // Blocks: never, it is asked and not written to.
    io::stderr().is_terminal()
}

/// Write `text` in one piece. A write that fails is only counted.
pub(super) fn write(text: &[u8]) {
    outlet().put(QueuedLine::Text(text.to_vec()));
}

/// The writer of tracing's lines; each line is one call.
#[derive(Default)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Print that a thread panicked, and where. Waits until it is written, at most `limit`.
pub(super) fn panicked(info: &PanicHookInfo<'_>, limit: Duration) {
    let thread = std::thread::current();
    let text = format!("thread {} {info}", thread.name().unwrap_or("without a name"));
    // Not through tracing, which may be what panicked.
    let json = json::own_line(SystemTime::now(), Level::ERROR, &text, &[]);
    let line = match look() {
        Look::Text { .. } => format!("tandem: {text}\n"),
        Look::Json => format!("{json}\n"),
    };
    outlet().put_urgent(line.into_bytes());
    if let Some(file) = file_outlet() {
        file.put_urgent((json + "\n").into_bytes());
        file.flush(limit, false);
    }
    outlet().flush(limit, false);
}

/// The spinners on the terminal; they belong to the thread that writes standard error.
#[derive(Default)]
pub(super) struct Spinners {
    all: Option<MultiProgress>,
    turning: BTreeMap<u64, ProgressBar>,
}

impl Spinners {
    pub(super) fn are_none(&self) -> bool {
        self.turning.is_empty()
    }

    /// Do `work` with every spinner off the screen.
    pub(super) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.all {
            Some(all) if !self.are_none() => all.suspend(work),
            _ => work(),
        }
    }

    pub(super) fn turn(&mut self, number: u64, text: String) {
        let all = self.all.get_or_insert_with(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(text);
        bar.tick();
        self.turning.insert(number, bar);
    }

    pub(super) fn say(&mut self, number: u64, text: String) {
        if let Some(bar) = self.turning.get(&number) {
            bar.set_message(text);
        }
    }

    pub(super) fn end(&mut self, number: u64) {
        if let (Some(bar), Some(all)) = (self.turning.remove(&number), &self.all) {
            bar.finish_and_clear();
            all.remove(&bar);
        }
    }

    /// Turn each by one step.
    pub(super) fn tick(&self) {
        self.turning.values().for_each(ProgressBar::tick);
    }
}

/// A spinner on a terminal while long work goes on; elsewhere only its start is logged. Ends when dropped.
pub struct Progress {
    /// The number of its spinner, if there is one.
    spinner: Option<u64>,
    /// The health port shows it while Tandem boots.
    work: UnderWay,
}

/// Begin showing `message` for work that takes seconds.
pub fn progress(message: impl Into<String>) -> Progress {
    let message = message.into();
    let work = UnderWay::begin(message.clone());
    if look() == Look::Json || !is_terminal() {
        tracing::info!("{message}");
        return Progress { spinner: None, work };
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    outlet().put(QueuedLine::Turn(number, message));
    Progress { spinner: Some(number), work }
}

impl Progress {
    /// Show how far the work is.
    pub fn say(&self, message: impl Into<String>) {
        let message = message.into();
        self.work.say(message.clone());
        if let Some(number) = self.spinner {
            outlet().put(QueuedLine::Say(number, message));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(number) = self.spinner {
            outlet().put(QueuedLine::End(number));
            outlet().flush(CLEAR_LIMIT, false);
        }
    }
}
