use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::exit::code_of;

const LIMIT: Duration = Duration::from_secs(5);

/// Everything said to the supervisor while `speak` spoke.
fn said(speak: impl FnOnce(&Upstream)) -> Vec<String> {
    let (sender, mut queue) = unbounded_channel();
    let upstream = Upstream { queue: Some(sender), told: RefCell::default() };
    speak(&upstream);
    drop(upstream);
    std::iter::from_fn(|| queue.try_recv().ok()).map(|message| message.text).collect()
}

#[test]
fn each_thing_is_said_once_and_status_when_it_changes() {
    let said = said(|upstream| {
        for (phase, status) in [
            (Phase::Installing, "installing"),
            (Phase::Installing, "installing"),
            (Phase::StartingWorkers, "starting-workers"),
            (Phase::Serving, "two ready"),
            (Phase::Serving, "two ready"),
            (Phase::Serving, "one\nready"),
            (Phase::Draining, "draining"),
            (Phase::Stopping, "stopping"),
            (Phase::Stopped, "stopping"),
        ] {
            upstream.show(phase, status, Duration::ZERO);
        }
    });
    let expected = [
        "STATUS=installing",
        "STATUS=starting-workers",
        "READY=1\nSTATUS=two ready",
        "STATUS=one ready",
        "STOPPING=1\nSTATUS=draining",
        "STATUS=stopping",
    ];
    assert_eq!(said, expected);
}

#[test]
fn the_limit_of_a_stop_is_told_when_it_begins_and_when_it_gets_longer() {
    let limit = Duration::from_secs;
    let said = said(|upstream| {
        upstream.show(Phase::Serving, "ready", limit(20));
        upstream.show(Phase::Draining, "draining", limit(20));
        upstream.show(Phase::Draining, "draining", limit(15));
        upstream.show(Phase::Stopping, "stopping", limit(2 * 3600));
        upstream.show(Phase::Stopped, "stopping", limit(0));
    });
    let expected = [
        "READY=1\nSTATUS=ready",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\nSTATUS=draining",
        "EXTEND_TIMEOUT_USEC=7210000000\nSTATUS=stopping",
    ];
    assert_eq!(said, expected);
}

#[test]
fn two_reloads_at_once_end_with_the_later_one() {
    let said = said(|upstream| {
        upstream.show(Phase::Serving, "ready", Duration::ZERO);
        let one = upstream.reloading();
        let two = upstream.reloading();
        drop(one);
        upstream.show(Phase::Serving, "rolling", Duration::ZERO);
        drop(two);
    });
    let kinds: Vec<&str> = said.iter().map(|message| message.split('=').next().unwrap()).collect();
    assert_eq!(kinds, ["READY", "RELOADING", "RELOADING", "STATUS", "READY"]);
    let (first, second) = said[1].split_once('\n').unwrap();
    assert_eq!(first, "RELOADING=1");
    let time: u64 = second.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!(time > 0);
}

#[test]
fn a_reload_that_a_stop_interrupts_is_not_said_to_be_ready() {
    let said = said(|upstream| {
        upstream.show(Phase::Serving, "ready", Duration::ZERO);
        let reload = upstream.reloading();
        upstream.show(Phase::Draining, "draining", Duration::ZERO);
        drop(reload);
        // And one that begins too late is none.
        drop(upstream.reloading());
    });
    assert_eq!(said.last().unwrap(), "STOPPING=1\nSTATUS=draining");
}

