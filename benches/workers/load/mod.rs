//! The load: clients that never send a request twice, never look whether a connection still stands before they use it,
//! and count whatever fails. One thread: it shares the machine with what it measures.

mod tally;
mod wire;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

pub use tally::Tally;
pub use wire::Failure;
use wire::{ASK, ASK_ONCE, Connection};

/// Longest wait for a connection and its answers.
const LIMIT: Duration = Duration::from_secs(5);
/// After a failure, on top of the usual pause: a port that refuses would be asked as fast as a loop turns.
const PAUSE_FAILED: Duration = Duration::from_millis(10);

/// What a client does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection for each request, which says `Connection: close`.
    New,
    /// One connection, the next request soon after the answer.
    Busy,
    /// One connection, idle for a while between two requests.
    Idle,
    /// One connection, two requests at once.
    Pipelined,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::New, Self::Busy, Self::Idle, Self::Pipelined];

    pub fn name(self) -> &'static str {
        match self {
            Self::New => "a new connection each",
            Self::Busy => "keep-alive, busy",
            Self::Idle => "keep-alive, idle between requests",
            Self::Pipelined => "two requests at once",
        }
    }

    fn at_once(self) -> u32 {
        if self == Self::Pipelined { 2 } else { 1 }
    }
}

/// Clients of one kind.
#[derive(Clone, Copy)]
pub struct Group {
    pub kind: Kind,
    pub clients: usize,
    /// Least and longest pause after an answer, in microseconds.
    pub pause: (u64, u64),
}

/// About 1,800 requests a second: enough to see a pause of milliseconds, and half of two cores left for the rolls.
pub const MIX: [Group; 4] = [
    Group { kind: Kind::New, clients: 4, pause: (2_000, 10_000) },
    Group { kind: Kind::Busy, clients: 4, pause: (0, 8_000) },
    Group { kind: Kind::Idle, clients: 24, pause: (20_000, 500_000) },
    Group { kind: Kind::Pipelined, clients: 4, pause: (10_000, 50_000) },
];

/// Clients at work, until [`Load::stop`].
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    port: u16,
    over: AtomicBool,
    tally: Mutex<Tally>,
}

impl Load {
    pub fn start(port: u16, groups: &[Group]) -> Self {
        let shared = Arc::new(Shared { port, over: AtomicBool::new(false), tally: Mutex::new(Tally::new()) });
        let (groups, for_thread) = (groups.to_vec(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || run(&for_thread, &groups));
        Self { shared, thread: Some(thread) }
    }

    /// What was counted so far.
    pub fn tally(&self) -> Tally {
        self.shared.with(|tally| tally.clone())
    }

    /// The workers that have answered, by process id, each with the time of its first answer.
    pub fn seen(&self) -> Vec<(i32, Instant)> {
        self.shared.with(|tally| tally.workers.iter().map(|(pid, worker)| (*pid, worker.first)).collect())
    }

    /// Let every client finish its request, and count.
    pub fn stop(mut self) -> Tally {
        self.shared.with(Tally::close);
        self.end();
        self.tally()
    }

    fn end(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load's thread does not panic");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut Tally) -> T) -> T {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }
}

fn run(shared: &Arc<Shared>, groups: &[Group]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let clients = groups.iter().flat_map(|group| vec![*group; group.clients]);
        let clients: Vec<_> = clients.map(|group| tokio::spawn(client(Arc::clone(shared), group))).collect();
        let watch = tokio::spawn(watch_itself(Arc::clone(shared)));
        for client in clients {
            let _ = client.await;
        }
        watch.abort();
    });
}

/// One client, until the load is over.
async fn client(shared: Arc<Shared>, group: Group) {
    let pause = || Duration::from_micros(rand::random_range(group.pause.0..=group.pause.1));
    let mut kept = None;
    sleep(pause()).await;
    while shared.goes_on() {
        let answered = AtomicU32::new(0);
        let turn = timeout(LIMIT, turn(&shared, group.kind, &mut kept, &answered)).await;
        if let Err(failure) = turn.unwrap_or(Err(Failure::TimedOut)) {
            let lost = group.kind.at_once() - answered.load(Ordering::Relaxed);
            shared.with(|tally| tally.failed(group.kind, failure, lost));
            kept = None;
            sleep(PAUSE_FAILED).await;
        }
        let pause = pause();
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// Requests, and their answers.
async fn turn(shared: &Shared, kind: Kind, kept: &mut Option<Connection>, answered: &AtomicU32) -> Result<(), Failure> {
    let began = Instant::now();
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(shared.port).await?,
    };
    match kind {
        Kind::New => connection.send(ASK_ONCE.as_bytes()).await?,
        Kind::Busy | Kind::Idle => connection.send(ASK.as_bytes()).await?,
        Kind::Pipelined => connection.send(ASK.repeat(2).as_bytes()).await?,
    }
    let mut last = kind == Kind::New;
    for _ in 0..kind.at_once() {
        let answer = connection.answer().await?;
        answered.fetch_add(1, Ordering::Relaxed);
        last |= answer.last;
        shared.with(|tally| tally.answered(kind, answer.pid, began.elapsed()));
    }
    if !last {
        *kept = Some(connection);
    }
    Ok(())
}

/// How long this thread itself was held up at most: no pause shorter than that can be laid to a server.
async fn watch_itself(shared: Arc<Shared>) {
    loop {
        let due = Instant::now() + Duration::from_millis(1);
        sleep(Duration::from_millis(1)).await;
        let late = due.elapsed();
        shared.with(|tally| tally.held_up = tally.held_up.max(late));
    }
}
