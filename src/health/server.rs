//! The health port: HTTP/1.1 answers from the last picture, read-only. `http::server` says how it is bounded.

use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::{Method, Response};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::events::Body;
use super::metrics;
use super::picture::{Picture, Supervisor};
use super::report::{self, Now};
use crate::http::parts::Parts;
use crate::http::server::{self, Port, json};
use crate::metrics::{Format, registry};
use crate::scrub::scrubbed;
use crate::{event_loop, telemetry};

/// The paths of the port, for `/`.
const INDEX: &[(&str, &str)] = &[
    ("/", "the status page, for browsers (health.page); for others these paths"),
    ("/events", "what the page shows, as server-sent events"),
    ("/health", "the whole report; 503 when unhealthy (alias /healthz)"),
    ("/ready", "200 while requests should be sent here (alias /readyz)"),
    ("/metrics", "everything that is measured, for Prometheus: as OpenMetrics or as the older text"),
    ("/live", "200 while the supervisor runs (alias /livez)"),
];

/// Answer on `listener` until `shutdown` completes; connections then get a moment to finish their answer.
///
/// Never fails: a connection's error is that connection's, and an error of accept(2) is logged and waited out.
pub async fn serve(listener: TcpListener, pictures: watch::Receiver<Arc<Picture>>, shutdown: impl Future<Output = ()>) {
    let answer = move |request: hyper::Request<_>| {
        let picture = Arc::clone(&pictures.borrow());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let format = wanted(request.headers());
        async move { respond(&method, &path, format, &picture).await }
    };
    server::serve(Port { listener, name: "the health port" }, answer, shutdown).await;
}

/// The text of `/metrics` that a request asks for.
pub fn wanted(headers: &HeaderMap) -> Format {
    Format::wanted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()))
}

/// The answer to one request; `format` is that of `/metrics`.
pub async fn respond(method: &Method, path: &str, format: Format, picture: &Picture) -> Response<Body> {
    match path == "/metrics" && matches!(*method, Method::GET | Method::HEAD) {
        true => scrape(picture, format).await.map(BodyExt::boxed_unsync),
        false => answer(method, path, picture).map(BodyExt::boxed_unsync),
    }
}

/// The answer to one request that is no scrape.
fn answer(method: &Method, path: &str, picture: &Picture) -> Response<Full<Bytes>> {
    let under_way = telemetry::under_way();
    // tokio's clock, which tests can set.
    let instant = Instant::now().into_std();
    let now = Now { instant, wall: SystemTime::now(), supervisor: supervisor(), under_way: &under_way };
    let known = matches!(path, "/" | "/metrics" | "/health" | "/healthz" | "/ready" | "/readyz" | "/live" | "/livez");
    if known && !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = json(405, &serde_json::json!({"error": "this port is read-only: GET or HEAD"}));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/health" | "/healthz" => {
            let report = report::report(picture, now);
            json(report.status.http_code(), &report)
        }
        "/ready" | "/readyz" => {
            let readiness = report::readiness(picture, now);
            json(readiness.http_code(), &readiness)
        }
        "/live" | "/livez" => json(200, &report::liveness(picture, now)),
        "/" => {
            let paths: serde_json::Map<_, _> =
                INDEX.iter().map(|&(path, what)| (path.to_owned(), what.into())).collect();
            json(200, &serde_json::json!({"service": "tandem", "paths": paths}))
        }
        _ => json(404, &serde_json::json!({"error": "not found", "see": "/"})),
    }
}

/// The measurements of this process.
pub fn supervisor() -> Supervisor {
    let measured = event_loop::measured();
    Supervisor { longest_stall: measured.longest, stalls: measured.stalls, log_lines_dropped: telemetry::dropped() }
}

/// The answer to a scrape: what the picture and the registry have, then what was last measured of the database, whose bytes
/// are shared by all who read them.
async fn scrape(picture: &Picture, format: Format) -> Response<Parts> {
    registry().note_scrape(format);
    let database = match registry().database() {
        None => Bytes::new(),
        Some(database) => match database.made(format) {
            Some(text) => text,
            // The first scrape for a while: a thousand tables make megabytes of text.
            None => event_loop::elsewhere(move || async move { database.text(format) }).await,
        },
    };
    let own = metrics::text(picture, supervisor(), (Instant::now().into_std(), SystemTime::now()), registry(), format);
    let parts = [Bytes::from(scrubbed(&own).into_owned()), database, Bytes::from_static(format.end().as_bytes())];
    let mut response = Response::new(Parts::new(parts));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
