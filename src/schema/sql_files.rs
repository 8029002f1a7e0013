//! Numbered SQL files as migrations, such as `0001_create_orders.sql`: applied in the order of their numbers by sqlx's migrator,
//! which keeps its record in the table `_sqlx_migrations`, as the command `sqlx migrate` does.
//!
//! Each file is one transaction, unless its first line is `-- no-transaction`. A file that was changed after it was applied is
//! refused. Must not decide whether a directory of SQL files is one of migrations: that is `project/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, Row, raw_sql};
use sqlx::migrate::{MigrateError, Migration, Migrator};

use super::connect::{self, ANSWER_LIMIT, answered};
use super::inspect::has_tables;
use super::lock::{APPLICATION_NAME, locked};
use super::run::{MigrationOutcome, within};
use crate::event_loop;
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;

/// Longest time for reading the directory.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// The record of sqlx's migrator.
const RECORD: &str = "_sqlx_migrations";
/// Where the record is, or would be made, and whether it is there.
const LOOK: &str = "
    SELECT coalesce((SELECT relnamespace::regnamespace::text FROM pg_catalog.pg_class
                     WHERE oid = to_regclass('_sqlx_migrations')), quote_ident(current_schema()), 'public'),
           to_regclass('_sqlx_migrations') IS NOT NULL";
/// A new file.
const TEMPLATE: &str = "-- One transaction. `-- no-transaction` as the first line runs it without one.\n";

/// One migration, and whether the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// The file's name without its ending.
    pub name: String,
    pub applied: bool,
}

