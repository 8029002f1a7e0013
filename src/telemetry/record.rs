//! One event as its fields, without secrets.

use std::borrow::Cow;
use std::fmt::Debug;

use serde_json::Value;
use tracing::Event;
use tracing::field::{Field, Visit};

use super::child::{OBJECT, TARGET, postgres};
use super::format::OWN;
use crate::scrub::scrubbed;

/// The fields of an event.
pub(super) struct Record {
    pub target: String,
    pub message: String,
    /// The field `service.name`.
    pub service: Option<String>,
    pub fields: Vec<(Cow<'static, str>, Value)>,
}

impl Record {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let target = event.metadata().target().to_owned();
        let mut record = Self { target, message: String::new(), service: None, fields: Vec::new() };
        event.record(&mut record);
        record
    }

    /// Whether a child wrote it.
    pub(super) fn is_output(&self) -> bool {
        self.target == TARGET
    }

    /// The service whose name the line gets: a line of Tandem's about a service is Tandem's.
    pub(super) fn service(&self) -> &str {
        if self.is_output() { self.service.as_deref().unwrap_or("?") } else { OWN }
    }

    /// The text of a field.
    fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).and_then(|(_, value)| value.as_str())
    }

    /// A child's line as the child wrote it: an object of JSON as it came, PostgreSQL's messages with their prefix and their
    /// parts.
    pub(super) fn as_written(&self) -> Cow<'_, str> {
        if let Some(object) = self.text(OBJECT) {
            return object.into();
        }
        let Some(severity) = self.text(postgres::SEVERITY) else { return self.message.as_str().into() };
        let mut text = String::new();
        // Without one the message has the operator's own prefix, and the severity in it.
        if let Some((_, pid)) = self.fields.iter().find(|(name, _)| name == postgres::PID) {
            text.push_str(&format!("[{pid}] "));
            if let Some(sqlstate) = self.text(postgres::SQLSTATE) {
                text.push_str(&format!("{sqlstate} "));
            }
            if let (Some(user), Some(database)) = (self.text(postgres::USER), self.text(postgres::DATABASE)) {
                text.push_str(&format!("({user}@{database}) "));
            }
            text.push_str(&format!("{severity}:  "));
        }
        text.push_str(&self.message);
        for (word, name) in postgres::PARTS {
            if let Some(part) = self.text(name) {
                text.push_str(&format!("\n{word}:  {part}"));
            }
        }
        text.into()
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
                self.fields.push((name.into(), value));
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
