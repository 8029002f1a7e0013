//! A bounded HTTP/1.1 server, whoever listens: the health port's TCP socket and the control socket alike.
//!
//! Bounded on every side, because whoever reaches it may be slow or hostile: the number of connections, the time a
//! request's head may take, the size of a head. When all places are taken, the oldest connection makes room, so that
//! a probe, or an operator, always gets through.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::event_loop;

/// Connections at once; one more ends the oldest.
pub const CONNECTIONS_MAX: usize = 128;
/// How long a request's head may take to arrive, and how long a connection may idle between two requests.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Largest head, in bytes, and most headers in it; a probe's has a few hundred bytes.
pub const HEAD_SIZE_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long connections may finish their answer once the port closes.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);
/// How long to hold back after accept(2) failed: out of descriptors, it fails again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Listener: Send {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// What the log calls it.
    const NAME: &'static str;

    /// The next connection.
    ///
    /// # Errors
    /// What accept(2) answered.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    const NAME: &'static str = "the health port";

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
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
    let mut places = Places::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => places
                .take(tasks.spawn(event_loop::timed(L::NAME, connection(stream, answer.clone(), closing.subscribe())))),
            Err(error) => {
                tracing::warn!(%error, "accept on {}", L::NAME);
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
async fn connection<S, A, R, B>(stream: S, answer: A, mut closing: watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let service = service_fn(move |request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
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
