//! Standard error: the one place that writes to it, so that lines and a spinner never tear each other.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Look, look};

/// Every spinner on the terminal; holding them still is what keeps lines whole.
static SPINNERS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// How many spinners turn; while none does, lines need not ask.
static TURNING: AtomicUsize = AtomicUsize::new(0);

/// Whether a person reads standard error.
pub(super) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Write `text` in one piece. A reader that went away is no reason to fail: there is nowhere left to say so.
pub(super) fn write(text: &[u8]) {
    let write = || {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text).and_then(|()| stderr.flush());
    };
    if TURNING.load(Ordering::Relaxed) > 0 { SPINNERS.suspend(write) } else { write() }
}

/// Where tracing writes its lines: each comes as one call.
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

/// Shows on a terminal that long work goes on, and logs its begin everywhere else. Ends when dropped.
pub struct Progress(Option<ProgressBar>);

/// Begin showing `message` for work that takes seconds.
pub fn progress(message: impl Into<String>) -> Progress {
    let message = message.into();
    if look() == Look::Json || !is_terminal() {
        tracing::info!("{message}");
        return Progress(None);
    }
    let bar = SPINNERS.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    TURNING.fetch_add(1, Ordering::Relaxed);
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress(Some(bar))
}

impl Progress {
    /// Say what the work has come to.
    pub fn say(&self, message: impl Into<String>) {
        if let Some(bar) = &self.0 {
            bar.set_message(message.into());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
            SPINNERS.remove(bar);
            TURNING.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
