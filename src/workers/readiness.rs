//! Readiness of a server that does not say READY=1: the worker answers a request.
//!
//! All workers share their sockets, so an answer alone proves nothing. It counts when the kernel shows that the worker's own
//! process group holds the other end of the connection.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::life::Life;
use crate::certificate;
use crate::config::Settings;
use crate::http::client::exchange;
use crate::plan::Place;
use crate::process::ports::{self, Accepted};

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest time for one request.
const LIMIT: Duration = Duration::from_secs(5);

/// Ask for `path` until the process of `life` answers well; then say that it is ready. Ends with the process.
pub async fn watch(life: Life, settings: Rc<Settings>, path: String) {
    let Some(pid) = life.pid() else { return };
    while life.pid() == Some(pid) {
        if let Ok(Some(true)) = timeout(LIMIT, answers(&settings, &path, pid)).await
            && life.pid() == Some(pid)
        {
            life.report_ready();
            return;
        }
        sleep(INTERVAL).await;
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Whether the process group `group` answers well; `None` where nothing answers, or another process does.
async fn answers(settings: &Settings, path: &str, group: i32) -> Option<bool> {
    let (stream, host, accepted) = connect(settings).await.ok()?;
    let request = Request::get(path).header(HOST, host).header(USER_AGENT, "tandem");
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    // Looked at before the body is read: the connection is still open, so that its other end can be found.
    let look = async |response: hyper::Response<_>| {
        let is_well = response.status().as_u16() < 400;
        Ok(ports::is_held_by_group(accepted, group).await.then_some(is_well))
    };
    exchange(stream, request, LIMIT, look).await.ok()?
}

/// Connect to the application, over TCP if it can be: the stream, the host's name, and how its other end is found.
async fn connect(settings: &Settings) -> io::Result<(Box<dyn Stream>, String, Accepted)> {
    let places = &settings.workers.listen;
    let place = places.iter().find(|place| place.port().is_some()).or(places.first());
    let (stream, host, accepted): (Box<dyn Stream>, _, _) = match (place, place.and_then(Place::reachable)) {
        (_, Some(address)) => {
            let stream = TcpStream::connect(address).await?;
            let accepted = Accepted::Tcp { port: address.port(), client: stream.local_addr()? };
            (Box::new(stream), address.to_string(), accepted)
        }
        (Some(Place::Unix(path)), None) => {
            // Blocks: never; it is tokio's.
            let stream = UnixStream::connect(path).await?;
            let client = nix::sys::stat::fstat(stream.as_fd())?.st_ino;
            (Box::new(stream), "localhost".to_owned(), Accepted::Unix { path: path.clone(), client })
        }
        _ => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    if settings.workers.serving.tls.is_none() {
        return Ok((stream, host, accepted));
    }
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let connector = TlsConnector::from(certificate::client().map_err(io::Error::other)?);
    Ok((Box::new(connector.connect(name, stream).await?), host, accepted))
}
