//! The checkpoint before a shutdown.

use std::time::Duration;

use sea_orm::sqlx::{ConnectOptions, query};

use super::home::Home;
use super::provision::superuser_options;
use super::service::NAME;
use super::settings::SUPERUSER;
use crate::exit::in_words;
use crate::schema::answered;

/// How long the checkpoint before a shutdown may take; the shutdown makes its own in any case.
const LIMIT: Duration = Duration::from_secs(60);

/// Write out what is dirty, so that the shutdown finds little left to write. Best effort.
pub async fn checkpoint(home: Home, port: u16) {
    let options = superuser_options(&home, port, SUPERUSER);
    let done = async { query("CHECKPOINT").execute(&mut options.connect().await?).await };
    if let Err(error) = answered(LIMIT, "checkpoint before the shutdown", done).await {
        tracing::debug!({ service.name = NAME }, "{}", in_words(&error));
    }
}
