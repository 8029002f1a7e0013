//! `tandem health`

use std::time::Duration;

use crate::cli::Common;
use crate::commands::open;
use crate::commands::running::say;
use crate::exit::Code;
use crate::health::client;

/// Ask the health port; 0 for a 2xx answer, 1 for any other and for none.
///
/// # Errors
/// The health port does not answer.
pub async fn run(common: &Common, ready: bool, json: bool, limit: u64) -> anyhow::Result<Code> {
    let loaded = open::load(common, Vec::new())?;
    let path = if ready { "/ready" } else { "/health" };
    let (status, body) = client::probe(&loaded.settings.health.listen, path, Duration::from_secs(limit)).await?;
    if json {
        say(&body)?;
    } else {
        say(&format!("{} ({status})", word(&serde_json::from_str(&body).unwrap_or_default())))?;
    }
    Ok(if (200..300).contains(&status) { Code::Stopped } else { Code::Failed })
}

/// A report in a word or two: the status of `/health`, or yes or no for `/ready`.
fn word(report: &serde_json::Value) -> &str {
    match (report["status"].as_str(), report["ready"].as_bool()) {
        (Some(status), _) => status,
        (None, Some(true)) => "ready",
        (None, Some(false)) => "not ready",
        (None, None) => "unknown",
    }
}
