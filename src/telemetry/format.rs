//! One event as text for a person.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::clean::{Colours, clean, clean_lines};
use super::record::Record;

/// Columns for a service's name; a longer one pushes its line to the right.
const SERVICE_WIDTH: usize = 9;

/// Tandem's own name among the services.
pub const OWN: &str = "tandem";

/// `HH:MM:SS.mmm  service   | message field=value`; the time is UTC, as PostgreSQL's own is.
pub(super) struct Text {
    colour: bool,
    clock: fn() -> SystemTime,
}

impl Text {
    pub(super) fn new(colour: bool) -> Self {
        Self { colour, clock: SystemTime::now }
    }

    /// `text` in the colour that `code` (SGR) stands for.
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let record = Record::of(event);
        let colours = if record.is_output() && self.colour { Colours::Keep } else { Colours::Drop };
        let text = self.said(&record, colours);
        let level = *event.metadata().level();
        let line = Shown { time: (self.clock)(), service: record.service(), level, target: record.target.as_str() };
        writer.write_str(&self.shown(&line, &text))
    }
}

/// The columns left of a line's text.
struct Shown<'a> {
    time: SystemTime,
    service: &'a str,
    level: Level,
    target: &'a str,
}

/// A line as a person reads it, from the values that `tandem logs` gets: time, service, level and text.
pub fn text_line(colour: bool, time: SystemTime, service: &str, level: &str, text: &str) -> String {
    let level = level.parse().unwrap_or(Level::INFO);
    // What had a target says it in its text.
    let text: Vec<_> = text.lines().map(|line| clean(line, Colours::Drop)).collect();
    Text::new(colour).shown(&Shown { time, service, level, target: "" }, &text.join("\n"))
}

/// An event as the ring keeps it: without colours, time and level.
pub(super) struct Said {
    /// The service that wrote the line.
    pub service: String,
    /// The service that Tandem's line is about.
    pub about: Option<String>,
    pub text: String,
}

/// `record`, of this level, as the ring keeps it.
pub(super) fn said(record: &Record, level: Level) -> Said {
    let mut text = Text::new(false).said(record, Colours::Drop);
    if !record.is_output() && level > Level::INFO {
        text.insert_str(0, &format!("{}: ", record.target));
    }
    let service = clean(record.service(), Colours::Drop).into_owned();
    Said { service, about: record.service.clone().filter(|_| !record.is_output()), text }
}

impl Text {
    /// `text` with the time and the service's name before each of its lines, and the level where it matters.
    fn shown(&self, line: &Shown<'_>, text: &str) -> String {
        let name = clean(line.service, Colours::Drop);
        let prefix = format!(
            "{}  {} {}",
            self.paint("2", &clock_time(line.time)),
            self.paint(colour_of(line.service), &format!("{name:SERVICE_WIDTH$}")),
            self.paint("2", "|"),
        );
        // A child's line says its level itself, in its own words.
        let level = match line.level {
            _ if line.service != OWN => String::new(),
            Level::ERROR => self.paint("1;31", "ERROR") + " ",
            Level::WARN => self.paint("33", "WARN") + " ",
            Level::INFO => String::new(),
            level if line.target.is_empty() => self.paint("2", level.as_str()) + " ",
            level => format!("{} {}: ", self.paint("2", level.as_str()), line.target),
        };
        let mut lines = text.lines();
        let mut shown = format!("{prefix} {level}{}\n", lines.next().unwrap_or_default());
        // A traceback in an error: each of its lines stands in the column, so that none looks like another service's.
        for line in lines {
            shown.push_str(&format!("{prefix}   {line}\n"));
        }
        shown
    }

    /// The event's message with its fields after the first line.
    fn said(&self, record: &Record, colours: Colours) -> String {
        if record.is_output() {
            return clean_lines(&record.as_written(), colours);
        }
        let mut lines = record.message.lines();
        let mut text = clean(lines.next().unwrap_or_default(), colours).into_owned();
        text.push_str(&self.fields(record));
        for line in lines {
            text.push('\n');
            text.push_str(&clean(line, colours));
        }
        text
    }

    /// The event's own fields, as ` name=value`; what the message says already is not said twice.
    fn fields(&self, record: &Record) -> String {
        let mut text = String::new();
        let is_said = |value: &Value| {
            value.as_str().is_some_and(|value| value.len() >= SAID_LENGTH_MIN && record.message.contains(value))
        };
        let shown = record.fields.iter().filter(|(_, value)| !is_said(value));
        for (name, value) in shown {
            let value = match value {
                Value::String(value) if !value.is_empty() && !value.contains([' ', '"', '=', '\n']) => {
                    clean(value, Colours::Drop).into_owned()
                }
                Value::String(value) => Value::from(clean(value, Colours::Drop)).to_string(),
                value => value.to_string(),
            };
            text.push(' ');
            text.push_str(&self.paint("2", &format!("{name}=")));
            text.push_str(&value);
        }
        text
    }
}

/// `time` as RFC 3339, UTC, milliseconds. A date before 1970 or past 9999, which `humantime` cannot write, shows as the
/// nearest that it can.
pub fn rfc3339(time: SystemTime) -> String {
    const SECONDS_MAX: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let shown = since.min(Duration::from_secs(SECONDS_MAX));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + shown).to_string()
}

/// A shorter value may stand in a message by chance.
const SAID_LENGTH_MIN: usize = 4;

/// The time of day, UTC.
fn clock_time(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let day = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", day / 3600, day / 60 % 60, day % 60, since.subsec_millis())
}

/// The colour of a service's name, the same in every run; neighbouring workers differ.
fn colour_of(service: &str) -> &'static str {
    const PALETTE: [&str; 8] = ["36", "33", "32", "35", "96", "93", "92", "95"];
    let number = match service {
        OWN => return "1",
        "postgres" => return "94",
        _ => service.rsplit('-').next().and_then(|slot| slot.parse::<usize>().ok()),
    };
    let number = number.unwrap_or_else(|| service.bytes().map(usize::from).sum());
    PALETTE[number % PALETTE.len()]
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
