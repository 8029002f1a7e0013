//! The client that the benchmark of the workers loads servers with sees each way in which a request can fail, and
//! sends none twice.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::load::{Failure, Group, Kind, Load, Tally};

const LIMIT: Duration = Duration::from_secs(30);
const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n17";
const GOOD_AND_LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n17";

/// What one client of `kind` counts until it has asked `count` times, of a server that treats each connection with `serve`.
fn against(kind: Kind, count: u64, serve: fn(TcpStream)) -> (Tally, u64) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&connections);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            serve(stream.unwrap());
        }
    });
    let tally = load(port, kind, count);
    (tally, connections.load(std::sync::atomic::Ordering::SeqCst))
}

fn load(port: u16, kind: Kind, count: u64) -> Tally {
    let load = Load::start(port, &[Group { kind, clients: 1, pause: (0, 1_000) }]);
    let began = Instant::now();
    while load.tally().all().asked < count {
        assert!(began.elapsed() < LIMIT, "asked {:?} in {LIMIT:?}", load.tally().all());
        std::thread::yield_now();
    }
    load.stop()
}

/// Wait for `count` whole requests.
fn requests(stream: &mut TcpStream, count: usize) -> bool {
    let (mut seen, mut part) = (String::new(), [0; 1024]);
    while seen.matches("\r\n\r\n").count() < count {
        match stream.read(&mut part) {
            Ok(size) if size > 0 => seen.push_str(&String::from_utf8_lossy(&part[..size])),
            _ => return false,
        }
    }
    true
}

/// Answer `text` to the first request, and end the connection.
fn answer(mut stream: TcpStream, text: &str) {
    if requests(&mut stream, 1) {
        let _ = stream.write_all(text.as_bytes());
    }
}

#[track_caller]
fn only(tally: &Tally, failure: Failure) {
    assert!(tally.all().failed > 0, "nothing failed");
    assert_eq!(tally.causes.keys().collect::<Vec<_>>(), [&failure]);
}

#[test]
fn good_answers_fail_nothing() {
    let (tally, connections) = against(Kind::New, 20, |stream| answer(stream, GOOD));
    assert_eq!(tally.all().failed, 0);
    assert_eq!(tally.workers.keys().collect::<Vec<_>>(), [&17]);
    assert_eq!(connections, tally.all().asked, "a connection for each request, and no request twice");
    let (tally, connections) = against(Kind::Busy, 20, |stream| answer(stream, GOOD_AND_LAST));
    assert_eq!(tally.all().failed, 0, "who is told that the connection ends does not use it again");
    assert_eq!(connections, tally.all().asked);
    let (tally, connections) = against(Kind::Busy, 20, |mut stream| {
        while requests(&mut stream, 1) {
            let _ = stream.write_all(GOOD.as_bytes());
        }
    });
    assert_eq!((tally.all().failed, connections), (0, 1), "one connection is enough");
}

#[test]
fn every_failure_has_its_name() {
    only(&against(Kind::New, 5, drop).0, Failure::Reset);
    only(&against(Kind::New, 5, |stream| answer(stream, "")).0, Failure::Reset);
    only(&against(Kind::New, 5, |stream| answer(stream, &GOOD[..GOOD.len() - 1])).0, Failure::Truncated);
    only(&against(Kind::New, 5, |stream| answer(stream, "HTTP/1.1 503 No\r\n\r\n")).0, Failure::Status);
    only(&against(Kind::New, 5, |stream| answer(stream, "HTTP/1.1 200 OK\r\n\r\n17")).0, Failure::Garbled);
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    only(&load(nobody, Kind::New, 5), Failure::Refused);
}

#[test]
fn a_connection_that_ends_between_two_requests_fails_the_second() {
    let (tally, connections) = against(Kind::Busy, 10, |stream| answer(stream, GOOD));
    only(&tally, Failure::Stale);
    let all = tally.all();
    assert_eq!(
        connections,
        all.asked - all.failed,
        "what failed was sent on a connection that had answered, and not again"
    );
    // Of two at once, the second too counts, also when the first answer said that it would be the last.
    let (tally, _) = against(Kind::Pipelined, 10, |stream| answer(stream, GOOD_AND_LAST));
    only(&tally, Failure::Stale);
    let (tally, _) = against(Kind::Pipelined, 10, |mut stream| {
        if requests(&mut stream, 2) {
            let _ = stream.write_all(format!("{GOOD}{GOOD_AND_LAST}").as_bytes());
        }
    });
    assert_eq!(tally.all().failed, 0);
}

#[test]
fn silence_is_a_gap_and_then_a_failure() {
    let (tally, _) = against(Kind::New, 1, std::mem::forget);
    only(&tally, Failure::TimedOut);
    assert!(tally.gap >= Duration::from_secs(5), "{:?}", tally.gap);
}
