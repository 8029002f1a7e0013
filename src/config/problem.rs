//! The problems of a configuration. They are collected until all of it was read, and then reported together.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::exit::{Code, Failure, Reason};
use crate::project::Seen;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// A line of the configuration file or of a `.env`; `name` is the variable there.
    Line {
        file: PathBuf,
        line: usize,
        name: Option<String>,
    },
    /// The process environment's variable of this name.
    Environment(String),
    /// The flag of this name.
    Flag(String),
    /// Nobody wrote it: a file of the project says it.
    Found(Seen),
}

impl Origin {
    /// What the value is called at its origin: the variable's name, or else `key` itself.
    pub fn name_of<'a>(&'a self, key: &'a str) -> &'a str {
        match self {
            Self::Line { name: Some(name), .. } | Self::Environment(name) => name,
            Self::Default | Self::Line { name: None, .. } | Self::Flag(_) | Self::Found(_) => key,
        }
    }

    /// Where to look, for messages that give the name too.
    pub fn place(&self) -> String {
        match self {
            Self::Environment(_) => "environment".to_owned(),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Line { file, line, .. } => write!(formatter, "{}:{line}", file.display()),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Flag(name) => formatter.write_str(name),
            Self::Found(seen) => write!(formatter, "found in {seen}"),
        }
    }
}

/// One thing that is wrong, and where it stands among all.
#[derive(Clone, Debug)]
struct Problem {
    order: Order,
    reason: Reason,
}

/// Files first, line by line; then the environment, flags, and what nobody wrote.
type Order = (u8, PathBuf, usize);

/// All problems of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Note a problem at `origin`; one that no single line made has the origin [`Origin::Default`].
    pub fn add(&mut self, origin: &Origin, message: impl Into<String>, help: Option<String>) {
        let message = message.into();
        let reason = match origin.clone() {
            Origin::Default => Reason { message, help, ..Reason::default() },
            Origin::Found(Seen::File(file, line)) => {
                Reason { file: Some(file), line, message, help, ..Reason::default() }
            }
            Origin::Line { file, line, name } => {
                Reason { file: Some(file), line: Some(line), variable: name, message, help, ..Reason::default() }
            }
            Origin::Environment(name) | Origin::Found(Seen::Variable(name)) => {
                Reason { variable: Some(name), message, help, ..Reason::default() }
            }
            Origin::Flag(name) => Reason { flag: Some(name), message, help, ..Reason::default() },
        };
        let order = match origin {
            Origin::Line { file, line, .. } => (0, file.clone(), *line),
            Origin::Environment(_) => (1, PathBuf::new(), 0),
            Origin::Flag(_) => (2, PathBuf::new(), 0),
            Origin::Found(_) | Origin::Default => (3, PathBuf::new(), 0),
        };
        self.0.push(Problem { order, reason });
    }

    /// As [`Problems::add`], with the key that it is about.
    pub fn add_to(&mut self, key: &str, origin: &Origin, message: impl Into<String>, help: Option<String>) {
        self.add(origin, message, help);
        if let Some(problem) = self.0.last_mut() {
            problem.reason.key = Some(key.to_owned());
        }
    }

    /// Note that a file as a whole cannot be used.
    pub fn add_file(&mut self, file: &Path, message: impl Into<String>, help: Option<String>) {
        let order = (0, file.to_path_buf(), 0);
        let reason = Reason { file: Some(file.to_path_buf()), message: message.into(), help, ..Reason::default() };
        self.0.push(Problem { order, reason });
    }

    /// What is wrong, each in one sentence.
    pub fn sentences(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|Problem { reason, .. }| {
            let help = reason.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{}{help}", reason.sentence())
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` when nothing is wrong.
    ///
    /// # Errors
    /// A [`Failure`] with [`Code::Config`] that tells every problem.
    pub fn into_result(mut self) -> anyhow::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.0.sort_by(|a, b| a.order.cmp(&b.order));
        let mut reasons: Vec<Reason> = self.0.into_iter().map(|problem| problem.reason).collect();
        // One slip may trip the TOML parser twice.
        reasons.dedup_by(|a, b| (a.place(), &a.message) == (b.place(), &b.message));
        let count = reasons.len();
        let title = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        let mut text = format!("the configuration has {title}:");
        for reason in &reasons {
            text.push_str("\n  ");
            text.push_str(&reason.sentence());
            if let Some(help) = &reason.help {
                text.push_str("\n    help: ");
                text.push_str(help);
            }
        }
        Err(Failure::for_reasons(Code::Config, text, reasons).into())
    }
}
