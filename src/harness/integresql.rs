//! IntegreSQL's REST interface, version 1, for its clients in Go, JavaScript, Python and .NET.
//!
//! | request below `/api/v1` | answer |
//! |---|---|
//! | `POST /templates`, `{"hash": …}` | 200 and an empty database to fill; 423 when another client fills or has filled it |
//! | `PUT /templates/HASH` | 204: it is filled |
//! | `DELETE /templates/HASH` | 204: it is given up |
//! | `GET /templates/HASH/tests` | 200 and a clone of it, once it is filled; 404 unknown, 410 given up |
//! | `DELETE /templates/HASH/tests/ID`, `POST …/ID/unlock`, `POST …/ID/recreate` | 204: the clone is given back |
//! | `DELETE /admin/templates` | 204: all templates are forgotten |
//!
//! And `GET /-/ready`, beside `/api`: 200 as soon as anything is answered.
//!
//! It listens on loopback and knows no passwords, as the original does; it is there only on request.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::databases::{Databases, password};
use super::shared_objects::Hold;
use crate::exit::in_words;
use crate::http::server::{self, Port};

/// How long a client may wait for another one to fill a template.
const FILL_LIMIT: Duration = Duration::from_secs(60);
/// Largest body of a request, in bytes: a hash.
const BODY_SIZE_MAX: usize = 16 * 1024;
/// Most clones of a template that are handed out. Many clients never give one back: beyond this, the oldest that no client is
/// connected to is taken for given back.
const OUT_MAX: usize = 200;
/// How long a clone is its client's at least, whether connected or not.
const OUT_MIN: Duration = Duration::from_secs(2);

/// Listen on a free port of loopback and serve for ever. Must be called within a `LocalSet`.
///
/// # Errors
/// No port can be bound.
pub async fn open(databases: Databases) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let office = Office(Arc::new(Inner { databases, templates: Mutex::default(), filled: Notify::new() }));
    let answer = move |request| office.clone().answer(request);
    let port = Port { listener, name: "the port of IntegreSQL's interface" };
    tokio::task::spawn_local(server::serve(port, answer, std::future::pending()));
    Ok(address)
}

#[derive(Clone)]
struct Office(Arc<Inner>);

struct Inner {
    databases: Databases,
    templates: Mutex<Templates>,
    /// Told when a template is filled or given up.
    filled: Notify,
}

#[derive(Default)]
struct Templates {
    by_hash: HashMap<String, Template>,
    /// Counts them, for names that PostgreSQL takes: a hash may be long.
    count: u32,
}

#[derive(Clone)]
struct Template {
    number: u32,
    state: State,
    /// Clones that are out and since when, the oldest first.
    out: VecDeque<(String, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Filling,
    Filled,
    GivenUp,
}

impl Template {
    fn database(&self) -> String {
        format!("integresql_template_{}", self.number)
    }

    fn prefix(&self) -> String {
        format!("integresql_{}_test_", self.number)
    }
}

/// An answer: the status, and what it holds.
type Outcome = (u16, Value);

fn refused(status: u16, message: impl Into<String>) -> Outcome {
    (status, json!({ "message": message.into() }))
}

const DONE: Outcome = (204, Value::Null);

impl Office {
    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let parts: Vec<&str> = path.strip_prefix("/api/v1/").unwrap_or_default().split('/').collect();
        let (status, body) = match (&method, &parts[..]) {
            (&Method::POST, ["templates"]) => self.initialize(request).await,
            (&Method::PUT, ["templates", hash]) => self.finalize(hash).await,
            (&Method::DELETE, ["templates", hash]) => self.discard(hash).await,
            (&Method::GET, ["templates", hash, "tests"]) => self.test(hash).await,
            (&Method::DELETE, ["templates", hash, "tests", id])
            | (&Method::POST, ["templates", hash, "tests", id, "unlock" | "recreate"]) => self.give_back(hash, id),
            (&Method::DELETE, ["admin", "templates"]) => self.forget_all().await,
            (&Method::GET, _) if path == "/-/ready" => (200, json!("Ready.")),
            _ => refused(404, format!("there is no {method} {path} here")),
        };
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
        response.body(Full::from(body)).unwrap_or_default()
    }

