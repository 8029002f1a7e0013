//! The worker launcher, with the oldest and the newest Uvicorn that it claims: how a worker leaves, and what a careless
//! application cannot spoil.

use std::time::{Duration, Instant};

use crate::common::strict::{Connection, Crowd, Habit};
use crate::common::worker::{Flavour, Stage, Worker};
use nix::sys::signal::Signal;
use tandem::process::Exit;

/// Longer than any test may take, in seconds: a wait this long must be skipped, or the test fails.
const FOR_EVER: &str = "3600";
/// A limit, in seconds, that a test waits for.
const SHORT: &str = "1";
/// Swaps of one run under load, and answers between two of them.
const SWAPS: u32 = 4;
const ANSWERS_BETWEEN: u64 = 300;

const LONG_DRAIN: [(&str, &str); 1] = [("TANDEM_DRAIN", FOR_EVER)];

/// A connection whose next answer is its last.
fn expect_last(connection: &mut Connection) {
    let answer = connection.read_answer().unwrap();
    assert_eq!((answer.status, answer.body.as_str(), answer.closes), (200, "ok", true), "{}", answer.head);
    assert_eq!(answer.head.matches("close").count(), 1, "{}", answer.head);
    connection.read_end().unwrap();
}

/// A connection that has had an answer already.
fn used(stage: &Stage) -> Connection {
    let mut connection = Connection::open(stage.address()).unwrap();
    assert!(!connection.get("/").unwrap().closes);
    connection
}

/// `connection` sends a request that gets its answer after somebody asked for `/release`.
async fn hold(worker: &Worker, connection: &mut Connection) {
    let held = |worker: &Worker| worker.output().matches("held").count();
    let before = held(worker);
    connection.send(request("/hold").as_bytes()).unwrap();
    worker.wait_for("the request", |worker| held(worker) > before).await;
}

/// Give all held requests their answers, through a connection that gets its last one by that.
fn release(connection: &mut Connection) {
    connection.send(request("/release").as_bytes()).unwrap();
    expect_last(connection);
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

async fn swaps_under_load_fail_nobody(flavour: Flavour) {
    let stage = Stage::set(flavour).await;
    let mut worker = stage.ready("plain:app", &LONG_DRAIN).await;
    let members = [(Habit::Close, 2), (Habit::Busy, 2), (Habit::Idle, 4), (Habit::Pipelined, 2)];
    let crowd = Crowd::start(stage.address(), "/", Some("ok"), &members);
    for _ in 0..SWAPS {
        let answers = crowd.answers();
        worker.wait_for("answers", |_| crowd.answers() > answers + ANSWERS_BETWEEN).await;
        let replacement = stage.ready("plain:app", &LONG_DRAIN).await;
        worker.retire().await;
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(!worker.output().contains("Traceback"), "{}", worker.output());
        worker = replacement;
    }
    let outcome = crowd.finish();
    assert_eq!(outcome.failures(), [""; 0], "{flavour:?}: {} requests", outcome.requests());
    for (habit, tally) in &outcome.tallies {
        assert!(tally.requests > 0, "{habit:?} did nothing");
    }
}

#[tokio::test]
async fn swaps_under_load_fail_nobody_on_the_oldest_uvicorn() {
    swaps_under_load_fail_nobody(Flavour::OLDEST).await;
}

#[tokio::test]
async fn swaps_under_load_fail_nobody_on_the_newest_uvicorn() {
    swaps_under_load_fail_nobody(Flavour::NEWEST).await;
}

#[tokio::test]
async fn swaps_under_load_fail_nobody_on_asyncio() {
    swaps_under_load_fail_nobody(Flavour::ALL[2]).await;
}

/// Whatever a connection is at when the worker retires, it gets its answer, and is told that it was the last.
#[tokio::test]
async fn every_connection_gets_its_last_answer() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("careless:app", &LONG_DRAIN).await;

        let mut idle = used(&stage);
        let mut silent = Connection::open(stage.address()).unwrap();
        let mut half = Connection::open(stage.address()).unwrap();
        half.send(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
        let mut half_again = used(&stage);
        half_again.send(b"GET / HT").unwrap();
        let mut in_flight = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut in_flight).await;
        let mut pipelined = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut pipelined).await;
        pipelined.send(request("/").as_bytes()).unwrap();
        let mut pipelined_later = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut pipelined_later).await;
        let mut pipelined_in_part = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut pipelined_in_part).await;

        worker.retire().await;
        pipelined_later.send(request("/").as_bytes()).unwrap();
        pipelined_in_part.send(b"GET / HTTP/1.1\r\nHo").unwrap();
        release(&mut idle);

        expect_last(&mut in_flight);
        for connection in [&mut pipelined, &mut pipelined_later] {
            let first = connection.read_answer().unwrap();
            assert!(first.body == "ok" && !first.closes, "{flavour:?}: {first:?}");
            expect_last(connection);
        }
        assert!(!pipelined_in_part.read_answer().unwrap().closes, "{flavour:?}");
        pipelined_in_part.send(b"st: localhost\r\n\r\n").unwrap();
        expect_last(&mut pipelined_in_part);

        assert!([&silent, &half, &half_again].iter().all(|it| it.is_quiet()), "{flavour:?}: closed too early");
        silent.send(request("/").as_bytes()).unwrap();
        half.send(b"alhost\r\n\r\n").unwrap();
        half_again.send(b"TP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        for connection in [&mut silent, &mut half, &mut half_again] {
            expect_last(connection);
        }
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

