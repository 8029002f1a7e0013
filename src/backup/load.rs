//! Bring a backup's content into an empty database, all of it or nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};
use tempfile::NamedTempFile;

use super::compress;
use super::dump::succeeded;
use super::existing::Existing;
use super::feed::{self, Feeding};
use super::manifest::{Census, Properties};
use super::name::Format;
use super::only::Only;
use super::pour::{Pour, Source, Transaction, pour, tell_lacking};
use super::reach::Reach;
use super::replication;
use super::rights::Rights;
use super::tokens::unquoted;
use crate::config::Compression;
use crate::exit::in_words;
use crate::postgres::embedded::{PgRestoreBuilder, dbname};
use crate::postgres::provision::identifier;
use crate::process::{self, Streamed, Streaming};
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry::Progress;

/// How many tables a directory's restore fills at once.
const JOBS: &str = "2";
/// How long it may take to list what a backup holds.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// What PostgreSQL says of a locale that the system does not have (`invalid LC_COLLATE locale name`).
const LACKS_LOCALE: &str = "locale name: ";
/// What it says where it was built without ICU.
const LACKS_ICU: &str = "ICU is not supported in this build";
/// The first server version whose databases have a locale provider.
const PROVIDERS_SINCE: u32 = 150_000;

/// What is to be brought in.
#[derive(Clone, Debug)]
pub struct Load {
    pub path: PathBuf,
    pub format: Format,
    pub compression: Compression,
    /// The SQL's length, where it is known.
    pub sql_bytes: Option<u64>,
    /// How long it may take.
    pub limit: Duration,
    /// Whether all of it is one transaction, which holds a lock on every table and index until its end.
    pub in_one: bool,
    /// Whether it is known who made it.
    pub trusted: bool,
    pub rights: Rights,
    /// The tables whose rows are wanted, where not all are.
    pub only: Option<Arc<Only>>,
}

/// A server's default locks (`max_locks_per_transaction`, 64 for each of its connections) are enough for so many objects in one
/// transaction.
const IN_ONE_MAX: usize = 500;
/// How many large objects there are, among the objects of a census.
const LARGE_OBJECTS: &str = "large objects: ";

/// Whether what `census` counted is restored in one transaction on a server whose locks are not known.
pub fn fits_in_one(census: &Census) -> bool {
    locks(census) <= IN_ONE_MAX
}

/// How many objects are locked when what `census` counted is loaded in one transaction: each, until its end. Functions and the
/// like are not always, and count all the same.
pub fn locks(census: &Census) -> usize {
    let objects = census.objects.as_deref().unwrap_or_default();
    let large = objects.iter().filter_map(|object| object.strip_prefix(LARGE_OBJECTS)?.parse::<usize>().ok());
    census.rows.len() + objects.len() + large.sum::<usize>()
}

/// Make the empty database `name` like `properties`, or like the server's own where nothing is known.
///
/// # Errors
/// The server refuses: the name is taken, or this machine does not have the locale.
pub async fn create(reach: &Reach, name: &str, owner: &str, properties: Option<&Properties>) -> anyhow::Result<()> {
    let mut session = reach.aside(name).await?;
    create_in(&mut session, name, owner, properties).await?;
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

/// As [`create`], in a session that is in another database.
///
/// # Errors
/// As [`create`].
pub async fn create_in(
    session: &mut PgConnection,
    name: &str,
    owner: &str,
    properties: Option<&Properties>,
) -> anyhow::Result<()> {
    let statement = creating(name, owner, properties, session.server_version_num());
    let create = raw_sql(AssertSqlSafe(statement)).execute(session);
    let created = answered(MAKE_LIMIT, &format!("make database {name}"), create).await;
    created.map(|_done| ()).map_err(|error| {
        let words = in_words(&error);
        match properties {
            Some(like) if words.contains(LACKS_LOCALE) => {
                error.context(LacksLocale::System { collate: like.collate.clone(), ctype: like.ctype.clone() })
            }
            Some(like) if words.contains(LACKS_ICU) => {
                error.context(LacksLocale::Icu(like.icu_locale.clone().unwrap_or_default()))
            }
            _ => error,
        }
    })
}

/// As [`create_in`]; where the operator has `chosen` a locale of the system, that one will do on a server without ICU too. Returns
/// what it was made like.
///
/// # Errors
/// As [`create_in`].
pub async fn create_as_chosen(
    session: &mut PgConnection,
    name: &str,
    owner: &str,
    properties: Option<Properties>,
    chosen: bool,
) -> anyhow::Result<Option<Properties>> {
    match create_in(session, name, owner, properties.as_ref()).await {
        Err(error) if chosen && matches!(error.downcast_ref(), Some(LacksLocale::Icu(_))) => {
            let of_system = properties.map(Properties::of_system);
            create_in(session, name, owner, of_system.as_ref()).await?;
            Ok(of_system)
        }
        created => created.map(|()| properties),
    }
}

/// Where the locale of a database that was backed up is lacking.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LacksLocale {
    #[error(
        "this machine does not have the locale of the database that was backed up, {collate} (or {ctype}): install it (on \
         Debian and Ubuntu the package locales, then locale-gen) and start Tandem anew, or restore with another one that \
         then sorts its texts (tandem restore --locale C.UTF-8, restore.locale)"
    )]
    System { collate: String, ctype: String },
    #[error(
        "this PostgreSQL is built without ICU, which the database that was backed up has its locale {0} from: use a PostgreSQL \
         that has it (postgres.source), or restore with a locale of the system that then sorts its texts (tandem restore \
         --locale C.UTF-8, restore.locale)"
    )]
    Icu(String),
}

