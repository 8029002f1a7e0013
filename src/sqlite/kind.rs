//! PostgreSQL's types, as far as an import tells them apart. Pure.

use std::fmt;

use super::profile::Profile;

/// A type of PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    /// `smallint`, `integer`, `bigint`, by their bits.
    Integer(u32),
    /// `real`, `double precision`, by their bits.
    Float(u32),
    /// `numeric`, with precision and scale where it has them.
    Numeric(Option<(usize, usize)>),
    /// `text`, or `varchar(n)`.
    Text(Option<usize>),
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Json,
    Jsonb,
    /// An enumeration, with its name and its labels.
    Enum(String, Vec<String>),
    /// Any other: the value's text is left to PostgreSQL.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Boolean => "boolean",
            Self::Integer(16) => "smallint",
            Self::Integer(32) => "integer",
            Self::Integer(_) => "bigint",
            Self::Float(32) => "real",
            Self::Float(_) => "double precision",
            Self::Numeric(Some((precision, scale))) => return write!(formatter, "numeric({precision},{scale})"),
            Self::Numeric(None) => "numeric",
            Self::Text(Some(length)) => return write!(formatter, "varchar({length})"),
            Self::Text(None) => "text",
            Self::Bytea => "bytea",
            Self::Date => "date",
            Self::Time => "time",
            Self::Timestamp => "timestamp",
            Self::TimestampTz => "timestamptz",
            Self::Interval => "interval",
            Self::Uuid => "uuid",
            Self::Json => "json",
            Self::Jsonb => "jsonb",
            Self::Enum(name, _) | Self::Other(name) => name,
        })
    }
}

impl Kind {
    /// The type that `format_type()` of PostgreSQL's names.
    pub fn of_catalog(name: &str, labels: Vec<String>) -> Self {
        if !labels.is_empty() {
            return Self::Enum(name.to_owned(), labels);
        }
        let (word, numbers) = split(name);
        match word.as_str() {
            "boolean" => Self::Boolean,
            "smallint" => Self::Integer(16),
            "integer" => Self::Integer(32),
            "bigint" => Self::Integer(64),
            "real" => Self::Float(32),
            "double precision" => Self::Float(64),
            "numeric" => Self::Numeric(pair(&numbers)),
            "text" | "citext" => Self::Text(None),
            "character varying" | "character" => Self::Text(numbers.first().copied()),
            "bytea" => Self::Bytea,
            "date" => Self::Date,
            "time without time zone" => Self::Time,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp with time zone" => Self::TimestampTz,
            "interval" => Self::Interval,
            "uuid" => Self::Uuid,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            _ => Self::Other(name.to_owned()),
        }
    }

    /// The type of a new column that is `declared` so and has such values.
    pub fn of_declared(declared: &str, values: &Profile) -> Self {
        let (word, numbers) = split(&declared.to_lowercase());
        let has = |part: &str| word.contains(part);
        let is = |names: &[&str]| names.contains(&word.as_str());
        let length = numbers.first().copied().filter(|&length| length > 0 && values.longest <= length);
        match () {
            () if is(&["", "any"]) => Self::of_values(values),
            () if has("bool") => Self::Boolean,
            () if is(&["uuid", "guid"]) => Self::Uuid,
            () if is(&["json", "jsonb"]) => Self::Jsonb,
            () if is(&["date"]) => Self::Date,
            () if is(&["time"]) => Self::Time,
            () if has("timestamptz") || has("with time zone") => Self::TimestampTz,
            () if has("datetime") || has("timestamp") => match values.offsets {
                0 => Self::Timestamp,
                _ => Self::TimestampTz,
            },
            // SQLite's own order (SQLite documentation, "Determination Of Column Affinity").
            () if has("int") => Self::Integer(64),
            () if has("char") => Self::Text(length),
            () if has("clob") || has("text") => Self::Text(None),
            () if has("blob") || has("binary") || has("bytea") => Self::Bytea,
            () if has("real") || has("floa") || has("doub") => Self::Float(64),
            () if has("num") || has("dec") || has("money") => Self::Numeric(pair(&numbers)),
            () => Self::of_values(values),
        }
    }

