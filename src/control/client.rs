//! The client of the control socket, which commands use.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, Uri};
use nix::unistd::{Uid, User};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::messages::{Answer, Audit, Deploy, LogEntry, LogQuery, Order, Restart, Status};
use crate::exit::{Code, Failure};
use crate::health::overview::Overview;
use crate::http::client::{exchange, get, read_body};

/// How long a status may take: the server waits for nothing but the kernel's figures of memory.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// How often a Tandem that has not carried out its order yet is asked whether it lives, and how long it may say nothing.
const LIFE_INTERVAL: Duration = Duration::from_secs(5);
const LIFE_LIMIT: Duration = Duration::from_secs(30);
/// How long an order may take: the supervisor's own limits end it much earlier.
const ORDER_LIMIT: Duration = Duration::from_hours(24);
/// Largest answer that is read in one piece, and longest line of a log, in bytes.
const ANSWER_SIZE_MAX: usize = 4 * 1024 * 1024;

/// The status of the Tandem behind the socket at `path`.
///
/// # Errors
/// A [`Failure`] that says so when none runs there or when it may not be asked; any error when it does not answer.
pub async fn status(path: &Path) -> anyhow::Result<Status> {
    let asked = async {
        let stream = connect(path).await?;
        let request = request(Method::GET, "/status", String::new())?;
        // The limit below holds for all of it.
        exchange(stream, request, Duration::MAX, async |response| whole(response).await).await
    };
    match timeout(STATUS_LIMIT, asked).await {
        Ok(status) => status,
        Err(_) => bail!("the tandem behind {} did not answer within {STATUS_LIMIT:?}", path.display()),
    }
}

/// Let the Tandem behind the socket at `path` log `what` a person does beside it.
///
/// # Errors
/// As [`status`].
pub async fn audit(path: &Path, what: &str) -> anyhow::Result<()> {
    let told = async {
        let stream = connect(path).await?;
        let body = serde_json::to_string(&Audit { what: what.to_owned() })?;
        let request = request(Method::POST, "/audit", body)?;
        exchange(stream, request, Duration::MAX, async |response| whole::<Answer>(response).await).await
    };
    match timeout(STATUS_LIMIT, told).await {
        Ok(answer) => answer.map(drop),
        Err(_) => bail!("the tandem behind {} did not answer within {STATUS_LIMIT:?}", path.display()),
    }
}

/// Give an order to the Tandem behind the socket at `path`, and wait for its answer for as long as that Tandem lives.
///
/// # Errors
/// As [`status`]; that an order was refused or failed is an answer and no error.
pub async fn order(path: &Path, order: &Order) -> anyhow::Result<Answer> {
    let (to, body) = match order {
        Order::Reload => ("/reload", String::new()),
        Order::Stop => ("/stop", String::new()),
        Order::RotatePassword => ("/password/rotate", String::new()),
        &Order::Deploy { dry_run } => ("/deploy", serde_json::to_string(&Deploy { dry_run })?),
        Order::Restart { service } => ("/restart", serde_json::to_string(&Restart { service: service.clone() })?),
        Order::Scale(to) => ("/scale", serde_json::to_string(to)?),
    };
    let stream = connect(path).await?;
    let read = async |response: Response<Incoming>| parse(&read_body(response, ANSWER_SIZE_MAX).await?);
    let request = request(Method::POST, to, body)?;
    tokio::select! {
        answer = exchange(stream, request, ORDER_LIMIT, read) => answer.context("no answer came"),
        () = silence(path) => bail!(
            "the tandem behind {} has answered nothing for {LIFE_LIMIT:?}: its process is stopped or hangs; \
             the order may still be carried out",
            path.display()
        ),
    }
}

/// Wait until the Tandem behind the socket at `path` answers no request at all any more.
async fn silence(path: &Path) {
    loop {
        sleep(LIFE_INTERVAL).await;
        // What it answers does not matter, that it answers does. At its end it refuses connections: then the order's own
        // connection ends too, and tells.
        let asked = async {
            match UnixStream::connect(path).await {
                Ok(stream) => drop(get(stream, "tandem", "/", LIFE_LIMIT * 2).await),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::future::pending().await,
                Err(_) => {}
            }
        };
        if timeout(LIFE_LIMIT, asked).await.is_err() {
            return;
        }
    }
}

