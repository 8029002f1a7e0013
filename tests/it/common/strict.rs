//! HTTP clients that never retry and forgive nothing: whatever a client could count as a failed request, they count.
//!
//! A connection that is refused or reset, an answer that is cut, not 200 or not the expected one, a kept connection
//! that turns out to be closed when the next request is sent, a pipelined request that is not answered, anything but
//! a clean end after `Connection: close`. None of them looks at its connection before it sends.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for a part of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// After a failure, so that a dead server does not fill the memory with failures.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// Between the requests of an idle client, in turn; all are shorter than any server's keep-alive limit.
const IDLE_PAUSES: [Duration; 5] = [
    Duration::from_millis(40),
    Duration::from_millis(5),
    Duration::from_millis(300),
    Duration::from_millis(120),
    Duration::from_millis(900),
];

/// How a client uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Habit {
    /// A new connection for every request, `Connection: close`.
    Close,
    /// Keep-alive, one request after the other.
    Busy,
    /// Keep-alive, idle between requests.
    Idle,
    /// Keep-alive, two requests at a time, in one packet.
    Pipelined,
}

/// What the clients of one habit have to tell.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub connections: u64,
    pub failures: Vec<String>,
    /// The longest wait for an answer, connecting included.
    pub slowest: Duration,
}

/// What all of them have to tell.
#[derive(Debug)]
pub struct Outcome {
    pub tallies: BTreeMap<Habit, Tally>,
    /// The longest time without an answer to any client.
    pub gap: Duration,
}

impl Outcome {
    pub fn requests(&self) -> u64 {
        self.tallies.values().map(|tally| tally.requests).sum()
    }

    /// Every failure, with the habit of the client that saw it.
    pub fn failures(&self) -> Vec<String> {
        let told = |(habit, tally): (&Habit, &Tally)| {
            tally.failures.iter().map(|failure| format!("{habit:?}: {failure}")).collect::<Vec<_>>()
        };
        self.tallies.iter().flat_map(told).collect()
    }
}

/// Clients at work, each in a thread of its own.
pub struct Crowd {
    shared: Arc<Shared>,
    threads: Vec<(Habit, JoinHandle<Tally>)>,
}

struct Shared {
    address: SocketAddr,
    path: String,
    /// The answer that every request must get; `None`: any.
    body: Option<String>,
    stop: Mutex<bool>,
    stopped: Condvar,
    began: Instant,
    /// Microseconds since `began`.
    last_answer: AtomicU64,
    gap: AtomicU64,
    answers: AtomicU64,
}

impl Crowd {
    /// Set `members` to work: each asks for `path` and expects `body`.
    pub fn start(address: SocketAddr, path: &str, body: Option<&str>, members: &[(Habit, usize)]) -> Self {
        let shared = Arc::new(Shared {
            address,
            path: path.to_owned(),
            body: body.map(str::to_owned),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            began: Instant::now(),
            last_answer: AtomicU64::new(0),
            gap: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let each = members.iter().flat_map(|&(habit, count)| std::iter::repeat_n(habit, count));
        let start = |(number, habit)| {
            let client = Client { shared: Arc::clone(&shared), habit, turn: number, tally: Tally::default() };
            (habit, std::thread::spawn(move || client.work()))
        };
        let threads = each.enumerate().map(start).collect();
        Self { shared, threads }
    }

    /// Requests answered so far.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Relaxed)
    }

    /// Let everybody finish what they are at, and hear what they have to tell.
    pub fn finish(self) -> Outcome {
        *self.shared.stop.lock().unwrap() = true;
        self.shared.stopped.notify_all();
        let mut tallies: BTreeMap<Habit, Tally> = BTreeMap::new();
        for (habit, thread) in self.threads {
            let one = thread.join().unwrap();
            let all = tallies.entry(habit).or_default();
            all.requests += one.requests;
            all.connections += one.connections;
            all.failures.extend(one.failures);
            all.slowest = all.slowest.max(one.slowest);
        }
        Outcome { tallies, gap: Duration::from_micros(self.shared.gap.load(Relaxed)) }
    }
}

impl Shared {
    /// Wait, but not longer than the work goes on; whether it does.
    fn pause(&self, length: Duration) -> bool {
        let guard = self.stop.lock().unwrap();
        !*self.stopped.wait_timeout_while(guard, length, |stop| !*stop).unwrap().0
    }

