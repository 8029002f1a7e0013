//! Backups by day. Pure: the time is an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::telemetry::rfc3339;

/// So many days are shown: five weeks.
pub const DAYS: usize = 35;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One day (UTC) of the calendar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    /// Such as `2026-01-31`.
    pub date: String,
    /// From 0, a Monday, to 6.
    pub weekday: u8,
    pub state: DayState,
    /// How many backups of this day are kept.
    pub backups: usize,
    pub bytes: u64,
}

/// The best of what a day left, or what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DayState {
    /// A backup that was restored for a proof.
    Verified,
    /// A backup that nobody has tried to restore yet.
    Taken,
    /// Nothing but what did not restore, or a run that failed.
    Bad,
    /// A backup was due and none is there.
    Missing,
    /// None was due, or it was removed when its time had come.
    None,
}

/// One backup, or one run that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    pub taken: SystemTime,
    pub state: DayState,
    pub bytes: u64,
}

/// What may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<'a> {
    /// When backups were due, in any order.
    pub due: &'a [SystemTime],
    /// For so many days none is removed.
    pub kept_days: u32,
}

/// The last [`DAYS`] days up to that of `now`, oldest first.
pub fn calendar(found: &[Dated], expected: Expected<'_>, now: SystemTime) -> Vec<Day> {
    let today = number(now);
    let first = found.iter().map(|one| number(one.taken)).min();
    let of_day = |day: u64| {
        let here: Vec<_> = found.iter().filter(|one| number(one.taken) == day).collect();
        let has = |state| here.iter().any(|one| one.state == state);
        // Before the first backup that is known, there may have been no schedule.
        let is_due = first.is_some_and(|first| day > first)
            && today - day <= u64::from(expected.kept_days)
            && expected.due.iter().any(|&due| number(due) == day && due <= now);
        let state = match () {
            () if has(DayState::Verified) => DayState::Verified,
            () if has(DayState::Taken) => DayState::Taken,
            () if has(DayState::Bad) => DayState::Bad,
            () if is_due => DayState::Missing,
            () => DayState::None,
        };
        Day {
            date: rfc3339(UNIX_EPOCH + DAY * u32::try_from(day).unwrap_or(0))[..10].to_owned(),
            // 1970-01-01 was a Thursday.
            weekday: u8::try_from((day + 3) % 7).unwrap_or(0),
            state,
            backups: here.iter().filter(|one| one.bytes > 0 || one.state != DayState::Bad).count(),
            bytes: here.iter().map(|one| one.bytes).sum(),
        }
    };
    (0..DAYS as u64).rev().map(|back| of_day(today.saturating_sub(back))).collect()
}

/// The number of its day since 1970.
fn number(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noon of the day that lies so many days before the last one, 2026-11-30, a Monday.
    fn day(back: u32) -> SystemTime {
        UNIX_EPOCH + DAY * (20_787 - back) + DAY / 2
    }

    fn one(back: u32, state: DayState) -> Dated {
        Dated { taken: day(back), state, bytes: 10 }
    }

    #[test]
    fn a_day_shows_the_best_of_its_backups_and_what_it_lacks() {
        use DayState::{Bad, Missing, None, Taken, Verified};
        let found =
            [one(9, Taken), one(6, Verified), one(5, Bad), one(5, Taken), one(4, Bad), one(1, Taken), one(1, Verified)];
        let due: Vec<_> = (0..=12).map(day).collect();
        let days = calendar(&found, Expected { due: &due, kept_days: 7 }, day(0) - Duration::from_secs(1));
        assert_eq!(days.len(), DAYS);
        let last = days.last().unwrap();
        assert_eq!((last.date.as_str(), last.weekday), ("2026-11-30", 0));
        let states: Vec<_> = days[DAYS - 13..].iter().map(|day| day.state).collect();
        // Twelve days ago there was none yet; eight days ago one may have been removed; today's is due in a second.
        let expected = [None, None, None, Taken, None, Missing, Verified, Taken, Bad, Missing, Missing, Verified, None];
        assert_eq!(states, expected);
        assert_eq!((days[DAYS - 2].backups, days[DAYS - 2].bytes), (2, 20));
    }

    #[test]
    fn without_a_schedule_and_without_backups_nothing_is_missing() {
        assert!(calendar(&[], Expected::default(), day(0)).iter().all(|day| day.state == DayState::None));
        let due = [day(1)];
        let days = calendar(&[], Expected { due: &due, kept_days: 30 }, day(0));
        assert!(days.iter().all(|day| day.state == DayState::None));
        assert_eq!(calendar(&[], Expected::default(), UNIX_EPOCH).len(), DAYS);
    }
}