/// The event loop has accepted it, and Uvicorn does not know of it yet.
#[tokio::test]
async fn a_connection_of_the_last_moment_is_served() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("last_moment:app", &LONG_DRAIN).await;
        worker.retire().await;
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(worker.output().contains("last moment: HTTP/1.1 200"), "{flavour:?}:\n{}", worker.output());
    }
}

/// A body that is still on its way when the answer begins: a close would cut it off.
#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_not_the_last() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &LONG_DRAIN).await;
        let mut upload = used(&stage);
        worker.retire().await;
        upload.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nhal").unwrap();
        assert!(!upload.read_answer().unwrap().closes, "{flavour:?}");
        upload.send(b"fhe").unwrap();
        upload.send(request("/").as_bytes()).unwrap();
        expect_last(&mut upload);
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

#[tokio::test]
async fn idle_connections_stay_until_the_drain_is_over() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &[("TANDEM_DRAIN", SHORT), ("TANDEM_IDLE_DRAIN", "0")]).await;
        let mut silent = Connection::open(stage.address()).unwrap();
        let mut idle = used(&stage);
        let began = Instant::now();
        worker.retire().await;
        idle.read_end().unwrap();
        silent.read_end().unwrap();
        assert!(began.elapsed() >= Duration::from_secs(1), "{flavour:?}: after {:?}", began.elapsed());
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

#[tokio::test]
async fn a_stop_makes_a_retiring_worker_brief() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let brief = [("TANDEM_DRAIN", FOR_EVER), ("TANDEM_GRACE", FOR_EVER), ("TANDEM_IDLE_DRAIN", "0.1")];
        let mut worker = stage.ready("careless:app", &brief).await;
        let mut in_flight = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut in_flight).await;
        let (mut idle, mut half, mut upload) = (used(&stage), used(&stage), used(&stage));
        half.send(b"GET /rele").unwrap();
        upload.send(b"POST /release HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n").unwrap();
        worker.retire().await;
        // Of no consequence: it retires already.
        worker.signal(Signal::SIGWINCH);
        assert!(idle.is_quiet());
        worker.signal(Signal::SIGTERM);
        idle.read_end().unwrap();
        // It may never be a request.
        half.read_end().unwrap();
        assert!(in_flight.is_quiet() && upload.is_quiet(), "{flavour:?}: what has begun is not idle");
        upload.send(b"x").unwrap();
        expect_last(&mut upload);
        expect_last(&mut in_flight);
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

