//! What travels over the control socket, as JSON. Pure data.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::exit::{Code, Failure};
use crate::http::Unfinished;

/// What is asked of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again and replace every worker, new before old.
    Reload,
    /// Install what the requirements say now, migrate, and replace every worker; or say only what would be done.
    Deploy { dry_run: bool },
    /// Replace the processes of one service.
    Restart { service: String },
    /// Have more workers, or fewer.
    Scale(ScaleTo),
    /// Give the application's role another password.
    RotatePassword,
    /// Stop everything. A second one skips the waits.
    Stop,
}

/// How many workers there should be; on the wire `{"to": 4}` or `{"by": -1}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ScaleTo {
    /// This many.
    To(u32),
    /// So many more, or fewer.
    By(i32),
}

/// The body of a deployment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    pub dry_run: bool,
}

/// The body of a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    pub service: String,
}

/// The body of an audit: what a person does beside Tandem, with rights that nothing limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Who does what, in a sentence for the log.
    pub what: String,
}

/// An order on its way to the supervisor.
#[derive(Debug)]
pub struct Ask {
    pub order: Order,
    /// Dropped, it tells the asker that Tandem ended first. The asker may have gone away, which is no error.
    pub answer: oneshot::Sender<Answer>,
}

/// The outcome of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The exit code of the command that asked: 0 for done.
    pub code: u8,
    /// What was done, or why it was not, as a person reads it; one entry may have several lines, such as a traceback.
    pub words: Vec<String>,
    /// How long what was ordered may take from here, where it goes on after the answer: the stop does.
    #[serde(default)]
    pub limit_ms: Option<u64>,
}

impl Answer {
    /// The order was carried out.
    pub fn done(words: Vec<String>) -> Self {
        Self { code: Code::Stopped as u8, words, limit_ms: None }
    }

    /// The order is being carried out, which may take `limit`.
    pub fn begun(words: Vec<String>, limit: Duration) -> Self {
        Self { limit_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)), ..Self::done(words) }
    }

    /// The order was refused, or failed.
    pub fn failed(code: Code, why: impl Into<String>) -> Self {
        Self { code: code as u8, words: vec![why.into()], limit_ms: None }
    }

    pub fn is_done(&self) -> bool {
        self.code == Code::Stopped as u8
    }

    /// The words of what was done.
    ///
    /// # Errors
    /// A [`Failure`] with the answer's code and words when it was not.
    pub fn into_result(self) -> Result<Vec<String>, Failure> {
        if self.is_done() {
            return Ok(self.words);
        }
        Err(Failure::new(Code::of_number(self.code), self.words.join("\n")))
    }
}

/// `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Tandem's own process, and its memory (PSS) in bytes.
    pub pid: u32,
    pub memory_bytes: Option<u64>,
    pub phase: String,
    pub uptime_seconds: f64,
    /// What the roll does that is under way, if one is.
    pub roll: Option<String>,
    /// What a Tandem that does not serve yet waits for.
    #[serde(default)]
    pub under_way: Vec<String>,
    /// Why `hooks.after_ready` last failed.
    #[serde(default)]
    pub hook: Option<String>,
    /// The state of the backups, in words; `None` where there are none and none are scheduled.
    #[serde(default)]
    pub backups: Option<String>,
    /// How long the certificates that are served hold.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    pub services: Vec<ServiceStatus>,
    /// The memory of all processes, Tandem included.
    pub memory_total_bytes: u64,
}

/// A certificate that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// What shows it: `workers` or `postgres`.
    pub of: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    /// Whole days, less than zero where it has ended.
    pub days_left: i64,
}

/// One process, or a service that has none at the moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    /// `postgres`, `template`, `worker` or `process`.
    pub kind: String,
    pub pid: Option<i32>,
    pub state: String,
    pub state_seconds: f64,
    /// `standing`, `replacement` or `retiring`.
    pub role: String,
    /// Of the process.
    pub uptime_seconds: Option<f64>,
    pub restarts: u32,
    pub last_reason: Option<String>,
    pub requests: Option<u64>,
    pub connections: Option<u64>,
    pub in_flight: Option<u64>,
    /// What a worker that accepts no more has still to finish.
    #[serde(default)]
    pub unfinished: Option<Unfinished>,
    /// Of the process and all below it (PSS, shared pages by their share; RSS where that cannot be read).
    pub memory_bytes: Option<u64>,
}

