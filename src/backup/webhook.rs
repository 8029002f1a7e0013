//! Reports a failed backup by a POST to `backup.on_failure`.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::plan::Secret;

/// Send `body` to `address`; anything but success is an error.
///
/// # Errors
/// There is no answer within `limit`, or one with another status. No message has the address, which may hold a secret.
pub async fn post(address: &Secret, body: &serde_json::Value, limit: Duration) -> anyhow::Result<()> {
    // Who else has installed one in this process has installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(limit).build().context("make ready to send")?;
    let request = client.post(address.expose()).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.map_err(|error| error.without_url()).context("send a notice")?;
    if !answer.status().is_success() {
        bail!("the notice was answered with {}", answer.status());
    }
    Ok(())
}
