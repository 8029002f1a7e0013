//! Prove a backup: restore it into a throwaway cluster, and compare what is there with what its manifest says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use sea_orm::sqlx::{AssertSqlSafe, Connection, query_scalar, raw_sql};

use super::catalog::{BackupEntry, Catalog, Origin};
use super::census::Snapshot;
use super::contents;
use super::estimate::Restorable;
use super::files::digest;
use super::load::{self, LacksLocale, Load};
use super::manifest::{Census, Manifest, Properties, Verdict};
use super::reach::Reach;
use super::rights::{self, NeedsTrust, NewDatabase, Rights};
use super::roles::{self, Attributes};
use crate::config::{Settings, memory};
use crate::exit::{Code, Failure, in_words, is_disk_full, with_disk_full};
use crate::harness::Throwaway;
use crate::postgres::binaries::Installation;
use crate::postgres::embedded::PgAmCheckBuilder;
use crate::postgres::home::Home;
use crate::postgres::provision::identifier;
use crate::postgres::settings::SUPERUSER;
use crate::process::{self, Exit, identity};
use crate::room::{FileSystem, Guard};
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry::{self, Progress};

/// The database that is restored into.
const DATABASE: &str = "restored";
/// A file system in the machine's memory.
const MEMORY: &str = "/dev/shm";
/// An empty cluster and its write-ahead log, in bytes.
const CLUSTER_SIZE: u64 = 300 << 20;
/// Of the memory's free room, a verification takes at most this part.
const MEMORY_SHARE: u64 = 4;
/// The part of what this process and its children may use in all that it may take.
const MEMORY_PART: u64 = 4;
/// Settings that make a restore fast, and that the restored database may need.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "4GB"),
    ("shared_buffers", "64MB"),
    ("maintenance_work_mem", "128MB"),
    ("autovacuum", "off"),
    ("allow_in_place_tablespaces", "on"),
    // One transaction holds a lock on each table, index and large object: some 100,000 of them, in 35 MB.
    ("max_locks_per_transaction", "6400"),
];
/// So many objects are restored in one transaction, each with what it brings along.
const TRIAL_LOCKS: usize = 50_000;
/// What PostgreSQL says where this machine or this trial lacks something that the backup needs: no verdict on the backup.
const LACKS: &[&str] = &[
    "is not available",
    "could not open extension control file",
    "could not access file",
    "could not load library",
    "is not supported by this build",
    "icu is not supported",
    "could not create locale",
    "could not open collator",
    "out of shared memory",
    "out of memory",
    // An extension that works only where the server loads it at its start, which this one does not: "must be loaded via", "can
    // only be loaded via", "must be preloaded via", or without the setting's name.
    "shared_preload_libraries",
    "must be preloaded",
    // The throwaway server itself ended, for want of memory or disk.
    "server closed the connection unexpectedly",
    "connection to server was lost",
    "terminating connection because of crash",
    "the database system is",
];
/// How pg_amcheck exits when it has found damage (PostgreSQL's pg_amcheck.c).
const DAMAGED: i32 = 2;

/// What a verification needs beside the backup.
pub struct Means<'a> {
    pub settings: &'a Settings,
    pub home: &'a Home,
    pub installation: &'a Installation,
}

/// Verify `entry` of `catalog`, and record the verdict beside it.
///
/// # Errors
/// It could not be verified, as on a machine without room: that is no verdict on the backup.
pub async fn verify(means: &Means<'_>, catalog: &Catalog, entry: &BackupEntry) -> anyhow::Result<Verdict> {
    let began = Instant::now();
    let problems = match &entry.manifest {
        Err(problem) => vec![problem.clone()],
        Ok(manifest) => {
            let progress = telemetry::progress(format!("verifying {}", entry.name));
            let altered = {
                let (path, manifest) = (entry.path.clone(), manifest.clone());
                tokio::task::spawn_blocking(move || altered(&path, &manifest)).await?
            };
            match altered.or_else(|| globals_altered(catalog, manifest)) {
                Some(problem) => vec![problem],
                None => {
                    let limit = means.settings.backup.limit;
                    let restored = restored(means, catalog, entry, manifest, &progress);
                    tokio::time::timeout(limit, restored).await.map_err(|_| {
                        let message = format!("verifying {} took longer than backup.limit, {limit:?}", entry.name);
                        Failure::new(Code::Temporary, message)
                    })??
                }
            }
        }
    };
    let verdict = Verdict {
        sha256: entry.manifest.as_ref().map(|manifest| manifest.sha256.clone()).unwrap_or_default(),
        verified: Utc::now(),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        problems,
        tandem_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // The backup was removed during the verification: there is nothing to record a verdict on.
    if entry.path.exists() {
        catalog.record(&entry.name, &verdict)?;
    }
    Ok(verdict)
}

/// What is wrong with a file as such, if anything.
pub fn altered(path: &Path, manifest: &Manifest) -> Option<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (sha256, size) = match digest(path) {
        Ok(found) => found,
        Err(error) => return Some(format!("{name} cannot be read: {error}")),
    };
    let wanted = manifest.size_bytes;
    match () {
        () if sha256 == manifest.sha256 => None,
        () if size == 0 => Some(format!("{name} is empty: it had {wanted} bytes")),
        () if size < wanted => Some(format!("{name} is cut short: it has {size} of {wanted} bytes")),
        () => Some(format!("{name} was altered: its SHA-256 is not the manifest's")),
    }
}

