//! A value of SQLite's as `COPY` reads one of PostgreSQL's, or why that cannot be. Pure.
//!
//! Nothing is rounded, cut or guessed silently: what would change is a misfit. The one exception is the noise of a double
//! that stands for a decimal, such as 0.30000000000000004.

use std::io::Write;

use rusqlite::types::ValueRef;

use super::kind::Kind;
use super::moment;

/// Two doubles that differ by less are one decimal, written by different sums.
const NOISE: f64 = 1e-14;
/// Up to here a double holds every whole number.
const EXACT_MAX: u64 = 1 << 53;

/// NULL, as `COPY` reads it.
const NULL: &[u8] = b"\\N";

/// Write `value` as a field of `COPY`'s text format.
///
/// # Errors
/// Why it does not fit, as the rest of a sentence.
pub fn write(value: ValueRef<'_>, kind: &Kind, out: &mut Vec<u8>) -> Result<(), String> {
    if value == ValueRef::Null {
        out.extend_from_slice(NULL);
        return Ok(());
    }
    let no = || format!("is no {kind}");
    match kind {
        Kind::Boolean => out.push(if boolean(value).ok_or_else(no)? { b't' } else { b'f' }),
        Kind::Integer(bits) => put(out, integer(value, *bits).map_err(|why| why.unwrap_or_else(no))?),
        Kind::Float(bits) => float(value, *bits, out).map_err(|why| why.unwrap_or_else(no))?,
        Kind::Numeric(limits) => put(out, numeric(value, *limits).map_err(|why| why.unwrap_or_else(no))?),
        Kind::Text(length) => escape(&text(value, *length)?, out),
        Kind::Bytea => bytes(value, out).ok_or_else(no)?,
        Kind::Date => {
            let moment = moment::moment(value)?;
            if moment.time() != chrono::NaiveTime::MIN {
                return Err("has a time of day, which a date cannot keep".to_owned());
            }
            put(out, moment.date());
        }
        Kind::Time => put(out, moment::time_of_day(value)?.format("%H:%M:%S%.f")),
        Kind::Timestamp => put(out, moment::moment(value)?.format("%Y-%m-%d %H:%M:%S%.f")),
        Kind::TimestampTz => put(out, moment::moment(value)?.format("%Y-%m-%d %H:%M:%S%.f+00")),
        Kind::Interval => match value {
            // Django keeps a duration in microseconds.
            ValueRef::Integer(micros) => put(out, format_args!("{micros} microseconds")),
            other => escape(&text(other, None)?, out),
        },
        Kind::Uuid => put(out, uuid(value).ok_or_else(no)?),
        Kind::Json => escape(&json(value, false)?, out),
        Kind::Jsonb => escape(&json(value, true)?, out),
        Kind::Enum(name, labels) => {
            let text = text(value, None)?;
            if !labels.contains(&text) {
                return Err(format!("is none of the values of {name}: {}", labels.join(", ")));
            }
            escape(&text, out);
        }
        Kind::Other(_) => escape(&text(value, None)?, out),
    }
    Ok(())
}

fn put(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    let _never_fails = write!(out, "{value}");
}

/// Escape what `COPY` reads as its own (PostgreSQL documentation, COPY, "Text Format").
fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => out.push(byte),
        }
    }
}

fn boolean(value: ValueRef<'_>) -> Option<bool> {
    let text = match value {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) if number == 0.0 || number == 1.0 => (number as i64).to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).trim().to_lowercase(),
        _ => return None,
    };
    match text.as_str() {
        "1" | "t" | "true" | "y" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

type Why = Option<String>;

fn integer(value: ValueRef<'_>, bits: u32) -> Result<i64, Why> {
    let number = match value {
        ValueRef::Integer(number) => number,
        ValueRef::Real(number) if number.fract() == 0.0 && number.abs() <= EXACT_MAX as f64 => number as i64,
        ValueRef::Real(number) if number.fract() == 0.0 => {
            return Err(Some(format!("is beyond what a {bits}-bit number holds exactly")));
        }
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| None)?.trim();
            let is_digits =
                !text.is_empty() && text.trim_start_matches(['-', '+']).bytes().all(|byte| byte.is_ascii_digit());
            text.parse().map_err(|_| is_digits.then(|| format!("is beyond {bits} bits")))?
        }
        _ => return Err(None),
    };
    let (least, most) = (-1_i128 << (bits - 1), (1_i128 << (bits - 1)) - 1);
    if (least..=most).contains(&i128::from(number)) { Ok(number) } else { Err(Some(format!("is beyond {bits} bits"))) }
}

