//! Bring a backup's content into an empty database, all of it or nothing.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use sea_orm::sqlx::{AssertSqlSafe, Connection, query_scalar, raw_sql};

use super::compress;
use super::dump::{ends_whole, succeeded};
use super::manifest::Properties;
use super::name::Format;
use super::reach::Reach;
use super::replication;
use crate::config::Compression;
use crate::postgres::embedded::{PgRestoreBuilder, PsqlBuilder, dbname};
use crate::postgres::provision::identifier;
use crate::postgres::settings::SUPERUSER;
use crate::process::{self, Streamed, Streaming};
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry::Progress;

/// How much of the stream's end is looked at for the trailer, in bytes.
const TAIL_SIZE: usize = 256;
/// How much is handed over at once, in bytes.
const BLOCK_SIZE: usize = 1 << 18;
/// Between two words on the terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How many tables a directory's restore fills at once.
const JOBS: &str = "2";
/// How long roles may take to be made.
const ROLES_LIMIT: Duration = Duration::from_secs(60);
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
}

/// A server's default locks (`max_locks_per_transaction`, 64 for each of its connections) are enough for so many tables and
/// their indexes in one transaction.
const IN_ONE_MAX: usize = 500;

/// Whether a database of so many tables is restored in one transaction on a server whose locks are not known.
pub fn fits_in_one(tables: usize) -> bool {
    tables <= IN_ONE_MAX
}

/// Make the empty database `name` like `properties`, or like the server's own where nothing is known.
///
/// # Errors
/// The server refuses: the name is taken, or this machine does not have the locale.
pub async fn create(reach: &Reach, name: &str, owner: &str, properties: Option<&Properties>) -> anyhow::Result<()> {
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut statement = format!("CREATE DATABASE {} OWNER {} TEMPLATE template0", identifier(name), identifier(owner));
    if let Some(like) = properties {
        let provider = if like.provider == "i" { "icu" } else { "libc" };
        let [encoding, collate, ctype] = [&like.encoding, &like.collate, &like.ctype].map(|it| text(it));
        statement.push_str(&format!(
            " ENCODING {encoding} LC_COLLATE {collate} LC_CTYPE {ctype} LOCALE_PROVIDER {provider}"
        ));
        if let Some(locale) = &like.icu_locale {
            statement.push_str(&format!(" ICU_LOCALE {}", text(locale)));
        }
    }
    let mut session = reach.aside(name).await?;
    let create = raw_sql(AssertSqlSafe(statement)).execute(&mut session);
    answered(MAKE_LIMIT, &format!("make database {name}"), create).await?;
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
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

/// Make the roles that a globals file describes, those that are missing; for a server that is thrown away afterwards.
/// Tablespaces come to lie in its own data directory: their real places are the live server's.
///
/// # Errors
/// The file cannot be read or the server not reached.
pub async fn roles(reach: &Reach, globals: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(globals).with_context(|| format!("read {}", globals.display()))?;
    let psql = PsqlBuilder::new().dbname(dbname(SUPERUSER)).no_psqlrc().quiet().no_password().file("-");
    let command = reach.client(&psql);
    let (psql, mut stdin) = Streaming::writing(&command)?;
    let text: String = text.lines().map(|line| format!("{}\n", in_place(line))).collect();
    // What is there already is an error to psql and none to us.
    let feeding = tokio::task::spawn_blocking(move || stdin.write_all(text.as_bytes()));
    let (fed, ended) = tokio::join!(feeding, psql.end(ROLES_LIMIT));
    fed?.context("hand the roles to psql")?;
    succeeded("psql", &ended?)
}

/// A statement that makes a tablespace, made to lie in the data directory (allow_in_place_tablespaces).
fn in_place(line: &str) -> String {
    match line.split_once(" LOCATION '") {
        Some((start, _)) if line.starts_with("CREATE TABLESPACE ") => format!("{start} LOCATION '';"),
        _ => line.to_owned(),
    }
}

/// Make the role `name` unless it is there; for a server that is thrown away afterwards.
///
/// # Errors
/// The server refuses.
pub async fn role(reach: &Reach, name: &str) -> anyhow::Result<()> {
    let mut session = reach.session(SUPERUSER).await?;
    let there = query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)");
    if !answered(ANSWER_LIMIT, "look for a role", there.bind(name).fetch_one(&mut session)).await? {
        let statement = format!("CREATE ROLE {}", identifier(name));
        let made = raw_sql(AssertSqlSafe(statement)).execute(&mut session);
        answered(MAKE_LIMIT, &format!("make role {name}"), made).await?;
    }
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

/// Bring `load` into the empty database `database`, which is worth nothing when that fails: in one transaction where that is
/// wanted and its format allows it.
///
/// # Errors
/// What the file or the server did not bear. The database is worth nothing then.
pub async fn load(reach: &Reach, load: &Load, database: &str, progress: &Progress) -> anyhow::Result<()> {
    match load.format {
        Format::Plain => plain(reach, load, database, progress).await,
        Format::Custom | Format::Directory => {
            reach.let_write(database, true).await?;
            let restoring = PgRestoreBuilder::new().exit_on_error().no_password().filename(&load.path);
            let restoring = match load.format {
                Format::Directory => restoring.jobs(JOBS),
                _ if load.in_one => restoring.single_transaction(),
                _ => restoring,
            };
            let command = reach.client(&restoring.dbname(dbname(database)));
            let finished = process::run(&command, load.limit).await?;
            let stderr = finished.stderr.lines().map(str::to_owned).collect();
            succeeded("pg_restore", &Streamed { exit: finished.exit, stderr })?;
            reach.let_write(database, false).await
        }
    }
}

async fn plain(reach: &Reach, load: &Load, database: &str, progress: &Progress) -> anyhow::Result<()> {
    // As statements, and not as options of the connection: poolers refuse those.
    let psql =
        PsqlBuilder::new().dbname(dbname(database)).no_psqlrc().quiet().no_password().variable(("ON_ERROR_STOP", "1"));
    let psql = match load.in_one {
        true => psql.single_transaction().command("SET TRANSACTION READ WRITE"),
        // What is lost with the server is lost with a database that nobody uses yet; the swap's own commit waits for the disk.
        false => psql.command("SET default_transaction_read_only = off").command("SET synchronous_commit = off"),
    };
    let psql = psql.command("SET statement_timeout = 0").file("-");
    let (psql, stdin) = Streaming::writing(&reach.client(&psql))?;
    let passed = Arc::new(AtomicU64::new(0));
    let (path, compression, counter) = (load.path.clone(), load.compression, passed.clone());
    let feeding = async {
        let fed = tokio::task::spawn_blocking(move || {
            let mut stdin = stdin;
            let fed = feed(&path, compression, &mut stdin, &counter);
            (stdin, fed)
        });
        let (stdin, fed) = fed.await.context("read the backup")?;
        // An input that ends is committed: it ends only when it was whole. Else psql is killed with its input still open.
        let broken = matches!(&fed, Err(Broken::Read(_) | Broken::CutShort));
        if broken { Err(anyhow::Error::new(Kept(stdin, fed.err()))) } else { Ok(fed) }
    };
    let shown = async {
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let done = passed.load(Ordering::Relaxed);
            match load.sql_bytes.filter(|total| *total > 0) {
                Some(total) => progress.say(format!("restoring into {database}: {} %", done * 100 / total)),
                None => progress.say(format!("restoring into {database}: {} MB of SQL", done >> 20)),
            }
        }
    };
    let both = async { tokio::try_join!(feeding, async { Ok(psql.end(load.limit).await?) }) };
    let outcome = tokio::select! {
        outcome = both => outcome,
        () = shown => unreachable!("it has no end"),
    };
    let (fed, ended) = outcome.map_err(|error| match error.downcast::<Kept>() {
        Ok(Kept(_stdin, broken)) => anyhow::anyhow!("{}", broken.map_or_else(String::new, |broken| broken.to_string())),
        Err(error) => error,
    })?;
    succeeded("psql", &ended)?;
    match fed {
        Ok(()) => Ok(()),
        Err(broken) => bail!("{broken}"),
    }
}

