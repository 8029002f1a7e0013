//! `tandem import`: what another arrangement holds, brought here.

mod compose;
mod sqlite;

use crate::cli::{Common, Import};
use crate::exit::Code;

/// Run one of the imports.
///
/// # Errors
/// What cannot be read, or does not fit.
pub async fn run(common: &Common, command: Import) -> anyhow::Result<Code> {
    match command {
        Import::Sqlite(args) => sqlite::run(common, args).await,
        Import::Compose(args) => compose::run(common, &args),
    }
}
