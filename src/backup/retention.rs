//! Which backups may go. Pure: the time is handed in, ages are read from names.
//!
//! A backup that is whole and was not found bad counts, whether it is proven or not; it stays while it is within age and
//! count, or while grandfather, father or son wants it. A proof only protects: the newest proven one stays whatever the rules
//! say, and where none is proven though some should be, so do the last of those that may be the only ones that restore.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike, TimeDelta, Utc};

use crate::config::{Backup, Retention, Verify};

/// How many whole backups stay however old they are, so that one with a wrong clock cannot send away all others.
const KEPT_MIN: usize = 2;
/// How many stay while none of them is proven: a week of daily ones.
const UNPROVEN_MIN: usize = 7;

/// How long backups stay, and whether any is to be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub retention: Retention,
    /// Whether backups are verified at all.
    pub proves: bool,
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
    /// The operator's retention settings.
    pub fn of(settings: &Backup) -> Self {
        Self { retention: settings.retention, proves: settings.verify != Verify::Never }
    }
}

impl State {
    /// Whether there is no reason to believe that it does not restore.
    fn is_whole(self) -> bool {
        matches!(self, Self::Proven | Self::Unverified)
    }
}

/// The fate of each of `backups`, which are those of one database, in any order.
pub fn decide(backups: &[Known], rules: &Rules, now: DateTime<Utc>) -> Vec<Fate> {
    let mut newest_first: Vec<usize> = (0..backups.len()).collect();
    newest_first.sort_by_key(|&at| std::cmp::Reverse((backups[at].taken, at)));
    let whole: Vec<usize> = newest_first.iter().copied().filter(|&at| backups[at].state.is_whole()).collect();
    let proven = newest_first.iter().copied().find(|&at| backups[at].state == State::Proven);
    // Ages are measured against the newest that restores, so neither a wrong clock nor failed ones since make any older.
    let now = whole.first().map_or(now, |&at| now.min(backups[at].taken));
    let wanted = generations(backups, &whole, rules);
    let count = rules.retention.count as usize;
    let (least, why_least) = match proven {
        None if rules.proves => (UNPROVEN_MIN.max(count), "no backup is verified"),
        _ if count == 0 => (KEPT_MIN, "it is among the newest"),
        _ => (KEPT_MIN.min(count), "it is among the newest"),
    };
    let limited = count > 0 || rules.retention.days > 0;
    let bad: Vec<usize> = newest_first.iter().copied().filter(|&at| backups[at].state == State::Bad).collect();
    let newer_bad = |at: usize| bad.iter().position(|&one| one == at).unwrap_or_default();
    let fate = |at: usize| {
        let backup = &backups[at];
        let old = rules.retention.days > 0 && now - backup.taken > TimeDelta::days(rules.retention.days.into());
        // Bad backups do not count: a backup may go when enough newer ones are whole.
        let newer = whole.iter().filter(|&&one| (backups[one].taken, one) > (backup.taken, at)).count();
        let enough = count > 0 && newer >= count;
        match backup.state {
            State::Incomplete => Fate::Keep("it has no manifest"),
            State::Proven if Some(at) == proven => Fate::Keep("it is the newest verified one"),
            State::Proven | State::Unverified if newer < least => Fate::Keep(why_least),
            State::Bad if newer == 0 && newer_bad(at) < UNPROVEN_MIN => Fate::Keep("no newer backup is whole"),
            State::Bad if newer == 0 && limited => Fate::Remove("there are newer ones enough, bad as they are"),
            _ if wanted.contains(&at) => Fate::Keep("it is the last of its day, week, month or year"),
            _ if enough => Fate::Remove("there are newer ones enough"),
            _ if old => Fate::Remove("its age"),
            _ => Fate::Keep("its age"),
        }
    };
    (0..backups.len()).map(fate).collect()
}

