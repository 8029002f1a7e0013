//! Notices over real sockets, and what garbage parses to.

use std::os::unix::net;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, sendmsg};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// A socket, and the other end of it.
fn pair() -> (NotifySocket, net::UnixDatagram) {
    let (socket, theirs) = NotifySocket::pair().unwrap();
    (socket, theirs.into())
}

/// All that is there, within a turn's bounds.
fn taken(socket: &NotifySocket) -> Vec<Heard> {
    let mut all = Vec::new();
    socket.take(|heard| all.push(heard)).unwrap();
    all
}

/// Wait for something, and take what is there.
async fn next(socket: &NotifySocket) -> Vec<Heard> {
    timeout(LIMIT, socket.socket.readable()).await.unwrap().unwrap();
    taken(socket)
}

fn said(messages: &[Message]) -> Heard {
    Heard::Notice(Notice { pid: own_pid(), messages: messages.to_vec() })
}

#[tokio::test]
async fn a_notice_carries_the_pid_that_the_kernel_saw() {
    let (socket, sender) = pair();
    sender.send(b"READY=1").unwrap();
    sender.send(b"WATCHDOG=1\nX_TANDEM_REQUESTS=12\nX_TANDEM_CONNECTIONS=3\nX_TANDEM_IN_FLIGHT=2\nX_TANDEM_LOOP_LAG_MS=31\n").unwrap();
    // A pid in the text is only text.
    sender.send(b"MAINPID=1\nSTOPPING=1").unwrap();
    let counts = Counts { requests: 12, connections: 3, in_flight: 2, loop_lag_ms: Some(31) };
    let expected =
        [said(&[Message::Ready]), said(&[Message::Watchdog, Message::Counts(counts)]), said(&[Message::Stopping])];
    assert_eq!(next(&socket).await, expected);
}

#[tokio::test]
async fn what_a_closed_peer_sent_before_still_comes() {
    let _alone = crate::forks::none();
    let (socket, sender) = pair();
    sender.send(b"READY=1").unwrap();
    drop(sender);
    assert_eq!(next(&socket).await, [said(&[Message::Ready])]);
    assert_eq!(taken(&socket), [], "its end is no message and no error");
}

#[tokio::test]
async fn empty_binary_and_oversized_datagrams_are_only_datagrams() {
    let (socket, sender) = pair();
    sender.send(b"").unwrap();
    sender.send(&[0xff, 0x00, b'\n', b'=', b'\n']).unwrap();
    let mut large = b"READY=1\nX_TANDEM_REQUESTS=".to_vec();
    large.resize(DATAGRAM_SIZE_MAX + 10, b'1');
    sender.send(&large).unwrap();
    sender.send(b"WATCHDOG=1").unwrap();
    let expected = [said(&[]), said(&[]), said(&[Message::Ready]), said(&[Message::Watchdog])];
    assert_eq!(next(&socket).await, expected, "of the one that was cut, the last line is left out");
}

#[tokio::test]
async fn descriptors_that_come_along_are_not_opened() {
    let (socket, sender) = pair();
    let (reader, writer) = std::io::pipe().unwrap();
    let attached = [writer.as_raw_fd()];
    for _ in 0..3 {
        let parts = [io::IoSlice::new(b"FDSTORE=1")];
        let rights = [ControlMessage::ScmRights(&attached)];
        sendmsg::<()>(sender.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
    }
    sender.send(b"READY=1").unwrap();
    assert_eq!(next(&socket).await.last(), Some(&said(&[Message::Ready])));
    drop(writer);
    // End of file: nothing holds the writing end any more, so none was opened here.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &reader, &mut rest).unwrap();
}

#[tokio::test]
async fn a_flood_is_taken_in_turns_and_said_to_be_one() {
    let (socket, sender) = pair();
    sender.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while sender.send(b"x").is_ok() {
        sent += 1;
    }
    assert!(sent > TURN_MAX, "{sent}");
    let turn = next(&socket).await;
    assert_eq!((turn.len(), turn.last()), (TURN_MAX + 1, Some(&Heard::Overrun)));
    // Long ones end a turn sooner.
    let (socket, sender) = pair();
    sender.set_nonblocking(true).unwrap();
    while sender.send(&[b'x'; DATAGRAM_SIZE_MAX]).is_ok() {}
    assert!(next(&socket).await.len() <= TURN_SIZE_MAX / DATAGRAM_SIZE_MAX + 1);
}

#[tokio::test]
async fn a_path_is_its_users_alone_and_goes_with_the_socket() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("notify");
    let one = NotifySocket::in_dir(&dir, "worker-0", None).unwrap();
    let two = NotifySocket::in_dir(&dir, "worker-0", None).unwrap();
    let (path, other) = (one.path().unwrap().to_owned(), two.path().unwrap().to_owned());
    assert_ne!(path, other);
    assert_eq!((dir.metadata().unwrap().mode() & 0o7777, path.metadata().unwrap().mode() & 0o7777), (0o700, 0o600));
    let sender = net::UnixDatagram::unbound().unwrap();
    sender.send_to(b"READY=1", &path).unwrap();
    assert_eq!(next(&one).await, [said(&[Message::Ready])]);
    assert_eq!(taken(&two), []);
    drop(one);
    // The file goes on another thread.
    let gone = async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    assert!(other.exists());
}

