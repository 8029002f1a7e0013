//! `tandem password`

use crate::cli::Common;
use crate::commands::{open, running};
use crate::control::Order;
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::secret;
use crate::sidecar::rotate::given;

/// Give the application's role another password of Tandem's own: through the Tandem that runs, or at its next start.
///
/// # Errors
/// The password was given, and Tandem cannot choose it; the change stopped half-way.
pub async fn rotate(common: &Common) -> anyhow::Result<Code> {
    let loaded = open::load(common, Vec::new())?;
    if let Some(why) = given(&loaded) {
        return Err(Failure::new(Code::Usage, why).into());
    }
    let home = Home::resolve(&loaded.settings)?;
    if !home.state.exists() {
        return Err(nothing_yet(&home));
    }
    home.prepare()?;
    // A socket may be left over from a Tandem that was killed; the lock tells whether one runs.
    let Ok(_lock) = StateLock::take(&home, "tandem password rotate") else {
        return running::order(common, Order::RotatePassword, "change of the password").await;
    };
    if secret::existing(&home, None)?.is_none() {
        return Err(nothing_yet(&home));
    }
    secret::keep(&home, &secret::make()?)?;
    running::say(&format!(
        "PostgreSQL is stopped: role {} gets its new password at the next start",
        loaded.settings.postgres.user
    ))?;
    Ok(Code::Stopped)
}

fn nothing_yet(home: &Home) -> anyhow::Error {
    let text = format!("there is no database in {} yet: `tandem up` makes it, with a password", home.state.display());
    Failure::new(Code::Failed, text).into()
}
