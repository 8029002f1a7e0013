//! The answer to a topic: a table of typed columns. Pure.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::telemetry::steers;

/// The most rows of a table.
pub const ROWS_MAX: usize = 100;

/// What the cells of a column are, and in which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Text,
    /// A statement's text, which may be long.
    Query,
    /// A moment, as RFC 3339 has it, in UTC.
    Time,
    /// A whole number.
    Count,
    Bytes,
    Seconds,
    Milliseconds,
    Percent,
    /// True or false.
    Flag,
}

impl Kind {
    /// Whether its cells are compared digit by digit, and so stand at their right edge.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Count | Self::Bytes | Self::Seconds | Self::Milliseconds | Self::Percent)
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// In lower case, with `_` between words.
    pub name: Cow<'static, str>,
    pub kind: Kind,
}

/// A cell. In JSON it is the value itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    Flag(bool),
    Count(i64),
    Number(f64),
    /// As the database has it: names may hold any character.
    Text(String),
    /// Not known, or not for this role to see.
    Nothing,
}

impl Cell {
    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Flag(flag) => (*flag).into(),
            Self::Count(count) => (*count).into(),
            Self::Number(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Nothing => serde_json::Value::Null,
        }
    }
}

/// The answer to a topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The topic's name.
    pub topic: Cow<'static, str>,
    pub title: Cow<'static, str>,
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Cell>>,
    /// Whether there are more rows than these.
    pub truncated: bool,
    /// What a reader should know of the rows: sums, missing rights with the statement that gives them.
    pub notes: Vec<String>,
}

impl Table {
    /// As one object for programs: each row an object with the columns' names.
    pub fn to_json(&self) -> serde_json::Value {
        let row = |cells: &Vec<Cell>| -> serde_json::Value {
            let cells = self.columns.iter().zip(cells).map(|(column, cell)| (column.name.to_string(), cell.to_json()));
            serde_json::Value::Object(cells.collect())
        };
        serde_json::json!({
            "topic": self.topic,
            "title": self.title,
            "columns": self.columns,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "truncated": self.truncated,
            "notes": self.notes,
        })
    }

    /// Keep the first `rows` rows.
    pub fn shorten(&mut self, rows: usize) {
        if self.rows.len() > rows {
            self.rows.truncate(rows);
            self.truncated = true;
        }
    }
}

/// `text` with everything escaped that a terminal or a page would not show as it is: control characters, line breaks, marks that
/// change the reading direction, letters without a width. So two names that look alike are told apart.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\r' | '\t' => shown.extend(letter.escape_default()),
            letter if is_hidden(letter) => shown.extend(letter.escape_unicode()),
            letter => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

/// The JSON text `json` with the same meaning, and nothing in it that a terminal or an editor would not show as it is.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    // JSON itself escapes the control characters of ASCII in strings, and is laid out with line breaks between them.
    let escaped = |letter: char| !matches!(letter, '\n' | '\t' | ' ') && is_hidden(letter);
    if !json.contains(escaped) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len());
    for letter in json.chars() {
        if escaped(letter) {
            shown.extend(letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

fn is_hidden(letter: char) -> bool {
    steers(letter)
        || matches!(letter, '\t' | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}')
        || matches!(letter, '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
        || matches!(letter, '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped_and_the_rest_stays() {
        for (text, shown) in [
            ("public.orders", "public.orders"),
            ("<script>alert('ä')</script>", "<script>alert('ä')</script>"),
            ("two\nlines\tand\rmore", r"two\nlines\tand\rmore"),
            ("\u{202e}gpj.exe", r"\u{202e}gpj.exe"),
            ("a\u{200b}b\u{feff}", r"a\u{200b}b\u{feff}"),
            ("\x1b[2J\u{9b}31m", r"\u{1b}[2J\u{9b}31m"),
            ("\u{2028}\u{e0041}", r"\u{2028}\u{e0041}"),
        ] {
            assert_eq!(visible(text), shown, "{text:?}");
        }
    }

    #[test]
    fn json_says_the_same_without_what_cannot_be_seen() {
        let text = "a\u{202e}b\u{9b}c\u{7f}\u{e0041}\n<ä>";
        let json = serde_json::to_string_pretty(&serde_json::json!({ text: [text] })).unwrap();
        let shown = visible_json(&json);
        assert!(!shown.contains(|letter| letter != '\n' && is_hidden(letter)) && shown.contains(r"\u202e"), "{shown}");
        assert!(shown.contains(r"\udb40\udc41") && shown.contains('ä'), "{shown}");
        let back: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(back[text][0], text);
    }

    #[test]
    fn a_table_is_the_same_after_a_way_through_json() {
        let mut table = Table {
            topic: "locks".into(),
            title: "Locks".into(),
            columns: vec![
                Column { name: "pid".into(), kind: Kind::Count },
                Column { name: "x".into(), kind: Kind::Text },
            ],
            rows: vec![
                vec![Cell::Count(1), Cell::Text("a".into())],
                vec![Cell::Number(0.5), Cell::Nothing],
                vec![Cell::Flag(true), Cell::Text(String::new())],
            ],
            truncated: false,
            notes: vec!["n".into()],
        };
        let json = serde_json::to_string(&table).unwrap();
        assert!(json.contains(r#""rows":[[1,"a"],[0.5,null],[true,""]]"#), "{json}");
        assert_eq!(serde_json::from_str::<Table>(&json).unwrap(), table);
        table.shorten(2);
        assert_eq!((table.rows.len(), table.truncated), (2, true));
    }
}
