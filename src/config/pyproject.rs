//! `[tool.tandem]` in a `pyproject.toml`: the keys of `tandem.toml`, each section under `tool.tandem`. What other tools write
//! there is none of Tandem's business, broken or not.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::text;

const NAME: &str = "pyproject.toml";

/// What stands before the name of a section in its header.
pub const ABOVE: &str = "tool.tandem.";

/// Whether `file` is read as a `pyproject.toml`.
pub fn is_one(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == NAME)
}

/// The `pyproject.toml` in `directory` that has a `[tool.tandem]`.
pub fn beside(directory: &Path) -> Option<PathBuf> {
    let file = directory.join(NAME);
    let text = file.is_file().then(|| text::read(&file).ok())??;
    says_something(&text).then_some(file)
}

/// Tandem's own table.
pub fn own_table<'a, 'text>(table: &'a DeTable<'text>) -> Option<&'a DeTable<'text>> {
    below(below(table, "tool")?, "tandem")
}

fn below<'a, 'text>(table: &'a DeTable<'text>, name: &str) -> Option<&'a DeTable<'text>> {
    match table.iter().find(|(key, _)| key.get_ref() == name)?.1.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Whether `text` configures Tandem. In a broken file a header counts that says so: its mistakes are then told.
fn says_something(text: &str) -> bool {
    let (table, errors) = DeTable::parse_recoverable(text);
    let is_header = |line: &str| {
        let name = line.trim_start().strip_prefix('[').map(|name| name.trim_start_matches('['));
        let rest = name.and_then(|name| name.strip_prefix("tool.tandem"));
        rest.is_some_and(|rest| rest.starts_with(['.', ']', ' ']))
    };
    own_table(table.get_ref()).is_some() || (!errors.is_empty() && text.lines().any(is_header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_written_for_tandem_counts() {
        for (text, counts) in [
            ("[tool.tandem.workers]\napp = 'main:app'\n", true),
            ("[tool]\ntandem = { name = 'shop' }\n", true),
            ("[[tool.tandem.process]]\nname = 'x'\n", true),
            ("[project]\nname = 'x'\n[tool.ruff]\nline-length = 100\n", false),
            ("[tool]\ntandem = 3\n", false),
            ("[tool.tandemonium]\nx = 1\n", false),
            ("[project\nname = x\n[tool.tandemonium]\n", false),
            ("[project\nname = x\n[tool.tandem]\nname = 'shop'\n", true),
        ] {
            assert_eq!(says_something(text), counts, "{text}");
        }
    }
}
