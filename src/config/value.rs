//! Converts one value as it was written to its key's kind. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::keys::{self, Kind};
use super::listening;
use crate::plan::Place;

/// A value as it was written. `Debug` shows what sort of value it is, and never the value: it may be a password.
#[derive(Clone, PartialEq)]
pub enum Raw {
    /// From the environment, a `.env` or a flag: text that may stand for anything.
    Word(String),
    /// TOML text, in quotes.
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    List(Vec<String>),
    /// TOML that no key accepts, such as a table or a date; its name.
    Other(&'static str),
}

/// Free room on a file system that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Room {
    /// Of the file system's size.
    Percent(f64),
    Bytes(u64),
}

impl Room {
    /// What it comes to on a file system of `total` bytes.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => (total as f64 * percent / 100.0) as u64,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(formatter, "{percent}%"),
            Self::Bytes(bytes) => formatter.write_str(&size_text(*bytes)),
        }
    }
}

/// A value as its kind reads it. `Debug` shows no text, which may be a password.
#[derive(Clone, PartialEq)]
pub enum Typed {
    Nothing,
    Text(String),
    Number(u32),
    Boolean(bool),
    Room(Room),
    /// `None`: never.
    Duration(Option<Duration>),
    Bytes(u64),
    Ip(IpAddr),
    Places(Vec<Place>),
    /// The bits of a file's mode.
    Mode(u32),
    List(Vec<String>),
}

impl fmt::Debug for Raw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Word(_) => "a word",
            Self::Text(_) => "text",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        })
    }
}

impl fmt::Debug for Typed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => formatter.write_str("nothing"),
            Self::Text(_) => formatter.write_str("text"),
            Self::List(_) => formatter.write_str("a list"),
            other => write!(formatter, "{other}"),
        }
    }
}

/// Why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The values that are accepted.
    pub expected: String,
    /// The accepted value that was most likely meant.
    pub suggestion: Option<String>,
}

impl Raw {
    /// The value if it is text of either sort.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as the text that a child's environment or a settings file can hold.
    pub fn to_plain(&self) -> Option<String> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text.clone()),
            Self::Integer(number) => Some(number.to_string()),
            Self::Float(number) => Some(number.to_string()),
            Self::Boolean(boolean) => Some(boolean.to_string()),
            Self::List(_) | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(text) | Self::Text(text) => write!(formatter, "{text:?}"),
            Self::Integer(number) => write!(formatter, "{number}"),
            Self::Float(number) => write!(formatter, "{number}"),
            Self::Boolean(boolean) => write!(formatter, "{boolean}"),
            Self::List(list) => write!(formatter, "{list:?}"),
            Self::Other(name) => write!(formatter, "({name})"),
        }
    }
}

/// Read `raw` as `kind`.
///
/// # Errors
/// What would be accepted instead.
pub fn read(kind: Kind, raw: &Raw) -> Result<Typed, Unreadable> {
    let typed = match kind {
        Kind::Text | Kind::Secret | Kind::Url | Kind::Path | Kind::Program => text(raw).map(Typed::Text),
        Kind::ChoiceOrPath(_) if raw.as_text().is_some_and(|text| text.contains('/')) => text(raw).map(Typed::Text),
        Kind::ChoiceOrCommand(_) if command(raw).is_some() => command(raw).map(Typed::List),
        Kind::BooleanOr(_) if boolean(raw).is_some() => boolean(raw).map(Typed::Boolean),
        Kind::CountOr(least, _) if number(raw).is_some() => {
            number(raw).filter(|number| *number >= least).map(Typed::Number)
        }
        Kind::Choice(words)
        | Kind::ChoiceOrPath(words)
        | Kind::ChoiceOrCommand(words)
        | Kind::BooleanOr(words)
        | Kind::CountOr(_, words) => {
            return choice(kind, words, raw);
        }
        Kind::Count(least) => number(raw).filter(|number| *number >= least).map(Typed::Number),
        Kind::Between(least, most) => number(raw).filter(|number| (least..=most).contains(number)).map(Typed::Number),
        Kind::Port => number(raw).filter(|number| *number <= 65535).map(Typed::Number),
        Kind::Boolean => boolean(raw).map(Typed::Boolean),
        Kind::Duration => duration(raw).map(|limit| Typed::Duration(Some(limit))),
        Kind::DurationOrNever => duration_or_never(raw).map(Typed::Duration),
        Kind::Size => size(raw).map(Typed::Bytes),
        Kind::Room => room(raw).map(Typed::Room),
        Kind::UrlOrCommand if command(raw).is_some() => command(raw).map(Typed::List),
        Kind::UrlOrCommand => text(raw).filter(|text| is_web_address(text)).map(Typed::Text),
        Kind::Ip => raw.as_text().and_then(ip).map(Typed::Ip),
        Kind::Address => listening::address(raw).map(|place| Typed::Places(vec![place])),
        Kind::Addresses => listening::places(raw).map(Typed::Places),
        Kind::Mode => listening::mode(raw).map(Typed::Mode),
        Kind::List => list(raw).map(Typed::List),
        Kind::Command => command(raw).map(Typed::List),
        Kind::Table | Kind::SecretTable => raw.to_plain().map(Typed::Text),
        Kind::Options => (!matches!(raw, Raw::Other(_))).then(|| Typed::Text(raw.to_string())),
    };
    typed.ok_or_else(|| Unreadable { expected: expected(kind), suggestion: None })
}

