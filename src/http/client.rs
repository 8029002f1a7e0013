//! One request over a stream that is connected already, and its answer.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// Largest answer that [`get`] reads, in bytes: whatever answers may be another program than the expected one.
const BODY_SIZE_MAX: usize = 1024 * 1024;

/// `GET path` on `stream`, which leads to `host`: the HTTP status and the body. `limit` holds for all of it.
///
/// # Errors
/// What answers is not HTTP, its answer is longer than 1 MiB, or `limit` has passed.
pub async fn get<S>(stream: S, host: &str, path: &str, limit: Duration) -> anyhow::Result<(u16, String)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request =
        Request::get(path.parse::<Uri>()?).header(HOST, host).header(CONNECTION, "close").body(Empty::<Bytes>::new())?;
    let read = async |response: Response<Incoming>| {
        let code = response.status().as_u16();
        Ok((code, String::from_utf8_lossy(&read_body(response, BODY_SIZE_MAX).await?).into_owned()))
    };
    match timeout(limit, exchange(stream, request, limit, read)).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {limit:?}"),
    }
}

/// Send `request` on `stream`, and let `read` read the answer. The answer's head must come within `head_limit`; how long
/// its body may take is for `read` to say.
///
/// # Errors
/// What answers is not HTTP, or the connection ends before `read` does; `head_limit` has passed; what `read` says.
pub async fn exchange<S, B, T>(
    stream: S,
    request: Request<B>,
    head_limit: Duration,
    read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        match timeout(head_limit, sender.send_request(request)).await {
            Ok(response) => read(response?).await,
            Err(_) => bail!("no answer within {head_limit:?}"),
        }
    };
    // hyper moves the bytes only while its connection is polled. Its own end is no news: the exchange tells.
    let drive = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = exchange => answer,
        () = drive => bail!("the connection ended"),
    }
}

/// All of an answer's body, which may have at most `size_max` bytes.
///
/// # Errors
/// It is longer, or the connection ends before it does.
pub async fn read_body(response: Response<Incoming>, size_max: usize) -> anyhow::Result<Bytes> {
    match Limited::new(response.into_body(), size_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(anyhow::Error::from_boxed(error)).context("read the answer"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_ends_at_the_limit() {
        let (stream, _silent) = duplex(1024);
        let error = get(stream, "silent", "/live", LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 5s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_ends_at_the_limit() {
        let (stream, mut server) = duplex(1024);
        let serve = async {
            server.read_exact(&mut [0]).await.unwrap();
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfew").await.unwrap();
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            answer = get(stream, "slow", "/", LIMIT) => answer.unwrap_err(),
            () = serve => unreachable!(),
        };
        assert!(error.to_string().contains("no answer within 5s"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_http_and_what_is_too_long_are_errors() {
        let endless = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", BODY_SIZE_MAX + 1);
        for said in ["SSH-2.0-other\r\n\r\n".to_owned(), endless + &"x".repeat(BODY_SIZE_MAX + 1)] {
            let (stream, mut server) = duplex(64 * 1024);
            let serve = async {
                let _ = server.read(&mut [0; 1024]).await;
                let _ = server.write_all(said.as_bytes()).await;
                let _ = server.shutdown().await;
            };
            let (answer, ()) = tokio::join!(get(stream, "other", "/live", LIMIT), serve);
            assert!(answer.is_err());
        }
    }
}
