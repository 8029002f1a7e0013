//! The control socket, both sides of it, over a real socket.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::control::client;
use crate::control::messages::ScaleTo;
use crate::exit::code_of;
use crate::health::picture::{Backups, Database, Disk, Migrations, Service};
use crate::health::viewers::Viewers;
use crate::phase::Phase;
use crate::telemetry::RING_SIZE;

const LIMIT: Duration = Duration::from_secs(5);

fn picture() -> Picture {
    let now = std::time::Instant::now();
    let service = |name: &str, kind, pid| Service {
        name: name.into(),
        kind,
        pid,
        state: "ready",
        role: "standing",
        since: now,
        started: pid.map(|_| now),
        restarts: 0,
        last_reason: None,
        counts: None,
        unfinished: None,
        memory_bytes: None,
    };
    let own = std::process::id().cast_signed();
    Picture {
        deployment: "shop-1".into(),
        phase: Phase::Serving,
        started: now,
        database: Database { sample: None, sample_age_max: LIMIT, pool_size: 20 },
        workers: vec![],
        workers_wanted: 0,
        workers_min: 0,
        migrations: Migrations::default(),
        backups: Backups::default(),
        disk: Disk::default(),
        backup_disk: Disk::default(),
        services: vec![service("postgres", "postgres", Some(own)), service("worker-0", "worker", None)],
        roll: None,
        details: Default::default(),
        hook: None,
        certificate: None,
        database_certificate: None,
        sorted_otherwise: Vec::new(),
    }
}

/// A socket that is served, and what comes through it.
struct Served {
    dir: TempDir,
    asks: mpsc::UnboundedReceiver<Ask>,
    ring: &'static Ring,
    close: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    _pictures: watch::Sender<Arc<Picture>>,
}

impl Served {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = crate::control::open(&dir.path().join("control.sock")).unwrap();
        let (pictures, receiver) = watch::channel(Arc::new(picture()));
        let (sender, asks) = mpsc::unbounded_channel();
        let (close, closing) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = closing.await;
        };
        let ring: &Ring = Box::leak(Box::new(Ring::new(RING_SIZE)));
        let task = tokio::spawn(serve_ring(socket, (receiver, Viewers::default().door(2)), sender, ring, shutdown));
        Self { dir, asks, ring, close, task, _pictures: pictures }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Send `request` as it stands and read to the end of the connection.
    async fn raw(&self, request: String) -> String {
        let path = self.path();
        let exchange = tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        timeout(LIMIT, exchange).await.unwrap().unwrap()
    }

    async fn post(&self, path: &str, body: &str) -> String {
        let head = format!("host: x\r\nconnection: close\r\ncontent-length: {}", body.len());
        self.raw(format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\n{body}")).await
    }
}

fn text(entry: &LogEntry) -> String {
    match entry {
        LogEntry::Line { text, .. } => text.clone(),
        LogEntry::Skipped { skipped } => format!("skipped {skipped}"),
    }
}

#[tokio::test]
async fn the_status_has_every_service_and_its_memory() {
    let served = Served::open().await;
    let status = client::status(&served.path()).await.unwrap();
    assert_eq!((status.phase.as_str(), status.pid), ("serving", std::process::id()));
    let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["postgres", "worker-0"]);
    assert!(status.services[0].memory_bytes.unwrap() > 100_000 && status.services[1].memory_bytes.is_none());
    assert!(status.memory_total_bytes > status.memory_bytes.unwrap());
    assert_eq!(client::supervisor(&served.path()).await.unwrap(), std::process::id().cast_signed());
}

