//! Take a logical backup: dump, count and compress in one snapshot, and give it its name when it is whole.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use sea_orm::sqlx::{Connection, query_scalar};

use super::catalog::Catalog;
use super::census::Snapshot;
use super::compress::{self, Written};
use super::contents;
use super::estimate;
use super::files::{Partial, digest};
use super::manifest::{Globals, LAYOUT, Manifest};
use super::name::{Format, Name};
use super::only::Only;
use super::pace::Paced;
use super::reach::Reach;
use super::rights;
use super::stand_back::{self, Others};
use crate::config::{Backup, Compression, Room, Settings, Verify};
use crate::exit::{Code, Failure, in_words, is_disk_full, with_disk_full};
use crate::postgres::embedded::{PgDumpAllBuilder, PgDumpBuilder, dbname};
use crate::process::{self, Streamed, Streaming};
use crate::room::Guard;
use crate::schema::{ANSWER_LIMIT, answered};
use crate::telemetry::{self, Progress};

/// The last line of a plain dump: pg_dump writes it when it has written all. Only this shows that a dump is not cut
/// short, for the end of a file ends COPY's rows just as well. The newest releases write `\unrestrict` after it.
pub const TRAILER: &[u8] = b"-- PostgreSQL database dump complete\n";
/// How long pg_dump may wait for a table that somebody has locked.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Between two words on the terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How many tables may be left out of a dump: each is a word of the command line, and a question of pg_dump's.
const WITHOUT_MAX: usize = 2000;
/// How many tables a directory's dump reads at once.
const JOBS: &str = "2";

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub database: &'a str,
    pub format: Format,
    pub compression: Compression,
    /// How long it may take in all.
    pub limit: Duration,
    /// How many bytes of SQL it may read in a second.
    pub rate: Option<u64>,
    /// What it must leave free.
    pub stop_free: Room,
    /// Whether the rows are digested, so that a proof compares them.
    pub digests: bool,
    /// The tables whose rows are dumped, where not all are: for a dump that only these are restored from.
    pub only: Option<&'a Only>,
}

impl<'a> Wanted<'a> {
    /// What `settings` want of `database`.
    pub fn of(settings: &Settings, database: &'a str) -> Self {
        let Backup { format, compression, limit, rate, verify, .. } = settings.backup;
        Self {
            database,
            format,
            compression,
            limit,
            rate,
            stop_free: settings.disk.stop_free,
            digests: verify == Verify::Content,
            only: None,
        }
    }
}

/// Take a backup into `catalog`.
///
/// # Errors
/// What failed, with its cause. Nothing has a final name then.
pub async fn take(
    reach: &Reach,
    catalog: &Catalog,
    wanted: Wanted<'_>,
    now: DateTime<Utc>,
) -> anyhow::Result<Manifest> {
    let _lock = catalog.lock()?;
    if let Some(newest) = catalog.newest(wanted.database)?.filter(|newest| *newest > now) {
        tracing::warn!(
            "the newest backup is of {newest}, which is in the future: the clock was set back, or was wrong then"
        );
    }
    let database_bytes = size_of(reach, wanted.database).await?;
    let room = room(catalog, &wanted, database_bytes)?;
    room.check()?;
    let name = Name::new(wanted.database, now, wanted.format, file_compression(&wanted));
    let name = catalog.free_name(name);
    let taking = room.hold(whole(reach, catalog, wanted, &name, database_bytes));
    tokio::time::timeout(wanted.limit, taking).await.map_err(|_| {
        Failure::new(Code::Temporary, format!("the backup took longer than backup.limit, {:?}", wanted.limit))
    })?
}

/// The room that the backup needs.
fn room(catalog: &Catalog, wanted: &Wanted<'_>, database_bytes: u64) -> anyhow::Result<Guard> {
    let entries = catalog.entries(Some(wanted.database))?;
    let earlier = entries.iter().rev().filter_map(|entry| entry.manifest.as_ref().ok());
    let expected = estimate::dump(earlier, database_bytes, wanted.compression);
    let guard = Guard::new("backup", wanted.stop_free, catalog.server_data()).claim(catalog.dir(), expected);
    Ok(guard.advice("Make room (`tandem backup prune`, `tandem doctor`), move backup.dir"))
}

