//! One event as one line: text for a person, JSON for a machine.

use std::fmt::{self, Debug};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::child::TARGET;
use super::clean::{Colours, clean};
use crate::scrub::scrubbed;

/// Columns for a service's name; a longer one pushes its line to the right.
const SERVICE_WIDTH: usize = 9;

/// Tandem's own name among the services.
pub const OWN: &str = "tandem";

/// `HH:MM:SS.mmm  service   | message field=value`; the time is UTC, as PostgreSQL's own is.
pub(super) struct Text {
    colour: bool,
    clock: fn() -> SystemTime,
}

/// One object per line, fields beside `timestamp`, `level`, `target`, `service.name` and `message`.
pub(super) struct Json {
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

impl Json {
    pub(super) fn new() -> Self {
        Self { clock: SystemTime::now }
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

/// `event` as the ring keeps it.
pub(super) fn said(event: &Event<'_>) -> Said {
    let record = Record::of(event);
    let mut text = Text::new(false).said(&record, Colours::Drop);
    if !record.is_output() && *event.metadata().level() > Level::INFO {
        text.insert_str(0, &format!("{}: ", record.target));
    }
    let service = clean(record.service(), Colours::Drop).into_owned();
    Said { service, about: record.service.filter(|_| record.target != TARGET), text }
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
        let mut lines = record.message.lines();
        let mut text = clean(lines.next().unwrap_or_default(), colours).into_owned();
        text.push_str(&self.fields(record));
        for line in lines {
            text.push('\n');
            text.push_str(&clean(line, colours));
        }
        text
    }

    /// The event's own fields, as ` name=value`; those of a child's line are for machines, and what the message says already
    /// is not said twice.
    fn fields(&self, record: &Record) -> String {
        let mut text = String::new();
        let is_said = |value: &Value| {
            value.as_str().is_some_and(|value| value.len() >= SAID_LENGTH_MIN && record.message.contains(value))
        };
        let shown = record.fields.iter().filter(|(_, value)| !record.is_output() && !is_said(value));
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

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let record = Record::of(event);
        // Line breaks of Tandem's own messages stay: JSON carries them safely.
        let lines: Vec<_> = record.message.lines().map(|line| clean(line, Colours::Drop)).collect();
        let mut members: Vec<(&str, Value)> = vec![
            ("timestamp", rfc3339((self.clock)()).into()),
            ("level", event.metadata().level().as_str().into()),
            ("target", record.target.as_str().into()),
            ("service.name", clean(record.service.as_deref().unwrap_or(OWN), Colours::Drop).into()),
            ("message", lines.join("\n").into()),
        ];
        for (name, value) in &record.fields {
            let taken = members.iter().any(|(member, _)| member == name);
            if *name != "service.name" && !taken {
                let value = match value {
                    Value::String(text) => clean(text, Colours::Drop).into(),
                    value => value.clone(),
                };
                members.push((name, value));
            }
        }
        writeln!(writer, "{}", object(&members))
    }
}

/// A JSON object with its members in the order given, so that a person finds the time first.
pub(super) fn object(members: &[(&str, Value)]) -> String {
    let members: Vec<String> = members.iter().map(|(name, value)| format!("{}:{value}", Value::from(*name))).collect();
    format!("{{{}}}", members.join(","))
}

/// `time` as RFC 3339, UTC, milliseconds. A date before 1970 or past 9999, which `humantime` cannot write, shows as the
/// nearest that it can.
pub fn rfc3339(time: SystemTime) -> String {
    const SECONDS_MAX: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let shown = since.min(Duration::from_secs(SECONDS_MAX));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + shown).to_string()
}

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

/// A shorter value may stand in a message by chance.
const SAID_LENGTH_MIN: usize = 4;

/// The fields of an event.
struct Record {
    target: String,
    message: String,
    /// The field `service.name`.
    service: Option<String>,
    fields: Vec<(&'static str, Value)>,
}

impl Record {
    fn of(event: &Event<'_>) -> Self {
        let target = event.metadata().target().to_owned();
        let mut record = Self { target, message: String::new(), service: None, fields: Vec::new() };
        event.record(&mut record);
        record
    }

    /// Whether a child wrote it.
    fn is_output(&self) -> bool {
        self.target == TARGET
    }

    /// The service whose name the line gets: a line of Tandem's about a service is Tandem's.
    fn service(&self) -> &str {
        if self.is_output() { self.service.as_deref().unwrap_or("?") } else { OWN }
    }

    fn keep(&mut self, field: &Field, value: Value) {
        let value = match value {
            Value::String(text) => scrubbed(&text).into_owned().into(),
            value => value,
        };
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // Crates that use `log` instead of `tracing` bring their target as a field.
            ("log.target", Value::String(text)) => self.target = text,
            ("log.module_path" | "log.file" | "log.line", _) => {}
            (name, value) => {
                if name == "service.name" {
                    self.service = value.as_str().map(str::to_owned);
                }
                self.fields.push((name, value));
            }
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.keep(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, value.into());
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        self.keep(field, text.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
