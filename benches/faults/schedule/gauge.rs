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

/// What a supervisor has measured of its event loop since it was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    pub longest: Duration,
    /// How many were longer than 250 ms.
    pub count: u64,
}

impl Stalls {
    /// As the supervisor tells them.
    pub fn told(port: u16) -> Option<Self> {
        let metrics = ask(port, "/metrics", LIVE_LIMIT)?;
        let value = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let longest = Duration::from_secs_f64(value("tandem_loop_stall_seconds_max ")?.parse().ok()?);
        Some(Self { longest, count: value("tandem_loop_stalls_total ")?.parse().ok()? })
    }
}

/// The longest stall of all supervisors, without those of faults that pause the supervisor itself. The loop measures by a
/// clock that goes on meanwhile, and keeps the longest alone: what comes after such a pause is known if it is longer yet,
/// and counted if it is longer than 250 ms.
#[derive(Clone, Debug, Default)]
pub struct StallWatch {
    /// The supervisor, and what it last told.
    last: (i32, Stalls),
    /// The longest, and after which fault.
    pub longest: Option<(Duration, String)>,
    /// How many were longer than 250 ms.
    pub count: u64,
    /// The longest that a pause left in the meter of a supervisor.
    pub hidden: Duration,
}

impl StallWatch {
    /// See what the supervisor `pid` tells after `fault`, by which it was `paused` or not.
    pub fn see(&mut self, (pid, told): (i32, Stalls), fault: &str, paused: bool) {
        let before = if self.last.0 == pid { self.last.1 } else { Stalls::default() };
        self.last = (pid, told);
        if paused {
            if told.longest > before.longest {
                self.hidden = self.hidden.max(told.longest);
            }
            return;
        }
        self.count += told.count.saturating_sub(before.count);
        if told.longest > before.longest && self.longest.as_ref().is_none_or(|(longest, _)| told.longest > *longest) {
            self.longest = Some((told.longest, fault.to_owned()));
        }
    }
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
