//! Numbers, sizes and times as people read them. Pure.

/// Bytes in the unit that leaves one to four digits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A time in its two biggest units.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return String::new();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, minutes) if minutes < 10 => format!("{minutes} min {} s", whole % 60),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// A whole number with thin gaps between its thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A time stamp (RFC 3339, UTC) to the second, as `2026-01-02 03:04:05`.
pub fn stamp(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(date), Some(clock)) => format!("{date} {clock}"),
        _ => time.to_owned(),
    }
}

/// The time of day of a time stamp.
pub fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

/// The seconds since 1970 of a time stamp.
pub fn moment(time: &str) -> Option<f64> {
    let time = chrono::DateTime::parse_from_rfc3339(time).ok()?;
    Some(time.timestamp_millis() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_counts_are_short() {
        for (size, words) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20 << 10, "20 kB"),
            (1023 << 10, "1.0 MB"),
            (5 << 30, "5.0 GB"),
            (u64::MAX, "16384 PB"),
        ] {
            assert_eq!(bytes(size), words);
        }
        for (seconds, words) in [
            (0.0, "0 ms"),
            (0.0124, "12 ms"),
            (0.9996, "1.0 s"),
            (42.7, "42 s"),
            (61.0, "1 min 1 s"),
            (3599.0, "59 min"),
            (3600.0, "1 h 0 min"),
            (90_061.0, "1 d 1 h"),
            (f64::NAN, ""),
            (-1.0, ""),
        ] {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1\u{202f}234\u{202f}567"]);
        assert_eq!(stamp("2026-01-02T03:04:05.678Z"), "2026-01-02 03:04:05");
        assert_eq!((stamp("x"), clock("2026-01-02T03:04:05Z"), clock("é")), ("x".into(), "03:04:05", "é"));
        assert_eq!((moment("1970-01-01T00:00:10Z"), moment("never")), (Some(10.0), None));
    }
}
