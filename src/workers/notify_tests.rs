//! Notices over a real socket, and what garbage parses to.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, sendmsg};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// A sender, connected as a worker is.
fn sender(socket: &NotifySocket) -> UnixDatagram {
    let sender = UnixDatagram::unbound().unwrap();
    let name = socket.name().strip_prefix('@').unwrap();
    sender.connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    sender
}

async fn next(socket: &NotifySocket) -> Notice {
    timeout(LIMIT, socket.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_notice_carries_the_pid_that_the_kernel_saw() {
    let socket = NotifySocket::open().unwrap();
    let sender = sender(&socket);
    sender.send(b"READY=1").unwrap();
    sender.send(b"WATCHDOG=1\nX_TANDEM_REQUESTS=12\nX_TANDEM_CONNECTIONS=3\nX_TANDEM_IN_FLIGHT=2\n").unwrap();
    // A pid in the text is only text.
    sender.send(b"MAINPID=1\nSTOPPING=1").unwrap();
    assert_eq!(next(&socket).await, Notice { pid: own_pid(), messages: vec![Message::Ready] });
    let counts = Counts { requests: 12, connections: 3, in_flight: 2 };
    assert_eq!(
        next(&socket).await,
        Notice { pid: own_pid(), messages: vec![Message::Watchdog, Message::Counts(counts)] }
    );
    assert_eq!(
        next(&socket).await,
        Notice { pid: own_pid(), messages: vec![Message::Other("MAINPID=1".into()), Message::Stopping] }
    );
}

#[tokio::test]
async fn what_a_closed_peer_sent_before_still_comes() {
    let socket = NotifySocket::open().unwrap();
    let sender = sender(&socket);
    sender.send(b"STOPPING=1").unwrap();
    drop(sender);
    assert_eq!(next(&socket).await.messages, [Message::Stopping]);
}

#[tokio::test]
async fn empty_binary_and_oversized_datagrams_are_only_datagrams() {
    let socket = NotifySocket::open().unwrap();
    let sender = sender(&socket);
    sender.send(b"").unwrap();
    sender.send(&[0xff, 0x00, b'\n', b'=', b'\n']).unwrap();
    let mut large = b"READY=1\nX_TANDEM_REQUESTS=".to_vec();
    large.resize(DATAGRAM_SIZE_MAX + 10, b'1');
    sender.send(&large).unwrap();
    sender.send(b"WATCHDOG=1").unwrap();
    assert_eq!(next(&socket).await.messages, []);
    assert_eq!(next(&socket).await.messages, [Message::Other("\u{fffd}\0".into()), Message::Other("=".into())]);
    assert_eq!(next(&socket).await.messages, [Message::Ready], "the cut line is left out");
    assert_eq!(next(&socket).await.messages, [Message::Watchdog]);
}

#[tokio::test]
async fn descriptors_that_come_along_are_not_opened() {
    let socket = NotifySocket::open().unwrap();
    let sender = sender(&socket);
    let (reader, writer) = std::io::pipe().unwrap();
    let attached = [writer.as_raw_fd()];
    for _ in 0..3 {
        let parts = [io::IoSlice::new(b"FDSTORE=1")];
        sendmsg::<()>(sender.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&attached)], MsgFlags::empty(), None)
            .unwrap();
    }
    sender.send(b"READY=1").unwrap();
    assert_eq!(next(&socket).await.messages, [Message::Ready]);
    drop(writer);
    // End of file: nobody holds the writing end any more, so none was opened here.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut rest).unwrap();
}

#[tokio::test]
async fn a_receiver_that_was_cancelled_loses_nothing() {
    let socket = NotifySocket::open().unwrap();
    let sender = sender(&socket);
    for _ in 0..100 {
        let _ = timeout(Duration::ZERO, socket.recv()).await;
        sender.send(b"READY=1").unwrap();
        assert_eq!(next(&socket).await.messages, [Message::Ready]);
    }
}

#[tokio::test]
async fn each_socket_has_a_name_of_its_own() {
    let (one, two) = (NotifySocket::open().unwrap(), NotifySocket::open().unwrap());
    assert_ne!(one.name(), two.name());
    assert!(one.name().starts_with("@tandem-") && one.name().is_ascii());
}

#[test]
fn lines_are_read_as_they_are_meant() {
    let table: &[(&str, bool, &[Message])] = &[
        ("", false, &[]),
        ("\n\n", false, &[]),
        ("READY=0", false, &[Message::Other("READY=0".into())]),
        (" READY=1", false, &[Message::Other(" READY=1".into())]),
        ("READY", false, &[Message::Other("READY".into())]),
        ("READY=1", true, &[]),
        ("READY=1\nWATCHD", true, &[Message::Ready]),
        // Counts come whole or not at all.
        ("X_TANDEM_REQUESTS=1\nX_TANDEM_CONNECTIONS=2", false, &[]),
        ("X_TANDEM_REQUESTS=1\nX_TANDEM_CONNECTIONS=-2\nX_TANDEM_IN_FLIGHT=3", false, &[]),
        ("X_TANDEM_REQUESTS=99999999999999999999\nX_TANDEM_CONNECTIONS=2\nX_TANDEM_IN_FLIGHT=3", false, &[]),
        (r#"X_TANDEM_IMPORT_ERROR="a\nb=c""#, false, &[Message::ImportError("a\nb=c".into())]),
        ("X_TANDEM_IMPORT_ERROR=no json", false, &[Message::ImportError("no json".into())]),
        (r#"X_TANDEM_IMPORT_ERROR="cut of"#, true, &[Message::ImportError("\"cut of".into())]),
        (r#"X_TANDEM_FORK_UNSAFE=["a","b=c"]"#, false, &[Message::ForkUnsafe(vec!["a".into(), "b=c".into()])]),
        ("X_TANDEM_FORK_UNSAFE=a", false, &[Message::Other("X_TANDEM_FORK_UNSAFE=a".into())]),
        (r#"X_TANDEM_IMPORT_ERROR={"a":1}"#, false, &[Message::ImportError(r#"{"a":1}"#.into())]),
    ];
    for (text, cut, expected) in table {
        assert_eq!(parse(text, *cut), *expected, "{text:?}");
    }
}
