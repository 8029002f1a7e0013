//! Random histories of the tree: processes that do not come, die, hang, never get ready or outlive SIGKILL; words that
//! come late; jobs that fail; rolls, scaling, restarts, new plans and stops at any moment; time that jumps. After every step
//! the invariants are checked against a model world that knows which processes really live and what they really said.
//!
//! Beside the promises that `lib.rs` lists: while the tree serves, nothing of it is without a process, a timer or a stated
//! rest; in a calm it comes to what was wanted, and every order is answered; the budget of connections holds; what is told
//! of readiness is so; the stop that is told is the stop that happens; a roll that is over leaves none of the workers that
//! it replaced accepting; a drain that never ends holds up no roll, no scaling and no stop.

mod happen;
mod plans;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use world::{Seen, World};

use super::tree::{Cause, TreeEvent, TreePhase};

/// Histories per run of the test.
const HISTORIES: u64 = 1_000_000;
/// Histories that a thread takes at a time.
const BATCH: u64 = 1_000;
/// Steps after which a history asks for the stop, if it has not yet.
const STEPS_MAX: usize = 90;
/// The variable with the seed of one history, to run it again.
const SEED: &str = "TANDEM_SEED";

/// Run one history to its end; returns why it ended, and what it saw.
fn history(seed: u64) -> (Cause, Seen) {
    let mut world = World::new(seed);
    // One in four comes to a calm on its way.
    let calm_at = if seed.is_multiple_of(4) { STEPS_MAX / 2 } else { usize::MAX };
    world.feed(TreeEvent::Begin);
    for step in 0.. {
        if let TreePhase::Stopped { cause } = world.phase() {
            return (cause, world.seen);
        }
        assert!(step < 100_000, "a history without an end");
        if step == calm_at {
            world.calm();
        } else if step >= STEPS_MAX && step.is_multiple_of(STEPS_MAX) {
            world.feed(TreeEvent::Stop);
        } else {
            world.happen();
        }
    }
    unreachable!("the loop returns")
}

/// How many histories came to what.
#[derive(Default)]
struct Counts([AtomicU64; 9]);

/// Each with how many histories there must be for one of it: a simulation that never gets anywhere would pass every check.
const KINDS: [(&str, u64); 9] = [
    ("asked", 100),
    ("gave up", 100),
    ("failed", 100),
    ("served", 100),
    ("rolled", 100),
    ("abandoned", 100),
    ("broke a spawn off", 100),
    ("saw a late end", 100),
    ("cut a drain short", 1000),
];

impl Counts {
    fn add(&self, cause: Cause, seen: Seen) {
        let of_cause = match cause {
            Cause::Asked => 0,
            Cause::GaveUp(_) => 1,
            Cause::JobFailed(_) | Cause::HookFailed => 2,
        };
        let seen = [seen.served, seen.replaced, seen.abandoned, seen.cancelled, seen.gone_after_all, seen.cut];
        let seen = seen.into_iter().enumerate().filter(|(_, seen)| *seen).map(|(kind, _)| kind + 3);
        for kind in seen.chain([of_cause]) {
            self.0[kind].fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn no_history_breaks_an_invariant() {
    #[expect(clippy::disallowed_methods, reason = "a person gives the seed of a history that failed")]
    let given = std::env::var(SEED).ok().map(|seed| seed.parse().expect("a seed is a number"));
    if let Some(seed) = given {
        println!("{:?}", history(seed));
        return;
    }
    let first: u64 = rand::random();
    println!("seeds from {first}");
    let (next, counts) = (AtomicU64::new(0), Counts::default());
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let batches = || {
        while let begin = next.fetch_add(BATCH, Ordering::Relaxed)
            && begin < HISTORIES
        {
            for seed in (begin..begin + BATCH).map(|n| first.wrapping_add(n)) {
                let outcome = std::panic::catch_unwind(|| history(seed));
                let (cause, seen) = outcome.unwrap_or_else(|_| {
                    next.store(HISTORIES, Ordering::Relaxed);
                    panic!("a history broke an invariant; to run it alone: {SEED}={seed} cargo test no_history_breaks")
                });
                counts.add(cause, seen);
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(batches)).collect();
        for thread in running {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    for ((kind, in_so_many), count) in KINDS.iter().zip(&counts.0) {
        let count = count.load(Ordering::Relaxed);
        println!("{kind}: {count}");
        assert!(count > HISTORIES / in_so_many, "only {count} histories: {kind}");
    }
}

/// A world whose processes are deaf: the longest stop there is.
#[test]
fn a_stop_of_the_deaf_takes_as_long_as_is_told() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.feed(TreeEvent::Begin);
        world.calm();
        if world.phase() != TreePhase::Serving {
            continue;
        }
        let told = world.tree().plan.stop_sum().total();
        let asked_at = world.now;
        world.feed(TreeEvent::Stop);
        for _ in 0..1_000 {
            if matches!(world.phase(), TreePhase::Stopped { .. }) {
                break;
            }
            world.now = world.tree().deadline().expect("a stop waits for something").max(world.now);
            world.feed(TreeEvent::Tick);
        }
        assert!(matches!(world.phase(), TreePhase::Stopped { .. }), "{:?}", world.phase());
        assert_eq!(world.now - asked_at, told, "seed {seed}");
        assert!(told > Duration::ZERO || world.tree().members.is_empty());
    }
}
