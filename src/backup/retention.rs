//! Which backups may go. Pure: the time is handed in, ages are read from names.
//!
//! A good backup stays while it is within age and count, or while grandfather, father or son wants it. Whatever the rules
//! say, the newest good ones stay, and nothing goes while the newest is not proven though older ones are: those may be the
//! only ones that restore.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, TimeDelta, Utc};

use crate::config::{Backup, Retention, Verify};

/// How many good backups stay however old they are, so that one with a wrong clock cannot send away all others.
const KEPT_MIN: usize = 2;

/// How long backups stay, and which ones count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub retention: Retention,
    /// Whether only verified backups are good; else one that was never verified is too.
    pub proven_only: bool,
}

/// What is known of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It restored to what its manifest says.
    Proven,
    Unverified,
    /// It did not restore.
    Bad,
    /// It has no manifest: it may be somebody else's.
    Incomplete,
}

/// A backup, as retention sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub taken: DateTime<Utc>,
    pub state: State,
}

/// What becomes of a backup, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Keep(&'static str),
    Remove(&'static str),
}

impl Fate {
    /// Why.
    pub fn why(&self) -> &'static str {
        match self {
            Self::Keep(why) | Self::Remove(why) => why,
        }
    }
}

impl Rules {
    /// What the operator wants. Where nothing is ever verified, what is not is as good as it gets.
    pub fn of(settings: &Backup) -> Self {
        Self { retention: settings.retention, proven_only: settings.verify != Verify::Never }
    }

    fn good(&self, state: State) -> bool {
        state == State::Proven || (state == State::Unverified && !self.proven_only)
    }
}

/// The fate of each of `backups`, which are those of one database, in any order.
pub fn decide(backups: &[Known], rules: &Rules, now: DateTime<Utc>) -> Vec<Fate> {
    let mut newest_first: Vec<usize> = (0..backups.len()).collect();
    newest_first.sort_by_key(|&at| std::cmp::Reverse((backups[at].taken, at)));
    let good: Vec<usize> = newest_first.iter().copied().filter(|&at| rules.good(backups[at].state)).collect();
    let proven = newest_first.iter().copied().find(|&at| backups[at].state == State::Proven);
    // A clock that runs ahead makes nothing older than it is to the newest backup.
    let now = newest_first.first().map_or(now, |&at| now.min(backups[at].taken));
    let whole = newest_first.iter().copied().find(|&at| backups[at].state != State::Incomplete);
    let frozen = match (whole, proven) {
        (Some(newest), Some(_)) if backups[newest].state != State::Proven => Some("the newest backup is not verified"),
        (_, None) if rules.proven_only => Some("no backup is verified"),
        _ => None,
    };
    let wanted = generations(backups, &good, rules);
    let least = if rules.retention.count == 0 { KEPT_MIN } else { KEPT_MIN.min(rules.retention.count as usize) };
    let fate = |at: usize| {
        let backup = &backups[at];
        let old = rules.retention.days > 0 && now - backup.taken > TimeDelta::days(rules.retention.days.into());
        // Only good ones are counted: whatever is older than enough of them may go.
        let newer = good.iter().filter(|&&one| (backups[one].taken, one) > (backup.taken, at)).count();
        let enough = rules.retention.count > 0 && newer >= rules.retention.count as usize;
        match backup.state {
            State::Incomplete => Fate::Keep("it has no manifest"),
            _ if Some(at) == proven => Fate::Keep("it is the newest verified one"),
            state if rules.good(state) && newer < least => Fate::Keep("it is among the newest"),
            _ if wanted.contains(&at) => Fate::Keep("it is the last of its day, week, month or year"),
            _ if enough => going(frozen, "there are newer ones enough"),
            _ if old => going(frozen, "its age"),
            _ => Fate::Keep("its age"),
        }
    };
    (0..backups.len()).map(fate).collect()
}

fn going(frozen: Option<&'static str>, why: &'static str) -> Fate {
    frozen.map_or(Fate::Remove(why), Fate::Keep)
}

