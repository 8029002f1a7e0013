//! `tandem health`

use std::time::Duration;

use crate::cli::Common;
use crate::commands::open;
use crate::commands::running::say;
use crate::exit::{Code, Failure};
use crate::health::client;

/// Ask the health port; 0 for a 2xx answer, 1 for any other and for none.
///
/// # Errors
/// The health port does not answer.
pub async fn run(common: &Common, ready: bool, json: bool, limit: u64) -> anyhow::Result<Code> {
    let loaded = open::load(common, Vec::new())?;
    let path = if ready { "/ready" } else { "/health" };
    let settings = &loaded.settings;
    let (status, body) = client::probe(&settings.health.listen, path, Duration::from_secs(limit)).await?;
    let own = settings.deployment();
    if let Err(other) = is_of(&body, &own) {
        let text = format!(
            "{} is answered by {other}, not by this project's Tandem ({own}), which does not run: `tandem up` starts it",
            settings.health.listen
        );
        return Err(Failure::new(Code::Failed, text).into());
    }
    if json {
        say(&body)?;
    } else {
        say(&format!("{} ({status})", word(&serde_json::from_str(&body).unwrap_or_default())))?;
    }
    Ok(if (200..300).contains(&status) { Code::Stopped } else { Code::Failed })
}

/// Whether the answer `body` is that of the deployment `own`, else whose it is. A Tandem that runs since before its answers
/// named the deployment may be any.
fn is_of(body: &str, own: &str) -> Result<(), String> {
    let report: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    // The name may be set by a flag of `tandem up`: the digest behind it is the directory's.
    let digest = |deployment: &str| deployment.rsplit('-').next().map(str::to_owned);
    match report["deployment"].as_str() {
        Some(deployment) if digest(deployment) == digest(own) => Ok(()),
        Some(deployment) => Err(format!("the Tandem of {deployment}")),
        None if report["phase"].is_string() => Ok(()),
        None => Err("another program".to_owned()),
    }
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