/// What is wrong with the roles beside a backup, if anything.
pub fn globals_altered(catalog: &Catalog, manifest: &Manifest) -> Option<String> {
    let globals = manifest.globals.as_ref()?;
    match digest(&catalog.dir().join(&globals.file)) {
        Ok((sha256, _)) if sha256 == globals.sha256 => None,
        Ok(_) => Some(format!("{} was altered: its SHA-256 is not the manifest's", globals.file)),
        Err(error) => Some(format!("{} cannot be read: {error}", globals.file)),
    }
}

/// Restore it, look at it, and say what is wrong.
async fn restored(
    means: &Means<'_>,
    catalog: &Catalog,
    entry: &BackupEntry,
    manifest: &Manifest,
    progress: &Progress,
) -> anyhow::Result<Vec<String>> {
    let trial = Trial {
        load: Load {
            path: entry.path.clone(),
            format: manifest.format,
            compression: manifest.compression,
            sql_bytes: manifest.sql_bytes,
            limit: means.settings.backup.limit,
            in_one: load::locks(&manifest.census) < TRIAL_LOCKS,
            trusted: entry.origin == Origin::Own,
            rights: Rights::of(manifest, entry.origin, false),
            only: None,
        },
        globals: manifest.globals.as_ref().map(|globals| catalog.dir().join(&globals.file)),
        properties: manifest.census.properties.as_ref(),
        size: Restorable::of(manifest),
        digests: manifest.census.contents.is_some(),
    };
    let Tried { census, damage, lacks } = match try_out(means, &trial, progress).await? {
        Ok(tried) => tried,
        Err(problem) => return Ok(vec![problem]),
    };
    let mut problems = manifest.census.differences(&census);
    problems.extend(damage);
    match lacks {
        // It may be the other locale that makes the difference.
        Some(lacks) if !problems.is_empty() => {
            Err(anyhow::anyhow!(problems.join("\n  ")).context(lacks).context(untried(&entry.path)))
        }
        _ => Ok(problems),
    }
}

/// What came of a file that restores.
pub struct Tried {
    pub census: Census,
    /// What is damaged.
    pub damage: Vec<String>,
    /// Why it was tried with another locale than its own.
    pub lacks: Option<LacksLocale>,
}

/// A file that is restored to see what is in it.
pub struct Trial<'a> {
    pub load: Load,
    pub globals: Option<PathBuf>,
    pub properties: Option<&'a Properties>,
    pub size: Restorable,
    /// Whether the rows are digested too.
    pub digests: bool,
}

/// Restore a file into a throwaway cluster: what is there then and what is damaged in it, or why it does not restore.
///
/// # Errors
/// It could not be tried, as on a machine without room.
pub async fn try_out(
    means: &Means<'_>,
    trial: &Trial<'_>,
    progress: &Progress,
) -> anyhow::Result<Result<Tried, String>> {
    let loaded = trial.size.loaded();
    let dir = place(means, loaded)?;
    let throwaway = Throwaway::start(means.settings, means.installation, means.home, &dir, SETTINGS)
        .await
        .context("start a throwaway server to restore into")?;
    // Where it really lies: in a directory with less room than any server needs it would not have started.
    let room = guard(means).claim(&throwaway.home().data, loaded);
    match room.hold(load_and_look(means, trial, &throwaway, progress)).await {
        Ok(found) => Ok(Ok(found)),
        // What fails on a disk without room says nothing of the backup.
        Err(error) if error.is::<Failure>() => Err(error),
        Err(error) => error.downcast::<DoesNotRestore>().map(|verdict| Err(verdict.to_string())),
    }
}

/// What is wrong with the backup.
#[derive(Debug, thiserror::Error)]
#[error("it does not restore: {0}")]
struct DoesNotRestore(String);

