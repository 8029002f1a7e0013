//! The page over a real socket.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::config::PageMode;
use crate::health::overview::tests::picture;
use crate::plan::Place;

const LIMIT: Duration = Duration::from_secs(5);
const HTML: &str = "accept: text/html\r\n";

struct Open {
    address: SocketAddr,
    viewers: Viewers,
    pictures: watch::Sender<Arc<Picture>>,
}

async fn open(page: PageMode, password: Option<&str>) -> Open {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let health = Health {
        listen: Place::At(address),
        workers_min: 1,
        page,
        page_password: password.map(Secret::new),
        page_hosts: vec!["status.example.org".into()],
    };
    let viewers = Viewers::default();
    let (pictures, receiver) = watch::channel(Arc::new(picture()));
    let audience = Audience::of(&health, &viewers);
    tokio::spawn(serve(listener, receiver, audience, std::future::pending()));
    Open { address, viewers, pictures }
}

impl Open {
    async fn connect(&self, head: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// The answer to `GET path`, to the end of the connection.
    async fn get(&self, path: &str, headers: &str) -> String {
        let host = if headers.contains("host:") { "" } else { "host: localhost\r\n" };
        let mut stream =
            self.connect(&format!("GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n")).await;
        let mut answer = Vec::new();
        timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// A connection that follows the events, after the first one.
    async fn follow(&self, path: &str) -> TcpStream {
        let mut stream = self.connect(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains("\n\n") {
            let mut some = [0; 4096];
            let length = timeout(LIMIT, stream.read(&mut some)).await.unwrap().unwrap();
            assert!(length > 0, "{}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&some[..length]);
        }
        stream
    }
}

fn code(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn browsers_get_the_page_with_its_policy_and_all_others_what_they_got() {
    let open = open(PageMode::Auto, None).await;
    let page = open.get("/", HTML).await;
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("<!DOCTYPE html>"), "{page}");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(body.len() < 150 << 10, "{} bytes", body.len());
    for wanted in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
        "vary: accept",
    ] {
        assert!(head.contains(wanted), "{wanted}: {head}");
    }
    assert!(!head.contains("unsafe") && !body.contains(" style=") && !body.contains(" onclick="));
    let json = open.get("/", "").await;
    assert!(json.contains("content-type: application/json") && json.contains("\"/health\""), "{json}");
    assert!(open.viewers.is_wanted(), "who fetched the page looks");
    assert!(open.get("/icon.svg", "").await.contains("<svg"));
    let posted = open.connect(
        "POST / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
    let mut answer = String::new();
    posted.await.read_to_string(&mut answer).await.unwrap();
    assert_eq!(code(&answer), 405);
}

#[tokio::test]
async fn under_a_strange_name_the_page_is_refused_and_probes_are_answered() {
    let open = open(PageMode::Auto, None).await;
    let strange = "host: evil.example\r\n";
    for path in ["/health", "/ready", "/live", "/metrics", "/healthz"] {
        assert_eq!(code(&open.get(path, strange).await), 200, "{path}");
    }
    for (path, accept) in [("/", HTML), ("/events", ""), ("/events?page", ""), ("/icon.svg", "")] {
        let answer = open.get(path, &format!("{strange}{accept}")).await;
        assert_eq!(code(&answer), 421, "{path}");
        assert!(answer.contains("health.page_hosts") && !answer.contains("worker-0"), "{answer}");
    }
    assert_eq!(code(&open.get("/", &format!("host: status.example.org\r\n{HTML}")).await), 200);
    assert_eq!(code(&open.get("/", strange).await), 200, "the list of paths holds nothing");
    assert_eq!(code(&open.get("/events", "sec-fetch-site: cross-site\r\n").await), 403);
}

#[tokio::test]
async fn without_a_page_everything_is_as_it_was() {
    let open = open(PageMode::Off, None).await;
    assert!(open.get("/", HTML).await.contains("application/json"));
    assert_eq!(code(&open.get("/events", "").await), 404);
    assert_eq!(code(&open.get("/icon.svg", "").await), 404);
}

#[tokio::test]
async fn a_page_with_a_password_asks_for_it_and_probes_do_not_need_it() {
    let open = open(PageMode::On, Some("correct horse battery")).await;
    let asked = open.get("/", HTML).await;
    assert!(
        code(&asked) == 401 && asked.contains("www-authenticate: Basic ") && !asked.contains("worker-0"),
        "{asked}"
    );
    assert_eq!(code(&open.get("/events", "").await), 401);
    let begun = std::time::Instant::now();
    assert_eq!(code(&open.get("/", &format!("{HTML}authorization: Bearer wrong\r\n")).await), 401);
    assert!(begun.elapsed() >= WRONG_PASSWORD_PAUSE);
    let given = format!("authorization: Basic {}\r\n", STANDARD.encode("x:correct horse battery"));
    assert_eq!(code(&open.get("/", &format!("{HTML}{given}")).await), 200);
    let bearer = "authorization: Bearer correct horse battery\r\n";
    assert_eq!(code(&open.get("/", &format!("{HTML}{bearer}")).await), 200);
    assert_eq!(code(&open.get("/health", "").await), 200);
}

#[tokio::test]
async fn so_many_may_look_and_fifty_that_vanish_leave_nothing() {
    let open = open(PageMode::Auto, None).await;
    let mut looking = Vec::new();
    for _ in 0..VIEWERS_MAX {
        looking.push(open.follow("/events?page").await);
    }
    assert_eq!(code(&open.get("/events", "").await), 503);
    looking.clear();
    for _ in 0..50 {
        // Some before they were answered, some after.
        drop(open.connect("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
    }
    let gone = async {
        while open.viewers.count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, gone).await.unwrap();
    open.follow("/events").await;
}

#[tokio::test]
async fn a_viewer_that_reads_nothing_is_dropped() {
    let open = open(PageMode::Auto, None).await;
    let big = "x".repeat(1900);
    open.pictures.send_modify(|picture| {
        let worker = picture.services[0].clone();
        let many = (0..2000).map(|number| crate::health::picture::Service {
            name: format!("worker-{number}"),
            last_reason: Some(big.clone()),
            ..worker.clone()
        });
        Arc::make_mut(picture).services = many.collect();
    });
    // An event of four megabytes fills what the kernel takes for it at once.
    let _unread = open.connect("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let wait = async |wanted: usize| {
        while open.viewers.count() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, wait(1)).await.unwrap();
    timeout(crate::http::server::WRITE_LIMIT + LIMIT, wait(0)).await.unwrap();
}