    fn templates(&self) -> MutexGuard<'_, Templates> {
        self.0.templates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn initialize(&self, request: Request<Incoming>) -> Outcome {
        let body = match Limited::new(request.into_body(), BODY_SIZE_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return refused(400, format!("read the body: {error}")),
        };
        let Some(hash) = hash(&body) else { return refused(400, "the body names no hash") };
        let template = {
            let mut templates = self.templates();
            if templates.by_hash.get(&hash).is_some_and(|known| known.state != State::GivenUp) {
                return refused(423, "template is already initialized");
            }
            templates.count += 1;
            let template = Template { number: templates.count, state: State::Filling, out: VecDeque::new() };
            templates.by_hash.insert(hash.clone(), template.clone());
            template
        };
        if let Err(error) = self.0.databases.catalog().create_empty(&template.database()).await {
            self.set(&hash, State::GivenUp);
            return refused(503, in_words(&error));
        }
        (200, json!({ "database": self.config(&hash, &template.database()) }))
    }

    async fn finalize(&self, hash: &str) -> Outcome {
        let Some(template) = self.known(hash) else { return refused(404, "template not found") };
        match template.state {
            State::Filled => return DONE,
            State::GivenUp => return refused(410, "template is discarded"),
            State::Filling => {}
        }
        if let Err(error) = self.0.databases.catalog().freeze(&template.database()).await {
            return refused(503, in_words(&error));
        }
        self.0.databases.add_pool(&template.database(), &template.prefix());
        self.set(hash, State::Filled);
        DONE
    }

    async fn discard(&self, hash: &str) -> Outcome {
        let Some(template) = self.known(hash).filter(|template| template.state != State::GivenUp) else {
            return refused(404, "template not found");
        };
        self.set(hash, State::GivenUp);
        self.destroy(&template).await;
        DONE
    }

    async fn destroy(&self, template: &Template) {
        self.0.databases.remove_pool(&template.database());
        if let Err(error) = self.0.databases.catalog().destroy(&template.database()).await {
            tracing::debug!("drop {}: {}", template.database(), in_words(&error));
        }
    }

    async fn test(&self, hash: &str) -> Outcome {
        let filled = async {
            loop {
                let told = self.0.filled.notified();
                let mut told = std::pin::pin!(told);
                // Before the look: what is told between the two is not missed.
                told.as_mut().enable();
                match self.known(hash) {
                    Some(template) if template.state == State::Filling => told.await,
                    other => return other,
                }
            }
        };
        let template = match timeout(FILL_LIMIT, filled).await {
            Ok(Some(template)) if template.state == State::Filled => template,
            Ok(Some(_)) => return refused(410, "template is discarded"),
            Ok(None) => return refused(404, "template not found"),
            Err(_) => return refused(503, format!("nobody has filled the template within {FILL_LIMIT:?}")),
        };
        if let Err(refused) = self.make_room(hash).await {
            return refused;
        }
        let lease = match self.0.databases.fresh_of(&template.database(), Hold::Test).await {
            Ok(lease) => lease,
            Err(error) => return refused(503, in_words(&error)),
        };
        if let Some(template) = self.templates().by_hash.get_mut(hash) {
            template.out.push_back((lease.name.clone(), Instant::now()));
        }
        let id: u64 = lease.name.strip_prefix(&template.prefix()).and_then(|id| id.parse().ok()).unwrap_or_default();
        (200, json!({ "id": id, "database": self.config(hash, &lease.name) }))
    }

