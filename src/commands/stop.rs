//! `tandem stop`

use std::time::Duration;

use crate::cli::Common;
use crate::commands::running;
use crate::control::{Order, client};
use crate::exit::{Code, Failure};
use crate::{process, telemetry};

/// What the stop gets beyond the limits that Tandem itself tells: it may be in the middle of another step.
const MARGIN: Duration = Duration::from_secs(10);
/// How long the end of one may take that tells no limit, as it is ending already.
const UNTOLD: Duration = Duration::from_secs(10 * 60);

/// Stop the running Tandem and wait until its process is gone: as long as that Tandem says that its stop may take.
///
/// # Errors
/// No Tandem runs; [`Code::Temporary`] if it is still there when its own limits have passed.
pub async fn run(common: &Common) -> anyhow::Result<Code> {
    let socket = running::socket(common)?;
    let pid = client::supervisor(&socket).await?;
    let progress = telemetry::progress("Waiting for tandem to stop");
    let answer = client::order(&socket, &Order::Stop).await?;
    let told = answer.limit_ms.map(Duration::from_millis);
    // A Tandem that is stopping already answers that it does nothing else: that is a success here.
    if answer.code != Code::Temporary as u8 {
        answer.into_result()?;
    }
    let limit = told.unwrap_or(UNTOLD).saturating_add(MARGIN);
    if tokio::time::timeout(limit, process::ended(pid)).await.is_err() {
        let text = format!(
            "tandem (process {pid}) has not ended within {limit:.0?}, longer than its own stop may take: its log says what \
             it waits for. `tandem stop` once more lets it wait for nothing; if it does not answer, `kill -9 {pid}` ends it, \
             and what it started ends with it"
        );
        return Err(Failure::new(Code::Temporary, text).into());
    }
    drop(progress);
    running::say("stopped")?;
    Ok(Code::Stopped)
}
