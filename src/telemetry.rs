//! Tracing, progress on long work, and how a child's lines look.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows on a terminal that long work goes on, and logs its begin everywhere else. Ends when dropped.
pub struct Progress(ProgressBar);

/// Begin showing `message` for work that takes seconds.
pub fn progress(message: impl Into<String>) -> Progress {
    let message = message.into();
    if !std::io::stderr().is_terminal() {
        tracing::info!("{message}");
        return Progress(ProgressBar::hidden());
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress(bar)
}

impl Progress {
    /// Say what the work has come to.
    pub fn say(&self, message: impl Into<String>) {
        self.0.set_message(message.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