/// What a kind accepts, in words.
pub fn expected(kind: Kind) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Text | Kind::Secret | Kind::Program => "text that is not empty".into(),
        Kind::Url => "a URL such as \"postgresql://user:password@host:5432/database\"".into(),
        Kind::Path => "a path, as text".into(),
        Kind::Choice(accepted) => format!("one of {}", words(accepted)),
        Kind::ChoiceOrPath(accepted) => format!("one of {}, or a path with a / in it", words(accepted)),
        Kind::ChoiceOrCommand(accepted) => {
            format!("one of {}, or a command as a list: [\"alembic\", \"upgrade\", \"head\"]", words(accepted))
        }
        Kind::Count(least) => format!("a whole number of at least {least}"),
        Kind::CountOr(least, accepted) => format!("a whole number of at least {least}, or {}", words(accepted)),
        Kind::Between(least, most) => format!("a whole number from {least} to {most}"),
        Kind::Port => "a port: a whole number up to 65535".into(),
        Kind::Boolean => "true or false".into(),
        Kind::BooleanOr(accepted) => format!("true, false or {}", words(accepted)),
        Kind::Duration => {
            "a duration such as \"30s\", \"500ms\" or \"10m\" (a plain number is seconds), and no more than a year"
                .into()
        }
        Kind::DurationOrNever => {
            "a duration such as \"30s\", \"500ms\" or \"10m\", no more than a year, or \"never\"".into()
        }
        Kind::Room => "a part such as \"10%\", or a size such as \"2GB\"".into(),
        Kind::UrlOrCommand => {
            "an address such as \"https://example.org/hook\", or a command as a list: [\"notify\", \"--now\"]".into()
        }
        Kind::Size => "a size with its unit, such as \"256MB\" or \"2GB\"".into(),
        Kind::Ip => "an IP address, \"localhost\" or \"*\"".into(),
        Kind::Address => {
            "an address such as \"127.0.0.1:8000\", \":8000\" (all addresses) or 8000 (this machine)".into()
        }
        Kind::Addresses => {
            "an address such as \"127.0.0.1:8000\", \":8000\" (all addresses), 8000 (this machine) or \"unix:/run/app.sock\", or a \
             list of them"
                .into()
        }
        Kind::Mode => "a file's mode in octal digits, such as \"0660\"".into(),
        Kind::Options => "text, a number, true or false, or a list of texts".into(),
        Kind::List => "a list of texts, such as [\"a\", \"b\"]".into(),
        Kind::Command => "a program and its arguments as a list, such as [\"npm\", \"run\", \"dev\"]".into(),
        Kind::Table | Kind::SecretTable => "text, a number, or true or false".into(),
    }
}

fn text(raw: &Raw) -> Option<String> {
    raw.as_text().filter(|text| !text.is_empty() && !text.contains('\0')).map(str::to_owned)
}