#[tokio::test]
async fn orders_reach_the_supervisor_and_its_answer_comes_back() {
    let mut served = Served::open().await;
    let path = served.path();
    let answers = [
        (Order::Reload, Answer::done(vec!["worker-0 replaced".into(), "worker-1 replaced".into()])),
        (Order::Restart { service: "a b".into() }, Answer::failed(Code::Usage, "no such service")),
        (Order::Scale(ScaleTo::To(4)), Answer::done(vec![])),
        (Order::Scale(ScaleTo::By(-1)), Answer::failed(Code::Failed, "Traceback\n  line 1")),
        (Order::Stop, Answer::done(vec!["stopping".into()])),
    ];
    for (order, expected) in answers {
        let supervise = async {
            let ask = served.asks.recv().await.unwrap();
            assert_eq!(ask.order, order);
            ask.answer.send(expected.clone()).unwrap();
        };
        let (answer, ()) = tokio::join!(client::order(&path, &order), supervise);
        assert_eq!(answer.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_supervisor_that_ends_answers_all_who_wait() {
    let mut served = Served::open().await;
    let path = served.path();
    let (answer, ()) = tokio::join!(client::order(&path, &Order::Reload), async {
        drop(served.asks.recv().await);
    });
    assert_eq!(answer.unwrap().code, Code::Temporary as u8);
    drop(served.asks);
    assert_eq!(client::order(&path, &Order::Reload).await.unwrap().code, Code::Temporary as u8);
}

#[tokio::test]
async fn an_asker_that_goes_away_takes_nothing_back() {
    let mut served = Served::open().await;
    let path = served.path();
    let ask = tokio::select! {
        _ = client::order(&path, &Order::Reload) => panic!("nobody answered"),
        ask = served.asks.recv() => ask.unwrap(),
    };
    // The kernel tells the server that the other end is closed; then nobody waits for the answer.
    let Ask { order, mut answer } = ask;
    timeout(LIMIT, answer.closed()).await.unwrap();
    assert_eq!(order, Order::Reload);
}

#[tokio::test]
async fn what_is_not_understood_is_answered_with_what_would_be() {
    let served = Served::open().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let huge = format!(r#"{{"to": {:>5000}}}"#, 4);
    let cases = [
        (served.raw(get("/nothing")).await, 404, "there is no /nothing"),
        (served.raw(get("/stop")).await, 405, "/stop wants POST"),
        (served.post("/status", "").await, 405, "/status wants GET"),
        (served.post("/scale", "four").await, 400, r#"{\"to\": 4}"#),
        (served.post("/scale", r#"{"to": -4}"#).await, 400, r#"{\"to\": 4}"#),
        (served.post("/scale", &huge).await, 413, "at most 4096 bytes"),
        (served.post("/restart", "{}").await, 400, "service"),
        (served.raw(get("/logs?lines=x")).await, 400, "lines=x"),
        (served.raw(get("/logs?service=worker-9")).await, 404, "tandem, postgres, worker-0"),
    ];
    for (answer, status, words) in cases {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(words), "{status}: {answer}");
    }
}

#[tokio::test]
async fn lines_are_read_and_followed_until_the_socket_closes() {
    let served = Served::open().await;
    let path = served.path();
    let ring = served.ring;
    let name = "control-test";
    let say = |text: &str| ring.push(SystemTime::now(), name, None, tracing::Level::INFO, text);
    for number in 0..5 {
        say(&format!("line {number}"));
    }

    let mut found = Vec::new();
    let query = LogQuery { service: Some(name.into()), lines: Some(2), follow: false };
    client::logs(&path, &query, |entry| {
        found.push(text(&entry));
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(found, ["line 3", "line 4"]);

    let (news, mut seen) = mpsc::unbounded_channel();
    let query = LogQuery { lines: Some(1), follow: true, ..query };
    let follow = tokio::spawn(async move { client::logs(&path, &query, |entry| Ok(news.send(text(&entry))?)).await });
    assert_eq!(seen.recv().await.unwrap(), "line 4");
    for number in 5..8 {
        say(&format!("line {number}"));
        assert_eq!(timeout(LIMIT, seen.recv()).await.unwrap().unwrap(), format!("line {number}"));
    }
    say("the last");
    drop(served.close);
    timeout(LIMIT, served.task).await.unwrap().unwrap();
    timeout(LIMIT, follow).await.unwrap().unwrap().unwrap();
    assert_eq!(seen.recv().await.unwrap(), "the last");
    assert_eq!(seen.recv().await, None);
    assert!(!served.dir.path().join("control.sock").exists());
}

#[tokio::test]
async fn a_follower_that_does_not_read_holds_nothing_up_and_learns_what_it_missed() {
    let served = Served::open().await;
    let path = served.path();
    let ring = served.ring;
    let name = "slow-test";
    let say = |number: usize| {
        ring.push(SystemTime::now(), name, None, tracing::Level::INFO, &format!("{number:0>1000}"));
    };
    say(0);
    let query = LogQuery { service: Some(name.into()), lines: None, follow: true };
    let count = 3 * RING_SIZE / 1000;
    let (mut lines, mut skipped) = (0, 0);
    let read = client::logs(&path, &query, |entry| {
        if lines == 0 {
            // Said while the follower is in here and reads nothing, as a terminal that was paused.
            (1..count).for_each(say);
        }
        match entry {
            LogEntry::Line { .. } => lines += 1,
            LogEntry::Skipped { skipped: more } => skipped += more,
        }
        anyhow::ensure!(lines + usize::try_from(skipped)? < count, "all were told");
        Ok(())
    });
    let error = timeout(LIMIT, read).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "all were told");
    assert!(skipped > 0 && lines > 100, "{lines} lines and {skipped} skipped");
}

#[tokio::test]
async fn nobody_there_and_a_dead_one_s_socket_say_how_to_start_one() {
    let _alone = crate::forks::none();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    for leave in [false, true] {
        if leave {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        }
        let error = client::status(&path).await.unwrap_err();
        assert_eq!(code_of(&error), Code::Failed);
        assert!(error.to_string().contains("no tandem runs here") && error.to_string().contains("`tandem up`"));
        assert_eq!(error.to_string().contains("was killed"), leave, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tandem_that_is_stopped_keeps_no_command_waiting_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    // The kernel takes connections and requests for a process that does not run.
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = client::order(&path, &Order::Reload).await.unwrap_err().to_string();
    assert!(error.contains("is stopped or hangs") && error.contains("may still be carried out"), "{error}");
    let error = client::logs(&path, &LogQuery { follow: true, ..LogQuery::default() }, |_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(client::status(&path).await.unwrap_err().to_string().contains("did not answer within"));

    // Until its queue is full: then it still is the one that listens.
    let mut queue = Vec::new();
    while let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
        queue.push(stream);
    }
    let error = client::order(&path, &Order::Reload).await.unwrap_err();
    assert!(error.to_string().contains("takes no request"), "{error}");
    let error = crate::control::open(&path).unwrap_err();
    assert_eq!(code_of(&error), Code::CannotCreate);
    assert!(error.to_string().contains("another tandem answers"), "{error}");
    drop(listener);
}

#[tokio::test(start_paused = true)]
async fn an_order_may_take_as_long_as_it_takes() {
    let mut served = Served::open().await;
    let path = served.path();
    let supervise = async {
        let ask = served.asks.recv().await.unwrap();
        sleep(Duration::from_mins(20)).await;
        ask.answer.send(Answer::done(vec!["at last".into()])).unwrap();
    };
    let (answer, ()) = tokio::join!(client::order(&path, &Order::Reload), supervise);
    assert_eq!(answer.unwrap().words, ["at last"]);
}
