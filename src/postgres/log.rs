//! The lines of the server's log, read as what they are: how severe, whose, and with which SQLSTATE. Pure.
//!
//! Tandem reads the server's standard error. PostgreSQL writes its structured formats (jsonlog, csvlog) into files alone,
//! which rotate and have to be followed; so the lines begin with a [`PREFIX`] of Tandem's own instead, which a client
//! cannot imitate: inside a message every line but the first begins with a tab. An operator's own `log_line_prefix` holds,
//! and severities are then found by their words.

use std::cell::Cell;

use tracing::Level;

use super::settings::SUPERUSER;

/// `log_line_prefix`: process and SQLSTATE, then of a session the user and the database in brackets.
pub const PREFIX: &str = "[%p] %e %q(%u@%d) ";

/// The SQLSTATE of a session that was terminated (admin_shutdown), as Tandem does at a stop.
const TERMINATED: &str = "57P01";
const TERMINATED_WORDS: &str = "terminating connection due to administrator command";
/// The SQLSTATE of a session whose client has gone away (connection_failure).
const CLIENT_GONE: &str = "08006";
/// The SQLSTATE of a session that comes while the server starts or stops (cannot_connect_now).
const NOT_NOW: &str = "57P03";

/// How severe a message is, and what its further lines are (PostgreSQL's source, src/backend/utils/error/elog.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Debug,
    /// `LOG`, `INFO`, `NOTICE`.
    Log,
    Warning,
    /// A statement failed.
    Error,
    /// A session ended, or the server did not start.
    Fatal,
    /// All sessions ended.
    Panic,
    /// `DETAIL`, `HINT`, `CONTEXT`, `STATEMENT` or another line of the message before.
    Part,
}

/// The words for them. They are translated by `lc_messages`, and the SQLSTATE is not.
const WORDS: [(&str, Severity); 21] = [
    ("DEBUG", Severity::Debug),
    ("DEBUG1", Severity::Debug),
    ("DEBUG2", Severity::Debug),
    ("DEBUG3", Severity::Debug),
    ("DEBUG4", Severity::Debug),
    ("DEBUG5", Severity::Debug),
    ("LOG", Severity::Log),
    ("INFO", Severity::Log),
    ("NOTICE", Severity::Log),
    ("WARNING", Severity::Warning),
    ("ERROR", Severity::Error),
    ("FATAL", Severity::Fatal),
    ("PANIC", Severity::Panic),
    ("DETAIL", Severity::Part),
    ("HINT", Severity::Part),
    ("CONTEXT", Severity::Part),
    ("STATEMENT", Severity::Part),
    ("QUERY", Severity::Part),
    ("LOCATION", Severity::Part),
    ("BACKTRACE", Severity::Part),
    ("INTERNAL QUERY", Severity::Part),
];

/// One line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line<'a> {
    /// `None`: the line has no word that is known.
    pub severity: Option<Severity>,
    /// The word that tells it, in the server's language.
    pub word: Option<&'a str>,
    /// Known where the line begins with [`PREFIX`].
    pub pid: Option<i32>,
    pub sqlstate: Option<&'a str>,
    /// User and database of the session that wrote it; with an operator's own prefix they are not known.
    pub session: Option<(&'a str, &'a str)>,
    /// Whether a client's session wrote it.
    pub is_of_session: bool,
    /// Whether that session is the superuser's, as Tandem's own are.
    is_of_superuser: bool,
    /// What it says, behind the severity.
    pub text: &'a str,
}

impl<'a> Line<'a> {
    pub fn of(line: &'a str) -> Self {
        if line.starts_with('\t') {
            let text = line.trim_start();
            return Self { severity: Some(Severity::Part), is_of_session: true, text, ..Self::default() };
        }
        Self::with_own_prefix(line).unwrap_or_else(|| Self::with_any_prefix(line))
    }

    fn with_own_prefix(line: &'a str) -> Option<Self> {
        let (pid, sqlstate, rest) = behind_process(line)?;
        let is_of_session = rest.starts_with('(');
        // A user's or a database's name may hold anything: the severity is searched behind it.
        let from =
            if is_of_session { rest.find("@").and_then(|at| Some(at + rest[at..].find(") ")? + 2))? } else { 0 };
        let session = rest[..from].strip_prefix('(').and_then(|rest| rest.strip_suffix(") ")?.split_once('@'));
        let message = &rest[from..];
        let (word, text) = match message.split_once(":  ") {
            Some((word, text)) => (Some(word), text.trim()),
            None => (None, message),
        };
        let severity = word.and_then(severity);
        // No other user is called so: a role's name in the line may hold anything, but not begin so and be another.
        let is_of_superuser = rest
            .strip_prefix('(')
            .and_then(|rest| rest.strip_prefix(SUPERUSER))
            .is_some_and(|rest| rest.starts_with('@'));
        let (pid, sqlstate) = (Some(pid), Some(sqlstate));
        Some(Self { severity, word, pid, sqlstate, session, is_of_session, is_of_superuser, text })
    }