impl LacksLocale {
    /// What is lacking, without the ways out.
    pub fn what(&self) -> String {
        match self {
            Self::System { collate, ctype } if collate == ctype => format!("this machine lacks {collate}"),
            Self::System { collate, ctype } => format!("this machine lacks {collate} or {ctype}"),
            Self::Icu(locale) => format!("this PostgreSQL is built without ICU, and so lacks {locale}"),
        }
    }
}

/// The statement that makes a database on a server of this `version`, where that is known.
fn creating(name: &str, owner: &str, properties: Option<&Properties>, version: Option<u32>) -> String {
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut statement = format!("CREATE DATABASE {} OWNER {} TEMPLATE template0", identifier(name), identifier(owner));
    let Some(like) = properties else { return statement };
    let [encoding, collate, ctype] = [&like.encoding, &like.collate, &like.ctype].map(|it| text(it));
    statement.push_str(&format!(" ENCODING {encoding} LC_COLLATE {collate} LC_CTYPE {ctype}"));
    // An older server has libc alone, and no word for it.
    if version.is_some_and(|version| version < PROVIDERS_SINCE) && like.provider == "c" {
        return statement;
    }
    let (provider, locale) = match like.provider.as_str() {
        "i" => ("icu", Some("ICU_LOCALE")),
        "b" => ("builtin", Some("BUILTIN_LOCALE")),
        _ => ("libc", None),
    };
    statement.push_str(&format!(" LOCALE_PROVIDER {provider}"));
    if let (Some(word), Some(locale)) = (locale, &like.icu_locale) {
        statement.push_str(&format!(" {word} {}", text(locale)));
    }
    statement
}

/// Drop the database `name`, whoever is in it, and the subscriptions that fill it: the dump of a database has those too.
///
/// # Errors
/// The server refuses.
pub async fn drop(reach: &Reach, name: &str) -> anyhow::Result<()> {
    let mut session = reach.aside(name).await?;
    let held = replication::of(&mut session, name).await?;
    replication::release(reach, name, &held).await?;
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name));
    let dropped = raw_sql(AssertSqlSafe(statement)).execute(&mut session);
    answered(MAKE_LIMIT, &format!("drop database {name}"), dropped).await?;
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

/// Bring `load` into the empty database `database`, which must be dropped if that fails: in one transaction where that is
/// wanted and its format allows it. The database has what is `existing` already.
///
/// # Errors
/// The file or the server refused something. The database is incomplete then: drop it.
pub async fn load(
    reach: &Reach,
    load: &Load,
    database: &str,
    existing: &Existing,
    progress: &Progress,
) -> anyhow::Result<()> {
    if load.format == Format::Directory && load.only.is_none() {
        return directory(reach, load, database, existing).await;
    }
    let source = sql(reach, load)?;
    let existing = Existing { only: load.only.clone(), ..existing.clone() };
    let transaction = if load.in_one { Transaction::One } else { Transaction::Many };
    let Load { sql_bytes, limit, .. } = load;
    pour(reach, source, &Pour { transaction, existing, sql_bytes: *sql_bytes, limit: *limit }, database, progress).await
}

/// The SQL of `load`, and the process that makes SQL of pg_restore's formats. It reads a file that was opened here: as the
/// server's user it could not open it itself. A directory, which never comes from a destination, it must open.
pub fn sql(reach: &Reach, load: &Load) -> anyhow::Result<Source> {
    let opened = || format!("open {}", load.path.display());
    if load.format == Format::Plain {
        return Ok(Source::of_file(compress::read(&load.path, load.compression).with_context(opened)?));
    }
    if load.format == Format::Directory {
        let making = PgRestoreBuilder::new().file("-");
        let making = if load.only.is_some() { making } else { making.section("pre-data") };
        let (archive, stream) = Streaming::reading(&reach.client(&making.filename(&load.path)))?;
        return Ok(Source::of_program("pg_restore", archive, stream));
    }
    let file = File::open(&load.path).with_context(opened)?;
    let (archive, stream) = Streaming::reading_from(&reach.reader(&PgRestoreBuilder::new().file("-")), file)?;
    Ok(Source::of_program("pg_restore", archive, stream))
}

