//! What the supervisor is like meanwhile: how soon it answers, what it takes, what it has open.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rest;

/// Between two looks at `/live`.
const PAUSE: Duration = Duration::from_millis(20);
/// After so long, `/live` counts as unanswered.
pub const LIVE_LIMIT: Duration = Duration::from_secs(2);

/// What the supervisor takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Memory that is its alone and was written to, in MB.
    pub private_dirty: f64,
    /// Proportional memory, in MB.
    pub pss: f64,
    pub descriptors: usize,
}

impl Taken {
    /// Of the process `pid`.
    pub fn by(pid: i32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let megabytes = |field: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
            value.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self { private_dirty: megabytes("Private_Dirty:"), pss: megabytes("Pss:"), descriptors }
    }
}

/// Asks `/live` all the time, and remembers the longest wait.
pub struct Live {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    port: u16,
    over: AtomicBool,
    /// Odd while nobody should answer: the supervisor is stopped, or is being replaced.
    away: AtomicU64,
    /// The fault that is at work.
    fault: Mutex<String>,
    longest: Mutex<(Duration, String)>,
}

impl Live {
    pub fn start(port: u16) -> Self {
        let shared = Arc::new(Shared {
            port,
            over: AtomicBool::new(false),
            away: AtomicU64::new(0),
            fault: Mutex::default(),
            longest: Mutex::default(),
        });
        let watching = Arc::clone(&shared);
        Self { shared, thread: Some(std::thread::spawn(move || watching.watch())) }
    }

    /// Say which fault is at work.
    pub fn during(&self, fault: &str) {
        fault.clone_into(&mut self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What is asked until [`Live::back`] does not count.
    pub fn away(&self) {
        if self.shared.away.load(SeqCst).is_multiple_of(2) {
            self.shared.away.fetch_add(1, SeqCst);
        }
    }

    pub fn back(&self) {
        if !self.shared.away.load(SeqCst).is_multiple_of(2) {
            self.shared.away.fetch_add(1, SeqCst);
        }
    }

    /// The longest wait for an answer, and during which fault.
    pub fn longest(&self) -> (Duration, String) {
        self.shared.longest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self) {
        while !self.over.load(SeqCst) {
            let (away, asked) = (self.away.load(SeqCst), Instant::now());
            let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let _ = live(self.port, LIVE_LIMIT);
            let waited = asked.elapsed();
            if away.is_multiple_of(2) && self.away.load(SeqCst) == away {
                let mut longest = self.longest.lock().unwrap_or_else(PoisonError::into_inner);
                if waited > longest.0 {
                    *longest = (waited, fault);
                }
            }
            rest(PAUSE);
        }
    }
}

/// Whether `/live` says yes within `limit`.
pub fn live(port: u16, limit: Duration) -> bool {
    ask(port, "/live", limit).is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The longest stall of the event loop that the supervisor has measured itself.
pub fn stall(port: u16) -> Option<Duration> {
    let metrics = ask(port, "/metrics", LIVE_LIMIT)?;
    let value = metrics.lines().find_map(|line| line.strip_prefix("tandem_loop_stall_seconds_max "))?;
    Some(Duration::from_secs_f64(value.trim().parse().ok()?))
}

/// An answer of the health port, whole.
pub fn ask(port: u16, path: &str, limit: Duration) -> Option<String> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        stream.set_read_timeout(Some(left)).ok()?;
        match stream.read(&mut part).ok()? {
            0 => return Some(String::from_utf8_lossy(&answer).into_owned()),
            size => answer.extend_from_slice(&part[..size]),
        }
    }
}
