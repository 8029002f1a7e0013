//! Restore a backup: into a new database beside the old one, verified there, and only then swapped in.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::catalog::{BackupEntry, Catalog, Origin};
use super::census::Snapshot;
use super::copies::Copies;
use super::estimate::Restorable;
use super::load::{self, Load};
use super::manifest::Manifest;
use super::reach::Reach;
use super::replication::{self, KeptReplication};
use super::restore_room;
use super::retention::State;
use super::rights::{self, NewDatabase, Rights};
use super::roles::{self, Attributes};
use super::statistics;
use super::swap::{self, Belonging, NotKnown};
use super::verify::{altered, census, globals_altered};
use crate::config::{MigrationRun, Settings};
use crate::exit::{Code, Failure, in_words};
use crate::postgres::provision::identifier;
use crate::schema::{self, ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry;

/// The key of the lock that lets one restore run at a time on a server: "restore" in ASCII.
const LOCK_KEY: i64 = 0x0072_6573_746f_7265;
const IS_ALONE: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_database
                                            WHERE NOT datistemplate AND datname NOT IN ('postgres', $1))";
/// PostgreSQL's version here.
const MAJOR: u32 = 16;

/// The message for a backup that this deployment has not signed.
pub const NOT_SIGNED: &str = "it is not signed with a key of this deployment, so anybody may have made or changed it. `tandem backup key` shows the key \
     where the backup was made, and `tandem backup key --import FILE` accepts it here; or say --trust (restore.trust) if you know \
     where it comes from";

/// There is no backup at all, here or in any place for copies, and every place was looked at.
#[derive(Debug, thiserror::Error)]
#[error("there is no backup of database {0}, neither here nor in a place for copies")]
pub struct NoBackup(String);

/// What was restored.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Restored {
    pub backup: String,
    pub database: String,
    /// What is called so now is what was there before.
    pub kept: Option<String>,
    pub rows: u64,
    pub tables: usize,
    pub duration_ms: u64,
    /// How long the database refused connections.
    pub swap_ms: u64,
    /// What logical replication holds of the kept database.
    pub replication: KeptReplication,
}

/// Find the backup that a person calls `source`: a name, a path, an address such as `s3://bucket/prefix/latest`, or `latest`. What is
/// not here is fetched from the places for copies. `latest` is the newest there is, and an older one only where `older` says so.
///
/// # Errors
/// [`Failure`]: there is none, or only an older one.
pub async fn source(
    catalog: &Catalog,
    settings: &Settings,
    (source, older): (&str, bool),
    database: &str,
) -> anyhow::Result<(Catalog, BackupEntry)> {
    if let Some((place, name)) = source.rsplit_once('/').filter(|_| source.contains("://")) {
        let copies = Copies::open(settings, place)?;
        let found = copies.find((name, older), database).await?.ok_or_else(|| {
            let destination = &copies.destination;
            let message = format!(
                "{destination} holds no backup {name} of {database}: `tandem backup list --from {destination}`"
            );
            Failure::new(Code::Usage, message)
        })?;
        return Ok((catalog.clone(), copies.fetch(&found, catalog, settings.restore_trust).await?));
    }
    let path = Path::new(source);
    if source.contains('/') {
        let there = catalog.elsewhere(path.parent().unwrap_or(Path::new("/")));
        return match there.find(source) {
            Ok(entry) => Ok((there, entry)),
            Err(_) if path.exists() => {
                let message =
                    format!("{source} is not one of Tandem's backups: `tandem backup import {source}` makes one of it");
                Err(Failure::new(Code::Usage, message).into())
            }
            Err(error) => Err(error),
        };
    }
    let here = if source == "latest" { catalog.latest_sound(database, older) } else { catalog.find(source) };
    let missing = match here {
        Ok(entry) => return Ok((catalog.clone(), entry)),
        Err(missing) => missing,
    };
    for (_, copies) in Copies::configured(settings) {
        // A place that cannot be looked at may hold what is wanted: that is not the same as none.
        let copies = copies?;
        let found = copies.find((source, older), database).await;
        let found = found.with_context(|| format!("look for backups in {}", copies.destination))?;
        if let Some(name) = found.filter(|name| catalog.entry(name.clone()).standing() != State::Bad) {
            return Ok((catalog.clone(), copies.fetch(&name, catalog, settings.restore_trust).await?));
        }
    }
    // Backups that are here and of no use are not none.
    let none = source == "latest" && catalog.entries(Some(database))?.is_empty();
    Err(if none { missing.context(NoBackup(database.to_owned())) } else { missing })
}

