//! One reason of a failure that has several, in parts that a program can read.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What is wrong, where it was written, and what to do. In JSON every member is there, and `null` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub file: Option<PathBuf>,
    pub line: Option<usize>,
    /// The variable of the environment or of a `.env` that says it.
    pub variable: Option<String>,
    /// The flag of the command line that says it.
    pub flag: Option<String>,
    /// The key of the configuration, such as `workers.count`.
    pub key: Option<String>,
    pub message: String,
    pub help: Option<String>,
}

impl Reason {
    /// A reason without a place.
    pub fn of_message(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Where to look, in words.
    pub fn place(&self) -> Option<String> {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => Some(format!("{}:{line}", file.display())),
            (Some(file), None) => Some(file.display().to_string()),
            (None, _) if self.variable.is_some() => Some("environment".to_owned()),
            (None, _) => self.flag.clone(),
        }
    }

    /// Place and message.
    pub fn sentence(&self) -> String {
        let place = self.place().map(|place| format!("{place}: ")).unwrap_or_default();
        format!("{place}{}", self.message)
    }
}

/// In one line.
impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.sentence())?;
        match &self.help {
            Some(help) => write!(formatter, " (help: {help})"),
            None => Ok(()),
        }
    }
}
