//! Dates and times as programs write them into SQLite, which has no type for them. Pure.
//!
//! | in the file | read as |
//! |---|---|
//! | text `2024-05-06`, `2024-05-06 07:08:09.123456`, with `T` or a blank, with `Z` or an offset or without | what it says; without an offset: UTC |
//! | a whole number | seconds since 1970; from 100,000,000,000 on milliseconds, from 100,000,000,000,000 on microseconds |
//! | a number with a fraction, from 0 to 5373484.5 | a Julian day, as SQLite's `julianday()` gives it |
//! | another number with a fraction | seconds since 1970 |

use chrono::{DateTime, Duration, NaiveDate, NaiveDateTime, NaiveTime};
use rusqlite::types::ValueRef;

/// Whole numbers from here on count milliseconds: as seconds they are in the year 5138.
const MILLISECONDS_FROM: i64 = 100_000_000_000;
/// And from here on microseconds.
const MICROSECONDS_FROM: i64 = 100_000_000_000_000;
/// Julian days that SQLite knows (SQLite documentation, "Date And Time Functions"): up to the end of the year 9999.
const JULIAN_MAX: f64 = 5_373_484.5;
/// The Julian day of 1970-01-01 00:00.
const JULIAN_1970: f64 = 2_440_587.5;
const DAY_SECONDS: f64 = 86_400.0;

const OUTSIDE: &str = "is a date outside of the years 1 to 9999";

/// A moment in UTC, as far as it is known.
pub fn moment(value: ValueRef<'_>) -> Result<NaiveDateTime, &'static str> {
    const NONE: &str = "is no date or time";
    let found = match value {
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| NONE)?;
            return of_text(text.trim());
        }
        ValueRef::Integer(number) => {
            let size = number.saturating_abs();
            let micros = match size {
                _ if size >= MICROSECONDS_FROM => Some(number),
                _ if size >= MILLISECONDS_FROM => number.checked_mul(1_000),
                _ => number.checked_mul(1_000_000),
            };
            micros.and_then(DateTime::from_timestamp_micros)
        }
        ValueRef::Real(number) if (0.0..JULIAN_MAX).contains(&number) => {
            // A double holds a Julian day to some 40 microseconds; SQLite itself counts milliseconds.
            let millis = ((number - JULIAN_1970) * DAY_SECONDS * 1e3).round();
            DateTime::from_timestamp_millis(millis as i64)
        }
        ValueRef::Real(number) if number.is_finite() => DateTime::from_timestamp_micros((number * 1e6).round() as i64),
        _ => return Err(NONE),
    };
    in_range(found.ok_or(OUTSIDE)?.naive_utc())
}

/// Years with four digits, which every program reads back.
fn in_range(moment: NaiveDateTime) -> Result<NaiveDateTime, &'static str> {
    let year = chrono::Datelike::year(&moment);
    if (1..=9999).contains(&year) { Ok(moment) } else { Err(OUTSIDE) }
}

fn of_text(text: &str) -> Result<NaiveDateTime, &'static str> {
    const NONE: &str = "is no date or time";
    let (day, rest) = (text.get(..10).ok_or(NONE)?, text.get(10..).unwrap_or_default());
    let day = NaiveDate::parse_from_str(day, "%Y-%m-%d").map_err(|_| NONE)?;
    if rest.is_empty() {
        return in_range(day.and_time(NaiveTime::MIN));
    }
    let rest = rest.strip_prefix(['T', 't', ' ']).ok_or(NONE)?.trim();
    let (time, offset) = split_offset(rest).ok_or(NONE)?;
    let moment = day.and_time(time_of_text(time)?);
    in_range(moment - Duration::minutes(offset))
}

/// A time of day.
pub fn time_of_day(value: ValueRef<'_>) -> Result<NaiveTime, &'static str> {
    match value {
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| "is no time of day")?;
            time_of_text(text.trim())
        }
        _ => Err("is no time of day"),
    }
}

