//! Buckets and the keys to them, under the names that the clouds' own tools use. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::trouble::{Kind, StoreError};
use crate::plan::Secret;

/// Whose bucket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cloudy {
    S3,
    Google,
    Azure,
}

/// A bucket, or what a cloud calls a container, with the keys to it. `Display` shows the address alone.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) cloud: Cloudy,
    pub(super) name: String,
    /// Without a slash at its ends; empty for the whole bucket.
    pub(super) prefix: String,
    pub(super) keys: Keys,
}

/// What the environment says about a cloud, by name.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) values: BTreeMap<&'static str, Secret>,
    /// Plain HTTP, for this machine's own endpoint or because it was allowed.
    pub(super) plain: bool,
    /// The endpoint is this machine: no proxy leads there.
    pub(super) loopback: bool,
}

/// What is read. Each name is also a configuration key of `object_store` in small letters, but for those in [`OURS`].
const S3_NAMES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
    "AWS_CHECKSUM_ALGORITHM",
    "AWS_ALLOW_HTTP",
    "AWS_CA_BUNDLE",
];
const GOOGLE_NAMES: &[&str] =
    &["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"];
const AZURE_NAMES: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ALLOW_HTTP",
];

/// Names that are passed to `object_store` in another way.
pub(super) const OURS: &[&str] = &["AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "AWS_CA_BUNDLE"];

/// Values as short as this are words such as `true`, and hiding them would garble messages.
const HIDDEN_MIN: usize = 8;

impl Cloudy {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::S3 => S3_NAMES,
            Self::Google => GOOGLE_NAMES,
            Self::Azure => AZURE_NAMES,
        }
    }

    /// The sets of which one must be there, whole.
    fn ways_in(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::S3 => &[
                &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
                &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"],
                &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"],
                &["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"],
            ],
            Self::Google => {
                &[&["GOOGLE_APPLICATION_CREDENTIALS"], &["GOOGLE_SERVICE_ACCOUNT"], &["GOOGLE_SERVICE_ACCOUNT_KEY"]]
            }
            Self::Azure => &[
                &["AZURE_STORAGE_ACCOUNT_KEY"],
                &["AZURE_STORAGE_SAS_TOKEN"],
                &["AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"],
                &["AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TENANT_ID"],
            ],
        }
    }

    /// What a person sets to get in.
    pub(super) fn key_names(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Self::Google => "GOOGLE_APPLICATION_CREDENTIALS (a service account's key file)",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
    }
}

impl Bucket {
    pub(super) fn key_names(&self) -> &'static str {
        self.cloud.key_names()
    }

    pub(super) fn container(&self) -> String {
        let word = if self.cloud == Cloudy::Azure { "container" } else { "bucket" };
        format!("{word} `{}`", self.name)
    }

    /// The text without anything that came from the environment and is no address: the last wall before a message.
    pub(super) fn hide(&self, text: &str) -> String {
        let secret = |(name, value): (&&str, &Secret)| {
            let telling = ["KEY", "SECRET", "TOKEN", "PASSWORD"].iter().any(|word| name.contains(word));
            (telling && value.expose().len() >= HIDDEN_MIN).then(|| value.expose().to_owned())
        };
        let secrets = self.keys.values.iter().filter_map(secret);
        secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "********"))
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.cloud {
            Cloudy::S3 => "s3",
            Cloudy::Google => "gs",
            Cloudy::Azure => "az",
        };
        write!(formatter, "{scheme}://{}", self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(formatter, "/{}", self.prefix) }
    }
}

/// The keys to `cloud` in `environment`; an empty value counts as none, as in a compose file.
pub(super) fn of(cloud: Cloudy, metadata: bool, environment: &BTreeMap<String, String>) -> Result<Keys, StoreError> {
    let named = |&name: &&'static str| {
        let value = environment.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())?;
        Some((name, Secret::new(value)))
    };
    let values: BTreeMap<_, _> = cloud.names().iter().filter_map(named).collect();
    let has = |name: &&str| values.contains_key(*name);
    if cloud == Cloudy::Azure && !has(&"AZURE_STORAGE_ACCOUNT_NAME") {
        return Err(StoreError::new(Kind::Address, "AZURE_STORAGE_ACCOUNT_NAME is not set: whose container is it?"));
    }
    if !metadata && !cloud.ways_in().iter().any(|way| way.iter().all(has)) {
        let begun = cloud.ways_in().iter().find(|way| way.iter().any(has));
        let missing = begun.and_then(|way| way.iter().find(|name| !has(name)));
        let start = missing.map_or("there are no keys to it".to_owned(), |name| format!("{name} is not set"));
        let message = format!(
            "{start}; set {} (files in the home directory are not read), or write ?metadata=true behind the address on a \
             machine that gets its keys from the cloud",
            cloud.key_names()
        );
        return Err(StoreError::new(Kind::Address, message));
    }
    let (plain, loopback) = endpoint(&values)?;
    Ok(Keys { values, plain, loopback })
}

/// Whether the endpoint is plain HTTP, and whether it is this machine; the first must have a reason.
fn endpoint(values: &BTreeMap<&'static str, Secret>) -> Result<(bool, bool), StoreError> {
    let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT"];
    let Some((name, text)) = named.into_iter().find_map(|name| Some((name, values.get(name)?))) else {
        return Ok((false, false));
    };
    let wrong = |why: &str| StoreError::new(Kind::Address, format!("{name} cannot be used: {why}"));
    let url = url::Url::parse(text.expose()).map_err(|_| wrong("it is no URL; write https://host:port"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("keys do not belong into it"));
    }
    let host = url.host_str().map(|host| host.trim_matches(['[', ']'])).unwrap_or_default();
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let allow = if name.starts_with("AWS") { "AWS_ALLOW_HTTP" } else { "AZURE_ALLOW_HTTP" };
    let allowed = values.get(allow).is_some_and(|value| matches!(value.expose(), "true" | "1" | "yes" | "on"));
    match url.scheme() {
        "https" => Ok((false, loopback)),
        "http" if loopback || allowed => Ok((true, loopback)),
        "http" => {
            let why = "plain http to another machine lets everybody on the way read the copies; use https";
            Err(wrong(&format!("{why}, or set {allow}=true")))
        }
        _ => Err(wrong("write https://host:port")),
    }
}
