//! Answers on the health port: the status page and its events, and everything else as `health` answers it.
//!
//! Probes and scrapers are answered whatever name they ask by. The page is not: see [`access`].

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    REFRESH, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::access;
use super::render::{self, Asked};
use crate::config::Health;
use crate::health::events::{self, Body, Source};
use crate::health::overview::StatisticsOverview;
use crate::health::viewers::{Door, Viewers};
use crate::health::{Picture, server as health};
use crate::http::server::{self, Port, json};
use crate::plan::Secret;
use crate::scrub::scrubbed;
use crate::telemetry::ring;

/// So many may look at a time: each costs an event a second.
pub const VIEWERS_MAX: usize = 20;
/// How long a wrong password waits for its answer.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_millis(500);
/// How often the log tells of wrong passwords.
const WRONG_PASSWORD_NEWS: Duration = Duration::from_secs(60);
/// How often a page without JavaScript may be loaded again.
const REFRESH_SECONDS: std::ops::RangeInclusive<u32> = 5..=3600;

/// The page's own policy: nothing but its own script and style, its own events, its own icon.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types tandem",
        digest(render::SCRIPT.as_str()),
        digest(render::STYLE.as_str()),
    )
});

/// What of the page is shown, and to whom.
#[derive(Clone, Debug)]
pub struct Audience {
    has_page: bool,
    password: Option<Secret>,
    hosts: Vec<String>,
    door: Door,
}

impl Audience {
    /// As the configuration has it.
    pub fn of(health: &Health, viewers: &Viewers) -> Self {
        Self {
            has_page: health.has_page(),
            password: health.page_password.clone(),
            hosts: health.page_hosts.clone(),
            door: viewers.door(VIEWERS_MAX),
        }
    }
}

/// Answer on `listener` until `shutdown` completes; connections then get a moment to finish their answer.
///
/// Never fails: a connection's error is that connection's, and an error of accept(2) is logged and waited out.
pub async fn serve(
    listener: TcpListener,
    pictures: watch::Receiver<Arc<Picture>>,
    audience: Audience,
    shutdown: impl Future<Output = ()>,
) {
    let answerer = Arc::new(Answerer { pictures, audience });
    let answer = move |request| answerer.clone().answer(request);
    server::serve(Port { listener, name: "the health port" }, answer, shutdown).await;
}

struct Answerer {
    pictures: watch::Receiver<Arc<Picture>>,
    audience: Audience,
}

impl Answerer {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (path, headers) = (request.uri().path(), request.headers());
        let is_pages = match path {
            "/" => access::prefers_html(headers),
            "/events" | "/icon.svg" => true,
            _ => false,
        };
        if !is_pages || !self.audience.has_page {
            let picture = Arc::clone(&self.pictures.borrow());
            let mut response = health::respond(request.method(), path, health::wanted(headers), &picture).await;
            if path == "/" {
                response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
            }
            return response;
        }
        let mut response = match self.refused(&request).await {
            Some(refusal) => refusal,
            None => match path {
                "/" => self.page(request.uri().query().unwrap_or_default()),
                "/icon.svg" => text(StatusCode::OK, "image/svg+xml", render::ICON.to_owned()),
                _ => self.events(request.method(), request.uri().query().unwrap_or_default()),
            },
        };
        protect(response.headers_mut());
        response
    }

    /// Why the request is not answered, if it is not.
    async fn refused(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let headers = request.headers();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = refusal(405, "this port is read-only: GET or HEAD");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(response);
        }
        if !access::is_known_host(headers, request.uri(), &self.audience.hosts) {
            let why = "the status page is not answered under this name: ask by address or as localhost, or add the name to \
                       health.page_hosts";
            return Some(refusal(421, why));
        }
        if request.uri().path() == "/events" && access::is_of_another_site(headers) {
            return Some(refusal(403, "the events are for the status page itself"));
        }
        if self.audience.password.as_ref().is_none_or(|password| access::is_let_in(headers, password)) {
            return None;
        }
        if headers.contains_key(hyper::header::AUTHORIZATION) {
            tell_of_wrong_password();
            tokio::time::sleep(WRONG_PASSWORD_PAUSE).await;
        }
        let mut response = refusal(401, "the status page asks for a password (health.page_password)");
        let challenge = HeaderValue::from_static("Basic realm=\"Tandem's status page\", charset=\"UTF-8\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        Some(response)
    }

    fn page(&self, query: &str) -> Response<Body> {
        self.audience.door.look();
        let asked = Asked::of_query(query);
        let overview = events::now(&self.pictures.borrow(), ring());
        let mut response = text(StatusCode::OK, "text/html; charset=utf-8", render::page(&overview, &asked));
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::from_str(&POLICY) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        if let Some(seconds) = asked.refresh.filter(|seconds| REFRESH_SECONDS.contains(seconds)) {
            headers.insert(REFRESH, HeaderValue::from(seconds));
        }
        response
    }

    fn events(&self, method: &Method, query: &str) -> Response<Body> {
        if method == Method::HEAD {
            return text(StatusCode::OK, "text/event-stream", String::new());
        }
        let Some(viewer) = self.audience.door.enter() else {
            return refusal(503, "so many look already that no more are told of changes: load the page again later");
        };
        let source = Source { pictures: self.pictures.clone(), ring: ring(), viewer };
        // Its tasks end with the port.
        let closing = std::future::pending();
        if query != "page" {
            return events::stream(source, events::json, closing);
        }
        let mut known = StatisticsOverview::default();
        let write = move |overview: &_| render::event(overview, &mut known);
        events::stream(source, write, closing)
    }
}

/// What keeps a browser from doing more with an answer than showing it.
fn protect(headers: &mut HeaderMap) {
    let same_origin = HeaderValue::from_static("same-origin");
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), same_origin.clone());
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), same_origin);
    // The events' own policy, and that of all that is refused: nothing at all.
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert_with(|| HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
}

fn refusal(code: u16, why: &str) -> Response<Body> {
    json(code, &serde_json::json!({ "error": why })).map(BodyExt::boxed_unsync)
}

fn text(code: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(scrubbed(&text).into_owned())).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Say in the log that somebody gives wrong passwords, not more than once a minute.
fn tell_of_wrong_password() {
    static TOLD: AtomicU64 = AtomicU64::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let told = TOLD.load(Ordering::Relaxed);
    if now.saturating_sub(told) >= WRONG_PASSWORD_NEWS.as_secs() {
        TOLD.store(now, Ordering::Relaxed);
        tracing::warn!("a request for the status page gave a wrong password");
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
