//! What `tandem backup` and `tandem restore` take.

use clap::{Args, Subcommand};

use super::values;

#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Back up the database (the default)
    Create(BackupCreate),
    /// What the schedule does, in one go: back up, verify if that is due, prune
    #[command(hide = true)]
    Scheduled {
        /// Only send the copies that the last run could not
        #[arg(long)]
        copies: bool,
    },
    /// Restore backups into a throwaway server and compare what is there with what was backed up
    Verify {
        /// `latest`, or the backup's name in `tandem backup list` [default: latest]
        #[arg(conflicts_with_all = ["latest", "all"], add = values::backups())]
        name: Option<String>,
        /// Verify the newest backup
        #[arg(long, conflicts_with = "all")]
        latest: bool,
        /// Verify every backup
        #[arg(long)]
        all: bool,
        /// Read all base backups and WAL at this address again instead, such as s3://bucket/prefix
        #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["name", "latest", "all"])]
        from: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a backup from an SQL dump of another program, such as the guide's old script, and repair it if need be
    Import {
        /// The dump, plain or compressed by gzip or zstd; the file is not changed
        file: std::path::PathBuf,
        /// The database that was dumped [default: what the file's name says, else postgres.database]
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
        /// Let it do what only PostgreSQL's superuser can, such as making event triggers
        #[arg(long)]
        trust: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the key that signs backups, or accept another deployment's
    #[command(after_help = "Example: tandem backup key > tandem-backup.key")]
    Key {
        /// Accept the keys in this file, or `-` for standard input
        #[arg(long, value_name = "FILE")]
        import: Option<std::path::PathBuf>,
    },
    /// Remove the backups that are past their retention; the newest verified one always stays
    Prune {
        /// Print what would be removed and why, and remove nothing
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a base backup of the running server, for recovery to any moment
    Base {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give the present moment a name, to which `tandem restore --at-mark NAME` leads back
    #[command(after_help = "Example: tandem backup mark before-import")]
    Mark {
        /// Letters, digits, `-`, `_` and `.`
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the base backups
    Bases {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send the base backups and the WAL that the destinations lack, as `tandem up` does all the time
    #[command(after_help = "Example: tandem backup send")]
    Send {
        /// Go on for ever
        #[arg(long, hide = true)]
        follow: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let this machine archive to a destination, in the place of another with the same cluster
    #[command(after_help = "Example: tandem backup claim s3://bucket/prefix")]
    Claim {
        /// The destination, as in backup.destinations; the other machine is refused from then on
        #[arg(value_name = "ADDRESS")]
        address: String,
    },
    /// List the backups with their size and state
    List {
        /// List the copies at this address instead, such as s3://bucket/prefix
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `tandem backup`.
#[derive(Debug, Args)]
pub struct BackupCreate {
    /// The dump's format: plain (SQL), custom or directory (for pg_restore) [default: backup.format]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// The compression: gzip, zstd or none [default: backup.compress]
    #[arg(long, value_name = "HOW")]
    pub compress: Option<String>,
    /// The directory for the backup [default: backup.dir]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<std::path::PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What happens to the workers during a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RestoreWorkers {
    Drain,
    Tell,
}

/// Arguments of `tandem restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup: `latest`, a name as `tandem backup list` shows it, a path, or an address such as
    /// s3://bucket/prefix/latest
    #[arg(required_unless_present_any = ["undo", "drop_kept", "at", "at_mark", "to_lsn", "to_xid", "to_end", "list_moments"], add = values::backups())]
    pub source: Option<String>,
    /// Restore this table alone, beside what the database holds; nothing is overwritten. Once for each table: name, schema.name, or
    /// in quotes as in SQL
    #[arg(long = "table", value_name = "NAME", conflicts_with_all = ["schema", "database", "undo", "drop_kept"])]
    pub tables: Vec<String>,
    /// Restore all that this schema holds, beside what the database holds
    #[arg(long, value_name = "NAME", conflicts_with_all = ["database", "undo", "drop_kept"])]
    pub schema: Option<String>,
    /// What the table, or the schema, is called then; once for each --table, in their order [default: as in the backup]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["database", "undo", "drop_kept"])]
    pub into: Vec<String>,
    /// Restore all of the backup as a new database of this name, beside the live one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["undo", "drop_kept"])]
    pub database: Option<String>,
    /// Recover the stopped server to a point in time, such as '2026-01-02 15:04:05+00'; with --table, --schema or --database: bring
    /// that in as it was then, while the server runs. So do the other moments
    #[arg(long, group = "moment", value_name = "TIME", conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub at: Option<String>,
    /// Recover it to a position in the WAL, such as 1/A0B3C8D0
    #[arg(long, group = "moment", value_name = "LSN", conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub to_lsn: Option<String>,
    /// Recover it to a mark that `tandem backup mark`, a deployment or a migration has set
    #[arg(long, group = "moment", value_name = "NAME", conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub at_mark: Option<String>,
    /// Recover it to the end of a transaction, which it includes, from the oldest base backup
    #[arg(long, group = "moment", value_name = "XID", conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub to_xid: Option<u32>,
    /// Recover it to the end of the archived WAL
    #[arg(long, group = "moment", conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub to_end: bool,
    /// In a recovery: take base backups and WAL from this address, such as s3://bucket/prefix, as on a new machine
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["source", "undo", "drop_kept", "tables", "schema", "database"])]
    pub from: Option<String>,
    /// List the moments that can be reached: base backups, marks, and where each chain of WAL ends
    #[arg(long, conflicts_with_all = ["source", "undo", "drop_kept", "moment"])]
    pub list_moments: bool,
    /// The timeline to follow in a recovery [default: the one that was live at that moment]
    #[arg(long, value_name = "N", conflicts_with = "source")]
    pub timeline: Option<u32>,
    /// In a recovery: accept that rows which were committed by then are left out
    #[arg(long, conflicts_with_all = ["source", "undo", "drop_kept"])]
    pub accept: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
    /// drain: open transactions may end, and the workers are replaced afterwards; tell: connections are cut at once, and
    /// the workers connect again
    #[arg(long, value_enum, value_name = "drain|tell", default_value_t = RestoreWorkers::Drain)]
    pub workers: RestoreWorkers,
    /// With `latest`: accept an older backup when the newest one is incomplete or bad
    #[arg(long, conflicts_with_all = ["undo", "drop_kept"])]
    pub older: bool,
    /// Accept a backup of a database with another name
    #[arg(long)]
    pub other_database: bool,
    /// Make the database with this locale, such as C.UTF-8, where this machine lacks that of the backup
    #[arg(long, value_name = "NAME", conflicts_with_all = ["undo", "drop_kept", "moment"])]
    pub locale: Option<String>,
    /// Accept a backup that no key of this deployment has signed: whatever is in it runs as PostgreSQL's superuser
    #[arg(long, conflicts_with_all = ["undo", "drop_kept"])]
    pub trust: bool,
    /// Put back the database that the last restore replaced
    #[arg(long, conflicts_with_all = ["source", "drop_kept"])]
    pub undo: bool,
    /// Drop the databases that earlier restores replaced
    #[arg(long, conflicts_with = "source")]
    pub drop_kept: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
