//! What a replaced worker still does: its requests as long as they take, idle connections and streams for a while, and what
//! is told of all of it.

use std::time::{Duration, Instant};

use crate::common::control;
use crate::common::deployed::{self, BARE, plain};
use crate::common::project::Project;
use crate::common::strict::Connection;
use crate::common::tandem::{self, Tandem, lives, wait_for};
use crate::common::worker::{Flavour, Stage, Worker};
use ::tandem::process::Exit;
use nix::sys::signal::Signal;

const FOR_EVER: &str = "3600";

/// What goes on for some seconds in each way that a request can.
const LONG: &str = "
respond_as_before = respond
async def respond(scope, receive, send):
    seconds = 10
    if scope['path'] == '/background':
        await respond_as_before(dict(scope, path='/'), receive, send)
        await asyncio.sleep(seconds)
        print('the background task is done', flush=True)
    elif scope['path'] == '/download':
        headers = [(b'content-length', b'100')]
        await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
        for part in range(seconds * 10):
            await asyncio.sleep(0.1)
            await send({'type': 'http.response.body', 'body': b'x', 'more_body': part < 99})
    elif scope['path'] == '/hold':
        print('held', flush=True)
        await asyncio.sleep(3600)
    else:
        await respond_as_before(scope, receive, send)
";

fn open(tandem: &Tandem, path: &str) -> Connection {
    let mut connection = Connection::open(([127, 0, 0, 1], tandem.app()).into()).unwrap();
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    connection
}

fn retiring(project: &Project) -> Vec<serde_json::Value> {
    let status = control::status(project);
    let services = status["services"].as_array().unwrap().iter();
    services.filter(|service| service["role"] == "retiring").cloned().collect()
}

