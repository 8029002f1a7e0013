//! The command line: commands, their arguments and their help. What each command does is in `commands/`.

mod backup;
mod check;
pub mod completions;
mod doctor;
mod harness;
mod hints;
mod import;
mod init;
mod logs;
mod run;
mod settings;
mod stats;
mod up;
mod values;

use std::path::PathBuf;
use std::sync::LazyLock;

pub use backup::{Backup, BackupCreate, RestoreArgs, RestoreWorkers};
pub use check::Check;
use clap::{Args, Parser, Subcommand};
use completions::Shell;
pub use doctor::DoctorArgs;
pub use harness::{Database, TestArgs};
pub use hints::{first_help, improved};
pub use import::{ComposeArgs, Import, Into, SqliteArgs};
pub use init::InitArgs;
pub use logs::{LogLevel, LogsArgs};
pub use run::RunArgs;
pub use settings::SettingsCommand;
pub use stats::StatsArgs;
pub use up::UpArgs;

use crate::postgres::binaries;

/// What `--version` says.
fn long_version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let commit = match option_env!("TANDEM_BUILT_FROM") {
            None | Some("") => String::new(),
            Some(commit) => format!(" (commit {commit})"),
        };
        let (own, postgres) = (env!("CARGO_PKG_VERSION"), binaries::VERSION.trim_end_matches(".0"));
        format!("{own}{commit}\nPostgreSQL {postgres}, where it fetches one; a system's PostgreSQL 16 is used as it is")
    });
    &TEXT
}

/// Runs PostgreSQL 16 and a Python ASGI backend as one process tree.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, long_version = long_version(), max_term_width = 100)]
#[command(after_help = "Example: tandem up --workers 2\n\nExit codes: 0 stopped as asked, 1 failed, 64 bad usage, \
65 database newer than this binary,\n69 a service gave up, 70 tandem doctor found an error, \
73 cannot create or lock a directory,\n75 temporary, 78 bad configuration")]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command. `Debug` does not show what `--set` sets, which may be a password.
#[derive(Clone, Args)]
pub struct Common {
    /// The configuration file [default: ./tandem.toml, then ./config/tandem.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set any key, such as `--set postgres.port=5433`; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// How log lines look: auto, text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> = self.set.iter().map(|pair| pair.split('=').next().unwrap_or_default()).collect();
        formatter
            .debug_struct("Common")
            .field("config", &self.config)
            .field("set", &keys)
            .field("log_format", &self.log_format)
            .finish()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything, in the foreground, until stopped
    #[command(
        after_help = "Examples: tandem up --workers 2 --listen 0.0.0.0:8000\n          tandem up --detach\n          \
tandem up --reload"
    )]
    Up(UpArgs),
    /// Validate the configuration; print the plan and where each value came from
    #[command(after_help = "Example: tandem check --json | jq '.keys[] | select(.key == \"postgres.port\")'")]
    Check(Check),
    /// Look for what is wrong with the project, the machine and the server, and say what to do
    #[command(
        after_help = "Examples: tandem doctor\n          tandem doctor --fix\n          tandem doctor --deep --skip machine\n          \
tandem doctor --bundle report.tar.gz\n\nThe exit code is that of the worst finding: 0 nothing wrong, 1 a warning or something that \
could not be looked at, 70 an error."
    )]
    Doctor(DoctorArgs),
    /// Apply, take back or list the migrations of the database's schema
    #[command(after_help = "Example: tandem migrate up && tandem migrate status --json")]
    Migrate {
        #[command(subcommand)]
        command: Migrate,
    },
    /// Back up the database; list, verify and prune its backups
    #[command(args_conflicts_with_subcommands = true)]
    #[command(
        after_help = "Examples: tandem backup\n          tandem backup --format custom --compress zstd\n          \
tandem backup list --json"
    )]
    Backup {
        #[command(subcommand)]
        command: Option<Backup>,
        #[command(flatten)]
        create: BackupCreate,
    },
    /// Restore a backup: into a new database, verified there, then swapped in; the old one is kept
    #[command(
        after_help = "Examples: tandem restore latest\n          tandem restore app_backup_20260102_020000 --yes\n          \
tandem restore --undo"
    )]
    Restore(RestoreArgs),
    /// Write a tandem.toml of what is found in this directory; what is there stays as it is
    #[command(after_help = "Examples: tandem init\n          tandem init --print\n          \