    /// Take the oldest clone back that no client uses, once it has been its client's for long enough.
    async fn make_room(&self, hash: &str) -> Result<(), Outcome> {
        loop {
            let out = self.known(hash).map(|template| template.out).unwrap_or_default();
            if out.len() < OUT_MAX {
                return Ok(());
            }
            let old = out.iter().filter(|(_, since)| since.elapsed() >= OUT_MIN);
            let old: Vec<String> = old.map(|(name, _)| name.clone()).collect();
            let busy = self.0.databases.catalog().busy(&old).await.map_err(|error| refused(503, in_words(&error)))?;
            let Some(oldest) = old.iter().find(|name| !busy.contains(name)) else {
                if let Some((_, since)) = out.get(old.len()) {
                    sleep_until(*since + OUT_MIN).await;
                    continue;
                }
                let text = format!(
                    "{OUT_MAX} clones of the template are out and all are in use: give each back after its test \
                     (POST /templates/HASH/tests/ID/recreate, or unlock), and close its connections"
                );
                return Err(refused(503, text));
            };
            // Another request may have taken it meanwhile.
            let is_taken = self.templates().by_hash.get_mut(hash).is_some_and(|template| {
                let at = template.out.iter().position(|(name, _)| name == oldest);
                at.and_then(|at| template.out.remove(at)).is_some()
            });
            if is_taken {
                tracing::info!(
                    "IntegreSQL: {OUT_MAX} clones are out; {oldest}, which nobody is connected to, counts as given back"
                );
                let _ = self.0.databases.give_back(oldest, false);
                return Ok(());
            }
        }
    }

    fn give_back(&self, hash: &str, id: &str) -> Outcome {
        let Some(template) = self.known(hash) else { return refused(404, "template not found") };
        let name = format!("{}{id}", template.prefix());
        if self.0.databases.give_back(&name, false).is_err() {
            return refused(404, "test database not found");
        }
        if let Some(template) = self.templates().by_hash.get_mut(hash) {
            template.out.retain(|(out, _)| *out != name);
        }
        DONE
    }

    async fn forget_all(&self) -> Outcome {
        let all: Vec<Template> = self.templates().by_hash.drain().map(|(_, template)| template).collect();
        self.0.filled.notify_waiters();
        for template in all.iter().filter(|template| template.state != State::GivenUp) {
            self.destroy(template).await;
        }
        DONE
    }

    fn known(&self, hash: &str) -> Option<Template> {
        self.templates().by_hash.get(hash).cloned()
    }

    fn set(&self, hash: &str, state: State) {
        if let Some(template) = self.templates().by_hash.get_mut(hash) {
            template.state = state;
        }
        self.0.filled.notify_waiters();
    }

    fn config(&self, hash: &str, database: &str) -> Value {
        let url = self.0.databases.session_url();
        json!({
            "templateHash": hash,
            "config": {
                "host": url.host,
                "port": url.port,
                "username": url.user,
                "password": password(url),
                "database": database,
            },
        })
    }
}

/// The hash that a body names, as JSON or as a form: the clients write both.
fn hash(body: &[u8]) -> Option<String> {
    let json = serde_json::from_slice::<Value>(body).ok();
    let named = json.as_ref().and_then(|json| json.get("hash")?.as_str().map(str::to_owned));
    let in_form =
        || url::form_urlencoded::parse(body).find(|(name, _)| name == "hash").map(|(_, hash)| hash.into_owned());
    named.or_else(in_form).filter(|hash| !hash.is_empty() && !hash.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_from_json_and_from_a_form() {
        assert_eq!(hash(br#"{"hash": "abc"}"#).as_deref(), Some("abc"));
        assert_eq!(hash(b"hash=a%2Bc").as_deref(), Some("a+c"));
        for wrong in [&b""[..], b"{}", br#"{"hash": 1}"#, b"hash=", b"other=a", b"hash=a%2Fb"] {
            assert_eq!(hash(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }
}
