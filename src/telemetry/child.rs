//! A child's line as a tracing event.

use tracing::Level;

use super::clean::{Colours, clean};
use crate::config::libraries;

/// The target of children's lines; a filter such as `output=warn` applies to them alone.
pub(super) const TARGET: &str = "output";

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

/// Log `line`, which `service` wrote, at the level that it seems to have.
pub fn child_line(service: &str, stream: Stream, line: &str) {
    let stream = stream.name();
    // A tracing call site has one level, so there is one per level.
    macro_rules! emit {
        ($level:expr) => {
            tracing::event!(target: TARGET, $level, service.name = service, output.stream = stream, "{line}")
        };
    }
    match level(service, line) {
        Level::ERROR => emit!(Level::ERROR),
        Level::WARN => emit!(Level::WARN),
        Level::INFO => emit!(Level::INFO),
        Level::DEBUG | Level::TRACE => emit!(Level::DEBUG),
    }
    if let Some(hint) = libraries::hint(line) {
        tracing::warn!({ service.name = service }, "{hint}");
    }
}

/// The level that `line` names, or `INFO`. PostgreSQL's severity follows its `log_line_prefix`, so it may stand
/// anywhere; Python's `logging` and Uvicorn begin with theirs.
fn level(service: &str, line: &str) -> Level {
    let line = clean(line, Colours::Drop);
    let severity = if service.starts_with("postgres") {
        // `LOG:  text`: the two spaces tell a severity from a word in a statement.
        line.split_once(":  ").and_then(|(before, _)| before.rsplit(' ').next())
    } else {
        line.trim_start_matches(['[', ' ']).split([':', ' ', ']']).next()
    };
    match severity {
        // Somebody's wish, and at a stop Tandem's own: the sessions that it ends are told so by the server.
        Some("FATAL") if line.ends_with("terminating connection due to administrator command") => Level::INFO,
        Some("ERROR" | "FATAL" | "PANIC" | "CRITICAL") => Level::ERROR,
        Some("WARNING" | "WARN") => Level::WARN,
        Some("DEBUG" | "DEBUG1" | "DEBUG2" | "DEBUG3" | "DEBUG4" | "DEBUG5") => Level::DEBUG,
        _ => Level::INFO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_what_the_line_says() {
        let table = [
            ("postgres", "2026-01-01 00:00:00 UTC [7] LOG:  database system is ready", Level::INFO),
            ("postgres", "LOG:  statement: SELECT 'ERROR:  no'", Level::INFO),
            ("postgres", "[7] app@db WARNING:  there is no transaction", Level::WARN),
            ("postgres", "ERROR:  relation \"x\" does not exist at character 15", Level::ERROR),
            ("postgres", "[7] FATAL:  the database system is starting up", Level::ERROR),
            ("postgres", "[7] a@b FATAL:  terminating connection due to administrator command", Level::INFO),
            ("postgres", "PANIC:  could not write", Level::ERROR),
            ("postgres", "DEBUG2:  checkpointer", Level::DEBUG),
            ("postgres", "HINT:  Is another postmaster running?", Level::INFO),
            ("postgres", "no severity at all", Level::INFO),
            ("worker-0", "INFO:     Started server process [1]", Level::INFO),
            ("worker-0", "\x1b[31mERROR\x1b[0m:    Exception in ASGI application", Level::ERROR),
            ("worker-0", "WARNING:root:low", Level::WARN),
            ("worker-0", "[CRITICAL] out", Level::ERROR),
            ("worker-0", "DEBUG:asyncio:Using selector", Level::DEBUG),
            ("worker-0", "the word ERROR: in the middle", Level::INFO),
            ("worker-0", "ERRORS are not ERROR", Level::INFO),
            ("worker-0", "", Level::INFO),
        ];
        for (service, line, expected) in table {
            assert_eq!(level(service, line), expected, "{service}: {line}");
        }
    }
}
