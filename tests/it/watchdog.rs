//! A process that a test waits for in vain does not hold up the tests.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::watchdog::{LIFE, overdue};

#[test]
fn a_process_that_lives_too_long_is_ended_and_no_other() {
    let (mut seen, begun) = (HashMap::new(), Instant::now());
    let children =
        |pids: &[i32]| -> HashMap<i32, String> { pids.iter().map(|&pid| (pid, format!("sleep {pid}"))).collect() };
    let moment = Duration::from_secs(1);
    assert_eq!(overdue(&mut seen, &children(&[1, 2]), begun), []);
    assert_eq!(overdue(&mut seen, &children(&[1, 2, 3]), begun + LIFE), []);
    assert_eq!(overdue(&mut seen, &children(&[1, 3]), begun + LIFE + moment), [(1, "sleep 1".to_owned())]);
    // The number of one that has gone is another's.
    assert_eq!(overdue(&mut seen, &children(&[2]), begun + LIFE + 2 * moment), []);
    assert_eq!(overdue(&mut seen, &children(&[2]), begun + 3 * LIFE).len(), 1);
}
