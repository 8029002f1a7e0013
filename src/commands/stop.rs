//! `tandem stop`

use crate::cli::Common;
use crate::commands::running;
use crate::control::{Order, client};
use crate::exit::Code;
use crate::{process, telemetry};

/// Stop the running Tandem and wait until its process is gone: the stop has limits of its own.
///
/// # Errors
/// No Tandem runs.
pub async fn run(common: &Common) -> anyhow::Result<Code> {
    let socket = running::socket(common)?;
    let pid = client::supervisor(&socket).await?;
    let progress = telemetry::progress("Waiting for tandem to stop");
    let answer = client::order(&socket, &Order::Stop).await?;
    // A Tandem that is stopping already answers that it does nothing else: that is a success here.
    if answer.code != Code::Temporary as u8 {
        answer.into_result()?;
    }
    process::ended(pid).await;
    drop(progress);
    running::say("stopped")?;
    Ok(Code::Stopped)
}
