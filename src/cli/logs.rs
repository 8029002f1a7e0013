//! The arguments of `tandem logs`.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use regex::Regex;

use super::values;
use crate::backup::pitr::target;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Print one service's lines and Tandem's about it; `tandem`: Tandem's own [default: all lines]
    #[arg(add = values::services(), conflicts_with = "named")]
    pub service: Option<String>,
    /// The same, as an option
    #[arg(long = "service", id = "named", value_name = "SERVICE", add = values::services())]
    pub named: Option<String>,
    /// Print new lines as they come, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Print at most so many lines [default: 100; all with --since or --until]
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
    /// Print lines since then: 10m or 2h ago, a time of day such as 14:30, or a date with it; UTC unless it says otherwise
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<SystemTime>,
    /// Print lines until then, written as for --since
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "follow")]
    pub until: Option<SystemTime>,
    /// Print lines that match a regular expression; `(?i)` before it ignores case
    #[arg(long, value_name = "REGEX", value_parser = pattern)]
    pub grep: Option<Regex>,
    /// Print lines of this level or a worse one
    #[arg(long, value_name = "LEVEL", ignore_case = true)]
    pub level: Option<LogLevel>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// How bad a line is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub fn as_tracing(self) -> tracing::Level {
        match self {
            Self::Error => tracing::Level::ERROR,
            Self::Warn => tracing::Level::WARN,
            Self::Info => tracing::Level::INFO,
            Self::Debug => tracing::Level::DEBUG,
            Self::Trace => tracing::Level::TRACE,
        }
    }
}

impl LogsArgs {
    /// The service whose lines are wanted.
    pub fn service(&self) -> Option<&String> {
        self.service.as_ref().or(self.named.as_ref())
    }
}

fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| format!("{error}\nwrite \\( for a bracket that is meant itself, and so on"))
}

fn moment(text: &str) -> Result<SystemTime, String> {
    at(text, SystemTime::now())
}

/// The moment that `text` means at `now`.
fn at(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text.trim_end_matches("ago").trim_end()) {
        return now.checked_sub(ago).ok_or_else(|| "that is before all time".to_owned());
    }
    if let Some(in_day) = time_of_day(text) {
        const DAY: Duration = Duration::from_hours(24);
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let midnight = Duration::from_secs(since.as_secs() / DAY.as_secs() * DAY.as_secs());
        let today = SystemTime::UNIX_EPOCH + midnight + in_day;
        // A moment that is still to come is yesterday's.
        return Ok(if today > now { today - DAY } else { today });
    }
    let date = if text.len() == "2026-01-02".len() { format!("{text} 00:00:00") } else { text.to_owned() };
    let minutes = if date.len() == "2026-01-02 15:04".len() { format!("{date}:00") } else { date };
    target::time(&minutes).or_else(|_| target::time(&format!("{minutes}Z"))).map_err(|_| {
        "it is neither an age such as 10m or 2h, nor a time of day such as 14:30, nor a moment such as \
         \"2026-01-02 15:04:05\", which are UTC as the log's are, or \"2026-01-02 15:04:05+02\""
            .to_owned()
    })
}

/// `14:30`, `14:30:05` or `14:30:05.007`, as the log shows it, since midnight.
fn time_of_day(text: &str) -> Option<Duration> {
    let mut parts = text.split(':');
    let number = |part: Option<&str>, max: u64| {
        let part = part?;
        let is_number = !part.is_empty() && part.len() <= 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u64>().ok().filter(|number| is_number && *number <= max)
    };
    let (hours, minutes) = (number(parts.next(), 23)?, number(parts.next(), 59)?);
    let (whole, fraction) = match parts.next() {
        None => (0, Duration::ZERO),
        Some(seconds) => {
            let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
            let is_number = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let fraction: f64 = format!("0.{fraction}").parse().ok().filter(|_| is_number)?;
            (number(Some(whole), 59)?, Duration::from_secs_f64(fraction))
        }
    };
    let at = Duration::from_secs(hours * 3600 + minutes * 60 + whole) + fraction;
    parts.next().is_none().then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_age_a_time_of_day_or_a_date() {
        let now = humantime::parse_rfc3339("2026-11-30T14:00:00.500Z").unwrap();
        for (text, expected) in [
            ("10m", "2026-11-30T13:50:00.500Z"),
            ("1h 30m", "2026-11-30T12:30:00.500Z"),
            ("10m ago", "2026-11-30T13:50:00.500Z"),
            ("13:30", "2026-11-30T13:30:00Z"),
            ("13:59:59.250", "2026-11-30T13:59:59.250Z"),
            ("14:30", "2026-11-29T14:30:00Z"),
            ("2026-11-30", "2026-11-30T00:00:00Z"),
            ("2026-11-30 12:00", "2026-11-30T12:00:00Z"),
            ("2026-11-30 12:00:05", "2026-11-30T12:00:05Z"),
            ("2026-11-30T12:00:05Z", "2026-11-30T12:00:05Z"),
            ("2026-11-30 12:00:05+02", "2026-11-30T10:00:05Z"),
        ] {
            assert_eq!(at(text, now), Ok(humantime::parse_rfc3339(expected).unwrap()), "{text}");
        }
        for wrong in ["", "soon", "10", "25:00", "1:2:3:4", "14:30:61", "14:3x", "2026-13-01", "::", "14:30:05."] {
            assert!(at(wrong, now).is_err(), "{wrong}");
        }
    }
}
