//! A POST to whoever is to know.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::plan::Secret;

/// Send `body` to `address`; anything but success is an error.
///
/// # Errors
/// Nobody answers within `limit`, or with another status. The address, which may let one in, is in no message.
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