fn float(value: ValueRef<'_>, bits: u32, out: &mut Vec<u8>) -> Result<(), Why> {
    let number = match value {
        ValueRef::Real(number) => number,
        ValueRef::Integer(number) if number.unsigned_abs() <= EXACT_MAX => number as f64,
        ValueRef::Integer(_) => return Err(Some("has more digits than a double keeps".to_owned())),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| None)?.trim();
            text.parse().map_err(|_| None)?
        }
        _ => return Err(None),
    };
    match () {
        () if number.is_infinite() => out.extend_from_slice(if number > 0.0 { b"Infinity" } else { b"-Infinity" }),
        () if bits == 32 && f64::from(number as f32) == number => put(out, format_args!("{:?}", number as f32)),
        () if bits == 32 => return Err(Some("has more digits than a real keeps".to_owned())),
        () => put(out, format_args!("{number:?}")),
    }
    Ok(())
}

fn numeric(value: ValueRef<'_>, limits: Option<(usize, usize)>) -> Result<String, Why> {
    let text = match value {
        ValueRef::Integer(number) => number.to_string(),
        // Display writes the shortest digits that read back as this double, and never an exponent.
        ValueRef::Real(number) if number.is_finite() => number.to_string(),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|_| None)?.trim();
            if text.parse::<f64>().map_or(true, |number| !number.is_finite()) || text.contains(['e', 'E']) {
                return Err(None);
            }
            text.to_owned()
        }
        _ => return Err(None),
    };
    let Some((precision, scale)) = limits else { return Ok(text) };
    let digits = text.trim_start_matches(['-', '+']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.trim_end_matches('0').len() > scale && !is_noise(value, scale) {
        return Err(Some(format!("has more digits after the point than the {scale} of numeric({precision},{scale})")));
    }
    if whole.trim_start_matches('0').len() > precision - scale {
        return Err(Some(format!("is too large for numeric({precision},{scale})")));
    }
    Ok(text)
}

/// Whether a double is a decimal of `scale` digits, but for the noise of its arithmetic.
fn is_noise(value: ValueRef<'_>, scale: usize) -> bool {
    let ValueRef::Real(number) = value else { return false };
    let rounded = format!("{number:.scale$}").parse::<f64>();
    rounded.is_ok_and(|rounded| (rounded - number).abs() <= number.abs() * NOISE)
}

fn text(value: ValueRef<'_>, length: Option<usize>) -> Result<String, String> {
    let text = match value {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) if text.contains('\0') => {
                return Err("has a NUL character, which PostgreSQL's text cannot hold".to_owned());
            }
            Ok(text) => text.to_owned(),
            Err(_) => return Err("is not UTF-8".to_owned()),
        },
        _ => return Err("is a blob, not text".to_owned()),
    };
    match length {
        Some(length) if text.chars().count() > length => {
            Err(format!("has {} characters, and varchar({length}) holds {length}", text.chars().count()))
        }
        _ => Ok(text),
    }
}

fn bytes(value: ValueRef<'_>, out: &mut Vec<u8>) -> Option<()> {
    let (ValueRef::Blob(bytes) | ValueRef::Text(bytes)) = value else { return None };
    out.extend_from_slice(b"\\\\x");
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
    Some(())
}

fn uuid(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Blob(bytes) if bytes.len() == 16 => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).ok()?.trim();
            let text = text.trim_start_matches("urn:uuid:").trim_matches(['{', '}']);
            let digits: String = text.chars().filter(|letter| *letter != '-').collect();
            (digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digits)
        }
        _ => None,
    }
}

fn json(value: ValueRef<'_>, binary: bool) -> Result<String, String> {
    if let ValueRef::Blob(_) = value {
        return Err("is a blob, as SQLite's own jsonb() makes it; json(COLUMN) makes text of it".to_owned());
    }
    let text = text(value, None)?;
    let parsed: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("is no JSON: {}", error.to_string().to_lowercase()))?;
    if binary && text.contains("\\u0000") && has_nul(&parsed) {
        return Err("has a NUL character (\\u0000), which PostgreSQL's jsonb cannot hold".to_owned());
    }
    Ok(text)
}

