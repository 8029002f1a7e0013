//! One request to a health port: `tandem health`, and anything else that needs to ask as a probe does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Largest answer that is read, in bytes: whoever answers on that port may not be Tandem.
const BODY_SIZE_MAX: usize = 1024 * 1024;

/// `GET path` from the health port that listens on `listen`: the HTTP status and the body.
///
/// # Errors
/// Nobody answers there, what answers is not HTTP, or `limit` has passed.
pub async fn probe(listen: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<(u16, String)> {
    let address = reachable(listen);
    match timeout(limit, ask(address, path)).await {
        Ok(answer) => answer.with_context(|| format!("ask http://{address}{path}")),
        Err(_) => bail!("ask http://{address}{path}: no answer within {limit:?}"),
    }
}

/// Where to connect to for a socket that listens on `listen`: one on all addresses is reached through loopback.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let host = match listen.ip() {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, listen.port())
}

async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect(address).await.context("connect (is `tandem up` running?)")?;
    let request = Request::get(path.parse::<Uri>()?)
        .header(HOST, address.to_string())
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let read = async |response: Response<Incoming>| {
        let code = response.status().as_u16();
        let body = match Limited::new(response.into_body(), BODY_SIZE_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => bail!("read the answer: {error}"),
        };
        Ok((code, String::from_utf8_lossy(&body).into_owned()))
    };
    exchange(stream, request, read).await
}

/// Send `request` on `stream`, and let `read` read what is answered.
///
/// # Errors
/// What answers is not HTTP, or the connection ends before `read` does; what `read` says.
pub async fn exchange<S, B, T>(
    stream: S,
    request: Request<B>,
    read: impl AsyncFnOnce(Response<Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data: Send, Error: std::error::Error + Send + Sync> + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async { read(sender.send_request(request).await?).await };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_reached_through_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:8001", "127.0.0.1:8001"),
            ("[::]:8001", "[::1]:8001"),
            ("127.0.0.2:1", "127.0.0.2:1"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), expected.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn nobody_there_says_what_to_look_at() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let error = probe(address, "/live", Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{error:#}").contains("tandem up"), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_ends_at_the_limit() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = probe(silent.local_addr().unwrap(), "/live", Duration::from_secs(2)).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 2s"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_http_is_an_error() {
        use tokio::io::AsyncWriteExt;
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = other.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-other\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(probe(address, "/live", Duration::from_secs(5)), serve);
        assert!(answer.is_err());
    }
}