/// The number of a migration's file: what stands before its first `_`.
pub fn number(name: &str) -> Option<i64> {
    let (number, rest) = name.strip_suffix(".sql")?.split_once('_')?;
    let is_number = !rest.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// Apply every file of `dir` that the record of the database lacks. Limits as for [`super::up`]; while an application
/// uses the database, no statement waits for a lock longer than `lock_timeout`.
///
/// # Errors
/// [`Code::Config`] when the files are none, or the database has tables and no record; [`Code::Schema`] when files and record
/// contradict each other; [`Code::Temporary`] when a limit has passed; otherwise what the server said to a file.
pub async fn up(
    url: &DatabaseUrl,
    dir: &Path,
    (lock_limit, limit): (Duration, Duration),
    lock_timeout: Option<Duration>,
) -> anyhow::Result<MigrationOutcome> {
    // On the heap: these futures are large, and a harness runs on a small stack.
    let work = Box::pin(async {
        let database = Database { url, lock_timeout, files: Files::read(dir).await? };
        locked(url, lock_limit, database.up()).await
    });
    within(limit, work).await
}

/// Take the newest `steps` files back, by their `….down.sql`. Limits as for [`up`].
///
/// # Errors
/// As [`up`]; [`Code::Usage`] when fewer are in, or one of them cannot be taken back.
pub async fn down(
    url: &DatabaseUrl,
    dir: &Path,
    steps: usize,
    (lock_limit, limit): (Duration, Duration),
) -> anyhow::Result<MigrationOutcome> {
    let work = Box::pin(async {
        let database = Database { url, lock_timeout: None, files: Files::read(dir).await? };
        locked(url, lock_limit, database.down(steps)).await
    });
    within(limit, work).await
}

/// Write into the record that the files up to the one called `last`, or all, are in, and run none of them.
///
/// # Errors
/// As [`up`]; [`Code::Usage`] when no file has this name or number.
pub async fn adopt(
    url: &DatabaseUrl,
    dir: &Path,
    last: Option<&str>,
    (lock_limit, limit): (Duration, Duration),
) -> anyhow::Result<MigrationOutcome> {
    let work = Box::pin(async {
        let database = Database { url, lock_timeout: None, files: Files::read(dir).await? };
        locked(url, lock_limit, database.adopt(last)).await
    });
    within(limit, work).await
}

/// Every file in the order of its number, and what the record has beside them. Reads only.
///
/// # Errors
/// The directory or the database cannot be read.
pub async fn status(url: &DatabaseUrl, dir: &Path) -> anyhow::Result<Vec<FileStatus>> {
    let database = Database { url, lock_timeout: None, files: Files::read(dir).await? };
    let (mut session, record) = database.open().await?;
    let recorded = if record.exists { recorded(&mut session, &record.table).await? } else { BTreeMap::new() };
    let _closed = answered(ANSWER_LIMIT, "close the connection", session.close()).await;
    let mut names: BTreeMap<i64, String> = recorded.iter().map(|(at, name)| (*at, format!("{at}_{name}"))).collect();
    names.extend(database.files.names.clone());
    Ok(names.into_iter().map(|(at, name)| FileStatus { name, applied: recorded.contains_key(&at) }).collect())
}

/// Write the next file of `dir`, called `name`.
///
/// # Errors
/// [`Code::Usage`] when `name` cannot be part of a file's name; the file cannot be written.
pub fn new(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if name.is_empty() || !name.chars().all(plain) {
        let message = format!("`{name}` cannot name a migration: use letters, digits and `_`, such as add_user_email");
        bail!(Failure::new(Code::Usage, message));
    }
    let written = |names: &BTreeMap<i64, String>| {
        let (last, width) = names.last_key_value().map_or((0, 4), |(last, name)| (*last, name.find('_').unwrap_or(4)));
        dir.join(format!("{:0width$}_{name}.sql", last + 1))
    };
    let path = match list(dir) {
        Ok(names) => written(&names),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => written(&BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let create = || std::io::Write::write_all(&mut fs::File::create_new(&path)?, TEMPLATE.as_bytes());
    create().with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The numbered files of `dir`: of each number, the name without its ending.
fn list(dir: &Path) -> std::io::Result<BTreeMap<i64, String>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let stem = [".down.sql", ".up.sql", ".sql"].into_iter().find_map(|end| name.strip_suffix(end));
        if let (Some(number), Some(stem)) = (number(&name), stem)
            && let Some(other) = names.insert(number, stem.to_owned())
            && other != stem
        {
            let message = format!("{other} and {stem} have the same number");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
        }
    }
    Ok(names)
}

/// The files of a directory, read.
struct Files {
    dir: PathBuf,
    names: BTreeMap<i64, String>,
    migrator: Migrator,
}

impl Files {
    async fn read(dir: &Path) -> anyhow::Result<Self> {
        let wrong = |why: String| Failure::new(Code::Config, format!("migrations.dir: {}: {why}", dir.display()));
        let (listed, of_files) = (dir.to_path_buf(), dir.to_path_buf());
        let names = event_loop::within(READ_LIMIT, "list the SQL files", move || list(&listed)).await?;
        let names = names.map_err(|error| wrong(error.to_string()))?;
        if names.is_empty() {
            bail!(wrong("there is no file such as 0001_create_orders.sql".to_owned()));
        }
        let migrator = Migrator::new(of_files).await.map_err(|error| wrong(error.to_string()))?;
        Ok(Self { dir: dir.to_path_buf(), names, migrator })
    }

    fn ups(&self) -> impl Iterator<Item = &Migration> {
        self.migrator.iter().filter(|migration| !migration.migration_type.is_down_migration())
    }

    fn name(&self, number: i64) -> String {
        self.names.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }

    /// What `error` of the migrator means here.
    fn explained(&self, error: MigrateError) -> anyhow::Error {
        let dir = self.dir.display();
        let message = match error {
            MigrateError::ExecuteMigration(error, number) => {
                return anyhow::Error::from(error).context(format!("apply {}", self.name(number)));
            }
            MigrateError::Execute(error) => return error.into(),
            MigrateError::VersionMismatch(number) => format!(
                "{} was changed after it was applied: put it back as it was, and write the change as a new file \
                 (`tandem migrate new NAME`)",
                self.name(number)
            ),
            MigrateError::VersionMissing(number) => format!(
                "the database has migration {number}, which is not in {dir}: it was made by a newer version of the \
                 application, or the file was removed"
            ),
            MigrateError::Dirty(number) => format!(
                "{} was begun without a transaction and did not end: look at what it has done, finish or undo that by hand, \
                 then delete its row from {RECORD}",
                self.name(number)
            ),
            other => other.to_string(),
        };
        Failure::new(Code::Schema, message).into()
    }
}

/// Where the record is.
struct Record {
    /// Its name with its schema, as SQL.
    table: String,
    exists: bool,
}

/// A database, and the files that are to be in it.
struct Database<'a> {
    url: &'a DatabaseUrl,
    lock_timeout: Option<Duration>,
    files: Files,
}

impl Database<'_> {
    async fn open(&self) -> anyhow::Result<(PgConnection, Record)> {
        let mut session = connect::session(self.url, APPLICATION_NAME).await?;
        connect::unlimited(&mut session).await?;
        if let Some(timeout) = self.lock_timeout {
            let set = format!("SET lock_timeout = {}", timeout.as_millis().max(1));
            answered(ANSWER_LIMIT, "set lock_timeout", raw_sql(AssertSqlSafe(set)).execute(&mut session)).await?;
        }
        let row = answered(ANSWER_LIMIT, "look for the record", raw_sql(LOOK).fetch_one(&mut session)).await?;
        let (schema, exists): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        Ok((session, Record { table: format!("{schema}.{RECORD}"), exists }))
    }

    /// The migrator with the record at `table`. Its own lock keeps `sqlx migrate` away.
    fn migrator(&self, table: &str) -> Migrator {
        let mut migrator = Migrator::with_migrations(self.files.migrator.iter().cloned().collect());
        migrator.dangerous_set_table_name(table.to_owned());
        migrator
    }

    async fn up(&self) -> anyhow::Result<MigrationOutcome> {
        let (mut session, record) = self.open().await?;
        if !record.exists && has_tables(self.url).await? {
            bail!(self.no_record());
        }
        let before = if record.exists { recorded(&mut session, &record.table).await? } else { BTreeMap::new() };
        let pending = self.files.ups().map(|migration| migration.version).filter(|at| !before.contains_key(at));
        let (pending, last) = (pending.collect::<Vec<_>>(), self.files.ups().last().map(|it| it.version));
        let mut outcome = MigrationOutcome { revision: last.map(|at| self.files.name(at)), ..Default::default() };
        // Without any, what is recorded is still compared with the files.
        let targets = if pending.is_empty() { last.into_iter().collect() } else { pending.clone() };
        for target in targets {
            let migrator = self.migrator(&record.table);
            migrator.run_to(target, &mut session).await.map_err(|error| self.files.explained(error))?;
            let _closed = answered(ANSWER_LIMIT, "close the connection", session.close()).await;
            if pending.contains(&target) {
                tracing::info!("applied migration {}", self.files.name(target));
                outcome.applied.push(self.files.name(target));
            }
            // What a file sets, such as a search path, is not for the next one.
            (session, _) = self.open().await?;
        }
        Ok(outcome)
    }

    fn no_record(&self) -> Failure {
        let (database, dir) = (&self.url.database, self.files.dir.display());
        let message = format!(
            "the database {database} has tables, and no record of which files of {dir} are in. If they are: `tandem migrate \
             adopt` writes that down and runs none (`tandem migrate adopt NAME`: the files up to that one); the next start \
             runs what is missing"
        );
        Failure::new(Code::Config, message)
    }

    async fn down(&self, steps: usize) -> anyhow::Result<MigrationOutcome> {
        let (mut session, record) = self.open().await?;
        let before = if record.exists { recorded(&mut session, &record.table).await? } else { BTreeMap::new() };
        let applied: Vec<i64> = before.keys().rev().copied().collect();
        if applied.len() < steps {
            bail!(Failure::new(Code::Usage, format!("only {} migrations are in", applied.len())));
        }
        let has_down =
            |at: &i64| self.files.migrator.iter().any(|it| it.version == *at && it.migration_type.is_down_migration());
        let (taken, kept) = applied.split_at(steps);
        if let Some(at) = taken.iter().find(|at| !has_down(at)) {
            let (name, dir) = (self.files.name(*at), self.files.dir.display());
            let message = format!("{name} cannot be taken back: {dir} has no {name}.down.sql");
            bail!(Failure::new(Code::Usage, message));
        }
        let target = kept.first().copied().unwrap_or(0);
        let migrator = self.migrator(&record.table);
        migrator.undo(&mut session, target).await.map_err(|error| self.files.explained(error))?;
        let rolled_back = taken.iter().map(|at| self.files.name(*at)).collect();
        let revision = kept.first().map(|at| self.files.name(*at));
        Ok(MigrationOutcome { rolled_back, revision, ..Default::default() })
    }

    async fn adopt(&self, last: Option<&str>) -> anyhow::Result<MigrationOutcome> {
        let named = |last: &str| {
            let is_it =
                |(at, name): &(&i64, &String)| **name == last.trim_end_matches(".sql") || last.parse() == Ok(**at);
            let found = self.files.names.iter().find(is_it).map(|(at, _)| *at);
            found.ok_or_else(|| Failure::new(Code::Usage, format!("{} has no {last}", self.files.dir.display())))
        };
        let target = last.map(named).transpose()?;
        let (mut session, record) = self.open().await?;
        let migrator = self.migrator(&record.table);
        migrator.skip(&mut session, target).await.map_err(|error| self.files.explained(error))?;
        let in_now = self.files.ups().map(|it| it.version).filter(|at| target.is_none_or(|target| *at <= target));
        let adopted = in_now.last().map(|at| self.files.name(at));
        Ok(MigrationOutcome { revision: adopted.clone(), adopted, ..Default::default() })
    }
}

