//! A connection and its answers, by hand: a client library would look whether the connection still stands before it
//! sends, or quietly send again, and so hide what is to be counted.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub const ASK: &str = "GET /pid HTTP/1.1\r\nHost: bench\r\n\r\n";
pub const ASK_ONCE: &str = "GET /pid HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

/// How a request can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused,
    /// A new connection ended before a byte of its answer.
    Reset,
    /// Part of an answer.
    Truncated,
    /// A connection that had answered before ended with the next request on the way.
    Stale,
    /// Another status than 200.
    Status,
    /// Not what the application says.
    Garbled,
    TimedOut,
}

impl Failure {
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Stale => "stale",
            Self::Status => "5xx",
            Self::Garbled => "garbled",
            Self::TimedOut => "timed out",
        }
    }
}

/// A connection to the application.
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    has_answered: bool,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The worker that gave it.
    pub pid: i32,
    /// The connection ends with it.
    pub last: bool,
}

impl Connection {
    pub async fn open(port: u16) -> Result<Self, Failure> {
        let refused = |_| Failure::Refused;
        let socket = TcpSocket::new_v4().map_err(refused)?;
        // From ever another address of 127/8: from one alone, a minute of new connections uses up all ports, for each
        // stays taken for a minute after its end.
        socket.bind(SocketAddr::new(next_address().into(), 0)).map_err(refused)?;
        let stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        Ok(Self { stream, unread: Vec::new(), has_answered: false })
    }

    pub async fn send(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(request).await.map_err(|_| self.ended())
    }

    pub async fn answer(&mut self) -> Result<Answer, Failure> {
        loop {
            if let Some((answer, size)) = parse(&self.unread)? {
                self.unread.drain(..size);
                self.has_answered = true;
                return Ok(answer);
            }
            let mut part = [0; 4096];
            let read: io::Result<usize> = self.stream.read(&mut part).await;
            match read {
                Ok(0) | Err(_) => return Err(self.ended()),
                Ok(size) => self.unread.extend_from_slice(&part[..size]),
            }
        }
    }

    /// What it means that the other side is gone.
    fn ended(&self) -> Failure {
        match (self.unread.is_empty(), self.has_answered) {
            (false, _) => Failure::Truncated,
            (true, true) => Failure::Stale,
            (true, false) => Failure::Reset,
        }
    }
}

fn next_address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high % 16, low.max(1))
}

/// The first answer in `bytes` and its size, if it is whole.
fn parse(bytes: &[u8]) -> Result<Option<(Answer, usize)>, Failure> {
    let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(Failure::Status);
    }
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.trim());
    let length: usize = field("content-length").and_then(|value| value.parse().ok()).ok_or(Failure::Garbled)?;
    let Some(body) = bytes.get(end + 4..end + 4 + length) else { return Ok(None) };
    let pid =
        std::str::from_utf8(body).ok().and_then(|body| body.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok());
    let last = match field("connection") {
        Some(value) => value == "close",
        None => status.starts_with("http/1.0"),
    };
    Ok(Some((Answer { pid: pid.ok_or(Failure::Garbled)?, last }, end + 4 + length)))
}