#[tokio::test]
async fn a_path_of_the_workers_user_opens_the_way_to_its_group_alone() {
    if !nix::unistd::Uid::effective().is_root() {
        return crate::skip::skip("only root can give a file away");
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("notify");
    let user = Identity { uid: 65_534, gid: 65_533, name: "somebody".into(), home: "/".into() };
    let socket = NotifySocket::in_dir(&dir, "worker-0", Some(&user)).unwrap();
    let (dir, file) = (dir.metadata().unwrap(), socket.path().unwrap().metadata().unwrap());
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (0, 65_533, 0o710), "it cannot put another in its place");
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (65_534, 65_533, 0o600));
}

#[tokio::test]
async fn no_link_is_followed_and_a_path_that_is_too_long_says_so() {
    let temp = tempfile::tempdir().unwrap();
    let (there, link) = (temp.path().join("there"), temp.path().join("link"));
    fs::create_dir(&there).unwrap();
    std::os::unix::fs::symlink(&there, &link).unwrap();
    assert!(NotifySocket::in_dir(&link, "worker-0", None).is_err());
    assert!(NotifySocket::in_dir(&temp.path().join("d".repeat(108)), "worker-0", None).is_err());
}

#[test]
fn lines_are_read_as_they_are_meant() {
    let start_error_of = |kind, text: &str| Message::StartError(StartError { kind, text: text.into() });
    let import_error = |text| start_error_of(StartErrorKind::Import, text);
    let draining = |on: &str| Message::Draining(Unfinished { requests: 2, streams: 1, idle: 0, on: vec![on.into()] });
    let table: &[(&str, bool, &[Message])] = &[
        ("", false, &[]),
        ("\n\n", false, &[]),
        ("READY=0", false, &[]),
        (" READY=1", false, &[]),
        ("READY", false, &[]),
        ("READY=1", true, &[]),
        ("READY=1\nWATCHD", true, &[Message::Ready]),
        // Counts come whole or not at all.
        ("X_TANDEM_REQUESTS=1\nX_TANDEM_CONNECTIONS=2", false, &[]),
        ("X_TANDEM_REQUESTS=1\nX_TANDEM_CONNECTIONS=-2\nX_TANDEM_IN_FLIGHT=3", false, &[]),
        ("X_TANDEM_REQUESTS=99999999999999999999\nX_TANDEM_CONNECTIONS=2\nX_TANDEM_IN_FLIGHT=3", false, &[]),
        (r#"X_TANDEM_IMPORT_ERROR="a\nb=c""#, false, &[import_error("a\nb=c")]),
        ("X_TANDEM_IMPORT_ERROR=no json", false, &[import_error("no json")]),
        (r#"X_TANDEM_IMPORT_ERROR="cut of"#, true, &[import_error("\"cut of")]),
        (
            "STOPPING=1\nX_TANDEM_CLOSED=1\nX_TANDEM_DRAINED=1",
            false,
            &[Message::Stopping, Message::Closed, Message::Drained],
        ),
        (r#"X_TANDEM_LIFESPAN_ERROR="cut of"#, true, &[start_error_of(StartErrorKind::Lifespan, "\"cut of")]),
        (r#"X_TANDEM_CHECK_ERROR="503""#, false, &[start_error_of(StartErrorKind::Check, "503")]),
        (
            r#"X_TANDEM_DRAINING={"requests":2,"streams":1,"idle":0,"on":["GET /a\u001b["]}"#,
            false,
            &[draining("GET /a[")],
        ),
        (r#"X_TANDEM_DRAINING={"requests":-1}"#, false, &[]),
        (r#"X_TANDEM_FORK_UNSAFE=["a","b=c"]"#, false, &[Message::ForkUnsafe(vec!["a".into(), "b=c".into()])]),
        ("X_TANDEM_FORK_UNSAFE=a", false, &[]),
        (r#"X_TANDEM_IMPORT_ERROR={"a":1}"#, false, &[import_error(r#"{"a":1}"#)]),
    ];
    for (text, cut, expected) in table {
        assert_eq!(parse(text, *cut), *expected, "{text:?}");
    }
}
