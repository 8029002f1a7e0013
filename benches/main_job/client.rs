//! PostgreSQL's and HTTP's protocols, as much as a first answer takes: the same small client for all that are measured.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for an answer; far more than anything takes that works.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Between two tries. A connection that fails costs about as much.
const POLL: Duration = Duration::from_micros(500);

/// A connection of the superuser through the unix socket, where it needs no password.
pub struct Session(UnixStream);

impl Session {
    /// Connect, and wait until the server says that it is ready for queries.
    pub fn open(socket: &Path, database: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // Protocol 3.0 (PostgreSQL documentation, "StartupMessage").
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        body.extend_from_slice(format!("user\0postgres\0database\0{database}\0\0").as_bytes());
        stream.write_all(&length(&body))?;
        stream.write_all(&body)?;
        let mut session = Self(stream);
        session.answer()?;
        Ok(session)
    }

    /// Run `sql`; the first value of the first row, as text.
    pub fn ask(&mut self, sql: &str) -> io::Result<String> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.0.write_all(b"Q")?;
        self.0.write_all(&length(&body))?;
        self.0.write_all(&body)?;
        self.answer()
    }

    /// Read until ReadyForQuery.
    fn answer(&mut self) -> io::Result<String> {
        let mut value = String::new();
        let mut refused = None;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let size = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            let mut body = vec![0; usize::try_from(size - 4).map_err(io::Error::other)?];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'Z' => return refused.map_or(Ok(value), Err),
                b'E' => refused = Some(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
                // Two bytes say how many columns, four how long the first is.
                b'D' if body.len() > 6 && value.is_empty() => value = String::from_utf8_lossy(&body[6..]).into_owned(),
                _ => {}
            }
        }
    }
}

/// A message's length, which counts itself.
fn length(body: &[u8]) -> [u8; 4] {
    i32::try_from(body.len() + 4).unwrap().to_be_bytes()
}

/// Try until a new connection to `database` has an answer to `SELECT 1`; the time since `began`.
pub fn first_select(socket: &Path, database: &str, began: Instant) -> Duration {
    wait_for("a first SELECT 1", POLL, || Session::open(socket, database)?.ask("SELECT 1"));
    began.elapsed()
}

/// Whether `GET path` on `port` is answered with 200, over a connection of its own.
pub fn http_ok(port: u16, path: &str) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 200 "))
    };
    ask().unwrap_or(false)
}

/// Try again and again until it works; panics after [`LIMIT`].
pub fn wait_for<T>(what: &str, poll: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(began.elapsed() < LIMIT, "waited {LIMIT:?} for {what}: {error}"),
        }
        pause(poll);
    }
}

/// As [`wait_for`], for a condition.
pub fn wait_until(what: &str, poll: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, poll, || if condition() { Ok(()) } else { Err(io::Error::other("not yet")) });
}

/// Let time pass.
#[expect(clippy::disallowed_methods, reason = "a benchmark's clock is the real one")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