/// Look at a backup before anything is touched.
///
/// # Errors
/// [`Failure`] that says why it is not to be restored here.
pub async fn check<'a>(
    (catalog, entry): (&Catalog, &'a BackupEntry),
    settings: &Settings,
    database: &str,
    other_database: bool,
) -> anyhow::Result<&'a Manifest> {
    let name = &entry.name;
    let refuse =
        |code, why: String| anyhow::Error::new(Failure::new(code, format!("{name}: {why}. Nothing was changed.")));
    let manifest = entry.manifest.as_ref().map_err(|problem| refuse(Code::Failed, problem.clone()))?;
    if manifest.database != database && !other_database {
        let why = format!(
            "it is a backup of database {}, and this would replace {database}: say --other-database if that is meant",
            manifest.database
        );
        return Err(refuse(Code::Usage, why));
    }
    let major = manifest.server_version.split(['.', ' ']).next().and_then(|major| major.parse().ok());
    if major.is_none_or(|major: u32| major > MAJOR) {
        let why = format!("it is of PostgreSQL {}, and this is PostgreSQL {MAJOR}", manifest.server_version);
        return Err(refuse(Code::Schema, why));
    }
    let version = manifest.census.schema_version.as_deref();
    if settings.migrations.run == MigrationRun::SeaOrm && !version.is_none_or(schema::knows) {
        let why = format!(
            "its schema is at {}, which this tandem does not know (it knows up to {}): restore it with the newer version",
            version.unwrap_or_default(),
            schema::head()
        );
        return Err(refuse(Code::Schema, why));
    }
    if entry.origin == Origin::Unknown && !settings.restore_trust {
        return Err(refuse(Code::Failed, NOT_SIGNED.to_owned()));
    }
    let (path, copy) = (entry.path.clone(), manifest.clone());
    let beside = catalog.elsewhere(path.parent().unwrap_or(Path::new("/")));
    match tokio::task::spawn_blocking(move || altered(&path, &copy).or_else(|| globals_altered(&beside, &copy))).await?
    {
        Some(problem) => Err(refuse(Code::Failed, problem)),
        None => Ok(manifest),
    }
}

/// The right to restore on a server, as long as its session lives.
pub struct Restoring {
    pub(super) session: PgConnection,
}

impl Restoring {
    /// Take it, and drop what an interrupted restore left.
    ///
    /// # Errors
    /// [`Failure`]: another restore runs.
    pub async fn begin(reach: &Reach, database: &str) -> anyhow::Result<Self> {
        let mut session = reach.aside(database).await?;
        reach.refuse_pooler(&mut session).await?;
        let taken = query_scalar("SELECT pg_catalog.pg_try_advisory_lock($1)").bind(LOCK_KEY);
        if !answered(ANSWER_LIMIT, "take the lock of restores", taken.fetch_one(&mut session)).await? {
            bail!(Failure::new(Code::Temporary, "another restore runs on this server: wait for its end"));
        }
        for left in Belonging::New.all(&mut session, database).await? {
            tracing::info!("dropping database {left}, which an interrupted restore left");
            load::drop(reach, &left).await?;
        }
        if reach.is_superuser() {
            rights::sweep(&mut session).await?;
        }
        Ok(Self { session })
    }