#[tokio::test]
async fn a_supervisor_in_the_abstract_namespace_hears_it_and_the_watchdog() {
    let name = format!("@tandem-test-{:032x}", rand::random::<u128>());
    let address = address(OsStr::new(&name)).unwrap();
    let above = UnixDatagram::bind_addr(&address).unwrap();
    above.set_nonblocking(true).unwrap();
    let above = tokio::net::UnixDatagram::from_std(above).unwrap();
    let (upstream, telling) = Upstream::to(Some(address), Some(Duration::from_millis(20)));
    upstream.show(Phase::Serving, "ready", Duration::ZERO);
    let hear = async {
        let (mut beats, mut ready, mut buffer) = (0, false, [0; 1000]);
        while beats < 3 || !ready {
            let length = above.recv(&mut buffer).await.unwrap();
            match &buffer[..length] {
                b"WATCHDOG=1" => beats += 1,
                b"READY=1\nSTATUS=ready" => ready = true,
                other => panic!("{}", String::from_utf8_lossy(other)),
            }
        }
    };
    tokio::select! {
        () = telling => panic!("it ended"),
        heard = timeout(LIMIT, hear) => heard.unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_start_and_of_a_reload_is_extended_for_as_long_as_it_takes() {
    let name = format!("@tandem-test-{:032x}", rand::random::<u128>());
    let address = address(OsStr::new(&name)).unwrap();
    let above = UnixDatagram::bind_addr(&address).unwrap();
    above.set_nonblocking(true).unwrap();
    let extensions = || {
        let mut buffer = [0; 1000];
        let told = std::iter::from_fn(|| above.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
        told.filter(|told| told == b"EXTEND_TIMEOUT_USEC=30000000").count()
    };
    let (upstream, telling) = Upstream::to(Some(address), None);
    let script = async {
        let pass = async || tokio::time::sleep(EXTEND_INTERVAL * 3).await;
        upstream.show(Phase::Installing, "installing", Duration::ZERO);
        pass().await;
        assert!(extensions() >= 3, "while it starts");
        upstream.show(Phase::Serving, "ready", Duration::ZERO);
        pass().await;
        extensions();
        pass().await;
        assert_eq!(extensions(), 0, "while it serves");
        let reload = upstream.reloading();
        pass().await;
        assert!(extensions() >= 2, "while it reloads");
        drop(reload);
        upstream.show(Phase::Stopping, "stopping", Duration::ZERO);
        pass().await;
        extensions();
        pass().await;
        assert_eq!(extensions(), 0, "a stop has one limit");
    };
    tokio::select! {
        () = telling => panic!("it ended"),
        () = script => {}
    }
}

#[tokio::test]
async fn a_supervisor_that_is_gone_harms_nobody() {
    let address = SocketAddr::from_pathname("/nowhere/notify").unwrap();
    let (upstream, telling) = Upstream::to(Some(address), None);
    upstream.show(Phase::Serving, "ready", Duration::ZERO);
    drop(upstream);
    timeout(LIMIT, telling).await.unwrap();
    assert!(super::address(OsStr::new("vsock:2:1234")).is_err());
}

#[test]
fn the_sockets_of_one_unit_are_the_applications_and_of_several_those_called_so() {
    let handed =
        |names: &[&str]| -> Vec<(RawFd, String)> { (3..).zip(names.iter().map(|&name| name.into())).collect() };
    assert_eq!(choose(&[]).unwrap(), [0; 0]);
    assert_eq!(choose(&handed(&["unknown"])).unwrap(), [3]);
    assert_eq!(choose(&handed(&["tandem.socket", "tandem.socket"])).unwrap(), [3, 4]);
    assert_eq!(choose(&handed(&["other", "app"])).unwrap(), [4]);
    assert_eq!(choose(&handed(&["app", "other", "app"])).unwrap(), [3, 5]);
    let error = choose(&handed(&["a", "b"])).unwrap_err();
    assert_eq!(error.code, Code::Config);
    assert!(error.to_string().contains("none of them is called"), "{error}");
    assert!(error.to_string().contains("FileDescriptorName=app"), "{error}");
}

#[test]
fn only_a_stream_socket_that_listens_will_do() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(other_kind(&SockRef::from(&listener)), None);
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(other_kind(&SockRef::from(&client)), Some("a TCP socket that does not listen"));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(other_kind(&SockRef::from(&udp)), Some("a UDP socket"));
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(other_kind(&SockRef::from(&unix)), None);
    let client = UnixStream::connect(dir.path().join("socket")).unwrap();
    assert_eq!(other_kind(&SockRef::from(&client)), Some("a unix socket that does not listen"));
    let datagram = UnixDatagram::unbound().unwrap();
    assert_eq!(other_kind(&SockRef::from(&datagram)), Some("a unix socket of another kind"));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert_eq!(other_kind(&SockRef::from(&reader)), Some("no socket"));
}

#[test]
fn without_the_variables_there_is_no_socket() {
    // LISTEN_PID, if it is set at all, is another process's.
    assert!(inherited_listeners().map_err(|error| code_of(&error)).unwrap().is_empty());
}
