//! One message to the collector (OpenTelemetry Protocol specification, "OTLP/HTTP Response", "OTLP/HTTP Throttling").

use std::time::Duration;

use anyhow::Context;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use tokio::time::sleep;
use url::Url;

use crate::config::otlp::Target;

/// How often one message is sent at most, and the time before it is sent again, which doubles each time.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(500);
/// The longest wait that a collector may ask for.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The collector, as messages are sent to it.
pub struct Collector {
    client: reqwest::Client,
    /// Whether the last message was refused, and the log has said so.
    is_told: bool,
}

/// What became of one try.
enum Tried {
    Taken,
    /// Worth another try, after the time that the collector asked for.
    Later(Option<Duration>, anyhow::Error),
    /// Never to be sent again.
    Refused(anyhow::Error),
}

impl Collector {
    /// # Errors
    /// A header that HTTP does not allow.
    pub fn new(target: &Target) -> anyhow::Result<Self> {
        // Who else has installed one in this process has installed the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        for (name, value) in &target.headers {
            let context = || format!("the header {name:?} of OTEL_EXPORTER_OTLP_HEADERS");
            let mut value = HeaderValue::from_str(value.expose()).with_context(context)?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).with_context(context)?, value);
        }
        let client = reqwest::Client::builder().timeout(target.limit).default_headers(headers);
        Ok(Self { client: client.build().context("make ready to send")?, is_told: false })
    }

    /// Send `body` to `address`; whether the message is settled: taken, or such that it will never be.
    pub async fn send(&mut self, address: &Url, body: Vec<u8>) -> bool {
        let mut wait = WAIT;
        for left in (0..TRIES).rev() {
            let (asked, error) = match self.try_once(address, body.clone()).await {
                Tried::Taken => {
                    if std::mem::take(&mut self.is_told) {
                        tracing::info!("the OTLP collector takes messages again");
                    }
                    return true;
                }
                Tried::Refused(error) => {
                    self.tell(&error);
                    return true;
                }
                Tried::Later(asked, error) => (asked, error),
            };
            if left == 0 {
                self.tell(&error);
                return false;
            }
            sleep(asked.unwrap_or(wait).min(WAIT_MAX)).await;
            wait *= 2;
        }
        false
    }

    async fn try_once(&self, address: &Url, body: Vec<u8>) -> Tried {
        let answer = match self.client.post(address.clone()).body(body).send().await {
            Ok(answer) => answer,
            Err(error) => return Tried::Later(None, anyhow::Error::new(error.without_url())),
        };
        let status = answer.status();
        if status.is_success() {
            return Tried::Taken;
        }
        let error = anyhow::anyhow!("it answered {status}");
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                Tried::Later(asked.map(Duration::from_secs), error)
            }
            _ => Tried::Refused(error),
        }
    }

    fn tell(&mut self, error: &anyhow::Error) {
        if !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!("the OTLP collector takes no messages: {error:#}; see OTEL_EXPORTER_OTLP_ENDPOINT");
        }
    }
}
