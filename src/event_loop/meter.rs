//! Measures how long the event loop stands still: each turn (poll) of each of its tasks is timed.
//!
//! A turn longer than [`STALL`] is logged with its task and the step that took the time. A thread looks once a second for a
//! turn that does not end, and logs where in the kernel the loop waits.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// A turn of the loop that takes longer is a stall.
pub const STALL: Duration = Duration::from_millis(250);
/// How often the thread looks for a turn that does not end.
const LOOK: Duration = Duration::from_secs(1);

/// What the meter has measured since its begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The longest that the loop stood still.
    pub longest: Duration,
    /// How often it stood still for longer than [`STALL`].
    pub stalls: u64,
}

/// Microseconds, and a count.
static LONGEST: AtomicU64 = AtomicU64::new(0);
static STALLS: AtomicU64 = AtomicU64::new(0);
/// Whether the thread that looks for turns that do not end was started.
static LOOKING: AtomicBool = AtomicBool::new(false);
/// The turn that is under way on the measured loop.
static TURN: Mutex<Option<Turn>> = Mutex::new(None);

#[derive(Clone, Copy)]
struct Turn {
    began: Instant,
    task: &'static str,
    step: &'static str,
}

thread_local! {
    /// Whether this thread's loop is measured: one of a process is.
    static ON: Cell<bool> = const { Cell::new(false) };
    /// How many timed futures are being polled inside each other.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// The longest step of this turn, in words, where it was long.
    static SLOWEST: RefCell<Option<(Duration, String)>> = const { RefCell::new(None) };
}

/// Measure the loop that runs on this thread from now on.
pub fn measure() {
    ON.set(true);
    if LOOKING.swap(true, Ordering::Relaxed) {
        return;
    }
    let thread = nix::unistd::gettid().as_raw();
    let look = std::thread::Builder::new().name("loop-watch".into()).spawn(move || look_for_ever(thread));
    if let Err(error) = look {
        tracing::warn!("start the thread that looks for stalls: {error}");
    }
}

/// What was measured so far.
pub fn measured() -> Measured {
    Measured { longest: Duration::from_micros(LONGEST.load(Ordering::Relaxed)), stalls: STALLS.load(Ordering::Relaxed) }
}

/// Run `future` as a task of this thread's loop, under the name `task`.
pub fn spawn<F>(task: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    // Blocks: nothing; this is the door.
    tokio::task::spawn_local(timed(task, future))
}

/// `future`, with each of its turns timed under the name `task`.
pub fn timed<F: Future>(task: &'static str, future: F) -> Timed<F> {
    Timed { task, future: Box::pin(future) }
}

/// See [`timed`].
pub struct Timed<F> {
    task: &'static str,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !ON.get() || DEPTH.get() > 0 {
            return self.future.as_mut().poll(context);
        }
        let _turn = TurnGuard::begin(self.task);
        self.future.as_mut().poll(context)
    }
}

/// Do `work`, a step of the current turn; `words` describe it for the log if it takes long.
pub fn step<T>(name: &'static str, words: impl FnOnce() -> String, work: impl FnOnce() -> T) -> T {
    if DEPTH.get() == 0 {
        return work();
    }
    let before = put(|turn| std::mem::replace(&mut turn.step, name));
    let began = Instant::now();
    let value = work();
    let took = began.elapsed();
    if took > STALL / 2 {
        SLOWEST.with_borrow_mut(|slowest| {
            if slowest.as_ref().is_none_or(|(longest, _)| took > *longest) {
                *slowest = Some((took, words()));
            }
        });
    }
    put(|turn| turn.step = before.unwrap_or_default());
    value
}

fn put<T>(change: impl FnOnce(&mut Turn) -> T) -> Option<T> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
}

/// The current turn. Dropped at its end, also by a panic, it records how long the turn took.
struct TurnGuard {
    began: Instant,
    task: &'static str,
}

impl TurnGuard {
    fn begin(task: &'static str) -> Self {
        DEPTH.set(1);
        let began = Instant::now();
        *TURN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Turn { began, task, step: "" });
        Self { began, task }
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        DEPTH.set(0);
        *TURN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let took = self.began.elapsed();
        LONGEST.fetch_max(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let slowest = SLOWEST.take();
        if took <= STALL {
            return;
        }
        STALLS.fetch_add(1, Ordering::Relaxed);
        let step = slowest.map(|(_, words)| format!(": {words}")).unwrap_or_default();
        tracing::warn!("the event loop stood still for {took:.0?} in {}{step}", self.task);
    }
}

/// Say once of each turn that does not end where the loop is. `thread` is the loop's.
fn look_for_ever(thread: i32) {
    let mut said = None;
    loop {
        std::thread::park_timeout(LOOK);
        let turn = *TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Turn { began, task, step }) = turn else { continue };
        if began.elapsed() <= STALL || said == Some(began) {
            continue;
        }
        said = Some(began);
        // Blocks: this thread, which is not the loop's. The kernel's word on a thread of our own needs no right.
        let place = std::fs::read_to_string(format!("/proc/self/task/{thread}/wchan")).unwrap_or_default();
        let place = Some(place.trim()).filter(|place| !matches!(*place, "" | "0"));
        let place = place.map(|place| format!(", in the kernel's {place}")).unwrap_or_default();
        let step = if step.is_empty() { String::new() } else { format!(": {step}") };
        tracing::error!("the event loop has been standing still for {:.0?} in {task}{step}{place}", began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stand still for a moment: what no task of the loop may do.
    fn block(time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::thread::park_timeout(time.saturating_sub(began.elapsed()));
        }
    }

    #[test]
    fn the_longest_turn_and_every_stall_are_counted_and_waiting_is_none() {
        // On a thread of its own: whether a loop is measured belongs to its thread.
        let turns = std::thread::spawn(|| {
            ON.set(true);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(timed("a task that waits", async { tokio::time::sleep(STALL * 2).await }));
            let quick = measured();
            let slow = timed("a slow task", async {
                step("a slow step", || "the step in words".into(), || block(STALL + Duration::from_millis(50)));
            });
            runtime.block_on(slow);
            (quick, measured())
        });
        let (quick, slow) = turns.join().unwrap();
        assert_eq!(quick.stalls, 0, "{quick:?}");
        assert!(slow.stalls == 1 && slow.longest > STALL, "{slow:?}");
    }

    #[tokio::test]
    async fn a_loop_that_is_not_measured_costs_nothing_and_counts_nothing() {
        timed("unmeasured", async { step("a step", || unreachable!(), || ()) }).await;
        assert_eq!(DEPTH.get(), 0);
    }
}
