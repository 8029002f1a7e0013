//! The health port: HTTP/1.1 answers from the last picture.
//!
//! Read-only, and bounded on every side, because whoever reaches the port may be slow or hostile: the number of
//! connections, the time a request's head may take, the size of a head. When all places are taken, the oldest
//! connection makes room, so that a probe always gets through.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::picture::Picture;
use super::report::{self, Now};

/// Connections at once; one more ends the oldest.
const CONNECTIONS_MAX: usize = 128;
/// How long a request's head may take to arrive, and how long a connection may idle between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Largest head, in bytes, and most headers in it; a probe's has a few hundred bytes.
const HEAD_SIZE_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long connections may finish their answer once the port closes.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// How long to hold back after accept(2) failed: out of descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the port offers, as `/` shows it.
const INDEX: &[(&str, &str)] = &[
    ("/health", "the whole report; 503 when unhealthy (alias /healthz)"),
    ("/ready", "200 while requests should be sent here (alias /readyz)"),
    ("/live", "200 while the supervisor runs (alias /livez)"),
];

/// Answer on `listener` until `shutdown` completes; connections then get a moment to finish their answer.
///
/// Never fails: a connection's error is that connection's, and an error of accept(2) is logged and waited out.
pub async fn serve(listener: TcpListener, pictures: watch::Receiver<Arc<Picture>>, shutdown: impl Future<Output = ()>) {
    let mut shutdown = pin!(shutdown);
    let (closing, _) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut places = Places::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                places.take(tasks.spawn(connection(stream, pictures.clone(), closing.subscribe())));
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the health port");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    // Dropping the sender tells every connection; dropping the set ends those that did not listen.
    drop(closing);
    let _ = timeout(CLOSE_LIMIT, async { while tasks.join_next().await.is_some() {} }).await;
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Places(VecDeque<AbortHandle>);

impl Places {
    /// Give `newcomer` a place; the oldest connection loses its own if none is left.
    fn take(&mut self, newcomer: AbortHandle) {
        if self.0.len() >= CONNECTIONS_MAX {
            self.0.retain(|handle| !handle.is_finished());
        }
        if self.0.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(newcomer);
    }
}

/// Serve one connection until it ends or `closing` loses its sender.
async fn connection(stream: TcpStream, pictures: watch::Receiver<Arc<Picture>>, mut closing: watch::Receiver<()>) {
    // Without it an answer of two segments can wait 40 ms for a delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let picture = Arc::clone(&pictures.borrow());
        let response = answer(request.method(), request.uri().path(), &picture);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(HEAD_SIZE_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // An error here is a client that went away, was too slow or spoke no HTTP: nothing an operator can mend.
        _ = connection.as_mut() => return,
        _ = closing.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// The answer to one request.
fn answer(method: &Method, path: &str, picture: &Picture) -> Response<Full<Bytes>> {
    // tokio's clock, so that tests can turn it.
    let now = Now { instant: Instant::now().into_std(), wall: SystemTime::now() };
    let known = matches!(path, "/" | "/health" | "/healthz" | "/ready" | "/readyz" | "/live" | "/livez");
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

/// `body` as JSON with status `code`. hyper adds the length, and leaves the body out for HEAD.
fn json(code: u16, body: &impl Serialize) -> Response<Full<Bytes>> {
    let (code, text) = match serde_json::to_vec(body) {
        Ok(text) => (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), text),
        Err(error) => {
            tracing::error!(%error, "write a health answer");
            (StatusCode::INTERNAL_SERVER_ERROR, b"{}".to_vec())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A cached answer of a probe is a wrong answer.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