/// Hand each line that `query` asks for to `on_entry`; with `follow`, until Tandem ends or `on_entry` fails.
///
/// # Errors
/// As [`status`]; a [`Failure`] when there is no such service; what `on_entry` says.
pub async fn logs(
    path: &Path,
    query: &LogQuery,
    mut on_entry: impl FnMut(LogEntry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let stream = connect(path).await?;
    let read = async |response: Response<Incoming>| {
        if !response.status().is_success() {
            return whole(response).await;
        }
        let limit = if query.follow { Duration::MAX } else { STATUS_LIMIT };
        each_line(response, limit, |line| on_entry(parse(line)?)).await
    };
    exchange(stream, request(Method::GET, &query.to_uri(), String::new())?, STATUS_LIMIT, read).await
}

/// Hand each event of the Tandem behind the socket at `path` to `on_event`, until that Tandem ends or `on_event` fails.
///
/// # Errors
/// As [`status`]; what `on_event` says.
pub async fn events(path: &Path, mut on_event: impl FnMut(Overview) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let stream = connect(path).await?;
    let read = async |response: Response<Incoming>| {
        if !response.status().is_success() {
            return whole(response).await;
        }
        let on_line = |line: &[u8]| match line.strip_prefix(b"data: ") {
            Some(data) => on_event(parse(data)?),
            None => Ok(()),
        };
        each_line(response, LIFE_LIMIT, on_line).await
    };
    exchange(stream, request(Method::GET, "/events", String::new())?, STATUS_LIMIT, read).await
}

/// Hand each line of an answer to `on_line`; between two pieces of it `limit` may pass. A Tandem that was killed in the middle
/// of a line: that half line is left out.
async fn each_line(
    response: Response<Incoming>,
    limit: Duration,
    mut on_line: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut body = response.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = timeout(limit, body.frame()).await.context("the answer stops in the middle")? {
        let Ok(frame) = frame else { break };
        rest.extend(frame.into_data().unwrap_or_default());
        let mut begin = 0;
        while let Some(length) = rest[begin..].iter().position(|&byte| byte == b'\n') {
            on_line(&rest[begin..begin + length])?;
            begin += length + 1;
        }
        rest.drain(..begin);
        if rest.len() > ANSWER_SIZE_MAX {
            bail!("a line of the answer is longer than {ANSWER_SIZE_MAX} bytes");
        }
    }
    Ok(())
}

/// The process that listens at `path` (SO_PEERCRED).
///
/// # Errors
/// As [`status`].
pub async fn supervisor(path: &Path) -> anyhow::Result<i32> {
    let pid = connect(path).await?.peer_cred().context("ask the kernel who listens")?.pid();
    pid.with_context(|| format!("the tandem behind {} runs in another container", path.display()))
}

async fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    let error = match UnixStream::connect(path).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let shown = path.display();
    let words = match error.kind() {
        io::ErrorKind::NotFound => format!("no tandem runs here (there is no {shown}): start it with `tandem up`"),
        io::ErrorKind::ConnectionRefused => {
            format!("no tandem runs here (the one that listened at {shown} was killed): start it with `tandem up`")
        }
        // The listening queue is full.
        io::ErrorKind::WouldBlock => {
            format!("the tandem behind {shown} takes no request: its process is stopped or hangs")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{} may ask the tandem behind {shown}, nobody else", owner(path))
        }
        _ => return Err(anyhow::Error::new(error).context(format!("connect to {shown}"))),
    };
    Err(Failure::new(Code::Failed, words).into())
}

/// The users that may ask, as far as the file shows it.
fn owner(path: &Path) -> String {
    let uid = path.metadata().map(|meta| Uid::from_raw(meta.uid())).ok().filter(|uid| !uid.is_root());
    match uid {
        Some(uid) => {
            let user = User::from_uid(uid).ok().flatten();
            user.map_or_else(|| format!("only user id {uid} and root"), |user| format!("only {} and root", user.name))
        }
        None => "only the user who started it and root".to_owned(),
    }
}

fn request(method: Method, uri: &str, body: String) -> anyhow::Result<Request<Full<Bytes>>> {
    let request = Request::builder()
        .method(method)
        .uri(uri.parse::<Uri>()?)
        .header(HOST, "tandem")
        .header(CONNECTION, "close")
        .header(CONTENT_TYPE, "application/json");
    Ok(request.body(Full::from(body))?)
}

/// All of an answer as a `T`; what is no success is a [`super::Answer`] that says why.
async fn whole<T: DeserializeOwned>(response: Response<Incoming>) -> anyhow::Result<T> {
    let is_success = response.status().is_success();
    let body = read_body(response, ANSWER_SIZE_MAX).await?;
    if !is_success {
        parse::<Answer>(&body)?.into_result()?;
    }
    parse(&body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("understand the answer; is that tandem another version than this one?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;

    #[test]
    fn another_user_is_refused_by_the_kernel_and_told_who_may() {
        if !Uid::effective().is_root() {
            return crate::skip::skip("only root can be somebody else");
        }
        let dir = tempfile::tempdir().unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), everybody).unwrap();
        let path = dir.path().join("control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let _socket = super::super::open(&path).unwrap();
        let asked = std::thread::spawn(move || {
            // Of this thread alone, and with root's right to pass any door gone (setfsuid(2)).
            nix::unistd::setfsuid(Uid::from_raw(65_534));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(status(&path)).unwrap_err()
        });
        let error = asked.join().unwrap();
        assert_eq!(code_of(&error), Code::Failed);
        assert!(error.to_string().starts_with("only the user who started it and root may ask"), "{error}");
    }
}
