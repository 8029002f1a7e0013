//! `[migrations]` and its choices.

use std::path::PathBuf;
use std::time::Duration;

use crate::plan::in_one_line;

/// How the schema is brought to where the application needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationRun {
    /// The migrations compiled into this binary.
    SeaOrm,
    /// A command, such as `alembic upgrade head`, with `DATABASE_URL` set.
    Command(Vec<String>),
    /// The numbered SQL files of [`super::Settings::sql_dir`].
    Sql,
    None,
}

impl MigrationRun {
    /// As it is called in a sentence.
    pub fn in_words(&self) -> String {
        match self {
            Self::None => "no migrations".to_owned(),
            Self::SeaOrm => "the built-in migrations".to_owned(),
            Self::Sql => "the SQL files".to_owned(),
            Self::Command(words) => in_one_line(words),
        }
    }
}

/// `[migrations]`
#[derive(Clone, Debug)]
pub struct Migrations {
    pub run: MigrationRun,
    /// Whether a person wrote `run`. Else it was found, and a database that has the built-in migrations says otherwise.
    pub chosen: bool,
    /// Where a command runs, or SQL files are; `None`: [`super::Settings::migrations_dir`] finds it.
    pub dir: Option<PathBuf>,
    /// How long to wait for another migrator to finish.
    pub lock_limit: Duration,
    /// How long a statement of theirs may wait for a lock while workers serve; all that come after it wait behind it.
    pub lock_timeout: Duration,
    /// How long the migrations may take in all.
    pub limit: Duration,
}