    fn note_answer(&self) {
        self.answers.fetch_add(1, Relaxed);
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap();
        let before = self.last_answer.fetch_max(now, Relaxed);
        self.gap.fetch_max(now.saturating_sub(before), Relaxed);
    }
}

struct Client {
    shared: Arc<Shared>,
    habit: Habit,
    turn: usize,
    tally: Tally,
}

impl Client {
    fn work(mut self) -> Tally {
        let mut kept: Option<Connection> = None;
        while self.shared.pause(Duration::ZERO) {
            let began = Instant::now();
            let age = kept.as_ref().map(|connection| connection.answers);
            let result = self.ask(kept.take());
            match result {
                Ok(connection) => {
                    kept = connection;
                    self.tally.slowest = self.tally.slowest.max(began.elapsed());
                }
                Err(failure) => {
                    let which = age.map_or("new".into(), |age| format!("used {age} times"));
                    self.tally.failures.push(format!("{failure} (connection: {which})"));
                    self.shared.pause(FAILURE_PAUSE);
                }
            }
            if self.habit == Habit::Idle {
                self.shared.pause(IDLE_PAUSES[self.turn % IDLE_PAUSES.len()]);
            }
            self.turn += 1;
        }
        self.tally
    }

    /// Send one request, or two, and read what comes; brings back the connection if it may be used again.
    fn ask(&mut self, kept: Option<Connection>) -> Result<Option<Connection>, String> {
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                self.tally.connections += 1;
                Connection::open(self.shared.address)?
            }
        };
        let close = if self.habit == Habit::Close { "Connection: close\r\n" } else { "" };
        let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n", self.shared.path);
        let count = if self.habit == Habit::Pipelined { 2 } else { 1 };
        connection.send(request.repeat(count).as_bytes())?;
        for number in 1..=count {
            let answer = connection.read_answer().map_err(|error| match count {
                1 => error,
                _ => format!("answer {number} of {count}: {error}"),
            })?;
            answer.expect(self.shared.body.as_deref())?;
            self.tally.requests += 1;
            self.shared.note_answer();
            if answer.closes {
                connection.read_end()?;
                return if number == count { Ok(None) } else { Err("a pipelined request was not answered".into()) };
            }
        }
        Ok(Some(connection))
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Whether it says `Connection: close`.
    pub closes: bool,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn expect(&self, body: Option<&str>) -> Result<(), String> {
        if self.status != 200 || body.is_some_and(|body| self.body != body) {
            return Err(format!("answered {}: {:.200}", self.status, self.body));
        }
        Ok(())
    }
}

/// One connection, and what was read of it beyond the last answer.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
    pub answers: u64,
}

impl Connection {
    /// # Errors
    /// In words, here and below: each is a failed request.
    pub fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).and_then(|()| stream.set_nodelay(true)).unwrap();
        Ok(Self { stream, pending: Vec::new(), answers: 0 })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("send: {error}"))
    }

    /// `GET`, and its answer.
    pub fn get(&mut self, path: &str) -> Result<Answer, String> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        self.read_answer()
    }

    pub fn read_answer(&mut self) -> Result<Answer, String> {
        let length = loop {
            if let Some(place) = self.pending.windows(4).position(|four| four == b"\r\n\r\n") {
                break place + 4;
            }
            self.read_more("in the head")?;
        };
        let head = String::from_utf8_lossy(&self.pending.drain(..length).collect::<Vec<_>>()).to_lowercase();
        let field =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| format!("no status: {head:.200}"))?;
        let closes = field("connection").is_some_and(|value| value.split(',').any(|word| word.trim() == "close"));
        let size: usize = match status {
            101 => 0,
            _ => field("content-length").and_then(|text| text.parse().ok()).ok_or("an answer without a length")?,
        };
        while self.pending.len() < size {
            self.read_more("in the body")?;
        }
        let body = String::from_utf8_lossy(&self.pending.drain(..size).collect::<Vec<_>>()).into_owned();
        self.answers += 1;
        Ok(Answer { status, closes, head, body })
    }

    /// Exactly `count` bytes.
    pub fn read_exact(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.pending.len() < count {
            self.read_more("before all bytes")?;
        }
        Ok(self.pending.drain(..count).collect())
    }

    /// The end of the connection, and nothing before it.
    pub fn read_end(&mut self) -> Result<(), String> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) if self.pending.is_empty() => Ok(()),
            Ok(_) => Err("more after the last answer".into()),
            Err(error) => Err(format!("no clean end: {error}")),
        }
    }

    /// Whether the server has said anything more, or has closed; does not wait.
    pub fn is_quiet(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let quiet = matches!(self.stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
        quiet && self.pending.is_empty()
    }

    fn read_more(&mut self, place: &str) -> Result<(), String> {
        let mut part = [0; 16 * 1024];
        match self.stream.read(&mut part) {
            Ok(0) if self.pending.is_empty() => Err("closed without an answer".into()),
            Ok(0) => Err(format!("closed {place}")),
            Ok(count) => {
                self.pending.extend_from_slice(&part[..count]);
                Ok(())
            }
            Err(error) => Err(format!("read: {error} {place}")),
        }
    }
}