/// The last whole backup of each of the newest days, weeks, months and years.
fn generations(backups: &[Known], whole: &[usize], rules: &Rules) -> BTreeSet<usize> {
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
        for &at in whole {
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
    const RULES: Rules = Rules { retention: Retention { days: 30, ..NONE }, proves: true };

    fn rules(retention: Retention) -> Rules {
        Rules { retention, proves: true }
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
        assert_eq!(removed(&backups, &rules(NONE), "2026-11-26"), [] as [usize; 0]);
    }

    /// 35 daily backups up to 2026-11-26, a Thursday; of which every seventh is proven, the last time so many days ago.
    fn weekly_proofs(days_ago: usize) -> Vec<Known> {
        let mut backups = daily(35, State::Unverified);
        backups.iter_mut().rev().skip(days_ago).step_by(7).for_each(|backup| backup.state = State::Proven);
        backups
    }

    #[test]
    fn what_rules_mean_for_a_month_of_nightly_backups() {
        let count = |count| Retention { count, ..NONE };
        let days = |days| Retention { days, ..NONE };
        // Which stay, by their age in days.
        let cases: [(&str, Vec<Known>, Retention, Vec<usize>); 12] = [
            ("a count is a count", weekly_proofs(3), count(7), vec![0, 1, 2, 3, 4, 5, 6]),
            ("the newest proven one beside it", weekly_proofs(6), count(3), vec![0, 1, 2, 6]),
            ("a count of one", weekly_proofs(0), count(1), vec![0]),
            ("a count of one, and the last that is proven", weekly_proofs(5), count(1), vec![0, 5]),
            ("age", weekly_proofs(3), days(4), vec![0, 1, 2, 3, 4]),
            ("age and count, whichever is less", weekly_proofs(1), Retention { days: 4, ..count(3) }, vec![0, 1, 2]),
            ("days", weekly_proofs(3), Retention { daily: 7, ..days(1) }, vec![0, 1, 2, 3, 4, 5, 6]),
            // The weeks end on Sundays, 4, 11 and 18 days before.
            ("weeks", weekly_proofs(2), Retention { weekly: 4, ..days(1) }, vec![0, 1, 2, 4, 11, 18]),
            ("months", weekly_proofs(1), Retention { monthly: 2, ..days(1) }, vec![0, 1, 26]),
            ("nothing is proven", daily(35, State::Unverified), days(1), (0..7).collect()),
            ("nothing is proven, and more are wanted", daily(35, State::Unverified), count(9), (0..9).collect()),
            ("no limit", weekly_proofs(3), NONE, (0..35).collect()),
        ];
        for (case, backups, retention, expected) in cases {
            let gone = removed(&backups, &rules(retention), "2026-11-26");
            let stay: Vec<usize> = (0..35).rev().filter(|at| !gone.contains(at)).map(|at| 34 - at).collect();
            assert_eq!(stay, expected, "{case}");
        }
    }

    #[test]
    fn where_nothing_is_ever_proven_what_is_whole_is_as_good_as_it_gets() {
        let trusting = Rules { proves: false, ..RULES };
        assert_eq!(removed(&daily(40, State::Unverified), &trusting, "2026-11-26"), (0..9).collect::<Vec<_>>());
        let one = Rules { proves: false, retention: Retention { count: 1, ..NONE } };
        assert_eq!(removed(&daily(3, State::Unverified), &one, "2026-11-26"), [0, 1]);
    }

    #[test]
    fn failed_ones_count_for_nothing_and_age_nothing() {
        let mut backups = daily(40, State::Bad);
        backups[39].state = State::Proven;
        backups[0].state = State::Proven;
        backups[1].state = State::Incomplete;
        // The old proven one is the second whole one; what has no manifest is left alone.
        assert_eq!(removed(&backups, &RULES, "2026-11-26"), (2..9).collect::<Vec<_>>());
        let three = rules(Retention { count: 3, ..NONE });
        let mut backups = daily(6, State::Proven);
        backups[4].state = State::Bad;
        assert_eq!(removed(&backups, &three, "2026-11-26"), [0, 1]);
        // Forty bad nights: what was good before is not a day older for them, and the disk does not fill with them.
        let mut backups = daily(80, State::Bad);
        backups[..40].iter_mut().for_each(|backup| backup.state = State::Proven);
        let gone = removed(&backups, &RULES, "2026-11-26");
        assert_eq!(gone, (0..9).chain(40..73).collect::<Vec<_>>());
        assert_eq!(removed(&daily(9, State::Bad), &RULES, "2026-11-26"), [0, 1]);
        assert_eq!(removed(&daily(9, State::Bad), &rules(NONE), "2026-11-26"), [] as [usize; 0]);
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
        let rules = rules(Retention { days: 2, daily: 3, weekly: 2, monthly: 2, yearly: 2, ..NONE });
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
            let rules = Rules { retention, proves: few(2) == 0 };
            let now = at("2026-01-01") + TimeDelta::hours(random.random_range(0..24 * 500));
            let fates = decide(&backups, &rules, now);
            let gone = |at: usize| matches!(fates[at], Fate::Remove(_));
            let newest = |of: &dyn Fn(State) -> bool| {
                (0..backups.len()).filter(|&at| of(backups[at].state)).max_by_key(|&at| (backups[at].taken, at))
            };
            let proven = newest(&|state| state == State::Proven);
            assert!(proven.is_none_or(|at| !gone(at)), "the newest verified one: {backups:?} {rules:?}");
            assert!((0..backups.len()).all(|at| backups[at].state != State::Incomplete || !gone(at)));
            let any = (0..backups.len()).any(gone);
            went += usize::from(any);
            let stay = (0..backups.len()).filter(|&at| backups[at].state.is_whole() && !gone(at)).count();
            let whole = backups.iter().filter(|backup| backup.state.is_whole()).count();
            let least = if rules.proves && proven.is_none() { UNPROVEN_MIN } else { 1 };
            assert!(stay >= whole.min(least), "the last ones: {backups:?} {rules:?}");
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
