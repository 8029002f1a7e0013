//! What the database says of itself while somebody looks at the status page or `tandem top`: tables of text, for reading.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The tables of one round of questions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// When they were asked; `None`: not yet.
    pub taken: Option<SystemTime>,
    pub tables: Vec<StatisticsTable>,
    /// Why there are none, or old ones.
    pub error: Option<String>,
}

/// The answer to one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatisticsTable {
    /// As `tandem stats` calls it, such as `locks`.
    pub topic: String,
    pub title: String,
    pub columns: Vec<StatisticsColumn>,
    /// What every cell says, for people to read.
    pub rows: Vec<Vec<StatisticsCell>>,
    /// Whether there are more rows than these.
    pub truncated: bool,
    pub notes: Vec<String>,
}

/// A column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatisticsColumn {
    pub name: String,
    /// Whether it stands to the right, as numbers do.
    pub is_number: bool,
    /// Whether a bar shows how its cells compare.
    pub has_bar: bool,
}

/// A cell: its text for people, and its number if it is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatisticsCell {
    pub text: String,
    pub number: Option<f64>,
}
