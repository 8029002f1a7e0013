//! What brings a project's database to the schema that its application needs.

use std::path::{Path, PathBuf};

use super::source::statements;
use super::{BUILT_IN_PACKAGE, Found, Manifest, Seen, files};

/// A tool that migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Alembic,
    Django,
    Yoyo,
    /// The migrations that are built into Tandem.
    BuiltIn,
    /// SQL files whose names begin with a number, which Tandem runs itself.
    NumberedSql,
    /// Other SQL files, which no tool is known to run.
    Sql,
}

impl Tool {
    pub fn name(self) -> &'static str {
        match self {
            Self::Alembic => "Alembic",
            Self::Django => "Django",
            Self::Yoyo => "yoyo",
            Self::BuiltIn => "the built-in migrations",
            Self::NumberedSql => "numbered SQL files",
            Self::Sql => "SQL files",
        }
    }
}

/// How a project is migrated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    pub tool: Tool,
    /// Where the tool runs, as a path from the project's directory; empty: there.
    pub dir: PathBuf,
}

impl Migration {
    /// The command that applies every migration that is missing; empty where no command does.
    pub fn command(&self) -> Vec<String> {
        let words: &[&str] = match self.tool {
            Tool::Alembic => &["alembic", "upgrade", "head"],
            Tool::Django => &["python", "manage.py", "migrate", "--noinput"],
            // Its own file may name another database. In a shell, so that the password is in no list of processes.
            Tool::Yoyo => &["python", "-c", YOYO],
            Tool::BuiltIn | Tool::NumberedSql | Tool::Sql => &[],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}

/// Runs yoyo on the database that `DATABASE_URL` names, with the sources of its `yoyo.ini`; yoyo knows `postgresql` for
/// psycopg2 and `postgresql+psycopg` for psycopg 3.
const YOYO: &str = "import os, sys, yoyo.scripts.main as yoyo
url = os.environ['DATABASE_URL']
for other in ('+psycopg2', '+asyncpg'): url = url.replace(other, '', 1)
sys.exit(yoyo.main(['apply', '--batch', '--database', url]))";

/// Files that say that SQL files belong to another tool, which runs them itself.
const OF_OTHERS: [&str; 7] =
    ["Cargo.toml", "go.mod", "package.json", "dbmate.toml", "flyway.conf", "sqitch.conf", "atlas.hcl"];

/// What migrates the project in `directory`, looked for in its `roots`.
pub fn find(directory: &Path, roots: &[PathBuf], manifest: &Manifest) -> Vec<Found<Migration>> {
    if let Some(seen) = built_in(directory, manifest) {
        return vec![Found::new(Migration { tool: Tool::BuiltIn, dir: PathBuf::new() }, seen)];
    }
    for root in roots {
        let found = in_root(directory, root, manifest);
        if !found.is_empty() {
            return found;
        }
    }
    roots.iter().find_map(|root| sql(directory, root)).into_iter().collect()
}

/// Where the application is seen to be the one whose tables the built-in migrations make.
fn built_in(directory: &Path, manifest: &Manifest) -> Option<Seen> {
    let packages = [PathBuf::from(BUILT_IN_PACKAGE), Path::new("src").join(BUILT_IN_PACKAGE)];
    let package = packages.into_iter().find(|package| directory.join(package).join("__init__.py").is_file());
    let named =
        [&["project", "name"][..], &["tool", "poetry", "name"]].into_iter().find_map(|path| manifest.text(path));
    let named = named.filter(|name| name.value.replace('-', "_").eq_ignore_ascii_case(BUILT_IN_PACKAGE));
    package.map(Seen::in_file).or(named.map(|name| name.seen))
}

fn in_root(directory: &Path, root: &Path, manifest: &Manifest) -> Vec<Found<Migration>> {
    let mut found = Vec::new();
    let mut add = |tool, dir: &Path, seen| {
        found.push(Found::new(Migration { tool, dir: files::plain(dir) }, seen));
    };
    let is_file = |path: &Path| directory.join(path).is_file();
    let ini =
        [root.to_path_buf(), root.join("src")].map(|dir| dir.join("alembic.ini")).into_iter().find(|it| is_file(it));
    let written = if root.as_os_str().is_empty() { manifest.get(&["tool", "alembic"]) } else { None };
    match (ini, written) {
        (Some(ini), _) => add(Tool::Alembic, ini.parent().unwrap_or(root), Seen::in_file(&ini)),
        (None, Some(item)) => add(Tool::Alembic, root, manifest.seen(item)),
        (None, None) => {}
    }
    if let [manage] = manage(directory, root).as_slice() {
        add(Tool::Django, manage.parent().unwrap_or(root), Seen::in_file(manage));
    }
    let yoyo = root.join("yoyo.ini");
    if is_file(&yoyo) {
        add(Tool::Yoyo, root, Seen::in_file(&yoyo));
    }
    found
}

/// What other tools write into their SQL files, whose second half takes the first one back: dbmate, goose, sql-migrate.
const MARKS_OF_OTHERS: [&str; 3] = ["-- migrate:", "-- +goose", "-- +migrate"];

/// A directory of plain SQL files.
fn sql(directory: &Path, root: &Path) -> Option<Found<Migration>> {
    if OF_OTHERS.iter().any(|name| directory.join(root).join(name).exists()) {
        return None;
    }
    let dirs = ["migrations", "sql", "db/migrations"].map(|name| root.join(name));
    let has_sql = |dir: &PathBuf| {
        let names = files::names(&directory.join(dir));
        names.iter().any(|name| name.ends_with(".sql")) && !names.iter().any(|name| name.ends_with(".py"))
    };
    let dir = dirs.into_iter().find(has_sql)?;
    let names = files::names(&directory.join(&dir));
    let is_ours = |name: &String| {
        let is_numbered = name.split_once('_').is_some_and(|(number, _)| number.parse::<u64>().is_ok());
        let text = files::text(&directory.join(&dir).join(name)).unwrap_or_default();
        is_numbered && !MARKS_OF_OTHERS.iter().any(|mark| text.contains(mark))
    };
    let all_ours = names.iter().filter(|name| name.ends_with(".sql")).all(is_ours);
    let tool = if all_ours { Tool::NumberedSql } else { Tool::Sql };
    Some(Found::new(Migration { tool, dir: dir.clone() }, Seen::in_file(dir)))
}

/// The `manage.py` of Django in `root`, in its `src` or one directory below, where `startproject` puts it.
pub fn manage(directory: &Path, root: &Path) -> Vec<PathBuf> {
    let is_django = |path: &PathBuf| settings_module(directory, path).is_some();
    let near = [root.to_path_buf(), root.join("src")].map(|dir| dir.join("manage.py"));
    if let Some(manage) = near.into_iter().find(is_django) {
        return vec![manage];
    }
    let below = files::names(&directory.join(root)).into_iter().filter(|name| !name.starts_with('.'));
    below.map(|name| root.join(name).join("manage.py")).filter(is_django).collect()
}

/// The settings that the `manage.py` at `path` names.
pub fn settings_module(directory: &Path, path: &Path) -> Option<String> {
    let text = files::text(&directory.join(path))?;
    let variable = "DJANGO_SETTINGS_MODULE";
    let says = |strings: &[String]| {
        let at = strings.iter().position(|text| text == variable)?;
        strings.get(at + 1).cloned()
    };
    statements(&text).iter().find_map(|statement| says(&statement.strings)).or_else(|| {
        // From another place, such as a setting of the project's own.
        text.contains(variable).then(String::new).filter(|_| text.contains("execute_from_command_line"))
    })
}
