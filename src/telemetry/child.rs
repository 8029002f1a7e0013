//! A child's line as a tracing event.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tracing::Level;

use super::clean::{Colours, clean};
use crate::config::libraries;
use crate::scrub;

/// The target of children's lines; a filter such as `output=warn` applies to them alone.
pub(super) const TARGET: &str = "output";

/// The field with a line that is an object of JSON, as the child wrote it.
pub(super) const OBJECT: &str = "output.fields";

/// The fields of PostgreSQL's messages.
pub(super) mod postgres {
    /// What all of them begin with.
    pub const ALL: &str = "postgres.";
    pub const PID: &str = "postgres.pid";
    pub const SEVERITY: &str = "postgres.severity";
    pub const SQLSTATE: &str = "postgres.sqlstate";
    pub const USER: &str = "postgres.user";
    pub const DATABASE: &str = "postgres.database";
    /// What belongs to a message, in the order in which PostgreSQL writes it: its word, and our field.
    pub const PARTS: [(&str, &str); 7] = [
        ("DETAIL", "postgres.detail"),
        ("HINT", "postgres.hint"),
        ("QUERY", "postgres.query"),
        ("CONTEXT", "postgres.context"),
        ("LOCATION", "postgres.location"),
        ("BACKTRACE", "postgres.backtrace"),
        ("STATEMENT", "postgres.statement"),
    ];
}

/// A message of PostgreSQL's, with all that belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerMessage {
    /// What it says behind the severity; with an operator's own prefix the whole line.
    pub text: String,
    /// Such as `ERROR`, in the server's language.
    pub severity: Option<String>,
    /// The process that wrote it, where the line has Tandem's prefix.
    pub pid: Option<i32>,
    /// `None` for a success.
    pub sqlstate: Option<String>,
    pub user: Option<String>,
    pub database: Option<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub query: Option<String>,
    pub context: Option<String>,
    pub location: Option<String>,
    pub backtrace: Option<String>,
    pub statement: Option<String>,
}

impl ServerMessage {
    /// What belongs to the message under this word, such as `HINT`, in English.
    pub fn part(&mut self, word: &str) -> Option<&mut Option<String>> {
        Some(match word {
            "DETAIL" => &mut self.detail,
            "HINT" => &mut self.hint,
            "QUERY" | "INTERNAL QUERY" => &mut self.query,
            "CONTEXT" => &mut self.context,
            "LOCATION" => &mut self.location,
            "BACKTRACE" => &mut self.backtrace,
            "STATEMENT" => &mut self.statement,
            _ => return None,
        })
    }

    /// The same without the passwords of its statements.
    #[must_use]
    pub fn without_passwords(mut self) -> Self {
        let hide = |text: &mut String| *text = scrub::without_passwords(text).into_owned();
        hide(&mut self.text);
        for (word, _) in postgres::PARTS {
            if let Some(Some(text)) = self.part(word) {
                hide(text);
            }
        }
        self
    }
}

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

/// Log `line`, which `service` wrote, at the level that it names. A line that is an object of JSON keeps its fields in the
/// JSON log.
pub fn child_line(service: &str, stream: Stream, line: &str) {
    let object = Object::of(line);
    let level = object.as_ref().map_or_else(|| level(line), Object::level);
    let message = object.as_ref().and_then(Object::message).unwrap_or(line);
    let stream = stream.name();
    // A tracing call site has one level, so there is one per level.
    macro_rules! emit {
        ($level:expr) => {
            match object {
                Some(_) => tracing::event!(target: TARGET, $level, service.name = service, output.stream = stream,
                    output.fields = line, "{message}"),
                None => tracing::event!(target: TARGET, $level, service.name = service, output.stream = stream, "{line}"),
            }
        };
    }
    match level {
        Level::ERROR => emit!(Level::ERROR),
        Level::WARN => emit!(Level::WARN),
        Level::INFO => emit!(Level::INFO),
        Level::DEBUG => emit!(Level::DEBUG),
        Level::TRACE => emit!(Level::TRACE),
    }
    tell_of(service, line);
}

