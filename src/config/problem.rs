//! The problems of a configuration. They are collected until all of it was read, and then reported together.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::exit::{Code, Failure};
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

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug)]
struct Problem {
    order: Order,
    place: Option<String>,
    message: String,
    help: Option<String>,
}

/// Files first, line by line; then the environment, flags, and what nobody wrote.
type Order = (u8, PathBuf, usize);

/// All problems of one configuration.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Note a problem at `origin`; one that no single line made has the origin [`Origin::Default`].
    pub fn add(&mut self, origin: &Origin, message: impl Into<String>, help: Option<String>) {
        let place = (*origin != Origin::Default).then(|| origin.place());
        self.add_in(origin, place, message.into(), help);
    }

    /// As [`Self::add`], at what messages call `place`.
    pub fn add_at(&mut self, origin: &Origin, place: String, message: String, help: Option<String>) {
        self.add_in(origin, Some(place), message, help);
    }

    fn add_in(&mut self, origin: &Origin, place: Option<String>, message: String, help: Option<String>) {
        let order = match origin {
            Origin::Line { file, line, .. } => (0, file.clone(), *line),
            Origin::Environment(_) => (1, PathBuf::new(), 0),
            Origin::Flag(_) => (2, PathBuf::new(), 0),
            Origin::Found(_) | Origin::Default => (3, PathBuf::new(), 0),
        };
        self.0.push(Problem { order, place, message, help });
    }

    /// Note that a file as a whole cannot be used.
    pub fn add_file(&mut self, file: &Path, message: impl Into<String>, help: Option<String>) {
        let (order, place) = ((0, file.to_path_buf(), 0), Some(file.display().to_string()));
        self.0.push(Problem { order, place, message: message.into(), help });
    }

    /// What is wrong, each in one sentence.
    pub fn sentences(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|Problem { place, message, help, .. }| {
            let place = place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
            let help = help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{place}{message}{help}")
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
        // One slip may trip the TOML parser twice.
        self.0.dedup_by(|a, b| (&a.place, &a.message) == (&b.place, &b.message));
        let count = self.0.len();
        let title = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        let mut text = format!("the configuration has {title}:");
        let mut parts = Vec::new();
        for problem in &self.0 {
            let place = problem.place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
            let sentence = format!("{place}{}", problem.message);
            text.push_str("\n  ");
            text.push_str(&sentence);
            match &problem.help {
                Some(help) => {
                    text.push_str("\n    help: ");
                    text.push_str(help);
                    parts.push(format!("configuration: {sentence} (help: {help})"));
                }
                None => parts.push(format!("configuration: {sentence}")),
            }
        }
        Err(Failure::of_parts(Code::Config, text, parts).into())
    }
}