/// One line of `GET /logs`, which answers with one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogEntry {
    Line {
        /// Counts up by one with every line that Tandem logs; a line of a file has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
        /// RFC 3339, UTC.
        time: String,
        service: String,
        level: String,
        text: String,
    },
    /// How many lines were dropped before they could be sent.
    Skipped { skipped: u64 },
}

/// Which lines `GET /logs` should bring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only those of this service, and Tandem's own about it.
    pub service: Option<String>,
    /// At most so many of the lines that are there already.
    pub lines: Option<usize>,
    /// Whether new lines follow as they come.
    pub follow: bool,
}

impl LogQuery {
    /// As the path and query of a request.
    pub fn to_uri(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new("/logs?".to_owned());
        query = url::form_urlencoded::Serializer::for_suffix(query.finish(), "/logs?".len());
        if let Some(service) = &self.service {
            query.append_pair("service", service);
        }
        if let Some(lines) = self.lines {
            query.append_pair("lines", &lines.to_string());
        }
        if self.follow {
            query.append_pair("follow", "1");
        }
        query.finish()
    }

    /// From a request's query.
    ///
    /// # Errors
    /// What is unknown or cannot be understood in it, for a person.
    pub fn of_query(query: &str) -> Result<Self, String> {
        let mut found = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "service" => found.service = Some(value.into_owned()),
                "lines" => found.lines = Some(value.parse().map_err(|_| format!("lines={value} is no number"))?),
                "follow" => found.follow = !matches!(&*value, "" | "0" | "false"),
                other => return Err(format!("{other:?} is none of service, lines, follow")),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_survives_its_way_through_a_uri() {
        for query in [
            LogQuery::default(),
            LogQuery { service: Some("a b&c=ü".into()), lines: Some(7), follow: true },
            LogQuery { service: None, lines: Some(0), follow: false },
        ] {
            let uri = query.to_uri();
            let (path, rest) = uri.split_once('?').unwrap();
            assert_eq!((path, LogQuery::of_query(rest)), ("/logs", Ok(query)));
        }
        assert!(LogQuery::of_query("lines=many").unwrap_err().contains("many"));
        assert!(LogQuery::of_query("tail=5").unwrap_err().contains("service, lines, follow"));
    }

    #[test]
    fn a_scale_is_absolute_or_relative_and_never_both() {
        let json = |to| serde_json::to_string(&to).unwrap();
        assert_eq!((json(ScaleTo::To(4)), json(ScaleTo::By(-1))), (r#"{"to":4}"#.into(), r#"{"by":-1}"#.into()));
        for wrong in [r#"{}"#, r#"{"to":4,"by":1}"#, r#"{"to":-1}"#, r#"{"of":4}"#] {
            assert!(serde_json::from_str::<ScaleTo>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_keeps_its_exit_code() {
        assert_eq!(Answer::done(vec!["4 workers".into()]).into_result().unwrap(), ["4 workers"]);
        let failure = Answer::failed(Code::Config, "no\nline 3").into_result().unwrap_err();
        assert_eq!((failure.code, failure.to_string().as_str()), (Code::Config, "no\nline 3"));
    }

    #[test]
    fn a_line_and_a_gap_are_told_apart() {
        let gap = r#"{"skipped":3}"#;
        assert_eq!(serde_json::from_str::<LogEntry>(gap).unwrap(), LogEntry::Skipped { skipped: 3 });
        let line = LogEntry::Line {
            sequence: Some(1),
            time: "t".into(),
            service: "worker-0".into(),
            level: "INFO".into(),
            text: "hello".into(),
        };
        assert_eq!(serde_json::from_str::<LogEntry>(&serde_json::to_string(&line).unwrap()).unwrap(), line);
    }
}