#[test]
fn requests_longer_than_the_drain_are_finished() {
    let lines = format!("{BARE}\nworkers.count = 1\nworkers.drain = '1s'\nworkers.watchdog = '6s'");
    let project = deployed::project(&lines, &plain(LONG, "ok"));
    let mut tandem = Tandem::up(&project);
    let old = tandem.workers()[0];
    let paths = ["/slow?seconds=10", "/thread?seconds=10", "/background", "/download"];
    let mut asked: Vec<_> = paths.iter().map(|path| open(&tandem, path)).collect();
    assert_eq!(asked[2].read_answer().unwrap().body, "ok");
    wait_for("the requests", || {
        control::status(&project)["services"].as_array().unwrap().iter().any(|it| it["in_flight"] == 4)
    });
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    wait_for("its own word", || retiring(&project).iter().any(|it| it["unfinished"]["requests"] == 4));
    let shown = control::run(&project, &["status"]).said;
    for word in ["draining (retiring)", "was replaced", "finishes 4 requests", "GET /slow", "GET /background"] {
        assert!(shown.contains(word), "{word:?} is not in:\n{shown}");
    }
    assert!(!shown.contains("seconds=10"), "a query may hold secrets:\n{shown}");
    for connection in [0, 1, 3] {
        let answer = asked[connection].read_answer().unwrap_or_else(|error| panic!("{}: {error}", paths[connection]));
        assert_eq!(answer.status, 200);
    }
    wait_for("the old one gone", || !lives(old));
    let log = tandem.log();
    assert!(log.contains("the background task is done") && !log.contains("cancelled"), "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_is_cut_is_told_in_one_line() {
    let lines = format!("{BARE}\nworkers.count = 1\nworkers.drain_busy = '1s'\nstop.grace = '4s'");
    let project = deployed::project(&lines, &plain(LONG, "ok"));
    let mut tandem = Tandem::up(&project);
    for stop in [false, true] {
        let held = tandem.log().matches("held").count();
        let mut asked: Vec<_> = (0..3).map(|_| open(&tandem, "/hold?token=secret")).collect();
        wait_for("the requests", || tandem.log().matches("held").count() == held + 3);
        if stop {
            assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        } else {
            control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
        }
        for connection in &mut asked {
            connection.read_end().unwrap();
        }
    }
    let log = tandem.log();
    for limit in ["workers.drain_busy", "stop.grace"] {
        let line = format!("cancelled 3 unfinished request(s): GET /hold (3) at the end of {limit}");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    assert!(!log.contains("CancelledError") && !log.contains("Traceback") && !log.contains("secret"), "{log}");
}

/// Room for one worker beside the two: the second replacement waits for the first old one.
#[test]
fn a_request_without_an_end_holds_up_neither_a_roll_nor_a_scaling() {
    let lines = "migrations.run = 'none'\nworkers.count = 2\npool.size = 20\npool.overflow = 10\n\
        postgres.max_connections = 103\nworkers.drain = '2s'\nstop.grace = '4s'";
    let project = deployed::project(lines, &plain(LONG, "ok"));
    let mut tandem = Tandem::up(&project);
    wait_for("two workers", || tandem.workers().len() == 2);
    let before = tandem.workers();
    let mut asked = Vec::new();
    wait_for("a request on each worker", || {
        asked.push(open(&tandem, "/hold"));
        let status = control::status(&project);
        let services = status["services"].as_array().unwrap();
        services.iter().filter(|it| it["in_flight"].as_u64() > Some(0)).count() == 2
    });
    control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
    let after = tandem.workers();
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    let log = tandem.log();
    assert_eq!(log.matches("the connection budget has no room for the next worker").count(), 1, "{log}");
    assert!(log.contains("GET /hold"), "{log}");
    let draining = retiring(&project);
    assert_eq!(draining.len(), 1, "the other has all the time it needs: {draining:?}");
    // One leaves, and one drains for ever: there is room for the third only when that one has gone.
    control::run(&project, &["scale", "1"]).expect(0, &[]);
    control::run(&project, &["scale", "2"]).expect(0, &[]);
    wait_for("two workers again", || tandem.workers().len() == 2);
    let began = Instant::now();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(began.elapsed() < Duration::from_secs(20), "a stop has its own grace: {:?}", began.elapsed());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_replaced_worker_that_hangs_is_ended_though_its_drain_has_no_end() {
    let lines = format!("{BARE}\nworkers.count = 1\nworkers.watchdog = '2s'");
    let project = deployed::project(&lines, &plain(LONG, "ok"));
    let mut tandem = Tandem::up(&project);
    let old = tandem.workers()[0];
    let _held = open(&tandem, "/hold");
    let mut kept = open(&tandem, "/");
    assert_eq!(kept.read_answer().unwrap().status, 200);
    tandem.wait_log("held");
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    kept.send(b"GET /block HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    wait_for("the one that hangs gone", || !lives(old));
    let log = tandem.log();
    assert!(log.contains("show what its threads do, and ended") && log.contains("in block_the_loop"), "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

const HANDSHAKE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[tokio::test]
async fn websockets_and_event_streams_are_kept_for_a_time_of_their_own() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let limits = [
            ("TANDEM_DRAIN", FOR_EVER),
            ("TANDEM_DRAIN_STREAMS", "2"),
            ("TANDEM_GRACE", FOR_EVER),
            ("TANDEM_IDLE_DRAIN", FOR_EVER),
        ];
        let mut worker = stage.ready("plain:app", &limits).await;
        let has_websockets = flavour.uvicorn == "newest";
        let mut websocket = has_websockets.then(|| Connection::open(stage.address()).unwrap());
        if let Some(websocket) = &mut websocket {
            websocket.send(HANDSHAKE.as_bytes()).unwrap();
            assert_eq!(websocket.read_answer().unwrap().status, 101);
        }
        // Known by its header whether it begins before the retirement or after it.
        let mut early = Connection::open(stage.address()).unwrap();
        early.send(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        early.read_exact(20).unwrap();
        let mut late = Connection::open(stage.address()).unwrap();
        assert!(!late.get("/").unwrap().closes);
        let began = Instant::now();
        worker.retire().await;
        late.send(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let streams = if has_websockets { 3 } else { 2 };
        let says = |worker: &Worker| {
            worker
                .heard()
                .iter()
                .any(|said| said.starts_with("X_TANDEM_DRAINING") && said.contains(&format!("\"streams\": {streams}")))
        };
        worker.wait_for("the streams", says).await;
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
        assert!(began.elapsed() >= Duration::from_millis(1900), "{flavour:?}: after {:?}", began.elapsed());
        let output = worker.output();
        assert!(output.contains("at the end of workers.drain_streams") && !output.contains("Traceback"), "{output}");
        if let Some(mut websocket) = websocket {
            let head = websocket.read_exact(4).unwrap();
            assert_eq!((head[0], u16::from_be_bytes([head[2], head[3]])), (0x88, 1012));
        }
    }
}

/// Half a request is no request in flight: no worker is held up by a scanner.
#[tokio::test]
async fn half_a_request_does_not_hold_up_a_drain_without_an_end() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &[("TANDEM_DRAIN", "1"), ("TANDEM_DRAIN_BUSY", "inf")]).await;
        let mut half = Connection::open(stage.address()).unwrap();
        half.send(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
        worker.retire().await;
        half.read_end().unwrap();
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_a_stop() {
    for flavour in Flavour::ALL {
        let stage = Stage::set(flavour).await;
        let mut worker = stage.ready("plain:app", &[("TANDEM_GRACE", FOR_EVER), ("TANDEM_IDLE_DRAIN", "1")]).await;
        let mut half = Connection::open(stage.address()).unwrap();
        half.send(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
        let mut again = Connection::open(stage.address()).unwrap();
        assert!(!again.get("/").unwrap().closes);
        again.send(b"GET / HT").unwrap();
        // What comes in time is answered.
        let mut late = Connection::open(stage.address()).unwrap();
        late.send(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
        worker.signal(Signal::SIGTERM);
        worker.wait_for("its word", |worker| worker.has_said("X_TANDEM_CLOSED=1")).await;
        late.send(b"alhost\r\n\r\n").unwrap();
        assert!(late.read_answer().unwrap().closes, "{flavour:?}");
        for connection in [&mut half, &mut again] {
            connection.read_end().unwrap();
        }
        assert_eq!(worker.end().await, Exit::Code(0), "{}", worker.output());
    }
}

/// Grows once `grow` is there, by 10 MB each tenth of a second.
const GROWS: &str = "
import os
hoard = []
respond_as_before = respond
async def respond(scope, receive, send):
    if scope['path'] != '/grow':
        return await respond_as_before(scope, receive, send)
    print('waits for its time to grow', flush=True)
    while not os.path.exists('grow'):
        await asyncio.sleep(0.1)
    while len(hoard) < 40:
        hoard.append(os.urandom(10 << 20))
        await asyncio.sleep(0.1)
    await asyncio.sleep(3600)
";

#[test]
fn a_replaced_worker_that_grows_on_is_ended_though_its_drain_has_no_end() {
    let lines = format!(
        "{BARE}\nworkers.count = 1\nworkers.max_memory = '200MB'\nworkers.memory_kind = 'rss'\nstop.grace = '2s'"
    );
    let project = deployed::project(&lines, &plain(GROWS, "ok"));
    let mut tandem = Tandem::up(&project);
    let old = tandem.workers()[0];
    let mut held = open(&tandem, "/grow");
    tandem.wait_log("waits for its time to grow");
    control::run(&project, &["reload"]).expect(0, &["replaced 1 workers"]);
    assert_eq!(retiring(&project).len(), 1);
    project.write("grow", "");
    wait_for("the one that grew gone", || !lives(old));
    held.read_end().unwrap();
    let log = tandem.log();
    assert!(
        log.contains("(its limit is 300 MB): it was replaced and grows on with the requests it still has"),
        "{log}"
    );
    assert!(log.contains("cancelled 1 unfinished request(s): GET /grow"), "{log}");
    assert_eq!(tandem.workers().len(), 1, "the other one serves");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
