//! What every kept process has in common: its events find their way to the tree, its lines into the log, and its last
//! lines are remembered for the error that may need them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinHandle};

use crate::event_loop;
use crate::plan::{Rung, Signal};
use crate::process::{self, Child, Exit, Output, orphans};
use crate::supervise::state::{ChildEvent, Ending, Generation, ProcessEvent};
use crate::supervise::tree::{ServiceId, TreeEvent};
use crate::telemetry::{self, Stream};

/// Lines remembered of each service.
const TAIL_LENGTH: usize = 30;

/// Tells the tree what happens to one service.
#[derive(Clone, Debug)]
pub struct Reporter {
    id: ServiceId,
    events: UnboundedSender<TreeEvent>,
}

impl Reporter {
    pub fn new(id: ServiceId, events: UnboundedSender<TreeEvent>) -> Self {
        Self { id, events }
    }

    /// Whose events these are.
    pub fn id(&self) -> ServiceId {
        self.id
    }

    /// For the process of this generation.
    pub fn of(&self, generation: Generation) -> ProcessReporter {
        ProcessReporter { service: self.clone(), generation }
    }
}

/// Tells the tree what happens to one process: what it says late counts for nothing. After the tree has ended it speaks to
/// the air, which is fine.
#[derive(Clone, Debug)]
pub struct ProcessReporter {
    service: Reporter,
    generation: Generation,
}

impl ProcessReporter {
    /// The process is there.
    pub fn spawned(&self, pid: i32) {
        self.say(ProcessEvent::Spawned(pid));
    }

    /// There is no process, and none will come.
    pub fn failed(&self, ending: Ending) {
        self.say(ProcessEvent::SpawnFailed(ending));
    }

    /// It is ready, or answers again.
    pub fn ready(&self) {
        self.say(ProcessEvent::Ready);
    }

    /// It does not answer.
    pub fn hung(&self) {
        self.say(ProcessEvent::Hung);
    }

    /// It accepts no connections any more.
    pub fn closed(&self) {
        self.say(ProcessEvent::Closed);
    }

    /// It has no requests left.
    pub fn drained(&self) {
        self.say(ProcessEvent::Drained);
    }

    /// It runs, and will never get ready.
    pub fn unfit(&self) {
        self.say(ProcessEvent::Unfit);
    }

    /// It has ended.
    pub fn exited(&self, ending: Ending) {
        self.say(ProcessEvent::Exited(ending));
    }

    fn say(&self, event: ProcessEvent) {
        let event = TreeEvent::Service(self.service.id, ChildEvent::Process(self.generation, event));
        let _ = self.service.events.send(event);
    }
}

/// The start of a process, which can be broken off until the process is there.
#[derive(Clone, Debug, Default)]
pub struct Start(Rc<RefCell<Option<AbortHandle>>>);

impl Start {
    /// `task` makes the process.
    pub fn begun(&self, task: &JoinHandle<()>) {
        *self.0.borrow_mut() = Some(task.abort_handle());
    }

    /// The process is there: from here on only its end ends the task.
    pub fn done(&self) {
        self.0.take();
    }

    /// Break the start off, and say whether it was under way: then no process comes of it any more.
    pub fn cancel(&self) -> bool {
        let task = self.0.take().filter(|task| !task.is_finished());
        task.inspect(AbortHandle::abort).is_some()
    }
}

/// The last lines of a service.
#[derive(Clone, Debug, Default)]
pub struct Tail(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    last: VecDeque<String>,
    /// How many there have been.
    count: usize,
}

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.len() == TAIL_LENGTH {
            lines.last.pop_front();
        }
        lines.last.push_back(line.to_owned());
        lines.count += 1;
    }

    pub fn lines(&self) -> Vec<String> {
        self.since(0)
    }

    /// How many lines there have been so far.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// The last of the lines that came after the first `count`.
    pub fn since(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = lines.count.saturating_sub(count);
        lines.last.iter().skip(lines.last.len().saturating_sub(new)).cloned().collect()
    }
}

/// Forward the output of a child whose lines `log` knows how to read, and wait for its end.
///
/// After the end, output still on its way is read for at most `output_limit`: a grandchild may hold the pipe open for
/// ever.
pub async fn attend_with(
    mut child: Child,
    output: Output,
    tail: &Tail,
    output_limit: Duration,
    log: &dyn Fn(Stream, &str),
) -> Exit {
    let forward = async {
        let stdout = forward(output.stdout, Stream::Stdout, tail, log);
        let stderr = forward(output.stderr, Stream::Stderr, tail, log);
        tokio::join!(stdout, stderr);
    };
    child.wait_reading(forward, output_limit).await.0
}

/// Forward a child's output to the log as it comes, and wait for its end as [`attend_with`] does. What the child leaves
/// behind ends with it: its process group before it is reaped, what left the group right afterwards.
pub async fn attend_family(mut child: Child, output: Output, name: &str, tail: &Tail, output_limit: Duration) -> Exit {
    let forward = async {
        let stdout = forward_live(output.stdout, Stream::Stdout, tail, name);
        let stderr = forward_live(output.stderr, Stream::Stderr, tail, name);
        tokio::join!(stdout, stderr);
    };
    let (exit, _) = child.wait_with_group(forward, output_limit).await;
    if let Some(mark) = child.mark() {
        event_loop::spawn("what a child left", orphans::end_left_by(mark.clone(), name.to_owned()));
    }
    exit
}

async fn forward(stream: Option<impl AsyncRead + Unpin>, kind: Stream, tail: &Tail, log: &dyn Fn(Stream, &str)) {
    let Some(stream) = stream else { return };
    process::lines(stream, |line| {
        tail.push(line);
        log(kind, line);
    })
    .await;
}

async fn forward_live(stream: Option<impl AsyncRead + Unpin>, kind: Stream, tail: &Tail, name: &str) {
    let Some(stream) = stream else { return };
    process::live_lines(stream, |line| {
        tail.push(line);
        telemetry::child_line(name, kind, line);
    })
    .await;
}

/// When a restart follows, as a person would say it.
pub fn after(delay: Duration) -> String {
    if delay.is_zero() { "at once".to_owned() } else { format!("in {delay:?}") }
}

/// Carry out a rung of the stop ladder on `pid`.
pub fn signal(pid: i32, rung: Rung) {
    let signal = process::os_signal(rung.signal);
    let send = if rung.group { process::signal_group } else { process::signal };
    send(pid, signal);
    if rung.signal != Signal::Kill {
        // A stopped process acts on no signal but this one and SIGKILL (signal(7)).
        send(pid, nix::sys::signal::Signal::SIGCONT);
    }
}
