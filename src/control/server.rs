//! HTTP on the control socket: shows the state of all services, streams the log, and carries orders to the supervisor.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`super::messages::Status`] |
//! | `GET /logs?service=&lines=N&follow=1` | one [`LogEntry`] a line |
//! | `POST /audit` with `{"what": "root does this"}` | an [`Answer`], when it is in the log |
//! | `GET /events` | server-sent events, each an [`crate::health::overview::Overview`] |
//! | `POST /reload`, `/password/rotate`, `/stop` | an [`Answer`] |
//! | `POST /restart` with `{"service": "worker-0"}` | an [`Answer`] |
//! | `POST /scale` with `{"to": 4}` or `{"by": -1}` | an [`Answer`] |
//!
//! A request that is wrong gets an [`Answer`] that says why. `http::server` says how connections are bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::messages::{Answer, Ask, Audit, Deploy, LogEntry, LogQuery, Order, Restart};
use super::socket::ControlSocket;
use super::status::{Memory, status};
use crate::exit::Code;
use crate::health::Picture;
use crate::health::events::{self, Body, Source};
use crate::health::viewers::Door;
use crate::http::server::{self, json};
use crate::process::memory;
use crate::telemetry::{self, Batch, Cursor, Ring, ring};

/// Largest body of a request, in bytes, and how long it may take to arrive.
const BODY_SIZE_MAX: usize = 4 * 1024;
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// About how much text is sent at a time, in bytes.
const BATCH_SIZE: usize = 32 * 1024;

/// Answer on `socket` until `shutdown` completes; clients that follow the log then get its last lines.
///
/// Orders go to `asks`; each is answered when the receiver sends its [`Answer`], or drops the sender. Those who follow the
/// events come in through `door`.
pub async fn serve(
    socket: ControlSocket,
    pictures: watch::Receiver<Arc<Picture>>,
    asks: mpsc::UnboundedSender<Ask>,
    door: Door,
    shutdown: impl Future<Output = ()>,
) {
    serve_ring(socket, (pictures, door), asks, ring(), shutdown).await;
}

/// As [`serve`], with the log's lines from `ring`.
async fn serve_ring(
    socket: ControlSocket,
    (pictures, door): (watch::Receiver<Arc<Picture>>, Door),
    asks: mpsc::UnboundedSender<Ask>,
    ring: &'static Ring,
    shutdown: impl Future<Output = ()>,
) {
    let (open, closing) = watch::channel(());
    let answerer = Answerer { pictures, door, asks, ring, closing };
    let shutdown = async move {
        shutdown.await;
        drop(open);
    };
    server::serve(socket, move |request| answerer.clone().answer(request), shutdown).await;
}

/// What every request is answered from.
#[derive(Clone)]
struct Answerer {
    pictures: watch::Receiver<Arc<Picture>>,
    door: Door,
    asks: mpsc::UnboundedSender<Ask>,
    ring: &'static Ring,
    /// Loses its sender when the socket closes.
    closing: watch::Receiver<()>,
}

/// Why a request was not understood, with the HTTP status that says so.
type Wrong = (u16, String);

impl Answerer {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let wanted = match request.uri().path() {
            "/status" | "/logs" | "/events" => Method::GET,
            "/audit" | "/deploy" | "/password/rotate" | "/reload" | "/restart" | "/scale" | "/stop" => Method::POST,
            path => return wrong((404, format!("there is no {path} here"))),
        };
        if *request.method() != wanted {
            return wrong((405, format!("{} wants {wanted}", request.uri().path())));
        }
        match request.uri().path() {
            "/status" => self.status().await,
            "/events" => self.events(),
            "/logs" => self.logs(request.uri().query().unwrap_or_default()).unwrap_or_else(wrong),
            "/audit" => audit(request).await.unwrap_or_else(wrong),
            _ => match order(request).await {
                Ok(order) => self.carry(order).await,
                Err(why) => wrong(why),
            },
        }
    }

    async fn status(&self) -> Response<Body> {
        let picture = Arc::clone(&self.pictures.borrow());
        let pids: Vec<_> = picture.services.iter().map(|service| service.pid).collect();
        let sampled = sample(&pids).await;
        // tokio's clock, so that tests can turn it.
        let now = Instant::now().into_std();
        json(200, &status(&picture, &sampled, telemetry::under_way(), now)).map(BodyExt::boxed_unsync)
    }

    fn events(&self) -> Response<Body> {
        let Some(viewer) = self.door.enter() else {
            return respond(503, &Answer::failed(Code::Temporary, "too many follow the events already"));
        };
        let mut closing = self.closing.clone();
        let source = Source { pictures: self.pictures.clone(), ring: self.ring, viewer };
        events::stream(source, events::json, async move {
            let _ = closing.changed().await;
        })
    }

    fn logs(&self, query: &str) -> Result<Response<Body>, Wrong> {
        let query = LogQuery::of_query(query).map_err(|why| (400, why))?;
        if let Some(service) = &query.service {
            let known = self.services();
            if !known.contains(service) {
                return Err((404, format!("there is no service {service:?} here, only {}", known.join(", "))));
            }
        }
        let ring = self.ring;
        let cursor = ring.reader(query.service, query.lines, query.follow);
        let reader = Reader { ring, cursor, follow: query.follow, news: ring.news(), closing: self.closing.clone() };
        let stream = unfold(reader, |mut reader| async {
            let bytes = reader.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), reader))
        });
        let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        Ok(response)
    }

    /// Every name that lines can have: the services there are, and those that printed something and are gone.
    fn services(&self) -> Vec<String> {
        let mut known = vec![telemetry::OWN.to_owned()];
        let standing: Vec<_> = self.pictures.borrow().services.iter().map(|service| service.name.clone()).collect();
        for name in standing.into_iter().chain(self.ring.services()) {
            if !known.contains(&name) {
                known.push(name);
            }
        }
        known
    }

    /// Hand `order` to the supervisor and wait for its answer.
    async fn carry(&self, order: Order) -> Response<Body> {
        let (sender, answer) = oneshot::channel();
        let asked = self.asks.send(Ask { order, answer: sender });
        let answer = match asked {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        match answer {
            Some(answer) => respond(if answer.is_done() { 200 } else { 409 }, &answer),
            None => respond(503, &Answer::failed(Code::Temporary, "this Tandem is ending, and does nothing else")),
        }
    }
}