/// What the record at `table` has: each number, and the description beside it.
async fn recorded(session: &mut PgConnection, table: &str) -> anyhow::Result<BTreeMap<i64, String>> {
    let ask = format!("SELECT version, description FROM {table}");
    let rows = raw_sql(AssertSqlSafe(ask)).fetch_all(session);
    let rows = answered(ANSWER_LIMIT, "read which migrations are in", rows).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<String, _>(1)?.replace(' ', "_")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_files_are_migrations() {
        for (name, wanted) in [
            ("0001_create.sql", Some(1)),
            ("20260102030405_more.up.sql", Some(20_260_102_030_405)),
            ("1.sql", None),
            ("schema.sql", None),
            ("+1_x.sql", None),
            ("1_.sql", None),
            ("_x.sql", None),
            ("0001_create.py", None),
        ] {
            assert_eq!(number(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_new_file_goes_on_with_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("migrations");
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name(new(&below, "first").unwrap()), "0001_first.sql");
        assert_eq!(name(new(&below, "second").unwrap()), "0002_second.sql");
        fs::write(below.join("20260102030405_third.up.sql"), "").unwrap();
        assert_eq!(name(new(&below, "fourth").unwrap()), "20260102030406_fourth.sql");
        assert!(new(&below, "../x").is_err());
        fs::write(below.join("1_other.sql"), "").unwrap();
        assert!(list(&below).unwrap_err().to_string().contains("the same number"));
    }
}