/// The limits of a stop count from the stop, not from the retirement before it.
#[tokio::test]
async fn requests_without_an_end_are_cut_at_the_limit() {
    for (flavour, stop) in Flavour::ALL.into_iter().flat_map(|flavour| [(flavour, false), (flavour, true)]) {
        let stage = Stage::set(flavour).await;
        let (drain, why) =
            if stop { (FOR_EVER, "at the end of stop.grace") } else { (SHORT, "at the end of workers.drain_busy") };
        let limits = [("TANDEM_DRAIN", drain), ("TANDEM_DRAIN_BUSY", drain), ("TANDEM_GRACE", SHORT)];
        let mut worker = stage.ready("careless:app", &limits).await;
        let mut in_flight = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut in_flight).await;
        worker.retire().await;
        let began = Instant::now();
        if stop {
            worker.signal(Signal::SIGTERM);
        }
        in_flight.read_end().unwrap();
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(began.elapsed() > Duration::from_millis(900), "after {:?}", began.elapsed());
        let output = worker.output();
        assert!(output.contains("cancelled 1 unfinished request(s)") && output.contains(why), "{output}");
    }
}

#[tokio::test]
async fn a_second_stop_waits_for_nobody() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let patient = [("TANDEM_DRAIN", FOR_EVER), ("TANDEM_GRACE", FOR_EVER), ("TANDEM_IDLE_DRAIN", FOR_EVER)];
        let mut worker = stage.ready("careless:app", &patient).await;
        let mut in_flight = Connection::open(stage.address()).unwrap();
        hold(&worker, &mut in_flight).await;
        let mut idle = used(&stage);
        worker.retire().await;
        worker.signal(Signal::SIGTERM);
        // Another one than the first: two of the same would count once while the process is not running.
        worker.signal(Signal::SIGINT);
        idle.read_end().unwrap();
        in_flight.read_end().unwrap();
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(worker.output().contains("by a second signal"), "{}", worker.output());
    }
}

/// The payload of a WebSocket's next frame, which must be a close frame; servers do not mask theirs (RFC 6455, 5.1).
fn close_code(connection: &mut Connection) -> u16 {
    let head = connection.read_exact(2).unwrap();
    assert_eq!(head[0], 0x88, "a close frame");
    let payload = connection.read_exact(usize::from(head[1])).unwrap();
    u16::from_be_bytes([payload[0], payload[1]])
}

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn websockets_are_told_that_the_service_restarts() {
    for flavour in Flavour::ALL.into_iter().filter(|flavour| flavour.uvicorn == "newest") {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &[LONG_DRAIN[0], ("TANDEM_DRAIN_STREAMS", "0")]).await;
        let mut open = Connection::open(stage.address()).unwrap();
        open.send(HANDSHAKE.as_bytes()).unwrap();
        assert_eq!(open.read_answer().unwrap().status, 101);
        let mut late = used(&stage);
        let began = Instant::now();
        worker.retire().await;
        assert_eq!(close_code(&mut open), 1012);
        assert!(began.elapsed() < Duration::from_secs(10), "at once, not after {:?}", began.elapsed());
        // A handshake on a connection that was kept for it is no last answer, though what follows is.
        late.send(HANDSHAKE.as_bytes()).unwrap();
        let answer = late.read_answer().unwrap();
        assert!(answer.status == 101 && !answer.closes, "{}", answer.head);
        assert_eq!(close_code(&mut late), 1012);
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(!worker.output().contains("Traceback"), "{}", worker.output());
    }
}

#[tokio::test]
async fn a_worker_too_young_to_retire_does_not_mind() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.launch("plain:app", &LONG_DRAIN);
        worker.signal(Signal::SIGWINCH);
        worker.open_gate();
        worker.signal(Signal::SIGWINCH);
        worker.wait_for("READY=1", |worker| worker.has_said("READY=1")).await;
        let mut connection = Connection::open(stage.address()).unwrap();
        assert!(!connection.get("/").unwrap().closes);
        worker.retire().await;
        assert_eq!(connection.get("/").map(|answer| answer.closes), Ok(true));
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