/// Log a message that PostgreSQL, the service `service`, wrote.
pub fn server_message(level: Level, service: &str, stream: Stream, message: &ServerMessage) {
    let stream = stream.name();
    let ServerMessage { text, severity, pid, sqlstate, user, database, .. } = message;
    let ServerMessage { detail, hint, query, context, location, backtrace, statement, .. } = message;
    macro_rules! emit {
        ($level:expr) => {
            tracing::event!(
                target: TARGET,
                $level,
                service.name = service,
                output.stream = stream,
                postgres.pid = pid.as_ref(),
                postgres.severity = severity.as_deref(),
                postgres.sqlstate = sqlstate.as_deref(),
                postgres.user = user.as_deref(),
                postgres.database = database.as_deref(),
                postgres.detail = detail.as_deref(),
                postgres.hint = hint.as_deref(),
                postgres.query = query.as_deref(),
                postgres.context = context.as_deref(),
                postgres.location = location.as_deref(),
                postgres.backtrace = backtrace.as_deref(),
                postgres.statement = statement.as_deref(),
                "{text}"
            )
        };
    }
    match level {
        Level::ERROR => emit!(Level::ERROR),
        Level::WARN => emit!(Level::WARN),
        Level::INFO => emit!(Level::INFO),
        Level::DEBUG => emit!(Level::DEBUG),
        Level::TRACE => emit!(Level::TRACE),
    }
    tell_of(service, text);
}

/// Say what can be done about what `service` wrote, where that is known.
fn tell_of(service: &str, line: &str) {
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

/// An object of JSON on one line, as loggers write it.
struct Object(serde_json::Map<String, Value>);

/// The names under which loggers write what they say: python-json-logger, structlog, loguru, Elastic Common Schema, Google
/// Cloud.
const LEVEL_NAMES: [&str; 5] = ["level", "severity", "levelname", "log.level", "lvl"];
const MESSAGE_NAMES: [&str; 4] = ["message", "msg", "event", "text"];

impl Object {
    /// The object that `line` is, if it is one.
    fn of(line: &str) -> Option<Self> {
        let line = line.trim();
        if !line.starts_with('{') || !line.ends_with('}') {
            return None;
        }
        serde_json::from_str(line).ok().map(Self)
    }

    fn level(&self) -> Level {
        let word = self.first(&LEVEL_NAMES).unwrap_or_default().to_ascii_uppercase();
        match word.as_str() {
            "FATAL" | "CRITICAL" | "ERROR" | "ERR" | "ALERT" | "EMERGENCY" => Level::ERROR,
            "WARNING" | "WARN" => Level::WARN,
            "DEBUG" => Level::DEBUG,
            "TRACE" => Level::TRACE,
            _ => Level::INFO,
        }
    }

    fn message(&self) -> Option<&str> {
        self.first(&MESSAGE_NAMES)
    }

    /// The first text under one of `names`.
    fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.0.get(*name)?.as_str())
    }
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
    fn an_object_says_its_level_and_its_message_by_the_names_of_many_loggers() {
        let table = [
            (r#"{"level": "error", "message": "no"}"#, Level::ERROR, Some("no")),
            (r#"{"levelname": "WARNING", "msg": "careful"}"#, Level::WARN, Some("careful")),
            (r#"{"event": "began", "log.level": "debug"}"#, Level::DEBUG, Some("began")),
            (r#"{"level": "info", "severity": "ERROR", "event": "e", "message": "m"}"#, Level::INFO, Some("m")),
            (r#"{"severity": 30, "message": {"a": 1}}"#, Level::INFO, None),
            ("{}", Level::INFO, None),
        ];
        for (line, level, message) in table {
            let object = Object::of(line).unwrap();
            assert_eq!((object.level(), object.message()), (level, message), "{line}");
        }
        for none in ["{", "{'a': 1}", "[{}]", "{} {}", "text", ""] {
            assert!(Object::of(none).is_none(), "{none}");
        }
    }

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
