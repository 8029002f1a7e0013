//! `tandem wal`, which PostgreSQL runs.

use crate::backup::pitr::archive::Archive;
use crate::backup::pitr::{ack, ahead};
use crate::cli::Wal;
use crate::telemetry::say_aside;

/// The exit code after which PostgreSQL tries to archive the file again.
const NOT_ARCHIVED: u8 = 1;
/// The exit code for a file that is not in the archive: recovery ends, or goes on with the files of the data directory.
const NOT_THERE: u8 = 1;
/// Beyond 125 recovery ends with an error (PostgreSQL's src/common/wait_error.c): what cannot be read must not be taken
/// for the end of the archive.
const STOP_RECOVERY: u8 = 200;

/// Push or fetch one file and return the exit code.
pub fn run(command: &Wal) -> u8 {
    match command {
        Wal::Push { archive, remote, path } => {
            let archive = Archive::new(archive);
            let pushed = match remote {
                Some(dir) => ahead::push_until(&archive, path, |name| ack::wait(dir, name)),
                None => ahead::push(&archive, path),
            };
            match pushed {
                Ok(()) => 0,
                Err(error) => {
                    say_aside(&format!("tandem wal push: {error:#}"));
                    NOT_ARCHIVED
                }
            }
        }
        Wal::Fetch { archive, name, path } => {
            let Ok(name) = name.parse() else { return NOT_THERE };
            match Archive::new(archive).fetch(name, path) {
                Ok(true) => 0,
                Ok(false) => NOT_THERE,
                Err(error) => {
                    say_aside(&format!("tandem wal fetch: {error:#}"));
                    STOP_RECOVERY
                }
            }
        }
    }
}
