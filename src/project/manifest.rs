//! A TOML file of the project's, such as `pyproject.toml`, with the lines that things stand in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Found, Seen, Trouble, files};

/// What a `pyproject.toml`, or another TOML file, says.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    file: PathBuf,
    table: Option<Item>,
}

/// A value, and the line that it begins in.
#[derive(Clone, Debug)]
pub struct Item {
    pub line: usize,
    pub value: Value,
}

/// What is looked for in a TOML file: numbers and dates are texts.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    Boolean(bool),
    List(Vec<Item>),
    Table(BTreeMap<String, Item>),
}

impl Item {
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Item] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    pub fn table(&self) -> Option<&BTreeMap<String, Item>> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The value at `path` below this one.
    pub fn get(&self, path: &[&str]) -> Option<&Item> {
        path.iter().try_fold(self, |item, name| item.table()?.get(*name))
    }

    /// The text at `path` below this one.
    pub fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.text()
    }
}

impl Manifest {
    /// Read `file`, a path from `directory`; an empty manifest where it is not there.
    ///
    /// # Errors
    /// It is no TOML, with the line.
    pub fn read(directory: &Path, file: &Path) -> Result<Self, Trouble> {
        let Some(text) = files::text(&directory.join(file)) else { return Ok(Self::default()) };
        Self::of(file, &text)
    }

    /// As [`Self::read`], of the `text` of `file`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of(file: &Path, text: &str) -> Result<Self, Trouble> {
        let lines = Lines::of(text);
        match DeTable::parse(text) {
            Ok(table) => {
                let table = Item { line: 1, value: table_of(table.get_ref(), &lines) };
                Ok(Self { file: file.to_owned(), table: Some(table) })
            }
            Err(error) => {
                let line = lines.at(error.span().map_or(0, |span| span.start));
                // Without the library's full report, which quotes the line.
                let message = error.message().lines().collect::<Vec<_>>().join(", ");
                Err(Trouble { seen: Seen::at(file, line), message: format!("not TOML: {message}") })
            }
        }
    }

    /// Whether there is such a file.
    pub fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Its path from the project's directory.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value at `path`, such as `["project", "requires-python"]`.
    pub fn get(&self, path: &[&str]) -> Option<&Item> {
        self.table.as_ref()?.get(path)
    }

    /// The text at `path`, and where it stands.
    pub fn text(&self, path: &[&str]) -> Option<Found<String>> {
        let item = self.get(path)?;
        Some(Found::new(item.text()?.to_owned(), self.seen(item)))
    }

    /// The texts of the list at `path`.
    pub fn list(&self, path: &[&str]) -> Option<Vec<Found<String>>> {
        let item = self.get(path).filter(|item| matches!(item.value, Value::List(_)))?;
        let texts = item.list().iter();
        Some(texts.filter_map(|item| Some(Found::new(item.text()?.to_owned(), self.seen(item)))).collect())
    }

    /// Every text in the table at `path`, however deep it lies, in the order of the file.
    pub fn texts(&self, path: &[&str]) -> Vec<Found<String>> {
        let (mut found, mut next) = (Vec::new(), self.get(path).into_iter().collect::<Vec<_>>());
        while let Some(item) = next.pop() {
            match &item.value {
                Value::Text(text) => found.push(Found::new(text.clone(), self.seen(item))),
                Value::List(list) => next.extend(list.iter().rev()),
                Value::Table(table) => next.extend(table.values().rev()),
                Value::Boolean(_) => {}
            }
        }
        found.sort_by(|one, other| one.seen.cmp(&other.seen));
        found
    }

    /// Where `item` stands.
    pub fn seen(&self, item: &Item) -> Seen {
        Seen::at(&self.file, item.line)
    }
}

fn table_of(table: &DeTable<'_>, lines: &Lines) -> Value {
    let items = table.iter().map(|(key, value)| {
        let item = Item { line: lines.at(key.span().start), value: value_of(value.get_ref(), lines) };
        (key.get_ref().to_string(), item)
    });
    Value::Table(items.collect())
}

fn value_of(value: &DeValue<'_>, lines: &Lines) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Text(number.as_str().to_owned()),
        DeValue::Float(number) => Value::Text(number.as_str().to_owned()),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Array(list) => {
            let item = |it: &toml::Spanned<DeValue<'_>>| Item {
                line: lines.at(it.span().start),
                value: value_of(it.get_ref(), lines),
            };
            Value::List(list.iter().map(item).collect())
        }
        DeValue::Table(table) => table_of(table, lines),
    }
}

/// Where the lines of a text end: a lock has tens of thousands of values.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The number of the line that has the byte at `offset`.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_with_their_lines() {
        let text = "[project]\nname = 'x'\ndependencies = [\n  'fastapi',\n  'uvicorn',\n]\n[tool.poe.tasks]\nb = 'two'\n\
                    a = { cmd = 'one', n = 1 }\n";
        let manifest = Manifest::of(Path::new("pyproject.toml"), text).unwrap();
        let seen = |found: Found<String>| format!("{} {}", found.seen, found.value);
        assert_eq!(manifest.text(&["project", "name"]).map(seen).unwrap(), "pyproject.toml:2 x");
        let list = manifest.list(&["project", "dependencies"]).unwrap();
        assert_eq!(
            list.into_iter().map(seen).collect::<Vec<_>>(),
            ["pyproject.toml:4 fastapi", "pyproject.toml:5 uvicorn"]
        );
        let texts = manifest.texts(&["tool", "poe"]);
        assert_eq!(
            texts.into_iter().map(seen).collect::<Vec<_>>(),
            ["pyproject.toml:8 two", "pyproject.toml:9 one", "pyproject.toml:9 1"]
        );
        assert!(manifest.text(&["project", "dependencies"]).is_none() && manifest.list(&["project", "name"]).is_none());
        assert!(manifest.get(&["project", "name", "deeper"]).is_none());
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line_and_without_its_text() {
        let trouble = Manifest::of(Path::new("pyproject.toml"), "[project]\nname = secret\n").unwrap_err();
        assert_eq!(trouble.seen.to_string(), "pyproject.toml:2");
        assert!(
            trouble.message.starts_with("not TOML: ") && !trouble.message.contains("secret"),
            "{}",
            trouble.message
        );
    }
}
