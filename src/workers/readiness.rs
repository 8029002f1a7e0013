//! Readiness of a server that does not say READY=1: a request that this very worker answers.
//!
//! All workers share one socket, so an answer alone proves nothing: it counts when the kernel shows that the other end of
//! the connection is held by the worker's own process group.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::life::Life;
use crate::health::client::reachable;
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
            life.became_ready();
            return;
        }
        sleep(INTERVAL).await;
    }
}

/// Whether the process group `group` answers well; `None` where nobody does, or somebody else.
async fn answers(address: SocketAddr, path: &str, group: i32) -> Option<bool> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: tandem\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    // "HTTP/1.1 200": the connection is kept open, so that its other end can still be looked at.
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.ok()?;
    let status: u16 = std::str::from_utf8(&head[9..]).ok()?.parse().ok()?;
    let client = stream.local_addr().ok()?;
    ports::is_held_by_group(address.port(), client, group).then_some(status < 400)
}
