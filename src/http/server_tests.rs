//! The server's limits, over real sockets.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// A port whose clients may leave answers unread for a short time only.
struct Impatient(Port);

impl Listener for Impatient {
    type Stream = TcpStream;

    const WRITE_LIMIT: Duration = Duration::from_millis(200);

    fn name(&self) -> &'static str {
        self.0.name()
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        self.0.accept().await
    }
}

async fn port() -> (SocketAddr, Port) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), Port { listener, name: "a test's port" })
}

/// A connection that has sent `request`.
async fn asks(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_client_that_never_reads_loses_its_connection() {
    let (address, port) = port().await;
    // More than the kernel's buffers take.
    let long = Bytes::from(vec![b'x'; 64 * 1024 * 1024]);
    let answered = Arc::new(Semaphore::new(0));
    let begun = Arc::clone(&answered);
    let answer = move |_| {
        begun.add_permits(1);
        std::future::ready(Response::new(Full::new(long.clone())))
    };
    tokio::spawn(serve(Impatient(port), answer, std::future::pending()));
    let mut deaf = asks(address, GET).await;
    timeout(LIMIT, answered.acquire()).await.unwrap().unwrap().forget();
    // Nothing is read until the server has let go, which a write of ours learns: then what came is less than all.
    let gone = async {
        while deaf.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await
        }
    };
    timeout(LIMIT, gone).await.expect("the connection ends");
    // A client that reads gets all of it, slow or not.
    let mut reader = asks(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let mut all = Vec::new();
    timeout(LIMIT, reader.read_to_end(&mut all)).await.unwrap().unwrap();
    assert!(all.len() > 64 * 1024 * 1024);
}

#[tokio::test]
async fn many_clients_end_no_request_that_is_being_carried_out() {
    let (address, port) = port().await;
    let release = Arc::new(Semaphore::new(0));
    let (begun, waits) = (Arc::new(Semaphore::new(0)), Arc::clone(&release));
    let began = Arc::clone(&begun);
    let answer = move |_| {
        let (began, waits) = (Arc::clone(&began), Arc::clone(&waits));
        async move {
            began.add_permits(1);
            waits.acquire().await.unwrap().forget();
            json(200, &"done")
        }
    };
    tokio::spawn(serve(port, answer, std::future::pending()));
    let mut order = asks(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    timeout(LIMIT, begun.acquire()).await.unwrap().unwrap().forget();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX + 20 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(timeout(LIMIT, idle[0].read(&mut [0])).await.unwrap().unwrap_or(0), 0, "the oldest idle one made room");
    release.add_permits(1);
    let mut answer = String::new();
    timeout(LIMIT, order.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("done"), "{answer}");
}
