//! The text of a `tandem.toml`: tables in the order of the manual, a comment beside each key. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The tables, in the order in which `config/tandem.toml` has them.
const ORDER: [&str; 14] = [
    "",
    "postgres",
    "postgres.settings",
    "migrations",
    "python",
    "workers",
    "workers.uvicorn",
    "workers.env",
    "health",
    "stop",
    "hooks",
    "backup",
    "test",
    "log",
];

/// Where a comment begins, unless the key is longer.
const COMMENT_AT: usize = 35;

/// A configuration that is being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// Lines at the top, without their `#`.
    pub head: Vec<String>,
    /// The schema that editors check it by.
    pub schema: Option<String>,
    tables: BTreeMap<String, Vec<Line>>,
    processes: Vec<Vec<Line>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Key { name: String, value: String, comment: String },
    Comment(String),
}

impl Draft {
    /// Set `key` of the table `table` to `value`, a literal of TOML's; the first call counts.
    pub fn set(&mut self, table: &str, key: &str, value: impl Into<String>, comment: impl Into<String>) {
        if !self.has(table, key) {
            let line = Line::Key { name: key.to_owned(), value: value.into(), comment: comment.into() };
            self.tables.entry(table.to_owned()).or_default().push(line);
        }
    }

    /// Whether `key` of `table` is set.
    pub fn has(&self, table: &str, key: &str) -> bool {
        let is_it = |line: &Line| matches!(line, Line::Key { name, .. } if name == key);
        self.tables.get(table).is_some_and(|lines| lines.iter().any(is_it))
    }

    /// A line of its own in `table`.
    pub fn comment(&mut self, table: &str, text: impl Into<String>) {
        self.tables.entry(table.to_owned()).or_default().push(Line::Comment(text.into()));
    }

    /// A `[[process]]`, by its keys, values and comments.
    pub fn process(&mut self, keys: impl IntoIterator<Item = (&'static str, String, String)>) {
        let lines = keys.into_iter().map(|(name, value, comment)| Line::Key { name: name.to_owned(), value, comment });
        self.processes.push(lines.collect());
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(schema) = &self.schema {
            let _ = writeln!(text, "#:schema {schema}");
        }
        for line in &self.head {
            let _ = writeln!(text, "{}", format!("# {line}").trim_end());
        }
        let known = ORDER.iter().copied();
        let others = self.tables.keys().map(String::as_str).filter(|name| !ORDER.contains(name));
        for name in known.chain(others) {
            let Some(lines) = self.tables.get(name).filter(|lines| !lines.is_empty()) else { continue };
            begin(&mut text, if name.is_empty() { String::new() } else { format!("[{name}]\n") });
            write_lines(&mut text, lines);
        }
        for lines in &self.processes {
            begin(&mut text, "[[process]]\n".to_owned());
            write_lines(&mut text, lines);
        }
        text
    }
}

fn begin(text: &mut String, head: String) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&head);
}

fn write_lines(text: &mut String, lines: &[Line]) {
    for line in lines {
        match line {
            Line::Comment(comment) => {
                let _ = writeln!(text, "# {comment}");
            }
            Line::Key { name, value, comment } => {
                let pair = format!("{} = {value}", bare(name));
                if comment.is_empty() {
                    let _ = writeln!(text, "{pair}");
                } else {
                    let _ = writeln!(text, "{pair:<COMMENT_AT$} # {comment}");
                }
            }
        }
    }
}

/// A key, in quotes where TOML needs them.
fn bare(name: &str) -> String {
    let is_bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_bare { name.to_owned() } else { string(name) }
}

/// A string of TOML's. It has all escapes of JSON's strings, and asks for one more.
pub fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// An array of strings.
pub fn strings<T: AsRef<str>>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(|item| string(item.as_ref())).collect::<Vec<_>>().join(", "))
}

/// A table in one line.
pub fn inline(pairs: &[(String, String)]) -> String {
    let pairs = pairs.iter().map(|(name, value)| format!("{} = {}", bare(name), string(value)));
    format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_toml_in_the_manuals_order() {
        let mut draft = Draft { head: vec!["what it is".to_owned(), String::new()], ..Draft::default() };
        draft.set("workers.env", "A.B", string("say \"ß\" \u{7f}\n"), "");
        draft.set("workers", "app", string("main:app"), "as for uvicorn");
        draft.set("workers", "app", string("other:app"), "");
        draft.comment("workers", "count = 4");
        draft.set("", "name", string("shop"), "");
        draft.process([("name", string("a"), String::new()), ("command", strings(&["b", "c"]), "why".to_owned())]);
        let text = draft.text();
        assert_eq!(
            text,
            "# what it is\n#\n\nname = \"shop\"\n\n[workers]\napp = \"main:app\"                    # as for uvicorn\n# count = 4\n\n\
             [workers.env]\n\"A.B\" = \"say \\\"ß\\\" \\u007f\\n\"\n\n[[process]]\nname = \"a\"\n\
             command = [\"b\", \"c\"]                # why\n"
        );
        let read: toml::Table = text.parse().unwrap();
        assert_eq!(read["workers"]["env"]["A.B"].as_str(), Some("say \"ß\" \u{7f}\n"));
    }
}
