//! Requests in a second, from counts that workers report every now and then. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A count that stays the same for so long stands still: workers report more often.
const STILL: Duration = Duration::from_secs(12);

/// The rates of all processes.
#[derive(Clone, Debug, Default)]
pub struct Rates(BTreeMap<i32, Rate>);

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// When the count was last another one.
    since: Instant,
    requests: u64,
    rate: Option<f64>,
}

impl Rates {
    /// The rates after `counts`, the requests of each process since its start.
    pub fn after(&mut self, now: Instant, counts: &[(i32, u64)]) -> BTreeMap<i32, f64> {
        self.0.retain(|pid, _| counts.iter().any(|(of, _)| of == pid));
        for &(pid, requests) in counts {
            let known = self.0.entry(pid).or_insert(Rate { since: now, requests, rate: None });
            let passed = now.saturating_duration_since(known.since);
            if requests != known.requests && !passed.is_zero() {
                let more = requests.saturating_sub(known.requests) as f64;
                *known = Rate { since: now, requests, rate: Some(more / passed.as_secs_f64()) };
            } else if passed >= STILL {
                *known = Rate { since: now, requests, rate: Some(0.0) };
            }
        }
        self.0.iter().filter_map(|(&pid, known)| Some((pid, known.rate?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_taken_between_two_counts_and_ends_where_nothing_comes() {
        let (begun, mut rates) = (Instant::now(), Rates::default());
        let mut after = |second, counts: &[(i32, u64)]| rates.after(begun + Duration::from_secs(second), counts);
        assert!(after(0, &[(7, 100)]).is_empty(), "one count is no rate");
        assert!(after(1, &[(7, 100)]).is_empty());
        assert_eq!(after(5, &[(7, 150)])[&7], 10.0);
        assert_eq!(after(6, &[(7, 150)])[&7], 10.0, "it has not reported since");
        assert_eq!(after(17, &[(7, 150)])[&7], 0.0);
        assert_eq!(after(18, &[(7, 151), (8, 1)])[&7], 1.0);
        assert!(after(19, &[]).is_empty(), "a process that is gone has none");
        // The number of a process that is gone, used again.
        assert!(after(20, &[(7, 3)]).is_empty());
    }
}