/// How large `database` is, indexes included.
async fn size_of(reach: &Reach, database: &str) -> anyhow::Result<u64> {
    let mut session = reach.session(database).await?;
    let size = query_scalar::<_, i64>("SELECT pg_catalog.pg_database_size(pg_catalog.current_database())");
    let size = answered(ANSWER_LIMIT, "ask the database's size", size.fetch_one(&mut session)).await?;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    Ok(size.cast_unsigned())
}

/// How the file as such is compressed: pg_restore's formats are compressed inside.
fn file_compression(wanted: &Wanted<'_>) -> Compression {
    if wanted.format == Format::Plain { wanted.compression } else { Compression::None }
}

async fn whole(
    reach: &Reach,
    catalog: &Catalog,
    wanted: Wanted<'_>,
    name: &Name,
    database_bytes: u64,
) -> anyhow::Result<Manifest> {
    let began = Instant::now();
    let progress = telemetry::progress(format!("backing up database {}", wanted.database));
    let needs_superuser = rights::needs(reach, wanted.database).await?;
    let mut snapshot = Snapshot::export(reach.session(wanted.database).await?).await?;
    let server_version = snapshot.server_version().await?;
    let id = snapshot.id.clone();
    let without: Vec<_> = match wanted.only {
        Some(only) => snapshot.tables().await?.iter().filter_map(|table| table.pattern_unless(only)).collect(),
        None => Vec::new(),
    };
    // Beyond that all rows are dumped, and those that are not wanted are left out when it is read.
    let without = if without.len() > WITHOUT_MAX { Vec::new() } else { without };
    let partial = Partial::beside(catalog.dir(), &name.to_string());
    let others = Others::default();
    let dumping = async {
        match wanted.format {
            Format::Plain => plain(reach, wanted, (&id, &without), &partial, (&progress, &others)).await,
            Format::Custom | Format::Directory => archive(reach, wanted, &id, &partial).await,
        }
    };
    let before = snapshot.sequences().await?;
    let counting = async { snapshot.census(reach, wanted.database, wanted.digests, wanted.only).await };
    let working = async { tokio::try_join!(dumping, counting) };
    let (dumped, mut census) = tokio::select! {
        done = working => done?,
        never = standing_back(reach, &others) => match never {},
    };
    // One that was dropped meanwhile keeps the others from being read: then nothing is known of them.
    census.sequences = snapshot.sequences().await.map(|after| contents::between(&before, &after)).unwrap_or_default();
    snapshot.close().await;
    let (roles, globals) = globals(reach, catalog, name, wanted.database).await?.unzip();
    let manifest = Manifest {
        layout: LAYOUT,
        file: name.to_string(),
        database: wanted.database.to_owned(),
        format: wanted.format,
        compression: wanted.compression,
        taken: name.taken,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        size_bytes: dumped.size_bytes,
        sql_bytes: (wanted.format == Format::Plain).then_some(dumped.stream_bytes),
        database_bytes: Some(database_bytes),
        sha256: dumped.sha256,
        globals,
        census,
        server_version,
        pg_dump_version: reach.version().to_owned(),
        tandem_version: env!("CARGO_PKG_VERSION").to_owned(),
        needs_superuser,
        imported: false,
    };
    let (catalog, name, manifest) = (catalog.clone(), name.clone(), manifest);
    tokio::task::spawn_blocking(move || catalog.publish(&name, partial, roles, &manifest).map(|()| manifest)).await?
}

/// Serving comes first, where the server is Tandem's own.
async fn standing_back(reach: &Reach, others: &Others) -> Infallible {
    match reach.own_server() {
        Some((home, port)) => stand_back::sessions(home, port, others).await,
        None => pending().await,
    }
}

/// The options of every dump.
fn dumping(wanted: &Wanted<'_>, snapshot: &str) -> PgDumpBuilder {
    let dump = PgDumpBuilder::new().dbname(dbname(wanted.database)).no_password();
    dump.snapshot(snapshot).lock_wait_timeout(LOCK_LIMIT.as_millis())
}