    /// The narrowest type that holds all of these values.
    fn of_values(values: &Profile) -> Self {
        match (values.integers > 0, values.reals > 0, values.texts > 0, values.blobs > 0) {
            (_, _, _, true) if values.texts + values.integers + values.reals == 0 => Self::Bytea,
            (true, false, false, false) => Self::Integer(64),
            (_, true, false, false) => Self::Float(64),
            _ => Self::Text(None),
        }
    }

    /// Whether a foreign key may lead from one to the other.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let class = |kind: &Self| match kind {
            Self::Integer(_) | Self::Numeric(_) | Self::Float(_) => 0,
            Self::Text(_) => 1,
            Self::Timestamp | Self::TimestampTz | Self::Date => 2,
            _ => 3,
        };
        self == other || (class(self) == class(other) && class(self) < 3)
    }
}

/// A type's word, and the numbers in its brackets: `numeric(10,2)`.
fn split(name: &str) -> (String, Vec<usize>) {
    let Some((before, rest)) = name.split_once('(') else { return (name.trim().to_owned(), Vec::new()) };
    let (inside, after) = rest.split_once(')').unwrap_or((rest, ""));
    let numbers = inside.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    (format!("{}{}", before.trim(), after.trim_end()), numbers)
}

fn pair(numbers: &[usize]) -> Option<(usize, usize)> {
    // PostgreSQL's limits (PostgreSQL documentation, 8.1.2).
    let precision = numbers.first().copied().filter(|precision| (1..=1000).contains(precision))?;
    let scale = numbers.get(1).copied().unwrap_or(0);
    (scale <= precision).then_some((precision, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_become_postgresqls() {
        let plain = Profile { integers: 1, ..Profile::default() };
        for (declared, expected) in [
            ("INTEGER", "bigint"),
            ("unsigned big int", "bigint"),
            ("tinyint(1)", "bigint"),
            ("BOOLEAN", "boolean"),
            ("bool", "boolean"),
            ("VARCHAR(30)", "varchar(30)"),
            ("nvarchar(max)", "text"),
            ("TEXT", "text"),
            ("decimal(10, 2)", "numeric(10,2)"),
            ("NUMERIC", "numeric"),
            ("numeric(5000)", "numeric"),
            ("REAL", "double precision"),
            ("BLOB", "bytea"),
            ("date", "date"),
            ("DATETIME", "timestamp"),
            ("timestamp with time zone", "timestamptz"),
            ("time", "time"),
            ("JSON", "jsonb"),
            ("char(32)", "varchar(32)"),
            ("uuid", "uuid"),
            ("", "bigint"),
            ("geometry", "bigint"),
        ] {
            assert_eq!(Kind::of_declared(declared, &plain).to_string(), expected, "{declared}");
        }
        let long = Profile { texts: 1, longest: 31, ..Profile::default() };
        assert_eq!(Kind::of_declared("VARCHAR(30)", &long), Kind::Text(None));
        let zoned = Profile { texts: 1, offsets: 1, ..Profile::default() };
        assert_eq!(Kind::of_declared("datetime", &zoned), Kind::TimestampTz);
        let mixed = Profile { texts: 1, reals: 1, ..Profile::default() };
        assert_eq!(Kind::of_declared("", &mixed), Kind::Text(None));
        assert_eq!(Kind::of_declared("", &Profile { blobs: 2, nulls: 1, ..Profile::default() }), Kind::Bytea);
    }

    #[test]
    fn the_catalogs_names_are_known() {
        for (name, expected) in [
            ("character varying(20)", Kind::Text(Some(20))),
            ("numeric(10,2)", Kind::Numeric(Some((10, 2)))),
            ("timestamp(3) with time zone", Kind::TimestampTz),
            ("timestamp without time zone", Kind::Timestamp),
            ("inet", Kind::Other("inet".to_owned())),
        ] {
            assert_eq!(Kind::of_catalog(name, Vec::new()), expected, "{name}");
        }
        assert!(matches!(Kind::of_catalog("mood", vec!["glad".to_owned()]), Kind::Enum(..)));
    }
}