/// A directory's tables are filled by several connections at once, by pg_restore itself.
async fn directory(reach: &Reach, load: &Load, database: &str, existing: &Existing) -> anyhow::Result<()> {
    reach.let_write(database, true).await?;
    let restoring = PgRestoreBuilder::new().exit_on_error().no_password().jobs(JOBS).dbname(dbname(database));
    // What is to be left out, pg_restore is told by a list of the rest.
    let lacking = lacking_of_directory(existing, reach, load).await?;
    tell_lacking(&lacking);
    let restoring = if lacking.is_empty() { restoring } else { restoring.no_tablespaces() };
    let list = match existing.is_empty() {
        true => None,
        false => Some(list_without(existing, reach, load).await?),
    };
    let restoring = match &list {
        Some(list) => restoring.use_list(list.path()),
        None => restoring,
    };
    let finished = process::run(&reach.client(&restoring.filename(&load.path)), load.limit).await?;
    let stderr = finished.stderr.lines().map(str::to_owned).collect();
    succeeded("pg_restore", &Streamed { exit: finished.exit, stderr })?;
    reach.let_write(database, false).await
}

/// The tablespaces that a directory's content names and the server lacks: pg_restore makes all or none of its choices.
async fn lacking_of_directory(existing: &Existing, reach: &Reach, load: &Load) -> anyhow::Result<BTreeSet<String>> {
    if existing.tablespaces.is_none() {
        return Ok(BTreeSet::new());
    }
    let schema = PgRestoreBuilder::new().file("-").schema_only().filename(&load.path);
    let (archive, stream) = Streaming::reading(&reach.client(&schema))?;
    let how = Feeding { restricts: false, existing: existing.clone(), bytes_max: None };
    let read = move || feed::feed(stream, &mut io::sink(), how, &AtomicU64::new(0));
    let read = tokio::task::spawn_blocking(read).await.context("read the backup's schema")?;
    succeeded("pg_restore", &archive.end(LIST_LIMIT).await?)?;
    read.context("read the backup's schema")
}

/// The list of a directory's content, without what is `existing` and what is said of extensions.
async fn list_without(existing: &Existing, reach: &Reach, load: &Load) -> anyhow::Result<NamedTempFile> {
    let list = NamedTempFile::new().context("make a list of the backup's content")?;
    let listing = PgRestoreBuilder::new().list().file(list.path()).filename(&load.path);
    let finished = process::run(&reach.client(&listing), LIST_LIMIT).await?;
    let stderr = finished.stderr.lines().map(str::to_owned).collect();
    succeeded("pg_restore", &Streamed { exit: finished.exit, stderr })?;
    let text = fs::read_to_string(list.path()).context("read the list of the backup's content")?;
    // `4; 2615 16385 SCHEMA - name owner`: names stand there without quotes, but for those in comments.
    let is_left_out = |line: &&str| {
        let is = |kind: &str, name: &str| line.contains(&format!(" {kind} {name} "));
        existing.schemas.iter().any(|name| is("SCHEMA -", &unquoted(name)))
            || existing
                .extensions
                .iter()
                .any(|name| is("EXTENSION -", &unquoted(name)) || is("COMMENT - EXTENSION", name))
    };
    let rest: Vec<&str> = text.lines().filter(|line| !is_left_out(line)).collect();
    fs::write(list.path(), rest.join("\n")).context("write the list of the backup's content")?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_holds_a_lock_counts() {
        let census = |rows: usize, objects: &[&str]| Census {
            rows: (0..rows).map(|n| (format!("public.t{n}"), 0)).collect(),
            objects: Some(objects.iter().map(|&it| it.to_owned()).collect()),
            ..Census::default()
        };
        assert_eq!(locks(&census(2, &["view public.v", "large objects: 7"])), 11);
        assert!(fits_in_one(&census(400, &["large objects: 0"])));
        assert!(!fits_in_one(&census(0, &["large objects: 3000"])));
        assert!(!fits_in_one(&census(0, &vec!["view public.v"; 501])));
        // A manifest of an older Tandem.
        assert_eq!(locks(&Census { objects: None, ..census(3, &[]) }), 3);
    }

    #[test]
    fn a_database_is_made_in_the_words_of_its_server() {
        let like = |provider: &str, locale: Option<&str>| Properties {
            owner: String::new(),
            encoding: "UTF8".to_owned(),
            collate: "it's".to_owned(),
            ctype: "C".to_owned(),
            provider: provider.to_owned(),
            icu_locale: locale.map(str::to_owned),
        };
        let start = r#"CREATE DATABASE "d" OWNER "o" TEMPLATE template0"#;
        let libc = format!("{start} ENCODING 'UTF8' LC_COLLATE 'it''s' LC_CTYPE 'C'");
        for (properties, version, wanted) in [
            (None, Some(160_004), start.to_owned()),
            (Some(like("c", None)), Some(140_012), libc.clone()),
            (Some(like("c", None)), Some(150_000), format!("{libc} LOCALE_PROVIDER libc")),
            (Some(like("c", None)), None, format!("{libc} LOCALE_PROVIDER libc")),
            (Some(like("i", Some("de"))), Some(160_004), format!("{libc} LOCALE_PROVIDER icu ICU_LOCALE 'de'")),
            (Some(like("b", Some("C"))), Some(170_000), format!("{libc} LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C'")),
        ] {
            assert_eq!(creating("d", "o", properties.as_ref(), version), wanted);
        }
    }
}