    /// Whether a restore runs on this server: another session holds its lock.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn runs(session: &mut PgConnection) -> anyhow::Result<bool> {
        let taken = query_scalar("SELECT pg_catalog.pg_try_advisory_lock($1)").bind(LOCK_KEY);
        let is_ours: bool = answered(ANSWER_LIMIT, "look for a restore", taken.fetch_one(&mut *session)).await?;
        if is_ours {
            let given = query_scalar::<_, bool>("SELECT pg_catalog.pg_advisory_unlock($1)").bind(LOCK_KEY);
            answered(ANSWER_LIMIT, "look for a restore", given.fetch_one(session)).await?;
        }
        Ok(!is_ours)
    }

    /// Restore `entry` of `catalog` in the place of `database`, or as it where there is none.
    ///
    /// # Errors
    /// What failed; the database is as it was then.
    pub async fn restore(
        &mut self,
        reach: &Reach,
        (catalog, entry): (&Catalog, &BackupEntry),
        settings: &Settings,
        database: &str,
        patience: Duration,
    ) -> anyhow::Result<Restored> {
        let began = Instant::now();
        let manifest = entry.manifest.as_ref().map_err(|problem| anyhow::anyhow!("{}: {problem}", entry.name))?;
        let progress = telemetry::progress(format!("restoring {}", entry.name));
        swap::refuse_prepared(&mut self.session, database)
            .await
            .with_context(|| format!("{}: it was not restored, and database {database} is as it was", entry.name))?;
        let new = Belonging::New.name(database, Utc::now());
        let limit = settings.backup.limit;
        let room = restore_room::of(&mut self.session, reach, Restorable::of(manifest).loaded(), settings).await?;
        room.check().with_context(|| format!("{}: nothing was changed", entry.name))?;
        let filling = self.fill(reach, catalog, (entry, manifest), settings, (database, &new), &progress);
        let filled = tokio::time::timeout(limit, room.hold(filling)).await.unwrap_or_else(|_| {
            Err(Failure::new(Code::Temporary, format!("it took longer than backup.limit, {limit:?}")).into())
        });
        if let Err(error) = filled {
            give_up(reach, &new).await;
            return Err(
                error.context(format!("{}: it was not restored, and database {database} is as it was", entry.name))
            );
        }
        let (kept, swapped) = match swap::exists(&mut self.session, database).await? {
            true => {
                let kept = self.free_name(database, Utc::now()).await?;
                match swap::swap(reach, database, &new, &kept, patience).await {
                    Ok(swapped) => (Some(kept), swapped),
                    Err(error) if error.is::<NotKnown>() => return Err(error),
                    Err(error) => {
                        give_up(reach, &new).await;
                        return Err(error.context(format!("database {database} is as it was")));
                    }
                }
            }
            false => {
                let rename = format!("ALTER DATABASE {} RENAME TO {}", identifier(&new), identifier(database));
                let renamed = raw_sql(AssertSqlSafe(rename)).execute(&mut self.session);
                answered(MAKE_LIMIT, "name the database", renamed).await?;
                (None, Duration::ZERO)
            }
        };
        let replication = match &kept {
            Some(kept) => self.replication(kept).await.unwrap_or_else(|error| {
                tracing::warn!("whether logical replication goes on in {kept} is not known: {}", in_words(&error));
                KeptReplication::default()
            }),
            None => KeptReplication::default(),
        };
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ok(Restored {
            backup: entry.name.to_string(),
            database: database.to_owned(),
            kept,
            rows: manifest.census.rows_total(),
            tables: manifest.census.rows.len(),
            duration_ms: milliseconds(began.elapsed()),
            swap_ms: milliseconds(swapped),
            replication,
        })
    }

    /// Make `new`, bring the backup into it, compare, and give it what belongs to `database`.
    pub(super) async fn fill(
        &mut self,
        reach: &Reach,
        catalog: &Catalog,
        (entry, manifest): (&BackupEntry, &Manifest),
        settings: &Settings,
        (database, new): (&str, &str),
        progress: &telemetry::Progress,
    ) -> anyhow::Result<()> {
        let there = swap::exists(&mut self.session, database).await?;
        let trusted = entry.origin == Origin::Own || settings.restore_trust;
        // Where nothing was yet, nothing was revoked.
        let is_new = trusted && (!there || is_empty(reach, database).await?);
        if let Some(globals) = manifest.globals.as_ref().filter(|_| reach.is_superuser()) {
            let attributes = match is_new {
                true if self.is_alone(database).await? => Attributes::WholeServer,
                true => Attributes::All,
                false => Attributes::None,
            };
            let path = catalog.dir().join(&globals.file);
            let made = roles::complete(&mut self.session, &path, attributes).await?;
            if attributes == Attributes::None && !made.is_empty() {
                let names: Vec<String> = made.into_iter().collect();
                tracing::warn!(
                    "made without login, password, memberships and settings, as this server does not have them: role {}; the \
                     file {} says what they had",
                    names.join(", "),
                    globals.file
                );
            }
        }
        let locale = settings.restore_locale.as_deref();
        let properties = manifest.census.properties.as_ref().map(|properties| properties.in_locale(locale));
        let owner = &settings.postgres.user;
        // In the session that has the lock: if this process is killed, the server may still make the database, and no other
        // restore begins before.
        let properties = load::create_as_chosen(&mut self.session, new, owner, properties, locale.is_some()).await?;
        let properties = properties.as_ref();
        let loading = Load {
            path: entry.path.clone(),
            format: manifest.format,
            compression: manifest.compression,
            sql_bytes: manifest.sql_bytes,
            limit: settings.backup.limit,
            in_one: load::fits_in_one(&manifest.census),
            trusted,
            rights: Rights::of(manifest, entry.origin, settings.restore_trust),
            only: None,
        };
        let target = NewDatabase { name: new, owner, properties };
        rights::bring_in(reach, &loading, target, progress).await?;
        progress.say(format!("restoring {}: comparing", entry.name));
        let differences = manifest.census.differences(&census(reach, new, manifest.census.contents.is_some()).await?);
        if !differences.is_empty() {
            bail!("what was restored is not what was backed up:\n  {}", differences.join("\n  "));
        }
        progress.say(format!("restoring {}: gathering statistics", entry.name));
        statistics::gather(reach, new).await?;
        if there {
            swap::carry_over(&mut self.session, database, new).await?;
        }
        // A new machine's database has nothing yet that belongs to its name.
        if let (true, Some(level), Some(properties)) = (is_new, &manifest.census.database_level, properties) {
            level.give(&mut self.session, &properties.owner, (new, database)).await?;
        }
        Ok(())
    }

    /// Whether the server holds no other database than `database`, if that: its roles are nobody else's then.
    async fn is_alone(&mut self, database: &str) -> anyhow::Result<bool> {
        let alone = query_scalar(IS_ALONE).bind(database).fetch_one(&mut self.session);
        answered(ANSWER_LIMIT, "look for other databases", alone).await
    }

    /// A free name for the database that is replaced at `now`.
    async fn free_name(&mut self, database: &str, mut now: DateTime<Utc>) -> anyhow::Result<String> {
        loop {
            let kept = Belonging::Kept.name(database, now);
            if !swap::exists(&mut self.session, &kept).await? {
                return Ok(kept);
            }
            now += chrono::TimeDelta::seconds(1);
        }
    }

    /// What logical replication holds of `database`.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn replication(&mut self, database: &str) -> anyhow::Result<KeptReplication> {
        replication::of(&mut self.session, database).await
    }

    /// What earlier restores have replaced, the oldest first.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn kept(&mut self, database: &str) -> anyhow::Result<Vec<String>> {
        Belonging::Kept.all(&mut self.session, database).await
    }

    /// Put back what the last restore has replaced; what is there now is kept in turn. Returns both names.
    ///
    /// # Errors
    /// Nothing was replaced, or the swap failed.
    pub async fn undo(
        &mut self,
        reach: &Reach,
        database: &str,
        patience: Duration,
    ) -> anyhow::Result<(String, String)> {
        let last = self.kept(database).await?.pop().ok_or_else(|| {
            Failure::new(
                Code::Failed,
                format!("no restore has replaced database {database}, so there is nothing to put back"),
            )
        })?;
        for renamed in [database, &last] {
            swap::refuse_prepared(&mut self.session, renamed).await.context("Nothing was changed")?;
        }
        let kept = self.free_name(database, Utc::now()).await?;
        swap::swap(reach, database, &last, &kept, patience).await?;
        Ok((last, kept))
    }

    /// Let go of the lock at once.
    pub async fn end(self) {
        let _closed = answered(ANSWER_LIMIT, "close", self.session.close()).await;
    }
}

/// Remove `new`, which did not come to be.
pub(super) async fn give_up(reach: &Reach, new: &str) {
    if let Err(left) = load::drop(reach, new).await {
        tracing::warn!("database {new} stays until the next restore: {}", in_words(&left));
    }
}

/// Whether `database` holds no table of anybody's.
///
/// # Errors
/// It cannot be reached.
pub async fn is_empty(reach: &Reach, database: &str) -> anyhow::Result<bool> {
    let mut snapshot = Snapshot::export(reach.session(database).await?).await?;
    let holds_none = snapshot.tables().await?.is_empty();
    snapshot.close().await;
    Ok(holds_none)
}