    /// By the two spaces behind the severity, which tell it from a word in a statement.
    fn with_any_prefix(line: &'a str) -> Self {
        let found = line.match_indices(":  ").find_map(|(end, _)| {
            let before = &line[..end];
            let begin = before.rfind(' ').map_or(0, |space| space + 1);
            Some((severity(&before[begin..])?, begin, end))
        });
        let Some((severity, begin, end)) = found else {
            return Self { text: line, ..Self::default() };
        };
        // PostgreSQL's own prefix, which holds until the configuration is read, ends with the process.
        let is_of_session = begin != 0 && !line[..begin].ends_with("] ");
        let (word, text) = (Some(&line[begin..end]), line[end + 3..].trim());
        Self { severity: Some(severity), word, is_of_session, text, ..Self::default() }
    }

    /// Whether it ends a session or the server.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, Some(Severity::Fatal | Severity::Panic))
    }

    /// Whether the postmaster says that one of its processes died, so that it ends all of them and recovers.
    pub fn ends_every_session(&self) -> bool {
        !self.is_of_session && self.text == "terminating any other active server processes"
    }

    /// The level that it has in Tandem's log; `None` for a part of the message before it.
    ///
    /// A statement of a client's that fails is the client's error, and a warning here.
    fn level(&self) -> Option<Level> {
        if self.is_farewell() {
            return Some(Level::TRACE);
        }
        Some(match self.severity {
            Some(Severity::Part) => return None,
            Some(Severity::Debug) => Level::DEBUG,
            Some(Severity::Log) => Level::INFO,
            Some(Severity::Warning) => Level::WARN,
            Some(Severity::Fatal) if self.is_termination() => Level::INFO,
            Some(Severity::Error) if self.is_of_session => Level::WARN,
            Some(Severity::Error | Severity::Fatal | Severity::Panic) => Level::ERROR,
            None => match self.sqlstate {
                None => Level::INFO,
                Some(code) => level_of(code, self.is_of_session),
            },
        })
    }

    /// Whether a session of Tandem's own was cut by its stop, or came too late for it: Tandem says itself what it breaks
    /// off, and `FATAL` frightens.
    fn is_farewell(&self) -> bool {
        let is_end = matches!(self.sqlstate, Some(TERMINATED | CLIENT_GONE | NOT_NOW));
        self.is_of_superuser && is_end && self.severity != Some(Severity::Part)
    }

    fn is_termination(&self) -> bool {
        self.sqlstate == Some(TERMINATED) || (self.sqlstate.is_none() && self.text.ends_with(TERMINATED_WORDS))
    }
}

/// The number of the process, the SQLSTATE behind it, and the rest of the line.
fn behind_process(line: &str) -> Option<(i32, &str, &str)> {
    let (process, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let (sqlstate, rest) = rest.split_at_checked(5)?;
    let is_state = sqlstate.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    let pid = process.bytes().all(|byte| byte.is_ascii_digit()).then(|| process.parse().ok())??;
    if is_state { Some((pid, sqlstate, rest.strip_prefix(' ')?)) } else { None }
}

fn severity(word: &str) -> Option<Severity> {
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, severity)| *severity)
}

/// The level of a message in a language that is not known here, by its SQLSTATE (PostgreSQL documentation, appendix A).
fn level_of(sqlstate: &str, is_of_session: bool) -> Level {
    match (sqlstate, sqlstate.get(..2).unwrap_or_default()) {
        (TERMINATED, _) | (_, "00" | "02") => Level::INFO,
        (_, "01") => Level::WARN,
        // What ends a session: who may not enter, what there is not enough of, an operator, the system, damage.
        (_, "28" | "53" | "57" | "58" | "F0" | "XX") => Level::ERROR,
        _ if is_of_session => Level::WARN,
        _ => Level::ERROR,
    }
}

/// Reads lines in the order in which the server writes them, so that what belongs to a message has its level.
#[derive(Debug)]
pub struct Reader(Cell<Level>);

impl Default for Reader {
    fn default() -> Self {
        Self(Cell::new(Level::INFO))
    }
}

