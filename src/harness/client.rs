//! The other side of the harness's socket: `tandem database`, and tests in Rust that run under `tandem test`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Method, Request, Response};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::databases::{Lease, Returned};
use super::endpoint::NewDatabase;
use super::of_test::Census;
use crate::control::Answer;
use crate::exit::{Code, Failure};
use crate::http::client::{exchange, read_body};

/// The variable that says where the harness's socket is.
pub const VARIABLE: &str = crate::plan::libpq::TEST_SOCKET;

/// How long an answer may take: a database may have to wait for its template, which migrations and seeds fill.
const ANSWER_LIMIT: Duration = Duration::from_mins(30);
/// Largest answer that is read, in bytes.
const ANSWER_SIZE_MAX: usize = 4 * 1024 * 1024;

/// A harness that runs in another process.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The harness whose socket is at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A database: one of the caller's own, or the one that read-only tests share.
    ///
    /// # Errors
    /// The harness is gone, or can make none.
    pub async fn new_database(&self, asked: &NewDatabase) -> anyhow::Result<Lease> {
        self.ask(Method::POST, "/databases", serde_json::to_string(asked)?).await
    }

    /// Give the database `name` back; one of a failed test is kept while there are few.
    ///
    /// # Errors
    /// The harness is gone, or does not know it.
    pub async fn give_back(&self, name: &str, failed: bool) -> anyhow::Result<Returned> {
        let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let query = if failed { "?failed=1" } else { "" };
        self.ask(Method::DELETE, &format!("/databases/{name}{query}"), String::new()).await
    }

    /// How the harness's databases are.
    ///
    /// # Errors
    /// The harness is gone.
    pub async fn census(&self) -> anyhow::Result<Census> {
        self.ask(Method::GET, "/status", String::new()).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, uri: &str, body: String) -> anyhow::Result<T> {
        let stream = connect(&self.path).await?;
        let request =
            Request::builder().method(method).uri(uri).header(HOST, "tandem").body(Full::<Bytes>::from(body))?;
        exchange(stream, request, ANSWER_LIMIT, async |response: Response<Incoming>| {
            let is_success = response.status().is_success();
            let body = read_body(response, ANSWER_SIZE_MAX).await?;
            if !is_success {
                serde_json::from_slice::<Answer>(&body).context("understand the answer")?.into_result()?;
            }
            serde_json::from_slice(&body)
                .context("understand the answer; is that tandem another version than this one?")
        })
        .await
    }
}

async fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let message = format!("no test harness answers at {}: is its `tandem test` over?", path.display());
            bail!(anyhow::Error::new(error).context(Failure::new(Code::Failed, message)))
        }
    }
}
