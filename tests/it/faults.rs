//! It holds: a short schedule of faults of all kinds, while rows are written through the application. The long one is a
//! bench (`cargo bench --bench faults`).

use std::time::Duration;

use crate::common::alone::alone;
use crate::schedule::plan::{Blow, Schedule, Victim, kinds};
use crate::schedule::{self, Options, StallWatch, Stalls};

/// Another order of faults with every change of it.
const SEED: u64 = 11;
const FAULTS: usize = 30;
const WITHDRAWALS: usize = 3;

#[test]
fn a_schedule_of_faults_loses_no_acknowledged_row_and_leaves_no_process() {
    // What other tests use of the library reaps every child of the process.
    alone("faults::a_schedule_of_faults_loses_no_acknowledged_row_and_leaves_no_process", a_short_schedule);
}

fn a_short_schedule() {
    #[expect(clippy::disallowed_methods, reason = "a test program has no configuration")]
    let given = std::env::var("FAULTS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(SEED);
    println!("seed {seed}: FAULTS_SEED={seed} runs it again");
    let options = Options { seed, faults: FAULTS, withdrawals: WITHDRAWALS, slack: 30, say: true };
    let outcome = schedule::run(options).unwrap();
    let broken = outcome.broken();
    assert!(broken.is_empty(), "seed {seed}:\n{}\n{outcome:#?}", broken.join("\n"));
    assert!(outcome.hits >= FAULTS && outcome.acknowledged > FAULTS, "seed {seed}: {outcome:#?}");
    assert_eq!(outcome.withdrawn.len(), WITHDRAWALS, "seed {seed}: {outcome:#?}");
}

#[test]
fn a_schedule_is_the_same_for_the_same_seed_and_has_every_kind_of_fault() {
    let faults = |seed| {
        let mut schedule = Schedule::new(seed);
        (0..kinds().len()).map(|done| schedule.next(done, 1_000).kind).collect::<Vec<_>>()
    };
    assert_eq!(faults(7), faults(7));
    assert_ne!(faults(7), faults(8));
    let (mut all, mut every) = (faults(7), kinds());
    all.sort();
    every.sort();
    assert_eq!(all, every);
    assert!(every.iter().any(|kind| kind.victim == Victim::Supervisor && kind.blow == Blow::Kill));
    // The later ones all meet the same supervisor.
    let mut schedule = Schedule::new(7);
    assert!((0..500).all(|_| !schedule.next(400, 1_000).kind.ends_the_supervisor()));
}

#[test]
fn a_pause_of_the_supervisor_is_no_stall_and_hides_none_that_counts() {
    let told = |longest, count| Stalls { longest: Duration::from_millis(longest), count };
    let mut watch = StallWatch::default();
    watch.see((1, told(40, 0)), "a worker", false);
    watch.see((1, told(607, 1)), "supervisor: SIGSTOP, SIGCONT", true);
    watch.see((1, told(607, 1)), "a backend", false);
    let longest = Some((Duration::from_millis(40), "a worker".to_owned()));
    assert_eq!((watch.longest.clone(), watch.count), (longest, 0), "{watch:?}");
    assert_eq!(watch.hidden, Duration::from_millis(607));
    watch.see((1, told(607, 2)), "a companion", false);
    assert_eq!(watch.count, 1, "shorter than the pause, and counted");
    watch.see((2, told(60, 0)), "another supervisor", false);
    assert_eq!(watch.longest.map(|(longest, _)| longest), Some(Duration::from_millis(60)));
}
