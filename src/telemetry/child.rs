//! A child's line as a tracing event.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tracing::Level;

use super::clean::{Colours, clean};
use crate::config::libraries;

/// The target of children's lines; a filter such as `output=warn` applies to them alone.
pub(super) const TARGET: &str = "output";

/// How Python shows EMFILE, which says that the process which got it has run out of descriptors.
const NO_DESCRIPTORS: &str = "[Errno 24] Too many open files";

/// Which of a child's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Log `line`, which `service` wrote, at the level that [`level`] finds in it.
pub fn child_line(service: &str, stream: Stream, line: &str) {
    child_line_at(level(line), service, stream, line);
}

/// Log `line`, which `service` wrote, at `level`.
pub fn child_line_at(level: Level, service: &str, stream: Stream, line: &str) {
    let stream = stream.name();
    // A tracing call site has one level, so there is one per level.
    macro_rules! emit {
        ($level:expr) => {
            tracing::event!(target: TARGET, $level, service.name = service, output.stream = stream, "{line}")
        };
    }
    match level {
        Level::ERROR => emit!(Level::ERROR),
        Level::WARN => emit!(Level::WARN),
        Level::INFO => emit!(Level::INFO),
        Level::DEBUG => emit!(Level::DEBUG),
        Level::TRACE => emit!(Level::TRACE),
    }
    if let Some(hint) = libraries::hint(line) {
        tracing::warn!({ service.name = service }, "{hint}");
    }
    if line.contains(NO_DESCRIPTORS) && is_first_of(service) {
        tracing::warn!(
            { service.name = service },
            "{service} itself has as many files open as it may: too many clients for one process, or connections and files \
             that it opens and never closes (`ls -l /proc/PID/fd`)"
        );
    }
}

/// Whether `service` is said to have run out of descriptors for the first time.
fn is_first_of(service: &str) -> bool {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(service.to_owned())
}

/// The level that `line` names, or `INFO`: Python's `logging` and Uvicorn begin with theirs. PostgreSQL's lines are read in
/// `postgres::log`.
fn level(line: &str) -> Level {
    let line = clean(line, Colours::Drop);
    match line.trim_start_matches(['[', ' ']).split([':', ' ', ']']).next() {
        Some("ERROR" | "FATAL" | "CRITICAL") => Level::ERROR,
        Some("WARNING" | "WARN") => Level::WARN,
        Some("DEBUG") => Level::DEBUG,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_what_the_line_says() {
        let table = [
            ("INFO:     Started server process [1]", Level::INFO),
            ("\x1b[31mERROR\x1b[0m:    Exception in ASGI application", Level::ERROR),
            ("WARNING:root:low", Level::WARN),
            ("[CRITICAL] out", Level::ERROR),
            ("DEBUG:asyncio:Using selector", Level::DEBUG),
            ("the word ERROR: in the middle", Level::INFO),
            ("ERRORS are not ERROR", Level::INFO),
            ("", Level::INFO),
        ];
        for (line, expected) in table {
            assert_eq!(level(line), expected, "{line}");
        }
    }
}
