//! What talks to a bucket, built from its keys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::Patience;
use super::keys::{Bucket, Cloudy, OURS};
use super::trouble::{Kind, StoreError};
use crate::plan::Secret;

/// Make ready what talks to `bucket`; nothing is sent yet.
pub(super) fn build(bucket: &Bucket, patience: Patience) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // Who else has installed one in this process has installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connector = Connector::new(bucket, patience)?;
    let options = ClientOptions::new().with_allow_http(bucket.keys.plain);
    let retry = retry(patience);
    let built = match bucket.cloud {
        Cloudy::S3 => configured(bucket, AmazonS3Builder::new(), AmazonS3Builder::with_config)
            .with_bucket_name(&bucket.name)
            .with_client_options(options)
            .with_http_connector(connector)
            .with_retry(retry)
            // Not each server that talks S3 can delete many at once.
            .with_disable_bulk_delete(true)
            .build()
            .map(|client| Arc::new(client) as Arc<dyn ObjectStore>),
        Cloudy::Google => configured(bucket, GoogleCloudStorageBuilder::new(), GoogleCloudStorageBuilder::with_config)
            .with_bucket_name(&bucket.name)
            .with_client_options(options)
            .with_http_connector(connector)
            .with_retry(retry)
            .build()
            .map(|client| Arc::new(client) as _),
        Cloudy::Azure => configured(bucket, MicrosoftAzureBuilder::new(), MicrosoftAzureBuilder::with_config)
            .with_container_name(&bucket.name)
            .with_client_options(options)
            .with_http_connector(connector)
            .with_retry(retry)
            .build()
            .map(|client| Arc::new(client) as _),
    };
    built.map_err(|error| {
        let message = format!("cannot use {bucket}: {error}; correct {}", bucket.key_names());
        StoreError::new(Kind::Address, bucket.hide(&message))
    })
}

/// `builder` with each value that `object_store` knows by the same name.
fn configured<B, K: std::str::FromStr>(bucket: &Bucket, builder: B, with: impl Fn(B, K, String) -> B) -> B {
    let values = &bucket.keys.values;
    // The region that is meant wins over the region that is usual.
    let usual = values.contains_key("AWS_REGION").then_some("AWS_DEFAULT_REGION");
    let theirs = values.iter().filter(|(name, _)| !OURS.contains(*name) && Some(**name) != usual);
    theirs.fold(builder, |builder, (name, value)| match name.to_lowercase().parse() {
        Ok(key) => with(builder, key, value.expose().to_owned()),
        Err(_) => builder,
    })
}

fn retry(patience: Patience) -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: patience.backoff_first, max_backoff: patience.backoff_max, base: 2.0 };
    // Bounded by time alone.
    RetryConfig { backoff, max_retries: usize::MAX, retry_timeout: patience.retry_max }
}

/// Makes HTTP clients that wait as long as we say, and that reach this machine's own endpoint without a proxy.
struct Connector {
    patience: Patience,
    loopback: bool,
    authorities: Vec<reqwest::Certificate>,
}

impl Connector {
    fn new(bucket: &Bucket, patience: Patience) -> Result<Self, StoreError> {
        let authorities = authorities(&bucket.keys.values)?;
        Ok(Self { patience, loopback: bucket.keys.loopback, authorities })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        // Plain HTTP is not forbidden here: the endpoint was looked at, and metadata addresses know no TLS.
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.patience.connect_max)
            .timeout(self.patience.request_max)
            .http1_only()
            .tls_certs_merge(self.authorities.iter().cloned());
        if self.loopback {
            builder = builder.no_proxy();
        }
        let failed = |error| object_store::Error::Generic { store: "HTTP client", source: Box::new(error) };
        Ok(HttpClient::new(builder.build().map_err(failed)?))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Connector")
    }
}

/// The authorities of a bundle in PEM, which are trusted beside the system's.
fn authorities(values: &BTreeMap<&'static str, Secret>) -> Result<Vec<reqwest::Certificate>, StoreError> {
    let Some(path) = values.get("AWS_CA_BUNDLE").map(|path| Path::new(path.expose())) else { return Ok(Vec::new()) };
    let wrong = |why: String| {
        StoreError::new(Kind::Address, format!("AWS_CA_BUNDLE cannot be used: {}: {why}", path.display()))
    };
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    reqwest::Certificate::from_pem_bundle(&text).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::{Destination, Store};
    use super::*;

    fn open(text: &str, environment: &[(&str, &str)]) -> Result<Store, StoreError> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Store::open(&Destination::parse(text, &environment)?, Patience::default())
    }

    #[test]
    fn each_cloud_takes_its_keys_and_says_which_it_cannot_read() {
        let azure = |key| [("AZURE_STORAGE_ACCOUNT_NAME", "a"), ("AZURE_STORAGE_ACCOUNT_KEY", key)];
        open("az://container/a", &azure("aHVzaC1odXNo")).unwrap();
        open("gs://bucket/a?metadata=true", &[]).unwrap();
        let s3 = [("AWS_ACCESS_KEY_ID", "hush-hush"), ("AWS_SECRET_ACCESS_KEY", "hush-hush")];
        open("s3://bucket/a", &s3).unwrap();
        let bundle = [&s3[..], &[("AWS_CA_BUNDLE", "/nonexistent/bundle.pem")]].concat();
        for (text, environment, words) in [
            ("az://container", &azure("hush-hush!!")[..], "AZURE_STORAGE_ACCOUNT_KEY"),
            ("gs://bucket", &[("GOOGLE_SERVICE_ACCOUNT_KEY", "{hush-hush}")][..], "GOOGLE_APPLICATION_CREDENTIALS"),
            ("gs://bucket", &[("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent.json")][..], "/nonexistent.json"),
            ("s3://bucket", &bundle[..], "/nonexistent/bundle.pem"),
        ] {
            let error = open(text, environment).unwrap_err();
            assert_eq!(error.kind, Kind::Address, "{error}");
            assert!(error.to_string().contains(words) && !error.to_string().contains("hush-hush"), "{error}");
        }
    }
}
