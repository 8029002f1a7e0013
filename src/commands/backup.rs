//! `tandem backup`

use crate::cli::{Backup, Common};
use crate::commands::backup_base;
use crate::exit::Code;

/// Do one thing with backups.
///
/// # Errors
/// What the thing says.
pub async fn run(common: &Common, command: Backup) -> anyhow::Result<Code> {
    match command {
        Backup::Base { json } => backup_base::make(common, json).await,
        Backup::Bases { json } => backup_base::list(common, json),
    }
}