fn time_of_text(text: &str) -> Result<NaiveTime, &'static str> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.trim_end_matches('0').len() > 6 {
        return Err("is more exact than a microsecond, which PostgreSQL would round");
    }
    let parsed = ["%H:%M:%S", "%H:%M"].iter().find_map(|format| NaiveTime::parse_from_str(whole, format).ok());
    let micros: i64 = format!("{:0<6}", fraction.get(..6.min(fraction.len())).unwrap_or_default())
        .parse()
        .map_err(|_| "is no date or time")?;
    let time = parsed.ok_or("is no date or time")?;
    Ok(time + Duration::microseconds(micros))
}

/// The time before an offset, and the offset in minutes; none is UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    for utc in ["Z", "z", " UTC", "UTC"] {
        if let Some(time) = text.strip_suffix(utc) {
            return Some((time, 0));
        }
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (time, offset) = text.split_at(at);
    let digits: String = offset[1..].chars().filter(|letter| *letter != ':').collect();
    let minutes = match digits.len() {
        2 => digits.parse::<i64>().ok()? * 60,
        4 => digits.get(..2)?.parse::<i64>().ok()? * 60 + digits.get(2..)?.parse::<i64>().ok()?,
        _ => return None,
    };
    Some((time.trim_end(), if offset.starts_with('-') { -minutes } else { minutes }))
}

/// Whether `text` is a moment with an offset from UTC.
pub fn has_offset(text: &[u8]) -> bool {
    let Some(rest) = text.get(16..).filter(|_| text.len() < 40 && text.get(4) == Some(&b'-')) else { return false };
    rest.iter().any(|byte| b"+-Zz".contains(byte)) && std::str::from_utf8(text).is_ok_and(|text| of_text(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: ValueRef<'_>) -> String {
        moment(value).map_or_else(str::to_owned, |moment| moment.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
    }

    #[test]
    fn every_way_of_writing_a_moment_is_read() {
        for (text, expected) in [
            ("2024-05-06", "2024-05-06 00:00:00.000000"),
            ("2024-05-06 07:08", "2024-05-06 07:08:00.000000"),
            ("2024-05-06T07:08:09.12", "2024-05-06 07:08:09.120000"),
            ("2024-05-06 07:08:09.123456000", "2024-05-06 07:08:09.123456"),
            ("2024-05-06 07:08:09+02:00", "2024-05-06 05:08:09.000000"),
            ("2024-05-06 07:08:09.5-0130", "2024-05-06 08:38:09.500000"),
            ("2024-05-06T07:08:09Z", "2024-05-06 07:08:09.000000"),
            ("2024-05-06 07:08:09.1234567", "is more exact than a microsecond, which PostgreSQL would round"),
            ("2024-02-30", "is no date or time"),
            ("0000-00-00", "is no date or time"),
            ("yesterday", "is no date or time"),
            ("2024-05-06 07:08:09 Berlin", "is no date or time"),
            ("äöü-05-06 7", "is no date or time"),
            ("", "is no date or time"),
        ] {
            assert_eq!(read(ValueRef::Text(text.as_bytes())), expected, "{text}");
        }
        for (number, expected) in [
            (0, "1970-01-01 00:00:00.000000"),
            (1_700_000_000, "2023-11-14 22:13:20.000000"),
            (1_700_000_000_123, "2023-11-14 22:13:20.123000"),
            (1_700_000_000_123_456, "2023-11-14 22:13:20.123456"),
            (-86_400, "1969-12-31 00:00:00.000000"),
            (i64::MAX, "is a date outside of the years 1 to 9999"),
            (i64::MIN, "is a date outside of the years 1 to 9999"),
        ] {
            assert_eq!(read(ValueRef::Integer(number)), expected, "{number}");
        }
        for (number, expected) in [
            (2_460_437.797_326_4, "2024-05-07 07:08:09.001000"),
            (1_700_000_000.25, "2023-11-14 22:13:20.250000"),
            (f64::INFINITY, "is no date or time"),
        ] {
            assert_eq!(read(ValueRef::Real(number)), expected, "{number}");
        }
    }

    #[test]
    fn an_offset_is_seen_only_where_there_is_one() {
        for (text, has) in [
            ("2024-05-06 07:08:09+00:00", true),
            ("2024-05-06T07:08:09.123Z", true),
            ("2024-05-06 07:08:09", false),
            ("2024-05-06", false),
            ("0123-a-long-name-with-hyphens", false),
        ] {
            assert_eq!(has_offset(text.as_bytes()), has, "{text}");
        }
    }
}
