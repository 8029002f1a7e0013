//! HTTP on the harness's unix socket: hands out databases, takes them back, says how they are.
//!
//! | request | answer |
//! |---|---|
//! | `POST /databases`, `{"shared": true}` for the read-only one, `{"lasting": true}` for more than one test | a [`Lease`](super::databases::Lease) |
//! | `DELETE /databases/NAME`, `?failed=1` for a failed test's | [`Returned`](super::databases::Returned) |
//! | `POST /fill`, `{"tests": 200}`: so many databases will be asked for, or some | [`Census`](super::of_test::Census) |
//! | `GET /status` | [`Census`](super::of_test::Census) |
//!
//! Whatever is refused is answered with an [`Answer`] that says why.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::databases::Databases;
use super::shared_objects::Hold;
use crate::control::{Answer, ControlSocket};
use crate::exit::{Code, code_of, in_words};
use crate::http::server;

/// Largest body of a request, in bytes, and how long it may take to arrive.
const BODY_SIZE_MAX: usize = 16 * 1024;
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// The body of `POST /databases`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NewDatabase {
    /// The one that all read-only tests share.
    #[serde(default)]
    pub shared: bool,
    /// Held by a fixture for longer than one test.
    #[serde(default)]
    pub lasting: bool,
    /// The name of the caller, for the log and for `tandem psql --test`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The body of `POST /fill`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct FillRequest {
    /// How many databases will be asked for, where that is known.
    tests: Option<usize>,
}

/// Answer on `socket` for as long as this is polled.
pub async fn serve(socket: ControlSocket, databases: Databases) {
    let answer = move |request| answer(databases.clone(), request);
    server::serve(socket, answer, std::future::pending()).await;
}

/// The answer to a request that cannot be carried out.
type Refusal = (u16, Answer);

async fn answer(databases: Databases, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match carry_out(&databases, request).await {
        Ok(body) => respond(200, body),
        Err((status, answer)) => respond(status, serde_json::to_vec(&answer).unwrap_or_default()),
    }
}

async fn carry_out(databases: &Databases, request: Request<Incoming>) -> Result<Vec<u8>, Refusal> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let name = uri.path().strip_prefix("/databases/");
    match (method, uri.path(), name) {
        (Method::POST, "/databases", _) => {
            let body = body(request).await?;
            let asked: NewDatabase = if body.is_empty() { NewDatabase::default() } else { parse(&body)? };
            tracing::debug!(test.label = asked.label, shared = asked.shared, "a database is asked for");
            let hold = if asked.lasting { Hold::Lasting } else { Hold::Test };
            let lease = if asked.shared { databases.shared().await } else { databases.fresh(hold).await };
            let lease = lease.map_err(|error| refuse(503, &error))?;
            if let Some(label) = asked.label.filter(|_| !asked.shared) {
                databases.label(&lease.name, label);
            }
            Ok(json(&lease))
        }
        (Method::DELETE, _, Some(name)) => {
            let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
            let failed = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "failed=1"));
            Ok(json(&databases.take_back(&name, failed).await.map_err(|error| refuse(404, &error))?))
        }
        (Method::POST, "/fill", _) => {
            let body = body(request).await?;
            let coming: FillRequest = if body.is_empty() { FillRequest::default() } else { parse(&body)? };
            match coming.tests {
                Some(tests) => databases.expect(tests),
                None => databases.fill(),
            }
            Ok(json(&databases.census()))
        }
        (Method::GET, "/status", _) => Ok(json(&databases.census())),
        (method, path, _) => Err((404, Answer::failed(Code::Usage, format!("there is no {method} {path} here")))),
    }
}

fn refuse(status: u16, error: &anyhow::Error) -> Refusal {
    (status, Answer::failed(code_of(error), in_words(error)))
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let whole = timeout(BODY_LIMIT, Limited::new(request.into_body(), BODY_SIZE_MAX).collect()).await;
    match whole {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => {
            Err((413, Answer::failed(Code::Usage, format!("a request's body has at most {BODY_SIZE_MAX} bytes"))))
        }
        Err(_) => Err((408, Answer::failed(Code::Usage, format!("the body did not come within {BODY_LIMIT:?}")))),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        (400, Answer::failed(Code::Usage, format!("the body is not as in {{\"shared\": true}}: {error}")))
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn respond(status: u16, body: Vec<u8>) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    response.body(Full::from(body)).unwrap_or_default()
}
