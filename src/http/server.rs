//! A server with limits, for whatever listens: the health port's TCP socket and the control socket alike.
//!
//! Its clients may be slow or hostile, so each side of a connection is bounded: how many there are, the time and the size
//! of a request's head, the time that a client may leave an answer unread. When there are too many, the oldest
//! connection makes room, so that a probe, or an operator, always gets through.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::event_loop;
use crate::exit::own_limit;
use crate::process::limits;
use crate::scrub::scrubbed;

/// Connections at once; one more ends the oldest.
pub const CONNECTIONS_MAX: usize = 128;
/// How long a request's head may take to arrive, and how long a connection may idle between two requests.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Largest head, in bytes, and most headers in it; a probe's has a few hundred bytes.
pub const HEAD_SIZE_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long a client may read nothing of an answer that waits for it.
pub const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may finish their answer once the port closes.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// How long to hold back after accept(2) failed: out of descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Listener: Send {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// How long a client may read nothing of an answer that waits for it.
    const WRITE_LIMIT: Duration = WRITE_LIMIT;

    /// What the log calls it.
    fn name(&self) -> &'static str;

    /// The next connection.
    ///
    /// # Errors
    /// What accept(2) answered.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// A TCP socket that listens, under the name that the log gives it.
#[derive(Debug)]
pub struct Port {
    pub listener: TcpListener,
    pub name: &'static str,
}

impl Listener for Port {
    type Stream = TcpStream;

    fn name(&self) -> &'static str {
        self.name
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // Without it an answer of two segments can wait 40 ms for a delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Let `answer` answer what comes in at `listener` until `shutdown` completes; connections then get a moment to finish.
///
/// Never fails: a connection's error is that connection's, and an error of accept(2) is logged and waited out.
pub async fn serve<L, A, R, B>(listener: L, answer: A, shutdown: impl Future<Output = ()>)
where
    L: Listener,
    A: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut shutdown = pin!(shutdown);
    let (closing, _) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut open = Connections { most: most(limits::open_files()), all: VecDeque::new() };
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let mut stream = TimeoutStream::new(stream);
                stream.set_write_timeout(Some(L::WRITE_LIMIT));
                let answering = Arc::default();
                let task = connection(Box::pin(stream), answer.clone(), Arc::clone(&answering), closing.subscribe());
                let task = tasks.spawn(event_loop::timed(listener.name(), task));
                open.take(OpenConnection { task, answering });
            }
            Err(error) => {
                let whose = own_limit(&error).map(|whose| format!(": {whose}")).unwrap_or_default();
                tracing::warn!(%error, "accept on {}{whose}", listener.name());
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

/// An open connection.
struct OpenConnection {
    task: AbortHandle,
    /// How many of its requests wait for their answer to begin.
    answering: Arc<AtomicUsize>,
}

impl OpenConnection {
    fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }
}

/// The connections that there may be where so many files may be open: Tandem needs some for other things.
fn most(files: usize) -> usize {
    CONNECTIONS_MAX.min(files / 8).max(1)
}

/// The connections that are open, oldest first.
struct Connections {
    most: usize,
    all: VecDeque<OpenConnection>,
}

impl Connections {
    /// Add `newcomer`. If that makes too many, the oldest connection is ended; one whose request is being carried out only
    /// if all are.
    fn take(&mut self, newcomer: OpenConnection) {
        if self.all.len() >= self.most {
            self.all.retain(|connection| !connection.task.is_finished());
        }
        if self.all.len() >= self.most {
            let oldest = self.all.iter().position(|connection| !connection.is_answering()).unwrap_or(0);
            if let Some(connection) = self.all.remove(oldest) {
                connection.task.abort();
            }
        }
        self.all.push_back(newcomer);
    }
}

/// Counts a request for as long as its answer has not begun.
struct Answering(Arc<AtomicUsize>);

impl Answering {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serve one connection until it ends or `closing` loses its sender.
async fn connection<S, A, R, B>(stream: S, answer: A, answering: Arc<AtomicUsize>, mut closing: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let service = service_fn(move |request| {
        let (response, counted) = (answer(request), Answering::begin(&answering));
        async move {
            let _counted = counted;
            Ok::<_, Infallible>(response.await)
        }
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

/// `body` as JSON with status `code`, and without secrets: some of the words in it are not Tandem's own, such as the last error
/// of a backup or the reason of a restart. hyper adds the length, and leaves the body out for HEAD.
pub fn json(code: u16, body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(body) {
        Ok(text) => json_text(code, scrubbed(&text).into_owned()),
        Err(error) => {
            tracing::error!(%error, "write an answer");
            json_text(500, "{}".to_owned())
        }
    }
}

/// `text`, which is JSON, with status `code`.
pub fn json_text(code: u16, text: String) -> Response<Full<Bytes>> {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
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
