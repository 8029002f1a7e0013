//! What `tandem import` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum Import {
    /// Bring the tables and rows of an SQLite file into the database: all of them, or none
    #[command(
        after_help = "Examples: tandem import sqlite db.sqlite3 --dry-run\n          tandem import sqlite db.sqlite3\n\n\
The file is only read. Stop the application that writes into it, or rows of its last moments stay behind."
    )]
    Sqlite(SqliteArgs),
    /// Make a tandem.toml of a Compose file, and tell line by line what does not carry over
    #[command(after_help = "Examples: tandem import compose docker-compose.yml\n          \
tandem import compose docker-compose.yml --write\n\nThe configuration goes to standard output, what is to be known of it \
to standard error.")]
    Compose(ComposeArgs),
}

/// Where the rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Into {
    /// Into the table of the same name where there is one; else the table is made
    Auto,
    /// Into tables that are made
    New,
    /// Into tables that are there
    Existing,
}

#[derive(Debug, Args)]
pub struct SqliteArgs {
    /// The SQLite database
    pub file: PathBuf,
    /// Print what would be done and what does not fit, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Into which tables the rows go
    #[arg(long, value_enum, default_value_t = Into::Auto)]
    pub into: Into,
    /// The schema of the tables
    #[arg(long, value_name = "NAME", default_value = "public")]
    pub schema: String,
    /// Delete the rows of the database's tables first
    #[arg(long)]
    pub replace: bool,
    /// Leave out rows that have a value that does not fit, or that refer to a row that is not there
    #[arg(long)]
    pub skip_bad: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ComposeArgs {
    /// The Compose file; more of them are laid over it, as with `docker compose -f`
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write tandem.toml; a file that is there stays as it is
    #[arg(long)]
    pub write: bool,
    /// Take the services of this profile too; may be repeated
    #[arg(long, value_name = "NAME")]
    pub profile: Vec<String>,
    /// The service that is the application [default: the one that is recognised]
    #[arg(long, value_name = "NAME")]
    pub app: Option<String>,
}