/// Log what a person does beside this Tandem. Only its own user and root can say anything here.
async fn audit(request: Request<Incoming>) -> Result<Response<Body>, Wrong> {
    let Audit { what } = parse(&body(request).await?, r#"{"what": "…"}"#)?;
    // A warning: it shall be in the log whatever filter is set, and be found in it.
    tracing::warn!("audit: {what}");
    Ok(respond(200, &Answer::done(Vec::new())))
}

/// The order that `request` brings.
async fn order(request: Request<Incoming>) -> Result<Order, Wrong> {
    let path = request.uri().path().to_owned();
    let body = body(request).await?;
    match path.as_str() {
        "/restart" => Ok(Order::Restart { service: parse::<Restart>(&body, r#"{"service": "worker-0"}"#)?.service }),
        "/scale" => Ok(Order::Scale(parse(&body, r#"{"to": 4} or {"by": -1}"#)?)),
        "/reload" => Ok(Order::Reload),
        "/password/rotate" => Ok(Order::RotatePassword),
        "/deploy" => Ok(Order::Deploy { dry_run: parse::<Deploy>(&body, r#"{"dry_run": false}"#)?.dry_run }),
        _ => Ok(Order::Stop),
    }
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Wrong> {
    match timeout(BODY_LIMIT, Limited::new(request.into_body(), BODY_SIZE_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err((413, format!("a request's body has at most {BODY_SIZE_MAX} bytes"))),
        Err(_) => Err((408, format!("the request's body did not come within {BODY_LIMIT:?}"))),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Wrong> {
    serde_json::from_slice(body).map_err(|error| (400, format!("the body is not as in {example}: {error}")))
}

fn wrong((status, why): Wrong) -> Response<Body> {
    respond(status, &Answer::failed(Code::Usage, why))
}

fn respond(status: u16, answer: &Answer) -> Response<Body> {
    let mut response = json(status, answer).map(BodyExt::boxed_unsync);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// The memory of Tandem itself and of each of `pids` with all below it.
async fn sample(pids: &[Option<i32>]) -> Memory {
    let known: Vec<i32> = pids.iter().copied().flatten().collect();
    let own = std::process::id().cast_signed();
    let (families, own) = tokio::join!(memory::of_families(&known), memory::within(memory::LIMIT, own, memory::of_one));
    let mut taken = families.into_iter();
    let services = pids.iter().map(|pid| pid.and_then(|_| taken.next().flatten())).collect();
    Memory { own: own.ok().flatten(), services }
}

/// Reads the lines for one request, batch by batch.
struct Reader {
    ring: &'static Ring,
    cursor: Cursor,
    follow: bool,
    news: watch::Receiver<u64>,
    closing: watch::Receiver<()>,
}

impl Reader {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.news.mark_unchanged();
            let batch = self.ring.read(&mut self.cursor, BATCH_SIZE);
            if !batch.is_empty() {
                return Some(ndjson(batch));
            }
            if !self.follow {
                return None;
            }
            tokio::select! {
                _ = self.news.changed() => {}
                // Read once more, for the last lines.
                _ = self.closing.changed() => self.follow = false,
            }
        }
    }
}

/// `batch` as one JSON object a line.
fn ndjson(batch: Batch) -> Bytes {
    let gap = (batch.skipped > 0).then_some(LogEntry::Skipped { skipped: batch.skipped });
    let lines = batch.lines.into_iter().map(|line| LogEntry::Line {
        sequence: Some(line.sequence),
        time: telemetry::rfc3339(line.time),
        service: line.service,
        level: line.level.as_str().to_owned(),
        text: line.text,
    });
    let mut bytes = Vec::new();
    for entry in gap.into_iter().chain(lines) {
        if serde_json::to_writer(&mut bytes, &entry).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes.into()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