tandem init --ci --dockerfile --systemd --editor")]
    Init(InitArgs),
    /// Bring in what another arrangement holds: the rows of an SQLite file, the services of a Compose file
    Import {
        #[command(subcommand)]
        command: Import,
    },
    /// Open psql on the application's database, with the right tool, user and password
    #[command(after_help = "Examples: tandem psql -c 'TABLE alembic_version'\n          \
tandem psql --test test_total    # the database of a failed test")]
    Psql {
        /// As PostgreSQL's superuser, over the unix socket of the server that Tandem runs
        #[arg(long)]
        superuser: bool,
        /// In the database of a test: the failed one's, or the one whose name holds NAME
        #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "", conflicts_with = "superuser")]
        test: Option<String>,
        /// Arguments for psql
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Show what PostgreSQL knows of itself: sizes, connections, locks, slow statements, indexes, upkeep
    #[command(after_help = "Examples: tandem stats\n          tandem stats blocking\n          \
tandem stats table-size --json | jq '.rows[0].total_bytes'")]
    Stats(StatsArgs),
    /// Show and change PostgreSQL's settings, durably
    #[command(after_help = "Examples: tandem settings get work_mem\n          \
tandem settings set log_min_duration_statement 1s --apply\n          tandem settings reset log_min_duration_statement --apply")]
    Settings {
        #[command(subcommand)]
        command: SettingsCommand,
    },
    /// Print the database's URL, password included
    #[command(after_help = "Example: DATABASE_URL=$(tandem url) alembic current")]
    Url {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The URL's scheme [default: postgresql]
        #[arg(long, value_name = "SCHEME")]
        scheme: Option<String>,
    },
    /// Print the environment that a worker gets, for a shell to read
    #[command(after_help = "Example: eval \"$(tandem env)\" && pytest")]
    Env {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command with the environment and the user of a worker: Python's packages, DATABASE_URL, `.env`
    #[command(
        after_help = "Examples: tandem run python manage.py createsuperuser\n          tandem run alembic revision \
--autogenerate -m 'add orders'\n\nThe exit code is the command's: 127 when it cannot be found."
    )]
    Run(RunArgs),
    /// Ask a running Tandem whether it is healthy: exit code 0 if it is, 1 if not
    #[command(after_help = "Example: HEALTHCHECK CMD [\"tandem\", \"health\", \"--ready\"]")]
    Health {
        /// Ask whether it is ready for requests, not whether it is healthy
        #[arg(long)]
        ready: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// How long to wait for the answer, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 5)]
        limit: u64,
    },
    /// Show every process of a running Tandem: state, age, restarts, requests, memory
    #[command(after_help = "Example: tandem status --json | jq '.services[] | select(.restarts > 0)'")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print it again every second, until Ctrl-C
        #[arg(long)]
        watch: bool,
    },
    /// Watch processes and log of a running Tandem live in the terminal; keys reload, restart and scale
    #[command(after_help = "Example: ssh -t server tandem top")]
    Top,
    /// Read the configuration again and replace every worker, new before old; no request fails
    #[command(after_help = "Example: git pull && tandem reload")]
    Reload,
    /// Take up new code: install changed requirements, migrate, then replace every worker; what fails changes nothing
    #[command(after_help = "Example: git pull && tandem deploy")]
    Deploy {
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Replace the processes of one service
    #[command(after_help = "Example: tandem restart worker-2")]
    Restart {
        /// The service's name in `tandem status`
        #[arg(add = values::services())]
        service: String,
    },
    /// Change the number of workers, until the next start
    #[command(after_help = "Example: tandem scale 2\n         tandem scale +1")]
    Scale {
        /// How many workers, or how many more or fewer
        #[arg(value_name = "N|+N|-N", allow_hyphen_values = true)]
        workers: String,
    },
    /// Change the password of the application's role
    Password {
        #[command(subcommand)]
        command: Password,
    },
    /// Stop a running Tandem and wait for its end; a second `stop` cuts the requests that still run
    #[command(alias = "down", after_help = "Example: tandem stop && tandem up")]
    Stop,
    /// Print the last lines of the log: those that a running Tandem has in memory, and those of `log.file`
    #[command(
        after_help = "Examples: tandem logs -f worker-0\n          tandem logs --since 10m --level warn\n          \
tandem logs --since 14:30 --until 15:00 --grep 'timeout|refused'"
    )]
    Logs(LogsArgs),
    /// Fetch PostgreSQL and make the Python environment, and start nothing
    #[command(after_help = "Example: RUN tandem install    # in a Dockerfile")]
    Install {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command with a throwaway PostgreSQL around it, migrated, with a fresh database for each test
    #[command(after_help = "Examples: tandem test                        # pytest\n          \
tandem test -- pytest -n 4 -k orders\n          tandem test --workers -- pytest tests/e2e\n          \
tandem test --migrations none -- go test ./...\n\nThe exit code is the command's: 127 when it cannot be found, 128+n for a \
signal.")]
    Test(TestArgs),
    /// Get a database of the `tandem test` around this command, or give one back
    #[command(after_help = "Example: URL=$(tandem database new) && psql \"$URL\" && tandem database drop \"$URL\"")]
    Database {
        #[command(subcommand)]
        command: Database,
    },
    /// The commands that PostgreSQL runs to archive its WAL and to get it back
    #[command(hide = true)]
    Wal {
        #[command(subcommand)]
        command: Wal,
    },
    /// Print the documentation that is in this binary: its pages, one page, or a section of one
    #[command(after_help = "Examples: tandem docs\n          tandem docs backups\n          \
tandem docs troubleshooting a-port-is-taken")]
    Docs {
        /// The page's name [default: list the pages]
        page: Option<String>,
        /// The section's heading, or its anchor [default: the whole page]
        section: Option<String>,
    },
    /// Write the man page of each command into a directory; `.ci/dist` puts them into the packages
    #[command(hide = true)]
    Man {
        /// It is made if it is not there
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the completion script of a shell
    #[command(
        after_help = "Example: tandem completions bash > /etc/bash_completion.d/tandem\n\nThe script asks the `tandem` in \
PATH at each Tab, so it also offers the services that run and the backups that there are."
    )]
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// PostgreSQL runs these once per segment. They read no configuration: their arguments hold all that they need.
#[derive(Debug, Subcommand)]
pub enum Wal {
    /// Archive a file (archive_command)
    Push {
        #[arg(long, value_name = "DIR")]
        archive: PathBuf,
        /// Wait until a destination has it, by the lists in this directory
        #[arg(long, value_name = "DIR")]
        remote: Option<PathBuf>,
        /// The file, where PostgreSQL keeps it
        path: PathBuf,
    },
    /// Fetch a file from the archive (restore_command)
    Fetch {
        #[arg(long, value_name = "DIR")]
        archive: PathBuf,
        name: String,
        /// Where PostgreSQL expects it
        path: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum Password {
    /// Give it a new one that Tandem makes, and every process with it, while it serves; no request fails
    #[command(after_help = "Example: tandem password rotate")]
    Rotate,
}

#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Apply every migration that is missing
    Up,
    /// Take back the newest migrations
    Down {
        /// How many
        #[arg(default_value_t = 1, value_name = "STEPS")]
        steps: u32,
    },
    /// List the migrations and whether each is applied
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write down that the numbered SQL files are in, up to NAME or all, and run none of them
    Adopt { name: Option<String> },
    /// Write a new migration: a numbered SQL file, or one of the `migration/` crate of this checkout
    New { name: String },
}

impl Common {
    /// These flags as arguments for another process of Tandem's.
    pub fn as_args(&self) -> Vec<String> {
        let config = self.config.iter().flat_map(|path| ["--config".to_owned(), path.display().to_string()]);
        let set = self.set.iter().flat_map(|pair| ["--set".to_owned(), pair.clone()]);
        let format = self.log_format.iter().flat_map(|format| ["--log-format".to_owned(), format.clone()]);
        config.chain(set).chain(format).collect()
    }
}