/// psql's input, still open, and why it must not end.
#[derive(Debug, thiserror::Error)]
#[error("the input is broken")]
struct Kept(io::PipeWriter, Option<Broken>);

/// Why not all of a file was handed over.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the file is damaged: {0}")]
    Read(io::Error),
    #[error("the file is cut short: pg_dump's last line is missing")]
    CutShort,
    #[error("psql takes no more: {0}")]
    Write(io::Error),
}

fn feed(path: &Path, compression: Compression, psql: &mut impl Write, passed: &AtomicU64) -> Result<(), Broken> {
    let mut stream = compress::read(path, compression).map_err(Broken::Read)?;
    let (mut block, mut tail) = (vec![0; BLOCK_SIZE], Vec::new());
    loop {
        let length = match stream.read(&mut block) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Read(error)),
        };
        psql.write_all(&block[..length]).map_err(Broken::Write)?;
        passed.fetch_add(length as u64, Ordering::Relaxed);
        tail.extend_from_slice(&block[length.saturating_sub(TAIL_SIZE)..length]);
        tail.drain(..tail.len().saturating_sub(TAIL_SIZE));
    }
    if ends_whole(&tail) { Ok(()) } else { Err(Broken::CutShort) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_come_to_lie_in_the_data_directory() {
        let line = "CREATE TABLESPACE fast OWNER postgres LOCATION '/mnt/it''s';";
        assert_eq!(in_place(line), "CREATE TABLESPACE fast OWNER postgres LOCATION '';");
        assert_eq!(in_place("CREATE ROLE a;"), "CREATE ROLE a;");
    }
}
