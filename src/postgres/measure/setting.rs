//! A row of `pg_settings` as a gauge, in base units. Pure.

use crate::metrics::{Family, Kind};

/// Numbers and switches alone are measured. Our own session sets some, and would show its own values.
pub const SQL: &str = "
    SELECT name, setting, coalesce(unit, ''), short_desc FROM pg_settings
    WHERE vartype IN ('bool', 'integer', 'real') AND name NOT IN ('statement_timeout', 'lock_timeout', 'transaction_timeout',
          'idle_in_transaction_session_timeout', 'idle_session_timeout', 'default_transaction_read_only',
          'transaction_read_only')
    LIMIT 1000";

/// The gauge of the setting `name`; `None` where its value is no number or its unit is unknown.
pub fn family(name: &str, setting: &str, unit: &str, description: &str, labels: &[(&str, &str)]) -> Option<Family> {
    let value = match setting {
        "on" => 1.0,
        "off" => 0.0,
        number => number.parse::<f64>().ok()?,
    };
    let (base, factor) = in_base_units(unit)?;
    // -1 stands for a default or for no limit, in every unit.
    #[expect(clippy::float_cmp, reason = "a whole number as it was written")]
    let value = if value == -1.0 { value } else { value * factor };
    let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let base = if base.is_empty() { String::new() } else { format!("_{base}") };
    let family = Family::new(format!("pg_settings_{name}{base}"), description.to_owned(), Kind::Gauge);
    Some(family.with(labels, value))
}

/// The base unit of `unit`, and how many of it one is.
fn in_base_units(unit: &str) -> Option<(&'static str, f64)> {
    let seconds = match unit {
        "" => return Some(("", 1.0)),
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Some(("bytes", bytes(unit)?)),
    };
    Some(("seconds", seconds))
}

/// Such as of `8kB`.
fn bytes(unit: &str) -> Option<f64> {
    let digits = unit.find(|letter: char| !letter.is_ascii_digit())?;
    let (count, unit) = unit.split_at(digits);
    let count = if count.is_empty() { 1.0 } else { count.parse().ok()? };
    let power = ["B", "kB", "MB", "GB", "TB"].iter().position(|known| *known == unit)?;
    Some(count * 1024_f64.powi(i32::try_from(power).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(setting: &str, unit: &str) -> Option<(String, f64)> {
        let family = family("a.b-c", setting, unit, "", &[])?;
        Some((family.name.into_owned(), family.samples[0].1))
    }

    #[test]
    fn settings_are_shown_in_base_units() {
        for (setting, unit, name, expected) in [
            ("on", "", "pg_settings_a_b_c", 1.0),
            ("16384", "8kB", "pg_settings_a_b_c_bytes", 134_217_728.0),
            ("64", "MB", "pg_settings_a_b_c_bytes", 67_108_864.0),
            ("-1", "ms", "pg_settings_a_b_c_seconds", -1.0),
            ("200", "ms", "pg_settings_a_b_c_seconds", 0.2),
            ("5", "min", "pg_settings_a_b_c_seconds", 300.0),
            ("1.1", "", "pg_settings_a_b_c", 1.1),
            ("7", "B", "pg_settings_a_b_c_bytes", 7.0),
        ] {
            assert_eq!(value(setting, unit), Some((name.to_owned(), expected)), "{setting} {unit}");
        }
        assert_eq!((value("x", ""), value("1", "furlongs"), value("1", "8")), (None, None, None));
    }
}
