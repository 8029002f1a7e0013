//! When a scheduled backup is due. Pure: the time is handed in.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Local, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use sha2::{Digest, Sha256};

/// In which zone a schedule's hours are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// The machine's own.
    Local,
    Named(Tz),
}

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: Cron,
    zone: Zone,
    /// Each run begins up to so much later, always as much for one moment and deployment.
    jitter: TimeDelta,
    /// What the jitter is drawn from, beside the moment: machines with one configuration are to differ.
    seed: String,
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSchedule(String);

/// The zone called `name`, such as `Europe/Berlin`; `local` is the machine's.
///
/// # Errors
/// There is none.
pub fn zone(name: &str) -> Result<Zone, InvalidSchedule> {
    match name {
        "local" => Ok(Zone::Local),
        name => Tz::from_str(name)
            .map(Zone::Named)
            .map_err(|_| InvalidSchedule(format!("{name:?} is no time zone of the tz database"))),
    }
}

/// The cron expression in `text` (minute, hour, day of month, month, day of week; crontab(5)).
///
/// # Errors
/// It is none, or never comes.
pub fn cron(text: &str) -> Result<Cron, InvalidSchedule> {
    let cron = Cron::from_str(text).map_err(|error| InvalidSchedule(error.to_string()))?;
    let begin = DateTime::<Utc>::UNIX_EPOCH;
    cron.find_next_occurrence(&begin, false).map_err(|_| InvalidSchedule("it never comes".to_owned()))?;
    Ok(cron)
}

impl Schedule {
    /// # Errors
    /// [`InvalidSchedule`] in `expression` or `zone_name`.
    pub fn new(
        expression: &str,
        zone_name: &str,
        jitter: std::time::Duration,
        seed: &str,
    ) -> Result<Self, InvalidSchedule> {
        let jitter = TimeDelta::from_std(jitter).map_err(|_| InvalidSchedule("the jitter is too long".to_owned()))?;
        Ok(Self { cron: cron(expression)?, zone: zone(zone_name)?, jitter, seed: seed.to_owned() })
    }

    /// When the first run after `after` is due; `None` when none ever is.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // The moment before may be due only now, by its jitter.
        let mut from = after - self.jitter;
        loop {
            let moment = match self.zone {
                Zone::Local => self.cron.find_next_occurrence(&from.with_timezone(&Local), false).ok()?.to_utc(),
                Zone::Named(zone) => self.cron.find_next_occurrence(&from.with_timezone(&zone), false).ok()?.to_utc(),
            };
            let due = moment + self.offset(moment);
            if due > after {
                return Some(due);
            }
            from = moment;
        }
    }

    /// How much later than `moment` its run begins.
    fn offset(&self, moment: DateTime<Utc>) -> TimeDelta {
        let range = self.jitter.num_milliseconds();
        if range == 0 {
            return TimeDelta::zero();
        }
        let digest = Sha256::digest(format!("{} {}", self.seed, moment.timestamp()));
        let drawn = digest.iter().take(8).fold(0u64, |drawn, &byte| drawn << 8 | u64::from(byte));
        TimeDelta::milliseconds((drawn % range.cast_unsigned()).cast_signed())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.zone {
            Zone::Local => write!(formatter, "{} (local time)", self.cron.pattern),
            Zone::Named(zone) => write!(formatter, "{} ({zone})", self.cron.pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn times(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        let mut after = at(from);
        (0..count)
            .map(|_| {
                after = schedule.next(after).unwrap();
                after.format("%m-%dT%H:%M").to_string()
            })
            .collect()
    }

    #[test]
    fn each_day_has_one_run_on_both_clock_changes() {
        // Berlin has no 02:00 to 03:00 on 2026-03-29, and has it twice on 2026-10-25.
        let schedule = Schedule::new("0 2 * * *", "Europe/Berlin", Duration::ZERO, "").unwrap();
        let spring = times(&schedule, "2026-03-27T12:00:00Z", 4);
        assert_eq!(spring, ["03-28T01:00", "03-29T01:00", "03-30T00:00", "03-31T00:00"]);
        let autumn = times(&schedule, "2026-10-23T12:00:00Z", 4);
        assert_eq!(autumn, ["10-24T00:00", "10-25T00:00", "10-26T01:00", "10-27T01:00"]);
        let half = Schedule::new("30 2 * * *", "Europe/Berlin", Duration::ZERO, "").unwrap();
        for (from, days) in [("2026-03-27T12:00:00Z", 5), ("2026-10-23T12:00:00Z", 5)] {
            let mut seen: Vec<_> = times(&half, from, days).iter().map(|time| time[..5].to_owned()).collect();
            seen.dedup();
            assert_eq!(seen.len(), days, "one a day: {seen:?}");
        }
    }

    #[test]
    fn a_year_of_days_has_a_run_each_in_every_zone() {
        for zone in
            ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca"]
        {
            for expression in ["0 2 * * *", "30 2 * * *", "0 3 * * *", "59 1 * * *"] {
                let schedule = Schedule::new(expression, zone, Duration::ZERO, "").unwrap();
                let (mut after, mut count) = (at("2026-01-01T00:00:00Z"), 0);
                while after < at("2027-01-01T00:00:00Z") {
                    let next = schedule.next(after).unwrap();
                    let gap = next - after;
                    assert!(
                        count == 0 || (gap >= TimeDelta::hours(22) && gap <= TimeDelta::hours(26)),
                        "{zone} {after}"
                    );
                    (after, count) = (next, count + 1);
                }
                assert!((365..=366).contains(&count), "{zone} {expression}: {count}");
            }
        }
    }

    #[test]
    fn jitter_delays_never_skips_and_never_doubles() {
        let schedule = Schedule::new("0 * * * *", "UTC", Duration::from_secs(1800), "a").unwrap();
        let mut after = at("2026-01-01T00:30:00Z");
        for hour in 1..200 {
            let due = schedule.next(after).unwrap();
            let moment = at("2026-01-01T00:00:00Z") + TimeDelta::hours(hour);
            assert!(due >= moment && due < moment + TimeDelta::minutes(30), "{due} for {moment}");
            // Asked again just before, it is the same one.
            assert_eq!(schedule.next(due - TimeDelta::milliseconds(1)), Some(due));
            after = due;
        }
        let other = Schedule::new("0 * * * *", "UTC", Duration::from_secs(1800), "b").unwrap();
        assert_ne!(schedule.next(after), other.next(after));
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(cron("0 2 * *").is_err());
        assert!(cron("61 2 * * *").is_err());
        assert!(cron("0 0 30 2 *").is_err(), "it never comes");
        assert!(zone("Mars/Olympus").is_err());
        assert_eq!(zone("local"), Ok(Zone::Local));
    }
}
