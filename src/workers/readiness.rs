//! Readiness of a server that does not say READY=1: the worker answers a request.
//!
//! All workers share one socket, so an answer alone proves nothing. It counts when the kernel shows that the worker's own
//! process group holds the other end of the connection.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::life::Life;
use crate::http::client::{exchange, reachable};
use crate::process::ports;

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest time for one request.
const LIMIT: Duration = Duration::from_secs(5);

/// Ask for `path` until the process of `life` answers well; then say that it is ready. Ends with the process.
pub async fn watch(life: Life, address: SocketAddr, path: String) {
    let Some(pid) = life.pid() else { return };
    let address = reachable(address);
    while life.pid() == Some(pid) {
        if let Ok(Some(true)) = timeout(LIMIT, answers(address, &path, pid)).await
            && life.pid() == Some(pid)
        {
            life.report_ready();
            return;
        }
        sleep(INTERVAL).await;
    }
}

/// Whether the process group `group` answers well; `None` where nothing answers, or another process does.
async fn answers(address: SocketAddr, path: &str, group: i32) -> Option<bool> {
    let stream = TcpStream::connect(address).await.ok()?;
    let client = stream.local_addr().ok()?;
    let request = Request::get(path).header(HOST, address.to_string()).header(USER_AGENT, "tandem");
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    // Looked at before the body is read: the connection is still open, so that its other end can be found.
    let look = async |response: hyper::Response<_>| {
        let is_well = response.status().as_u16() < 400;
        Ok(ports::is_held_by_group(address.port(), client, group).await.then_some(is_well))
    };
    exchange(stream, request, LIMIT, look).await.ok()?
}