/// Tells itself to end, so many turns of the loop after its startup: Uvicorn binds and listens meanwhile, or goes on.
const ENDS_AT: &str = "
import asyncio, os, signal

async def end(turns):
    for _ in range(turns):
        await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGTERM)

async def app(scope, receive, send):
    assert scope['type'] == 'lifespan'
    await receive()
    await send({'type': 'lifespan.startup.complete'})
    ending = asyncio.ensure_future(end(int(os.environ['TURNS'])))
    try:
        await receive()
    finally:
        print('shut down', flush=True)
    await send({'type': 'lifespan.shutdown.complete'})
";

#[tokio::test]
async fn a_stop_between_the_startup_and_the_first_tick_shuts_the_application_down() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ends.py"), ENDS_AT).unwrap();
    let place = dir.path().display().to_string();
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        for turns in 0..5 {
            let turns = turns.to_string();
            let mut worker = stage.launch("ends:app", &[("TANDEM_APP_DIR", &place), ("TURNS", &turns)]);
            worker.open_gate();
            let exit = worker.end().await;
            let output = worker.output();
            assert_eq!((exit, output.contains("shut down")), (Exit::Code(0), true), "{flavour:?}, {turns}: {output}");
        }
    }
}

#[tokio::test]
async fn the_watchdog_is_fed_while_a_worker_leaves() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &[LONG_DRAIN[0], ("WATCHDOG_USEC", "300000")]).await;
        let mut kept = used(&stage);
        worker.retire().await;
        let fed = |worker: &Worker| {
            let said = worker.heard();
            let stopping = said.iter().position(|message| message == "STOPPING=1").unwrap();
            said[stopping..].iter().filter(|message| *message == "WATCHDOG=1").count()
        };
        worker.wait_for("WATCHDOG=1, more than once", |worker| fed(worker) >= 4).await;
        assert!(kept.get("/").unwrap().closes);
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

#[tokio::test]
async fn an_application_that_closes_the_socket_is_noticed() {
    for flavour in Flavour::ALL {
        for path in ["/close", "/reuse"] {
            let stage = Stage::set(flavour).await;
            let mut worker = stage.ready("careless:app", &LONG_DRAIN).await;
            let mut in_flight = Connection::open(stage.address()).unwrap();
            hold(&worker, &mut in_flight).await;
            let mut kept = used(&stage);
            assert_eq!(kept.get(path).unwrap().body, "ok");
            let mut queued = Connection::open(stage.address()).unwrap();
            worker.wait_for("STOPPING=1", |worker| worker.has_said("STOPPING=1")).await;
            release(&mut kept);
            expect_last(&mut in_flight);
            assert_eq!(worker.end().await, Exit::Code(1), "{flavour:?}: {}", worker.output());
            let output = worker.output();
            assert!(
                output.contains("ERROR the application closed the listening socket (fd ")
                    && !output.contains("Traceback"),
                "{output}"
            );
            // The socket itself is unharmed: a replacement takes what has queued meanwhile.
            let _replacement = stage.ready("plain:app", &LONG_DRAIN).await;
            assert_eq!(queued.get("/").unwrap().body, "ok");
        }
    }
}

/// The application has turned faulthandler off and ignores the signal.
#[tokio::test]
async fn an_abort_shows_what_every_thread_was_doing() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("careless:app", &[]).await;
        let mut wedge = Connection::open(stage.address()).unwrap();
        wedge.send(request("/wedge").as_bytes()).unwrap();
        worker.wait_for("the block", |worker| worker.output().contains("wedged")).await;
        worker.signal(Signal::SIGABRT);
        assert_eq!(worker.end().await, Exit::Signal(Signal::SIGABRT as i32), "{}", worker.output());
        let output = worker.output();
        for word in ["in wedge", "in wait_beside", "Current thread", "\nThread 0x"] {
            assert!(output.contains(word), "{word:?} is not in:\n{output}");
        }
    }
}