async fn load_and_look(
    means: &Means<'_>,
    trial: &Trial<'_>,
    throwaway: &Throwaway,
    progress: &Progress,
) -> anyhow::Result<Tried> {
    let reach = Reach::superuser(throwaway.home(), throwaway.port(), means.installation.clone());
    let owner = trial.properties.map_or(&means.settings.postgres.user, |properties| &properties.owner);
    make_roles(&reach, trial, owner).await?;
    // Checks, ranges and indexes of texts hold in the backup's own locale, and need not in another.
    let own = trial.properties.cloned().unwrap_or_else(unknown_world);
    let (world, lacks) = make_database(&reach, owner, own).await.with_context(|| untried(&trial.load.path))?;
    let target = NewDatabase { name: DATABASE, owner, properties: Some(&world) };
    if let Err(error) = rights::bring_in(&reach, &trial.load, target, progress).await {
        let words = in_words(&error);
        if is_disk_full(&error) {
            return Err(error.context("restore into a throwaway server"));
        }
        if error.is::<NeedsTrust>() || tells_of_the_trial(&words) {
            return Err(error.context(untried(&trial.load.path)));
        }
        if let Some(lacks) = lacks {
            return Err(error.context(lacks).context(untried(&trial.load.path)));
        }
        return Err(DoesNotRestore(words).into());
    }
    progress.say("counting what was restored");
    let limit = trial.load.limit;
    let found = tokio::time::timeout(limit, census(&reach, DATABASE, trial.digests)).await;
    let found = found.with_context(|| format!("count what was restored: longer than backup.limit, {limit:?}"))??;
    disable_event_triggers(&reach).await.with_context(|| untried(&trial.load.path))?;
    let damage = corruption(&reach, limit).await.with_context(|| untried(&trial.load.path))?;
    Ok(Tried { census: found, damage: damage.into_iter().collect(), lacks })
}

/// Make the database like `own`, or with a locale that every machine has where this one lacks its own: what restores with that
/// one is whole, and what does not need not be broken.
async fn make_database(
    reach: &Reach,
    owner: &str,
    own: Properties,
) -> anyhow::Result<(Properties, Option<LacksLocale>)> {
    let error = match load::create(reach, DATABASE, owner, Some(&own)).await {
        Ok(()) => return Ok((own, None)),
        Err(error) => error,
    };
    let Some(lacks) = error.downcast_ref::<LacksLocale>().cloned() else { return Err(error) };
    let plain = own.in_plain_locale();
    tracing::info!("tried with locale {}: {}", plain.collate, lacks.what());
    load::create(reach, DATABASE, owner, Some(&plain)).await?;
    Ok((plain, Some(lacks)))
}

/// Make the roles that the backup has, and the one that owns its database.
async fn make_roles(reach: &Reach, trial: &Trial<'_>, owner: &str) -> anyhow::Result<()> {
    let mut session = reach.session(SUPERUSER).await?;
    if let Some(globals) = &trial.globals {
        let attributes = if trial.load.trusted { Attributes::All } else { Attributes::None };
        roles::complete_throwaway(&mut session, globals, attributes).await?;
    }
    let there = query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)").bind(owner);
    if !answered(ANSWER_LIMIT, "look for a role", there.fetch_one(&mut session)).await? {
        let make = raw_sql(AssertSqlSafe(format!("CREATE ROLE {}", identifier(owner)))).execute(&mut session);
        answered(MAKE_LIMIT, &format!("make role {owner}"), make).await?;
    }
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

/// What `database` of a server holds now. Counting takes as long as it takes: the caller sets a limit.
///
/// # Errors
/// It cannot be read.
pub async fn census(reach: &Reach, database: &str, digests: bool) -> anyhow::Result<Census> {
    let mut snapshot = Snapshot::export(reach.session(database).await?).await?;
    let sequences = snapshot.sequences().await?;
    let mut census = snapshot.census(reach, database, digests, None).await?;
    census.sequences = contents::between(&sequences, &sequences);
    snapshot.close().await;
    Ok(census)
}

/// What a dump is restored into that says nothing of its own database.
fn unknown_world() -> Properties {
    Properties {
        owner: String::new(),
        encoding: "UTF8".to_owned(),
        collate: "C.UTF-8".to_owned(),
        ctype: "C.UTF-8".to_owned(),
        provider: "c".to_owned(),
        icu_locale: None,
    }
}

