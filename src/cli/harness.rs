//! What `tandem test` and `tandem database` take.

use clap::{Args, Subcommand};

/// Arguments of `tandem test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Leave the server running, and print how to connect
    #[arg(long)]
    pub keep: bool,
    /// Leave the server running if the command fails
    #[arg(long)]
    pub keep_on_failure: bool,
    /// Run the application's workers too; $TANDEM_BASE_URL says where
    #[arg(long)]
    pub workers: bool,
    /// What makes the schema: none, seaorm, sql, or a command line [default: migrations.run]
    #[arg(long, value_name = "none|seaorm|CMD")]
    pub migrations: Option<String>,
    /// Fill the template from an SQL file or a Python callable (module:function); may be repeated
    #[arg(long, value_name = "FILE|CALLABLE")]
    pub seed: Vec<String>,
    /// Make the template again, even if a cached one fits
    #[arg(long)]
    pub rebuild: bool,
    /// Serve IntegreSQL's interface on loopback, at $INTEGRESQL_CLIENT_BASE_URL
    #[arg(long)]
    pub integresql: bool,
    /// Serve the test runner with this process id, until it closes standard input or ends: for pytest's plugin
    #[arg(long, value_name = "PID", hide = true, conflicts_with_all = ["workers", "integresql", "command"])]
    pub serve: Option<i32>,
    /// It only collects tests: no server is started
    #[arg(long, hide = true, requires = "serve")]
    pub collects: bool,
    /// The command and its arguments [default: pytest]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Database {
    /// Print the URL of a fresh database for one test
    New {
        /// Print the URL of the database that all read-only tests share
        #[arg(long)]
        shared: bool,
        /// For more than one test: what it changes of the server lives as long as the database
        #[arg(long, conflicts_with = "shared")]
        lasting: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a database back to the pool
    Drop {
        /// The database's name or URL
        #[arg(value_name = "NAME|URL")]
        database: String,
        /// The test failed: keep the database to be looked at, while there are few of these
        #[arg(long)]
        failed: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}