impl Reader {
    /// The level of `line`. The server writes a message with all its lines in one piece.
    pub fn level(&self, line: &str) -> Level {
        let level = Line::of(line).level().unwrap_or(self.0.get());
        self.0.set(level);
        level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(text: &str) -> Vec<Level> {
        let reader = Reader::default();
        text.lines().map(|line| reader.level(line)).collect()
    }

    #[test]
    fn each_severity_has_its_level_here() {
        let table = [
            ("[7] 00000 LOG:  database system is ready", Level::INFO),
            ("[7] 00000 (a@d) LOG:  statement: SELECT 'ERROR:  no'", Level::INFO),
            ("[7] 25P01 (app@db) WARNING:  there is no transaction", Level::WARN),
            ("[7] 42P01 (app@db) ERROR:  relation \"x\" does not exist at character 15", Level::WARN),
            ("[7] 58030 ERROR:  could not write", Level::ERROR),
            ("[7] 57P03 FATAL:  the database system is starting up", Level::ERROR),
            ("[7] 57P01 (a@b) FATAL:  terminating connection due to administrator command", Level::INFO),
            (
                "[7] 57P01 (a@b) FATAL:  Verbindung wird abgebrochen aufgrund von Anweisung des Administrators",
                Level::INFO,
            ),
            // Of Tandem's own sessions: at a stop they end so.
            ("[7] 57P01 (postgres@app) FATAL:  terminating connection due to administrator command", Level::TRACE),
            ("[7] 08006 (postgres@postgres) FATAL:  connection to client lost", Level::TRACE),
            ("[7] 57P03 (postgres@postgres) FATAL:  the database system is shutting down", Level::TRACE),
            ("[7] 57P03 (app@app) FATAL:  the database system is shutting down", Level::ERROR),
            ("[7] 08006 (app@app) FATAL:  connection to client lost", Level::ERROR),
            ("[7] 57P01 (postgres2@app) FATAL:  terminating connection due to administrator command", Level::INFO),
            ("[7] 53100 (postgres@app) FATAL:  could not extend file", Level::ERROR),
            ("[7] XX000 PANIC:  could not write", Level::ERROR),
            ("[7] 00000 DEBUG2:  checkpointer", Level::DEBUG),
            // Another language: the SQLSTATE tells.
            ("[7] 42P01 (app@db) FEHLER:  Relation »x« existiert nicht", Level::WARN),
            ("[7] 53100 PANIK:  konnte nicht schreiben", Level::ERROR),
            ("[7] 28P01 (app@db) ВАЖНО:  пользователь не прошёл проверку", Level::ERROR),
            ("[7] 01000 (app@db) ATTENTION :  x", Level::WARN),
            ("[7] 00000 PROTOKOLL:  bereit", Level::INFO),
            // An operator's prefix, and PostgreSQL's own.
            ("2026-01-01 00:00:00 UTC [7] LOG:  database system is ready", Level::INFO),
            ("[7] app@db ERROR:  relation \"x\" does not exist", Level::WARN),
            ("ERROR:  x", Level::ERROR),
            ("[7] FATAL:  the database system is starting up", Level::ERROR),
            ("[7] a@b FATAL:  terminating connection due to administrator command", Level::INFO),
            ("no severity at all", Level::INFO),
            ("", Level::INFO),
        ];
        for (line, expected) in table {
            assert_eq!(Reader::default().level(line), expected, "{line}");
        }
    }

    #[test]
    fn what_belongs_to_a_message_has_its_level() {
        let text = "[7] 42601 (a@b) ERROR:  syntax error at or near \"FATAL\"\n\
                    [7] 42601 (a@b) STATEMENT:  SELECT\n\
                    \tFATAL:  of the statement's own\n\
                    [8] 00000 LOG:  checkpoint starting\n\
                    [9] 53300 FATAL:  sorry, too many clients already\n\
                    [9] 53300 HINT:  Wait.";
        let (warn, error) = (Level::WARN, Level::ERROR);
        assert_eq!(levels(text), [warn, warn, warn, Level::INFO, error, error]);
    }

    #[test]
    fn a_client_cannot_write_in_the_servers_name() {
        let forged = "[7] 28000 (LOG:  x@y) FATAL:  role \"LOG:  x\" does not exist";
        let line = Line::of(forged);
        assert!(line.is_of_session && line.severity == Some(Severity::Fatal), "{line:?}");
        let forged = Line::of("\tFATAL:  data directory \"/d\" has wrong ownership");
        assert!(forged.is_of_session && !forged.is_fatal());
        let own = Line::of("[7] 42704 LOG:  unrecognized configuration parameter \"x\"");
        assert_eq!((own.is_of_session, own.sqlstate), (false, Some("42704")));
        assert!(Line::of("[7] 00000 LOG:  terminating any other active server processes").ends_every_session());
        assert!(!Line::of("\tterminating any other active server processes").ends_every_session());
        let line = Line::of("[7] 42P01 (app@my db) ERROR:  relation \"x\" does not exist");
        assert_eq!((line.pid, line.session, line.word), (Some(7), Some(("app", "my db")), Some("ERROR")));
        assert_eq!(own.text, "unrecognized configuration parameter \"x\"");
    }
}