fn has_nul(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains('\0'),
        serde_json::Value::Array(items) => items.iter().any(has_nul),
        serde_json::Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: ValueRef<'_>, kind: &Kind) -> Result<String, String> {
        let mut out = Vec::new();
        write(value, kind, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    fn text(value: &str) -> ValueRef<'_> {
        ValueRef::Text(value.as_bytes())
    }

    #[test]
    fn values_that_fit_are_written_exactly() {
        use ValueRef::{Blob, Integer, Null, Real};
        for (value, kind, expected) in [
            (Null, Kind::Integer(64), "\\N"),
            (Integer(1), Kind::Boolean, "t"),
            (text("False"), Kind::Boolean, "f"),
            (Integer(i64::MIN), Kind::Integer(64), "-9223372036854775808"),
            (Real(12.0), Kind::Integer(64), "12"),
            (text(" 7 "), Kind::Integer(16), "7"),
            (Real(0.1), Kind::Float(64), "0.1"),
            (Real(1e300), Kind::Float(64), "1e300"),
            (Real(f64::INFINITY), Kind::Float(64), "Infinity"),
            (Real(19.99), Kind::Numeric(Some((10, 2))), "19.99"),
            (Real(0.1 + 0.2), Kind::Numeric(Some((10, 2))), "0.30000000000000004"),
            (text("19.990"), Kind::Numeric(Some((4, 2))), "19.990"),
            (text("a\tb\\c\nd"), Kind::Text(None), "a\\tb\\\\c\\nd"),
            (text("\\N"), Kind::Text(None), "\\\\N"),
            (text("äöü"), Kind::Text(Some(3)), "äöü"),
            (Integer(5), Kind::Text(None), "5"),
            (Blob(&[0, 255]), Kind::Bytea, "\\\\x00ff"),
            (text("2024-05-06"), Kind::Date, "2024-05-06"),
            (text("07:08:09.5"), Kind::Time, "07:08:09.500"),
            (text("2024-05-06 07:08:09+01:00"), Kind::TimestampTz, "2024-05-06 06:08:09+00"),
            (Integer(90_000_000), Kind::Interval, "90000000 microseconds"),
            (text("6BA7B8109DAD11D180B400C04FD430C8"), Kind::Uuid, "6BA7B8109DAD11D180B400C04FD430C8"),
            (Blob(&[7; 16]), Kind::Uuid, "07070707070707070707070707070707"),
            (text("{\"a\": [1, \"\\\\u0000\"]}"), Kind::Jsonb, "{\"a\": [1, \"\\\\\\\\u0000\"]}"),
            (Integer(5), Kind::Jsonb, "5"),
        ] {
            assert_eq!(written(value, &kind).as_deref(), Ok(expected), "{value:?} as {kind}");
        }
    }

    #[test]
    fn values_that_would_change_are_refused_with_the_reason() {
        use ValueRef::{Blob, Integer, Real};
        for (value, kind, why) in [
            (Integer(2), Kind::Boolean, "is no boolean"),
            (text("abc"), Kind::Integer(64), "is no bigint"),
            (Integer(40_000), Kind::Integer(16), "beyond 16 bits"),
            (text("9223372036854775808"), Kind::Integer(64), "beyond 64 bits"),
            (Real(1.8446744073709552e19), Kind::Integer(64), "beyond"),
            (Real(1.5), Kind::Integer(64), "is no bigint"),
            (Integer(i64::MAX), Kind::Float(64), "more digits than a double"),
            (Real(19.994), Kind::Numeric(Some((10, 2))), "more digits after the point"),
            (Integer(1000), Kind::Numeric(Some((4, 2))), "too large"),
            (text("ten"), Kind::Numeric(None), "is no numeric"),
            (text("a\0b"), Kind::Text(None), "NUL"),
            (ValueRef::Text(&[0xff]), Kind::Text(None), "not UTF-8"),
            (text("abcd"), Kind::Text(Some(3)), "4 characters"),
            (Blob(b"x"), Kind::Text(None), "is a blob"),
            (Integer(5), Kind::Bytea, "is no bytea"),
            (text("2024-05-06 07:00"), Kind::Date, "time of day"),
            (text("soon"), Kind::Timestamp, "is no date"),
            (text("not-a-uuid"), Kind::Uuid, "is no uuid"),
            (text("{\"a\":"), Kind::Jsonb, "is no JSON"),
            (text("\"\\u0000\""), Kind::Jsonb, "NUL"),
            (text("sad"), Kind::Enum("mood".to_owned(), vec!["glad".to_owned()]), "none of the values of mood"),
        ] {
            let told = written(value, &kind).unwrap_err();
            assert!(told.contains(why), "{value:?} as {kind}: {told}");
        }
    }
}
