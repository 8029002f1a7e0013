//! A thousand health probes a second, even when answers are late: each is due at its own time, and its latency counts from there.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{LIMIT, pause};
use crate::figures::quantile;
use crate::up::ms;

const RATE: u32 = 1000;
const THREADS: u32 = 4;

/// In milliseconds.
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub count: usize,
}

/// Probe `/health` on `port` for `time`.
pub fn probe(port: u16, time: Duration, keep_alive: bool) -> Latency {
    let began = Instant::now() + Duration::from_millis(20);
    let period = Duration::from_secs(1) * THREADS / RATE;
    let rounds = u32::try_from(time.as_nanos() / period.as_nanos()).unwrap();
    let threads = (0..THREADS).map(|number| {
        thread::spawn(move || {
            // A sleep's default slack of 50 µs would count as the server's (prctl(2), PR_SET_TIMERSLACK).
            let _ = nix::sys::prctl::set_timerslack(1);
            let first = began + period * number / THREADS;
            let mut connection = None;
            let due = (0..rounds).map(|round| first + period * round);
            due.map(|due| {
                pause(due.saturating_duration_since(Instant::now()));
                let stream = match connection.take() {
                    Some(stream) => stream,
                    None => connect(port),
                };
                connection = Some(ask(stream)).filter(|_| keep_alive);
                ms(due.elapsed())
            })
            .collect::<Vec<f64>>()
        })
    });
    let threads: Vec<_> = threads.collect();
    let mut latencies: Vec<f64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    latencies.sort_by(f64::total_cmp);
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&latencies, part));
    Latency { p50, p99, max, count: latencies.len() }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// One request and its whole answer.
fn ask(mut stream: TcpStream) -> TcpStream {
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let (mut answer, mut part) = (Vec::new(), [0; 8192]);
    loop {
        let read = stream.read(&mut part).unwrap();
        assert!(read > 0, "the connection ended early");
        answer.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            return stream;
        }
    }
}