/// Whether what PostgreSQL's programs said is about this machine, and not about the backup.
fn tells_of_the_trial(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    // `collation "de_DE.utf8" for encoding "UTF8" does not exist`: those of the system are in no dump.
    let lacks_collation = words.contains("collation \"") && words.contains("for encoding");
    lacks_collation || LACKS.iter().any(|lack| words.contains(lack))
}

/// What is said of a backup that this machine cannot try out: it may be good.
fn untried(path: &Path) -> Failure {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Failure::new(Code::Temporary, format!("{name} could not be tried here, which says nothing against it"))
}

/// Keep the schema's own event triggers from refusing what looks at it: pg_amcheck makes an extension. None fires for this.
async fn disable_event_triggers(reach: &Reach) -> anyhow::Result<()> {
    let mut session = reach.session(DATABASE).await?;
    let names = query_scalar::<_, String>("SELECT evtname::text FROM pg_catalog.pg_event_trigger");
    for name in answered(ANSWER_LIMIT, "list the event triggers", names.fetch_all(&mut session)).await? {
        let disable = format!("ALTER EVENT TRIGGER {} DISABLE", identifier(&name));
        rights::run(&mut session, &format!("disable event trigger {name}"), disable).await?;
    }
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

/// What pg_amcheck says of tables and indexes (PostgreSQL documentation, pg_amcheck).
async fn corruption(reach: &Reach, limit: Duration) -> anyhow::Result<Option<String>> {
    let check = PgAmCheckBuilder::new().install_missing().no_password().jobs("2").dbname(DATABASE);
    let finished = process::run(&reach.reader(&check), limit).await?;
    if finished.exit.success() {
        return Ok(None);
    }
    let said = format!("{}{}", finished.stdout, finished.stderr);
    // Any other code says that it could not look.
    if finished.exit != Exit::Code(DAMAGED) || tells_of_the_trial(&said) {
        let error = anyhow::anyhow!("pg_amcheck failed ({}): {}", finished.exit, said.trim_end());
        return Err(with_disk_full(error, &said));
    }
    Ok(Some(format!("pg_amcheck finds damage in the restored database: {}", said.trim_end())))
}

/// Where to restore: in memory where that is little of it, else on the state directory's disk.
fn place(means: &Means<'_>, loaded: u64) -> anyhow::Result<PathBuf> {
    let needed = loaded.saturating_add(CLUSTER_SIZE);
    let in_memory = Path::new(MEMORY);
    // What is in there counts as this process's memory, which a control group may limit.
    let free = FileSystem::of(in_memory).map_or(0, |there| there.free);
    if is_little(needed, memory::available(), free) && identity::may_write(in_memory, None) {
        return Ok(in_memory.to_owned());
    }
    let disk = &means.home.state;
    guard(means).claim(disk, needed).check()?;
    Ok(disk.clone())
}

/// Whether `needed` bytes are little of the memory that this process and its children may use, `available`, and of what is `free`
/// of it. Pure.
fn is_little(needed: u64, available: u64, free: u64) -> bool {
    needed < available / MEMORY_PART && needed < free / MEMORY_SHARE
}

fn guard(means: &Means<'_>) -> Guard {
    let guard = Guard::new("verification", means.settings.disk.stop_free, Some(&means.home.data));
    guard.advice("Make room (`tandem doctor` shows what of Tandem's can go), or move state_dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verification_takes_memory_only_where_that_is_little_of_it() {
        let gigabytes = |count: u64| count << 30;
        assert!(is_little(gigabytes(1), gigabytes(16), gigabytes(8)));
        assert!(!is_little(gigabytes(1), gigabytes(4), gigabytes(8)), "a quarter of what a control group grants");
        assert!(!is_little(gigabytes(2), gigabytes(64), gigabytes(8)), "a quarter of what is free there");
        assert!(
            !is_little(CLUSTER_SIZE, gigabytes(1), gigabytes(32)),
            "not even an empty cluster in a small container"
        );
        assert!(!is_little(0, gigabytes(1), 0), "there is no such file system");
    }

    #[test]
    fn what_this_machine_lacks_is_no_verdict() {
        for words in [
            "ERROR:  pg_cron can only be loaded via shared_preload_libraries",
            "ERROR:  pg_stat_statements must be loaded via \"shared_preload_libraries\"",
            "FATAL:  extension \"timescaledb\" must be preloaded",
            "ERROR:  extension \"postgis\" is not available",
            "ERROR:  collation \"pg_catalog.de_DE.utf8\" for encoding \"UTF8\" does not exist",
        ] {
            assert!(tells_of_the_trial(words), "{words}");
        }
        assert!(!tells_of_the_trial("ERROR:  relation \"public.loaded\" does not exist"));
    }
}
