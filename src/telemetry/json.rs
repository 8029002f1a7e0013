//! One event as an object of JSON on one line, and back. [`super::FIELDS`] lists what can stand in it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::SystemTime;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::child::{OBJECT, postgres};
use super::clean::{Colours, clean, clean_json, clean_lines};
use super::format::{OWN, rfc3339, said};
use super::record::Record;

/// The field with the rows of the banner.
const BANNER: &str = "banner";

/// One object per line, fields beside `timestamp`, `level`, `target`, `service.name` and `message`.
pub(super) struct Json {
    pub(super) clock: fn() -> SystemTime,
}

impl Json {
    pub(super) fn new() -> Self {
        Self { clock: SystemTime::now }
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        writeln!(writer, "{}", line(&Record::of(event), *event.metadata().level(), (self.clock)()))
    }
}

/// `record` as a line, without its end.
pub(super) fn line(record: &Record, level: Level, time: SystemTime) -> String {
    let service = clean(record.service.as_deref().unwrap_or(OWN), Colours::Drop);
    let mut line = frame(time, level, &record.target, &service, &record.message);
    let mut taken = BTreeSet::from(["timestamp", "level", "target", "service.name", "message"]);
    for (name, value) in &record.fields {
        if !taken.insert(name) {
            continue;
        }
        match value {
            Value::String(object) if name == OBJECT => push(&mut line, name, &raw(object)),
            Value::String(text) if name.starts_with(postgres::ALL) => {
                push(&mut line, name, &Value::from(clean_lines(text, Colours::Drop)));
            }
            Value::String(text) => push(&mut line, name, &Value::from(clean(text, Colours::Drop))),
            value => push(&mut line, name, value),
        }
    }
    line.push('}');
    line
}

/// A line of Tandem's own that does not go through tracing, without its end.
pub(super) fn own_line(time: SystemTime, level: Level, message: &str, more: &[(&str, Value)]) -> String {
    let mut line = frame(time, level, OWN, OWN, message);
    for (name, value) in more {
        push(&mut line, name, value);
    }
    line.push('}');
    line
}

/// What every line has, in the order in which a person looks for it; the object is still open.
fn frame(time: SystemTime, level: Level, target: &str, service: &str, message: &str) -> String {
    let mut line = format!("{{\"timestamp\":{}", Value::from(rfc3339(time)));
    push(&mut line, "level", &Value::from(level.as_str()));
    push(&mut line, "target", &Value::from(target));
    push(&mut line, "service.name", &Value::from(service));
    // Line breaks of Tandem's own messages stay: JSON carries them safely.
    push(&mut line, "message", &Value::from(clean_lines(message, Colours::Drop)));
    line
}

fn push(line: &mut String, name: &str, value: &impl fmt::Display) {
    line.push_str(&format!(",{}:{value}", Value::from(name)));
}

/// A child's object as it came. Where a secret was taken out of it, it may be none any more.
fn raw(object: &str) -> Cow<'_, str> {
    match serde_json::from_str::<&RawValue>(object) {
        Ok(_) => clean_json(object),
        Err(_) => Value::from(object).to_string().into(),
    }
}

/// A line as it was read from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLine {
    pub time: SystemTime,
    pub level: Level,
    /// The service that wrote it.
    pub service: String,
    /// The service that Tandem's line is about.
    pub about: Option<String>,
    pub text: String,
}

/// Read a line that [`line()`] or [`own_line`] has written; `None`: it is none.
pub fn file_line(line: &str) -> Option<FileLine> {
    let Members(members) = serde_json::from_str(line).ok()?;
    let text = |name: &str| {
        let (_, value) = members.iter().find(|(known, _)| known == name)?;
        serde_json::from_str::<String>(value.get()).ok()
    };
    let time = humantime::parse_rfc3339(&text("timestamp")?).ok()?;
    let level: Level = text("level")?.parse().ok()?;
    let mut record = Record {
        target: text("target")?,
        message: text("message")?,
        service: text("service.name").filter(|service| service != OWN),
        fields: Vec::new(),
    };
    for (name, value) in &members {
        match name.as_str() {
            "timestamp" | "level" | "target" | "message" => {}
            BANNER => {
                let rows: serde_json::Map<String, Value> = serde_json::from_str(value.get()).unwrap_or_default();
                for (name, value) in rows {
                    record.message.push_str(&format!("\n{name}: {}", value.as_str().unwrap_or_default()));
                }
            }
            "service.name" if record.service.is_none() => {}
            OBJECT => record.fields.push((OBJECT.into(), value.get().into())),
            _ => record.fields.push((name.clone().into(), serde_json::from_str(value.get()).ok()?)),
        }
    }
    let said = said(&record, level);
    Some(FileLine { time, level, service: said.service, about: said.about, text: said.text })
}

/// The members of an object in their order, each as it stands there.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_as_the_ring_would_have_it() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_790_000_000_007);
        let record = Record {
            target: "tandem::x".into(),
            message: "it ended\nTraceback".into(),
            service: Some("worker-0".into()),
            fields: vec![
                ("service.name".into(), "worker-0".into()),
                ("process.pid".into(), 7.into()),
                ("path".into(), "/a b".into()),
            ],
        };
        let read = file_line(&line(&record, Level::WARN, now)).unwrap();
        let said = said(&record, Level::WARN);
        assert_eq!((read.time, read.level, &read.service, &read.about), (now, Level::WARN, &said.service, &said.about));
        assert_eq!(read.text, said.text);
        assert!(
            read.text.starts_with("it ended service.name=worker-0 process.pid=7 path=\"/a b\"\nTraceback"),
            "{read:?}"
        );

        let own =
            file_line(&own_line(now, Level::INFO, "ready", &[(BANNER, serde_json::json!({"app": "x"}))])).unwrap();
        assert_eq!((own.service.as_str(), own.about, own.text.as_str()), (OWN, None, "ready\napp: x"));
        for none in
            ["", "{", "[]", "{}", "{\"timestamp\":1}", "plain text", "{\"timestamp\":\"2026-09-21T14:13:20.007Z\"}"]
        {
            assert_eq!(file_line(none), None, "{none}");
        }
    }
}