fn choice(kind: Kind, words: &[&str], raw: &Raw) -> Result<Typed, Unreadable> {
    let written = raw.as_text().unwrap_or_default();
    if words.contains(&written) {
        return Ok(Typed::Text(written.to_owned()));
    }
    let written = written.to_lowercase();
    let suggestion = keys::most(words.iter().copied(), |word| strsim::normalized_damerau_levenshtein(word, &written));
    let suggestion = suggestion.map(str::to_owned);
    Err(Unreadable { expected: expected(kind), suggestion })
}

/// A command as a list; in the environment only as TOML writes it, because `a b` may be a program's name.
fn command(raw: &Raw) -> Option<Vec<String>> {
    let written_as_list = raw.as_text().is_none_or(|text| text.trim_start().starts_with('['));
    list(raw).filter(|command| written_as_list && command.first().is_some_and(|program| !program.is_empty()))
}

pub(super) fn number(raw: &Raw) -> Option<u32> {
    match raw {
        Raw::Integer(number) => u32::try_from(*number).ok(),
        Raw::Word(word) => word.trim().parse().ok(),
        _ => None,
    }
}

fn boolean(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Boolean(boolean) => Some(*boolean),
        Raw::Word(word) => match word.trim().to_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Longer than any limit is meant, and short enough for every clock to bear a sum of some.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn duration(raw: &Raw) -> Option<Duration> {
    let duration = match raw {
        Raw::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        Raw::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        Raw::Word(text) | Raw::Text(text) => {
            let text = text.trim();
            let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            seconds.or_else(|| humantime::parse_duration(text).ok())
        }
        _ => None,
    };
    duration.filter(|duration| *duration <= DURATION_MAX)
}

fn duration_or_never(raw: &Raw) -> Option<Option<Duration>> {
    match raw.as_text().map(str::trim) {
        Some("never" | "off") => Some(None),
        _ => duration(raw).map(|limit| (!limit.is_zero()).then_some(limit)),
    }
}

/// PostgreSQL's MB is 1024 × 1024 bytes; a number without a unit would be pages to PostgreSQL and bytes to others.
fn size(raw: &Raw) -> Option<u64> {
    let text = raw.as_text()?.trim();
    let unit = text.chars().last().is_some_and(|last| last.is_ascii_alphabetic());
    unit.then(|| parse_size::Config::new().with_binary().parse_size(text).ok())?
}

fn room(raw: &Raw) -> Option<Room> {
    match raw.as_text().and_then(|text| text.trim().strip_suffix('%')) {
        Some(percent) => {
            let percent = percent.trim_end().parse().ok()?;
            (0.0..=100.0).contains(&percent).then_some(Room::Percent(percent))
        }
        None => size(raw).map(Room::Bytes),
    }
}

fn is_web_address(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

pub(super) fn ip(text: &str) -> Option<IpAddr> {
    match text.trim() {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        text => text.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    }
}

/// A list; in the environment `a,b`, or as TOML writes it.
pub(super) fn list(raw: &Raw) -> Option<Vec<String>> {
    match raw {
        Raw::List(list) => Some(list.clone()),
        Raw::Word(word) if word.trim_start().starts_with('[') => {
            toml::from_str::<Lists>(&format!("list = {word}")).ok()?.list.into()
        }
        Raw::Word(word) => {
            Some(word.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        _ => None,
    }
}

#[derive(serde::Deserialize)]
struct Lists {
    list: Vec<String>,
}

/// The value in its plainest form, as `tandem check` shows it.
impl fmt::Display for Typed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Text(text) => formatter.write_str(text),
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Boolean(boolean) => write!(formatter, "{boolean}"),
            Self::Duration(Some(limit)) => write!(formatter, "{}", humantime::format_duration(*limit)),
            Self::Duration(None) => formatter.write_str("never"),
            Self::Bytes(bytes) => formatter.write_str(&size_text(*bytes)),
            Self::Room(room) => write!(formatter, "{room}"),
            Self::Ip(ip) => write!(formatter, "{ip}"),
            Self::Places(places) => formatter.write_str(&listening::text(places)),
            Self::Mode(mode) => write!(formatter, "{mode:04o}"),
            Self::List(list) => write!(formatter, "{list:?}"),
        }
    }
}

fn size_text(bytes: u64) -> String {
    [("GB", 30), ("MB", 20), ("kB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{bytes} bytes"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(kind: Kind, text: &str) -> Option<String> {
        read(kind, &Raw::Word(text.into())).ok().map(|typed| typed.to_string())
    }

    #[test]
    fn people_write_values_in_many_ways() {
        let cases = [
            (Kind::Duration, "30", Some("30s")),
            (Kind::Duration, "0.25", Some("250ms")),
            (Kind::Duration, "1m 30s", Some("1m 30s")),
            (Kind::Duration, "3600", Some("1h")),
            (Kind::Duration, "-1s", None),
            (Kind::Duration, "inf", None),
            (Kind::Duration, "soon", None),
            (Kind::Duration, "366d", Some("1year 18h")),
            (Kind::Duration, "9223372036854775807", None),
            (Kind::DurationOrNever, "2 years", None),
            (Kind::DurationOrNever, "never", Some("never")),
            (Kind::DurationOrNever, "0", Some("never")),
            (Kind::Size, "256MB", Some("256MB")),
            (Kind::Size, "2 GiB", Some("2GB")),
            (Kind::Size, "128kB", Some("128kB")),
            (Kind::Size, "128", None),
            (Kind::Address, "8000", Some("127.0.0.1:8000")),
            (Kind::Address, ":8000", Some(":8000")),
            (Kind::Address, "*:8000", Some(":8000")),
            (Kind::Address, "unix:/run/app.sock", None),
            (Kind::Addresses, "8000", Some("127.0.0.1:8000")),
            (Kind::Addresses, "unix:/run/app.sock", Some("unix:/run/app.sock")),
            (Kind::Addresses, ":80, [::1]:81", Some(r#"[":80", "[::1]:81"]"#)),
            (Kind::Addresses, "unix:", None),
            (Kind::Addresses, "/run/app.sock", None),
            (Kind::Addresses, "", None),
            (Kind::Mode, "0660", Some("0660")),
            (Kind::Mode, "600", Some("0600")),
            (Kind::Mode, "0o660", Some("0660")),
            (Kind::Mode, "0888", None),
            (Kind::Mode, "10660", None),
            (Kind::Address, "localhost:8000", Some("127.0.0.1:8000")),
            (Kind::Address, "[::1]:8000", Some("[::1]:8000")),
            (Kind::Address, "example.org:8000", None),
            (Kind::Address, "127.0.0.1:70000", None),
            (Kind::Port, "70000", None),
            (Kind::Boolean, "Yes", Some("true")),
            (Kind::List, "a, b", Some(r#"["a", "b"]"#)),
            (Kind::List, r#"["a,b"]"#, Some(r#"["a,b"]"#)),
            (Kind::ChoiceOrCommand(&["none"]), r#"["alembic", "upgrade"]"#, Some(r#"["alembic", "upgrade"]"#)),
            (Kind::ChoiceOrCommand(&["none"]), "alembic upgrade head", None),
            (Kind::Count(1), "0", None),
            (Kind::CountOr(4, &["auto"]), "auto", Some("auto")),
            (Kind::CountOr(4, &["auto"]), "120", Some("120")),
            (Kind::CountOr(4, &["auto"]), "3", None),
            (Kind::CountOr(4, &["auto"]), "many", None),
            (Kind::BooleanOr(&["strict"]), "on", Some("true")),
            (Kind::BooleanOr(&["strict"]), "strict", Some("strict")),
            (Kind::BooleanOr(&["strict"]), "stric", None),
            (Kind::Command, r#"["npm", "run"]"#, Some(r#"["npm", "run"]"#)),
            (Kind::Command, "npm run", None),
            (Kind::Command, "[]", None),
        ];
        for (kind, text, meaning) in cases {
            assert_eq!(word(kind, text).as_deref(), meaning, "{kind:?} {text:?}");
        }
    }

    #[test]
    fn a_file_says_numbers_without_quotes() {
        assert!(read(Kind::Count(1), &Raw::Text("4".into())).is_err());
        assert!(read(Kind::Boolean, &Raw::Text("true".into())).is_err());
        assert!(read(Kind::BooleanOr(&["strict"]), &Raw::Text("true".into())).is_err());
        assert_eq!(read(Kind::BooleanOr(&["strict"]), &Raw::Boolean(true)).unwrap(), Typed::Boolean(true));
        assert_eq!(read(Kind::Address, &Raw::Integer(80)).unwrap().to_string(), "127.0.0.1:80");
    }
}