/// SQL through our own compression, which takes both cores.
async fn plain(
    reach: &Reach,
    wanted: Wanted<'_>,
    (snapshot, without): (&str, &[String]),
    partial: &Partial,
    (progress, others): (&Progress, &Others),
) -> anyhow::Result<Written> {
    let command = reach.client(&dumping(&wanted, snapshot).format("plain"));
    let command = without.iter().fold(command, |command, table| command.arg("--exclude-table-data").arg(table));
    let (dump, stream) = Streaming::reading(&command)?;
    let stream = Paced::new(stream, wanted.rate, others.clone());
    let file = partial.create().with_context(|| format!("make {}", partial.path().display()))?;
    let passed = Arc::new(AtomicU64::new(0));
    let (counter, compression) = (passed.clone(), wanted.compression);
    let writing = tokio::task::spawn_blocking(move || compress::write(stream, file, compression, &counter));
    let shown = async {
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let megabytes = passed.load(Ordering::Relaxed) >> 20;
            progress.say(format!("backing up database {}: {megabytes} MB of SQL", wanted.database));
        }
    };
    let (written, ended) = tokio::select! {
        both = async { tokio::join!(writing, dump.end(wanted.limit)) } => both,
        () = shown => unreachable!("it has no end"),
    };
    // A file that takes no more ends pg_dump too: the cause is told first.
    let written = written?.with_context(|| format!("write {}", partial.path().display()))?;
    succeeded("pg_dump", &ended?)?;
    if !ends_whole(&written.tail) {
        bail!("pg_dump's output is cut short: its last line is missing");
    }
    Ok(written)
}

/// Whether the last of a dump says that it is complete.
pub fn ends_whole(tail: &[u8]) -> bool {
    tail.windows(TRAILER.len()).any(|window| window == TRAILER)
}

/// The formats that pg_dump writes by itself.
async fn archive(reach: &Reach, wanted: Wanted<'_>, snapshot: &str, partial: &Partial) -> anyhow::Result<Written> {
    let path = partial.path();
    // pg_dump makes its files as the umask has it, and goes on with one that is there. It keeps a directory to its user by itself.
    if wanted.format == Format::Custom {
        partial.create().with_context(|| format!("make {}", path.display()))?;
    }
    let (format, jobs) = match wanted.format {
        Format::Directory => ("directory", JOBS),
        _ => ("custom", "1"),
    };
    let compress = match wanted.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Zstd => "zstd",
    };
    let dump = dumping(&wanted, snapshot).format(format).jobs(jobs).compress(compress).file(path);
    let command = reach.client(&dump);
    let finished = process::run(&command, wanted.limit).await?;
    succeeded(
        "pg_dump",
        &Streamed { exit: finished.exit, stderr: finished.stderr.lines().map(str::to_owned).collect() },
    )?;
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || -> anyhow::Result<Written> {
        let (sha256, size_bytes) = digest(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Written { stream_bytes: 0, size_bytes, sha256, tail: Vec::new() })
    })
    .await?
}

/// Roles and their settings. The passwords come along, as verifiers, only where we are the superuser.
async fn globals(
    reach: &Reach,
    catalog: &Catalog,
    name: &Name,
    database: &str,
) -> anyhow::Result<Option<(Partial, Globals)>> {
    let dump = PgDumpAllBuilder::new().dbname(dbname(database)).globals_only().no_password();
    let command = reach.client(&if reach.is_superuser() { dump } else { dump.no_role_passwords() });
    let path = catalog.beside(name, "globals.sql");
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = Partial::beside(catalog.dir(), &file);
    let (dump, stream) = Streaming::reading(&command)?;
    let out = partial.create().with_context(|| format!("make {}", partial.path().display()))?;
    let writing =
        tokio::task::spawn_blocking(move || compress::write(stream, out, Compression::None, &AtomicU64::new(0)));
    let (written, ended) = tokio::join!(writing, dump.end(LOCK_LIMIT));
    let written = written?.with_context(|| format!("write {}", path.display()))?;
    if let Err(error) = succeeded("pg_dumpall", &ended?) {
        if reach.is_superuser() || is_disk_full(&error) {
            return Err(error);
        }
        // A managed service may keep its roles to itself.
        tracing::warn!("the roles are not backed up: {}", in_words(&error));
        return Ok(None);
    }
    Ok(Some((partial, Globals { file, size_bytes: written.size_bytes, sha256: written.sha256 })))
}

/// Make an error of a program that failed, with what it said.
pub fn succeeded(program: &str, ended: &Streamed) -> anyhow::Result<()> {
    if ended.exit.success() {
        return Ok(());
    }
    let said = ended.stderr.join("\n  ");
    let error = with_disk_full(anyhow::anyhow!("{program} failed ({}):\n  {said}", ended.exit), &said);
    if said.contains("server version mismatch") {
        let message =
            format!("{error:#}\nTandem's PostgreSQL 16 cannot dump a newer server: set postgres.source to its version");
        return Err(Failure::new(Code::Config, message).into());
    }
    Err(error)
}
