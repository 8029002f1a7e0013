//! Begin a new migration: its file, and its line in the list.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use migration::REVISION_LENGTH_MAX;

use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};

/// The new file. It is also a module of this file's tests, so it cannot stop compiling unnoticed.
const TEMPLATE: &str = include_str!("new_migration.rs");

/// Create the next migration, called `name`, in the migration crate at `crate_dir`, and register it there.
///
/// # Errors
/// [`Code::Usage`] when `crate_dir` is not the migration crate's source or `name` cannot be a revision's.
pub fn new(crate_dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let sources = crate_dir.join("src");
    let list = sources.join("lib.rs");
    let text = fs::read_to_string(&list).map_err(|error| {
        let why = format!(
            "{} cannot be read ({error}): new migrations are written in a checkout of Tandem's source, beside its \
             Cargo.toml",
            list.display()
        );
        Failure::new(Code::Usage, why)
    })?;
    check_name(name)?;
    let number = last_number(&sources)? + 1;
    let module = format!("m{number:03}_{name}");
    let registered = register(&text, &module).ok_or_else(|| {
        let why = format!("{} has no list `REVISIONS` of migrations to add {module} to", list.display());
        Failure::new(Code::Usage, why)
    })?;

    let file = sources.join(format!("{module}.rs"));
    let mut created = fs::File::create_new(&file).with_context(|| format!("create {}", file.display()))?;
    created.write_all(TEMPLATE.as_bytes()).with_context(|| format!("write {}", file.display()))?;
    if let Err(error) = replace(&list, &registered) {
        // A file that no list names would take the number of the next one.
        let _removed = fs::remove_file(&file);
        return Err(error);
    }
    Ok(file)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let length_max = REVISION_LENGTH_MAX - "000_".len();
    let words = name.split('_').all(|word| {
        !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
    });
    ensure!(
        words && name.len() <= length_max,
        Failure::new(
            Code::Usage,
            format!(
                "`{name}` cannot name a migration: use small letters, digits and single underscores, at most {length_max} \
                 of them (Alembic's column holds {REVISION_LENGTH_MAX} with the number), such as add_user_email"
            )
        )
    );
    Ok(())
}

/// The highest number of an `mNNN_name.rs` in `sources`.
fn last_number(sources: &Path) -> anyhow::Result<u32> {
    let mut last = 0;
    for entry in fs::read_dir(sources).with_context(|| format!("list {}", sources.display()))? {
        let name = entry.with_context(|| format!("list {}", sources.display()))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('m')?.split_once('_')?.0.parse().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last)
}

/// `text` of `lib.rs` with `module` as its last migration.
fn register(text: &str, module: &str) -> Option<String> {
    let is_migration = |line: &&str| line.strip_prefix("mod m").is_some_and(|rest| rest.starts_with(char::is_numeric));
    let declaration = text.lines().rfind(is_migration)?;
    let text = text.replacen(declaration, &format!("{declaration}\nmod {module};"), 1);
    let list = text.find("pub static REVISIONS")?;
    let end = list + text[list..].find("\n];")? + 1;
    let entry = format!("    Revision {{ migration: &{module}::Migration, creates: &[], drops: &[] }},\n");
    Some([&text[..end], &entry, &text[end..]].concat())
}

/// Replace a file's text as a whole, so that an interrupted write leaves the old one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mode = path.metadata()?.permissions().mode() & 0o7777;
        durable::replace(path, text.as_bytes(), &WriteOptions::default().mode(mode))
    };
    write().with_context(|| format!("replace {}", path.display()))
}

#[cfg(test)]
#[path = "new_migration.rs"]
mod template;

#[cfg(test)]
mod tests {
    use sea_orm_migration::MigrationName;

    use super::*;
    use crate::exit::code_of;

    /// A copy of the real crate's sources.
    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migration/src")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join("src").join(path.file_name().unwrap())).unwrap();
        }
        dir
    }

    #[test]
    fn the_template_takes_its_name_from_its_file() {
        assert_eq!(template::Migration.name(), "new_migration");
    }

    #[test]
    fn migrations_are_numbered_and_registered_in_order() {
        let dir = copy();
        let next = migration::REVISIONS.len() + 1;
        for (offset, name) in ["add_notes", "drop_notes"].into_iter().enumerate() {
            let file = new(dir.path(), name).unwrap();
            let module = format!("m{:03}_{name}", next + offset);
            assert_eq!(file, dir.path().join(format!("src/{module}.rs")));
            assert_eq!(fs::read_to_string(&file).unwrap(), TEMPLATE);
        }
        let list = fs::read_to_string(dir.path().join("src/lib.rs")).unwrap();
        let lines: Vec<&str> = list.lines().collect();
        let place = |line: String| lines.iter().position(|one| *one == line).expect(&line);
        let (one, two) = (format!("m{next:03}_add_notes"), format!("m{:03}_drop_notes", next + 1));
        assert_eq!(place(format!("mod {one};")) + 1, place(format!("mod {two};")));
        let entry = |module| format!("    Revision {{ migration: &{module}::Migration, creates: &[], drops: &[] }},");
        assert_eq!(place(entry(&one)) + 1, place(entry(&two)));
        assert_eq!(lines[place(entry(&two)) + 1], "];");
    }

    #[test]
    fn bad_names_and_places_are_refused_and_leave_nothing() {
        let dir = copy();
        let files = || fs::read_dir(dir.path().join("src")).unwrap().count();
        let before = files();
        for name in ["", "Add", "a-b", "a b", "../x", "a__b", "_a", "é", "abcdefghijklmnopqrstuvwxyz_ab"] {
            let error = new(dir.path(), name).unwrap_err();
            assert_eq!(code_of(&error), Code::Usage, "{name}: {error:#}");
        }
        assert_eq!(files(), before);
        let elsewhere = tempfile::tempdir().unwrap();
        let error = new(elsewhere.path(), "add_notes").unwrap_err();
        assert_eq!(code_of(&error), Code::Usage);
        assert!(error.to_string().contains("checkout"), "{error:#}");
    }
}
