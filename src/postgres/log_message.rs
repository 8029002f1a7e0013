//! The messages of the server's log, put together from their lines.
//!
//! A message is one line, with lines that begin with a tab where it has line breaks, and behind it DETAIL, HINT, STATEMENT
//! and the like as lines of their own. The server writes all of it at once, so what comes a moment later is another one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::Level;

use super::log::{Line, Reader, Severity};
use crate::telemetry::{self, ServerMessage, Stream};

/// How long a message waits for more of its lines.
const PAUSE: Duration = Duration::from_millis(20);
/// The size from which on it waits for none, in bytes: the rest of a longer statement is logged as it comes.
const SIZE_MAX: usize = 64 * 1024;

/// The SQLSTATE of a success, which is not worth a word.
const SUCCESS: &str = "00000";

/// A message whose lines are still coming.
#[derive(Debug)]
struct Open {
    stream: Stream,
    level: Level,
    message: ServerMessage,
    /// The word of the part that a line with a tab belongs to; `None`: the message itself.
    part: Option<String>,
    size: usize,
}

/// Logs the lines of a server as messages.
#[derive(Clone, Debug)]
pub struct Messages {
    service: &'static str,
    reader: Rc<Reader>,
    open: Rc<RefCell<Option<Open>>>,
    /// How many lines there have been.
    taken: Rc<Cell<u64>>,
    /// Told when a message begins.
    news: Rc<Notify>,
}

impl Messages {
    /// Of the server that is called `service` in the log.
    pub fn of(service: &'static str) -> Self {
        Self { service, reader: Rc::default(), open: Rc::default(), taken: Rc::default(), news: Rc::default() }
    }

    /// Take the next line.
    pub fn take(&self, stream: Stream, line: &str) {
        self.taken.update(|taken| taken + 1);
        let level = self.reader.level(line);
        let parsed = Line::of(line);
        let is_part = parsed.severity == Some(Severity::Part);
        {
            let mut open = self.open.borrow_mut();
            if is_part && let Some(open) = open.as_mut().filter(|open| open.stream == stream && open.size < SIZE_MAX) {
                open.add(line, &parsed);
                return;
            }
        }
        self.log();
        *self.open.borrow_mut() = Some(Open::begun(stream, level, line, &parsed));
        self.news.notify_one();
    }

    /// Log each message once no more of its lines come, for ever.
    pub async fn log_in_time(&self) -> std::convert::Infallible {
        loop {
            self.news.notified().await;
            let mut taken = 0;
            while taken != self.taken.get() {
                taken = self.taken.get();
                sleep(PAUSE).await;
            }
            self.log();
        }
    }

    /// Log what is there now: nothing more comes.
    pub fn log(&self) {
        if let Some(open) = self.open.take() {
            telemetry::server_message(open.level, self.service, open.stream, &open.message.without_passwords());
        }
    }
}

impl Open {
    fn begun(stream: Stream, level: Level, line: &str, parsed: &Line<'_>) -> Self {
        let owned = |text: &str| text.to_owned();
        let message = ServerMessage {
            text: if parsed.pid.is_some() && parsed.word.is_some() { parsed.text } else { line }.to_owned(),
            severity: parsed.word.map(owned),
            // A line without a severity is shown as it is.
            pid: parsed.pid.filter(|_| parsed.word.is_some()),
            sqlstate: parsed.sqlstate.filter(|code| *code != SUCCESS).map(owned),
            user: parsed.session.map(|(user, _)| owned(user)),
            database: parsed.session.map(|(_, database)| owned(database)),
            ..ServerMessage::default()
        };
        Self { stream, level, message, part: None, size: line.len() }
    }

    /// Add a line that belongs to the message.
    fn add(&mut self, line: &str, parsed: &Line<'_>) {
        self.size += line.len() + 1;
        match parsed.word {
            Some(word) => {
                if let Some(part) = self.message.part(word) {
                    *part = Some(parsed.text.to_owned());
                }
                self.part = Some(word.to_owned());
            }
            None => {
                let text = line.strip_prefix('\t').unwrap_or(line);
                let before = match &self.part {
                    None => Some(&mut self.message.text),
                    Some(word) => self.message.part(word).and_then(Option::as_mut),
                };
                if let Some(before) = before {
                    before.push('\n');
                    before.push_str(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message that these lines make.
    fn message(lines: &str) -> ServerMessage {
        let mut lines = lines.lines();
        let first = lines.next().unwrap();
        let mut open = Open::begun(Stream::Stderr, Level::INFO, first, &Line::of(first));
        lines.for_each(|line| open.add(line, &Line::of(line)));
        open.message.without_passwords()
    }

    #[test]
    fn what_belongs_to_a_message_is_in_it() {
        let said = message(
            "[7] 42P01 (app@shop) ERROR:  relation \"x\" does not exist at character 15\n\
             [7] 42P01 (app@shop) HINT:  Make it.\n\
             [7] 42P01 (app@shop) STATEMENT:  SELECT *\n\t  FROM x\n\tWHERE 'DETAIL:  forged' = $1",
        );
        let expected = ServerMessage {
            text: "relation \"x\" does not exist at character 15".into(),
            severity: Some("ERROR".into()),
            pid: Some(7),
            sqlstate: Some("42P01".into()),
            user: Some("app".into()),
            database: Some("shop".into()),
            hint: Some("Make it.".into()),
            statement: Some("SELECT *\n  FROM x\nWHERE 'DETAIL:  forged' = $1".into()),
            ..ServerMessage::default()
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn a_message_of_several_lines_and_one_of_a_success_and_one_with_another_prefix() {
        let said = message("[7] 00000 LOG:  one\n\ttwo");
        assert_eq!((said.text.as_str(), said.sqlstate, said.user), ("one\ntwo", None, None));
        let said = message("mine 7 ERROR:  no\nmine 7 STATEMENT:  SELECT 1");
        assert_eq!((said.text.as_str(), said.pid), ("mine 7 ERROR:  no", None));
        assert_eq!((said.severity.as_deref(), said.statement.as_deref()), (Some("ERROR"), Some("SELECT 1")));
        let said = message("no severity at all");
        assert_eq!((said.text.as_str(), said.severity), ("no severity at all", None));
    }

    #[test]
    fn passwords_in_statements_are_hidden_wherever_they_stand() {
        let said = message(
            "[7] 42704 (app@shop) ERROR:  role \"x\" does not exist\n\
             [7] 42704 (app@shop) STATEMENT:  ALTER ROLE x\n\t  PASSWORD\n\t  'hunter2'",
        );
        assert_eq!(said.statement.as_deref(), Some("ALTER ROLE x\n  PASSWORD\n  '********'"));
        let said = message("[7] 00000 (app@shop) LOG:  statement: CREATE ROLE x PASSWORD 'hunter2';");
        assert_eq!(said.text, "statement: CREATE ROLE x PASSWORD '********';");
    }
}