/// The last good backup of each of the newest days, weeks, months and years.
fn generations(backups: &[Known], good: &[usize], rules: &Rules) -> BTreeSet<usize> {
    type Period = fn(DateTime<Utc>) -> (i32, u32);
    let periods: [(u32, Period); 4] = [
        (rules.retention.daily, |taken| (taken.year(), taken.ordinal())),
        (rules.retention.weekly, |taken| (taken.iso_week().year(), taken.iso_week().week())),
        (rules.retention.monthly, |taken| (taken.year(), taken.month())),
        (rules.retention.yearly, |taken| (taken.year(), 0)),
    ];
    let mut wanted = BTreeSet::new();
    for (count, period) in periods {
        let mut seen = BTreeSet::new();
        for &at in good {
            if seen.len() == count as usize {
                break;
            }
            if seen.insert(period(backups[at].taken)) {
                wanted.insert(at);
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const NONE: Retention = Retention { days: 0, count: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0 };
    const RULES: Rules = Rules { retention: Retention { days: 30, ..NONE }, proven_only: true };

    /// Only what is verified counts.
    fn proven(retention: Retention) -> Rules {
        Rules { retention, proven_only: true }
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("{text}T02:00:00Z").parse().unwrap()
    }

    fn known(taken: &str, state: State) -> Known {
        Known { taken: at(taken), state }
    }

    fn removed(backups: &[Known], rules: &Rules, now: &str) -> Vec<usize> {
        let fates = decide(backups, rules, at(now));
        (0..backups.len()).filter(|&one| matches!(fates[one], Fate::Remove(_))).collect()
    }

    /// One a day, the newest last.
    fn daily(count: u64, state: State) -> Vec<Known> {
        let last = at("2026-11-26");
        (0..count).rev().map(|days| Known { taken: last - TimeDelta::days(days as i64), state }).collect()
    }

    #[test]
    fn the_guides_thirty_days() {
        let backups = daily(40, State::Proven);
        assert_eq!(removed(&backups, &RULES, "2026-11-26"), (0..9).collect::<Vec<_>>());
        assert_eq!(removed(&backups, &proven(NONE), "2026-11-26"), [] as [usize; 0]);
    }

    #[test]
    fn nothing_goes_while_only_older_ones_are_proven() {
        let mut backups = daily(40, State::Proven);
        backups[39].state = State::Unverified;
        assert_eq!(removed(&backups, &RULES, "2026-11-26"), [] as [usize; 0]);
        backups[39].state = State::Bad;
        assert_eq!(removed(&backups, &RULES, "2026-11-26"), [] as [usize; 0]);
        assert_eq!(removed(&daily(40, State::Unverified), &RULES, "2026-11-26"), [] as [usize; 0], "none is proven");
        let trusting = Rules { proven_only: false, ..RULES };
        assert_eq!(removed(&daily(40, State::Unverified), &trusting, "2026-11-26"), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn failed_ones_count_for_nothing_and_go_with_age() {
        let mut backups = daily(40, State::Bad);
        backups[39].state = State::Proven;
        backups[0].state = State::Proven;
        backups[1].state = State::Incomplete;
        // The old proven one is the second good one; what has no manifest is left alone.
        assert_eq!(removed(&backups, &RULES, "2026-11-26"), (2..9).collect::<Vec<_>>());
        let three = proven(Retention { count: 3, ..NONE });
        let mut backups = daily(6, State::Proven);
        backups[4].state = State::Bad;
        assert_eq!(removed(&backups, &three, "2026-11-26"), [0, 1]);
    }

    #[test]
    fn a_clock_that_jumps_sends_nobody_away() {
        assert_eq!(removed(&daily(20, State::Proven), &RULES, "2099-01-01"), [] as [usize; 0]);
        let mut backups = daily(3, State::Proven);
        backups.push(known("2099-01-01", State::Proven));
        assert_eq!(removed(&backups, &RULES, "2099-01-01"), [0, 1], "two stay whatever the clock said");
    }

    #[test]
    fn grandfather_father_and_son_stay() {
        let rules = proven(Retention { days: 2, daily: 3, weekly: 2, monthly: 2, yearly: 2, ..NONE });
        let backups = daily(400, State::Proven);
        let gone: BTreeSet<usize> = removed(&backups, &rules, "2026-11-26").into_iter().collect();
        let kept: Vec<String> = (0..400)
            .filter(|one| !gone.contains(one))
            .map(|one| backups[one].taken.format("%Y-%m-%d").to_string())
            .collect();
        assert_eq!(kept, ["2025-12-31", "2026-10-31", "2026-11-22", "2026-11-24", "2026-11-25", "2026-11-26"]);
    }

    #[test]
    fn whatever_there_is_the_promises_hold() {
        let mut random = StdRng::seed_from_u64(5);
        let mut went = 0;
        for _ in 0..100_000 {
            let states = [State::Proven, State::Unverified, State::Bad, State::Incomplete];
            let backups: Vec<Known> = (0..random.random_range(0..12))
                .map(|_| Known {
                    taken: at("2026-01-01") + TimeDelta::hours(random.random_range(0..24 * 400)),
                    state: states[random.random_range(0..states.len())],
                })
                .collect();
            let mut few = |max: u32| if random.random_bool(0.5) { 0 } else { random.random_range(0..max) };
            let retention = Retention {
                days: few(60),
                count: few(5),
                daily: few(4),
                weekly: few(4),
                monthly: few(4),
                yearly: few(3),
            };
            let rules = Rules { retention, proven_only: few(2) == 0 };
            let now = at("2026-01-01") + TimeDelta::hours(random.random_range(0..24 * 500));
            let fates = decide(&backups, &rules, now);
            let gone = |at: usize| matches!(fates[at], Fate::Remove(_));
            let newest = |of: &dyn Fn(State) -> bool| {
                (0..backups.len()).filter(|&at| of(backups[at].state)).max_by_key(|&at| (backups[at].taken, at))
            };
            let proven = newest(&|state| state == State::Proven);
            assert!(proven.is_none_or(|at| !gone(at)), "the newest verified one: {backups:?} {rules:?}");
            assert!((0..backups.len()).all(|at| backups[at].state != State::Incomplete || !gone(at)));
            let last = newest(&|state| state != State::Incomplete);
            let any = (0..backups.len()).any(gone);
            went += usize::from(any);
            if let (Some(last), Some(_)) = (last, proven) {
                assert!(backups[last].state == State::Proven || !any, "the newest is unproven: {backups:?} {rules:?}");
            }
            if rules.proven_only && proven.is_none() {
                assert!(!any, "none is proven: {backups:?} {rules:?}");
            }
            // Deciding again on what is left removes nothing more.
            let left: Vec<Known> = (0..backups.len()).filter(|&at| !gone(at)).map(|at| backups[at]).collect();
            let again = decide(&left, &rules, now);
            assert!(again.iter().all(|fate| matches!(fate, Fate::Keep(_))), "{backups:?} {rules:?} {now}");
            // What a failed backup adds changes nobody's fate but by freezing it.
            if !any || rules.retention.count == 0 {
                continue;
            }
            let mut more = backups.clone();
            let oldest = backups.iter().map(|it| it.taken).min().unwrap_or(now);
            more.push(Known { taken: oldest - TimeDelta::hours(1), state: State::Bad });
            assert_eq!(decide(&more, &rules, now)[..backups.len()], fates, "a failed one counted: {backups:?}");
        }
        assert!(went > 10_000, "only {went} of the rounds removed anything");
    }
}
