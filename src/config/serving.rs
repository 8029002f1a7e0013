//! How the application is served: its unix sockets, TLS, and Uvicorn's own options.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::settings::Settings;
use super::uvicorn;
use super::value::Raw;
use super::values::Values;

/// How the application is served, beside where.
#[derive(Clone, Debug)]
pub struct Serving {
    pub socket_files: SocketFiles,
    /// `None`: without TLS.
    pub tls: Option<Tls>,
    /// Uvicorn's own options, by its own names.
    pub uvicorn: BTreeMap<String, Given>,
}

impl Serving {
    pub fn of(values: &Values) -> Self {
        let socket_files =
            SocketFiles { mode: values.mode("workers.socket_mode"), owner: values.text("workers.socket_owner") };
        Self { socket_files, tls: tls(values), uvicorn: uvicorn_options(values) }
    }
}

/// What the files of the application's unix sockets are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketFiles {
    pub mode: u32,
    /// `user`, `user:group` or `:group`; `None`: the user that Tandem runs as.
    pub owner: Option<String>,
}

/// `workers.tls_*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those of the authorities between it and a root, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM; may be the same file.
    pub key: PathBuf,
    /// The authorities whose clients are let in, as PEM.
    pub ca: Option<PathBuf>,
    pub client: TlsClient,
}

/// What is asked of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsClient {
    Nothing,
    /// A certificate that a client has is checked.
    Optional,
    /// Without a certificate of `tls_ca` it is turned away.
    Require,
}

/// A value of `[workers.uvicorn]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub value: Value,
    /// Whether it comes from the environment or a flag: text that may stand for anything.
    pub is_word: bool,
}

fn tls(values: &Values) -> Option<Tls> {
    let cert = values.path("workers.tls_cert")?;
    Some(Tls {
        key: values.path("workers.tls_key").unwrap_or_else(|| cert.clone()),
        cert,
        ca: values.path("workers.tls_ca"),
        client: match values.word("workers.tls_client").as_str() {
            "optional" => TlsClient::Optional,
            "require" => TlsClient::Require,
            _ => TlsClient::Nothing,
        },
    })
}

/// `[workers.uvicorn]`, by the names that `uvicorn.Config` has for them.
fn uvicorn_options(values: &Values) -> BTreeMap<String, Given> {
    let mut options: BTreeMap<String, Given> = BTreeMap::new();
    let mut headers = Vec::new();
    for (written, entry) in values.entries(uvicorn::TABLE) {
        let mut given = Given { value: json(&entry.raw), is_word: matches!(entry.raw, Raw::Word(_)) };
        if let ("log_config", Some(path)) = (uvicorn::name(written).as_str(), entry.raw.as_text()) {
            given.value = entry.base.join(path).display().to_string().into();
        }
        match uvicorn::header(written) {
            Some(header) => headers.push(format!("{header}: {}", entry.raw.to_plain().unwrap_or_default()).into()),
            None => drop(options.insert(uvicorn::name(written), given)),
        }
    }
    if !headers.is_empty() {
        let given = options.entry("headers".to_owned()).or_insert(Given { value: Value::Null, is_word: false });
        let written = given.value.as_array().cloned().unwrap_or_default();
        given.value = written.into_iter().chain(headers).collect();
    }
    options
}

fn json(raw: &Raw) -> Value {
    match raw {
        Raw::Word(text) | Raw::Text(text) => text.clone().into(),
        Raw::Integer(number) => (*number).into(),
        Raw::Float(number) => (*number).into(),
        Raw::Boolean(boolean) => (*boolean).into(),
        Raw::List(list) => list.clone().into(),
        Raw::Other(_) => Value::Null,
    }
}

impl Settings {
    /// Where this machine reaches the application, for hooks and processes beside it: over TCP if it can.
    pub fn base_url(&self) -> String {
        let places = &self.workers.listen;
        let place = places.iter().find(|place| place.port().is_some()).or(places.first());
        place.map(|place| place.url(self.scheme())).unwrap_or_default()
    }

    /// The places, as one text.
    pub fn listens(&self) -> String {
        self.workers.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The places, as people reach them.
    pub fn urls(&self) -> String {
        let scheme = self.scheme();
        self.workers.listen.iter().map(|place| place.shown(scheme)).collect::<Vec<_>>().join(", ")
    }

    /// `http`, or with TLS `https`.
    pub fn scheme(&self) -> &'static str {
        if self.workers.serving.tls.is_some() { "https" } else { "http" }
    }
}
