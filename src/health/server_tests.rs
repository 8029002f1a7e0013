//! The health port over a real socket.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::health::client::probe;
use crate::health::picture::{Backups, Database, Disk, Facts, Migrations, Sample};
use crate::http::server::{CONNECTIONS_MAX, HEAD_LIMIT, HEAD_SIZE_MAX};
use crate::phase::Phase;
use crate::plan::Place;

const LIMIT: Duration = Duration::from_secs(5);

fn picture(phase: Phase) -> Picture {
    let now = std::time::Instant::now();
    let facts = Facts {
        latency: Duration::from_millis(1),
        schema_version: None,
        tables: vec![],
        connections: 1,
        max_connections: Some(100),
    };
    Picture {
        deployment: "shop-1".into(),
        phase,
        started: now,
        database: Database {
            sample: Some(Sample { taken: now, outcome: Ok(facts) }),
            sample_age_max: Duration::from_secs(600),
            pool_size: 20,
        },
        workers: vec![],
        workers_wanted: 0,
        workers_min: 0,
        migrations: Migrations::default(),
        hook: None,
        certificate: None,
        database_certificate: None,
        sorted_otherwise: Vec::new(),
        backups: Backups::default(),
        disk: Disk::default(),
        backup_disk: Disk::default(),
        services: vec![],
        roll: None,
        details: Default::default(),
    }
}

struct Port {
    address: SocketAddr,
    pictures: watch::Sender<Arc<Picture>>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn open() -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (pictures, receiver) = watch::channel(Arc::new(picture(Phase::Serving)));
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, receiver, async {
        let _ = stopped.await;
    }));
    Port { address, pictures, stop, task }
}

/// Send `request` as it stands and read to the end of the connection.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn every_path_and_alias_answers_from_the_last_picture() {
    let port = open().await;
    for (path, serving, draining) in
        [("/health", 200, 503), ("/healthz", 200, 503), ("/ready", 200, 503), ("/readyz", 200, 503)]
            .into_iter()
            .chain([("/live", 200, 200), ("/livez", 200, 200), ("/", 200, 200), ("/nothing", 404, 404)])
    {
        for (phase, expected) in [(Phase::Serving, serving), (Phase::Draining, draining)] {
            port.pictures.send_replace(Arc::new(picture(phase)));
            let (code, body) = probe(&Place::At(port.address), path, LIMIT).await.unwrap();
            assert_eq!(code, expected, "{path} while {phase}: {body}");
            serde_json::from_str::<serde_json::Value>(&body).unwrap();
        }
    }
}

#[tokio::test]
async fn the_port_is_read_only_and_its_answers_are_not_cached() {
    let port = open().await;
    let post =
        raw(port.address, "POST /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    assert!(post.contains("allow: GET, HEAD\r\n"), "{post}");
    let head = raw(port.address, "HEAD /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("cache-control: no-store\r\n") && head.contains("content-length: "), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "HEAD has no body: {head}");
    let garbage = raw(port.address, "\x16\x03\x01 not http\r\n\r\n").await;
    assert!(garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let huge = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(HEAD_SIZE_MAX));
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    let _ = stream.write_all(huge.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let port = open().await;
    let many = "GET /live HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50)
        + "GET /live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert_eq!(raw(port.address, &many).await.matches("HTTP/1.1 200 ").count(), 51);
}

#[tokio::test]
async fn clients_that_never_finish_a_request_do_not_keep_a_probe_out() {
    let port = open().await;
    let mut slow = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 20 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(b"GET /health HT").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(probe(&Place::At(port.address), "/health", LIMIT).await.unwrap().0, 200);
    let mut byte = [0];
    assert_eq!(timeout(LIMIT, slow[0].read(&mut byte)).await.unwrap().unwrap_or(0), 0, "the oldest made room");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_ends_the_connection() {
    let port = open().await;
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    stream.write_all(b"GET /health HT").await.unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(begun.elapsed() <= HEAD_LIMIT + Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn closing_ends_idle_connections_and_frees_the_port() {
    let port = open().await;
    let mut idle = TcpStream::connect(port.address).await.unwrap();
    idle.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 16];
    idle.read_exact(&mut first).await.unwrap();
    port.stop.send(()).unwrap();
    timeout(LIMIT, port.task).await.unwrap().unwrap();
    let mut rest = Vec::new();
    timeout(LIMIT, idle.read_to_end(&mut rest)).await.unwrap().unwrap();
    TcpListener::bind(port.address).await.unwrap();
}
