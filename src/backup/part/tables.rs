//! Some tables of a backup, or a schema, beside what is live.
//!
//! The dump is loaded into a scratch database of the same server, with the rows of what is asked for alone, which reads it once and
//! writes little. There it gets its new names, and from there it comes into the live database in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use chrono::Utc;
use sea_orm::sqlx::{Connection, PgConnection, raw_sql};
use serde::Serialize;

use super::super::catalog::{BackupEntry, Catalog, Origin};
use super::super::census::Snapshot;
use super::super::estimate::Restorable;
use super::super::load::{self, Load};
use super::super::manifest::{Census, Manifest};
use super::super::reach::Reach;
use super::super::restore::{Restoring, give_up};
use super::super::restore_room;
use super::super::rights::{self, NewDatabase, Rights};
use super::super::roles::{self, Attributes};
use super::super::swap::{self, Belonging};
use super::bring::{self, Bringing};
use super::keys::{self, LeftOut};
use super::objects::{self, Referred};
use super::shape::{self, Shape};
use super::wish::{Named, Part, Wish};
use crate::config::Settings;
use crate::exit::{Code, Failure, in_words};
use crate::schema::{ANSWER_LIMIT, answered};
use crate::telemetry;

/// In the scratch database nothing of the dump's own is run or found: no event trigger, no operator before PostgreSQL's.
const ALONE: &str = "SET search_path = ''; SET session_replication_role = replica";
/// Where the live database's event triggers are to run, or we may not turn any off.
const ALONE_AS_A_ROLE: &str = "SET search_path = ''";
/// What PostgreSQL says of something that a table uses and that is not there.
const LACKS: &str = "does not exist";
const TAKEN_FROM_LIVE: &str = "types, functions and sequences that a table uses are the live database's: where they are not there any \
     more, --schema NAME restores all that a schema has, and --database NAME all of the backup in a database of its own";
/// How many tables that exist are named.
const NAMED_MAX: usize = 3;

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredPart {
    pub backup: String,
    pub database: String,
    pub tables: Vec<RestoredTable>,
    pub rows: u64,
    /// Foreign keys that lead from or to tables that were not restored with it.
    pub foreign_keys_left_out: Vec<LeftOut>,
    pub large_objects: Referred,
    pub duration_ms: u64,
}

/// A table that was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredTable {
    pub table: Named,
    pub into: Named,
    /// As the manifest counted and the database has them; none of a partitioned table's own.
    pub rows: u64,
}

/// What is restored from what to where.
struct Restore<'a> {
    reach: &'a Reach,
    catalog: &'a Catalog,
    entry: &'a BackupEntry,
    manifest: &'a Manifest,
    settings: &'a Settings,
    /// The live database, and the scratch one.
    live: &'a str,
    scratch: &'a str,
    wish: &'a Wish,
    rights: Rights,
    trusted: bool,
}

impl Restoring {
    /// Restore `part` of `entry` of `catalog` into `database`, beside what it holds.
    ///
    /// # Errors
    /// What failed; the database is as it was then.
    pub async fn part(
        &mut self,
        reach: &Reach,
        (catalog, entry): (&Catalog, &BackupEntry),
        settings: &Settings,
        database: &str,
        part: &Part,
    ) -> anyhow::Result<RestoredPart> {
        let began = Instant::now();
        let manifest = entry.manifest.as_ref().map_err(|problem| anyhow::anyhow!("{}: {problem}", entry.name))?;
        let wish = Wish::of(part, &manifest.census)
            .map_err(|error| Failure::new(Code::Usage, format!("{}: {error}. Nothing was changed", entry.name)))?;
        if !swap::exists(&mut self.session, database).await? {
            let text =
                format!("there is no database {database} to restore into: `tandem restore {}` makes it", entry.name);
            return Err(Failure::new(Code::Usage, text).into());
        }
        let mut live = alone(reach, database, ALONE_AS_A_ROLE).await?;
        refuse_existing(&mut live, database, &wish).await?;
        let _closed = answered(ANSWER_LIMIT, "close", live.close()).await;
        let scratch = Belonging::New.name(database, Utc::now());
        // It is there twice for a while.
        let loaded = share(manifest, &wish).saturating_mul(2);
        let room = restore_room::of(&mut self.session, reach, loaded, settings).await?;
        room.check().with_context(|| format!("{}: nothing was changed", entry.name))?;
        let trusted = entry.origin == Origin::Own || settings.restore_trust;
        let rights = Rights::of(manifest, entry.origin, settings.restore_trust);
        let restore = Restore {
            reach,
            catalog,
            entry,
            manifest,
            settings,
            live: database,
            scratch: &scratch,
            wish: &wish,
            rights,
            trusted,
        };
        let limit = settings.backup.limit;
        let working = room.hold(restore.run(&mut self.session));
        let done = tokio::time::timeout(limit, working).await.unwrap_or_else(|_| {
            Err(Failure::new(Code::Temporary, format!("it took longer than backup.limit, {limit:?}")).into())
        });
        give_up(reach, &scratch).await;
        let (shape, rows, large_objects) = match done {
            Ok(done) => done,
            Err(error) => {
                if reach.is_superuser() {
                    rights::sweep(&mut self.session).await?;
                }
                return Err(error.context(fate(reach, database, &wish, &entry.name.to_string()).await));
            }
        };
        match alone(reach, database, ALONE_AS_A_ROLE).await {
            Ok(mut live) => {
                bring::analyze(&mut live, shape.moved()).await;
                let _closed = answered(ANSWER_LIMIT, "close", live.close()).await;
            }
            Err(error) => {
                tracing::warn!("no statistics could be gathered, and plans may be slow: {}", in_words(&error))
            }
        }
        let tables: Vec<RestoredTable> = (shape.moved().iter())
            .map(|moved| RestoredTable {
                rows: rows.rows.get(&moved.from.to_string()).copied().unwrap_or_default(),
                table: moved.from.clone(),
                into: moved.to.clone(),
            })
            .collect();
        let from: BTreeSet<&Named> = tables.iter().map(|table| &table.table).collect();
        Ok(RestoredPart {
            backup: entry.name.to_string(),
            database: database.to_owned(),
            rows: rows.rows_total(),
            foreign_keys_left_out: keys::left_out(&manifest.census, |table| from.contains(table)),
            tables,
            large_objects,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl Restore<'_> {
    /// All of it; the scratch database is left.
    async fn run(&self, aside: &mut PgConnection) -> anyhow::Result<(Shape, Census, Referred)> {
        let progress = telemetry::progress(format!("restoring from {}", self.entry.name));
        self.fill(aside, &progress).await?;
        progress.say(format!("restoring from {}: comparing", self.entry.name));
        let rows = self.compare().await?;
        let as_it_is = if self.reach.is_superuser() { ALONE } else { ALONE_AS_A_ROLE };
        let mut scratch = alone(self.reach, self.scratch, as_it_is).await?;
        let mut live = alone(self.reach, self.live, ALONE_AS_A_ROLE).await?;
        let shape = shape::shape(&mut scratch, &mut live, self.wish).await?;
        let referred = objects::referred(&mut scratch, &mut live, shape.moved()).await?;
        let _closed = answered(ANSWER_LIMIT, "close", scratch.close()).await;
        let bringing = Bringing {
            scratch: self.scratch,
            live: self.live,
            shape: &shape,
            rows: &rows.rows,
            rights: self.rights,
            trusted: self.trusted,
            limit: self.settings.backup.limit,
        };
        bringing.bring(self.reach, &progress).await.map_err(|error| match in_words(&error).contains(LACKS) {
            true => error.context(TAKEN_FROM_LIVE),
            false => error,
        })?;
        let _closed = answered(ANSWER_LIMIT, "close", live.close()).await;
        Ok((shape, rows, referred))
    }

    /// Make the scratch database, with everything but the rows of other tables.
    async fn fill(&self, aside: &mut PgConnection, progress: &telemetry::Progress) -> anyhow::Result<()> {
        let Self { manifest, settings, .. } = self;
        if let Some(globals) = manifest.globals.as_ref().filter(|_| self.reach.is_superuser()) {
            roles::complete(aside, &self.catalog.dir().join(&globals.file), Attributes::None).await?;
        }
        let locale = settings.restore_locale.as_deref();
        let properties = manifest.census.properties.as_ref().map(|properties| properties.in_locale(locale));
        let owner = &settings.postgres.user;
        let properties = load::create_as_chosen(aside, self.scratch, owner, properties, locale.is_some()).await?;
        let loading = Load {
            path: self.entry.path.clone(),
            format: manifest.format,
            compression: manifest.compression,
            sql_bytes: manifest.sql_bytes,
            limit: settings.backup.limit,
            in_one: load::fits_in_one(&manifest.census),
            trusted: self.trusted,
            rights: self.rights,
            only: Some(Arc::new(self.wish.only(&manifest.census))),
        };
        let target = NewDatabase { name: self.scratch, owner, properties: properties.as_ref() };
        rights::bring_in(self.reach, &loading, target, progress).await
    }

    /// The rows of the scratch database, which are those of the manifest.
    async fn compare(&self) -> anyhow::Result<Census> {
        let only = self.wish.only(&self.manifest.census);
        let mut snapshot = Snapshot::export(self.reach.session(self.scratch).await?).await?;
        let digests = self.manifest.census.contents.is_some();
        let wants = |schema: &str, table: &str| only.holds(Some(schema), table);
        let (found, all) = snapshot.rows_of(self.reach, self.scratch, digests, wants).await?;
        snapshot.close().await;
        let found = Census { schema_version: None, ..found };
        let wanted = wanted(&self.manifest.census, |table| match &only.schema {
            // What another schema has may begin alike.
            Some(schema) => {
                found.rows.contains_key(table) || (!all.contains(table) && table.starts_with(&format!("{schema}.")))
            }
            None => only.tables.iter().any(|(schema, name)| *table == format!("{schema}.{name}")),
        });
        let differences = wanted.differences(&found);
        if !differences.is_empty() {
            bail!("what was restored is not what was backed up:\n  {}", differences.join("\n  "));
        }
        Ok(found)
    }
}

/// What a failure has left in the live database: nothing, unless it came after the commit.
async fn fate(reach: &Reach, database: &str, wish: &Wish, backup: &str) -> String {
    let look = async {
        let mut live = alone(reach, database, ALONE_AS_A_ROLE).await?;
        let there = match wish {
            Wish::Schema(_, into) => {
                bring::schema_exists(&mut live, into).await? && !bring::is_empty_schema(&mut live, into).await?
            }
            Wish::Tables(wanted) => {
                let into: Vec<&Named> = wanted.iter().map(|wanted| &wanted.into).collect();
                !bring::existing(&mut live, &into).await?.is_empty()
            }
        };
        let _closed = answered(ANSWER_LIMIT, "close", live.close()).await;
        anyhow::Ok(there)
    };
    match look.await {
        Ok(false) => format!("{backup}: nothing of it was restored, and database {database} is as it was"),
        Ok(true) => format!("{backup}: what was asked for is in database {database}, though"),
        Err(_) => format!("{backup}: whether what was asked for is in database {database} is not known"),
    }
}

/// A session in `database` in which no name leads to anything of its own.
async fn alone(reach: &Reach, database: &str, settings: &'static str) -> anyhow::Result<PgConnection> {
    let mut session = reach.session(database).await?;
    answered(ANSWER_LIMIT, "leave the search path", raw_sql(settings).execute(&mut session)).await?;
    Ok(session)
}

/// What `census` says of the rows of some tables.
fn wanted(census: &Census, is_wanted: impl Fn(&String) -> bool) -> Census {
    let rows: BTreeMap<String, u64> =
        census.rows.iter().filter(|(table, _)| is_wanted(table)).map(|(table, rows)| (table.clone(), *rows)).collect();
    let partitions = census.partitions.iter().filter(|(leaf, _)| rows.contains_key(*leaf));
    let partitions: BTreeMap<String, String> = partitions.map(|(leaf, root)| (leaf.clone(), root.clone())).collect();
    let contents = census.contents.as_ref().map(|contents| {
        let is_there = |table: &String| rows.contains_key(table) || partitions.values().any(|root| root == table);
        contents.iter().filter(|(table, _)| is_there(table)).map(|(table, it)| (table.clone(), it.clone())).collect()
    });
    Census { rows, partitions, contents, ..Census::default() }
}

/// How large what is asked for becomes, as far as its share of all rows tells.
fn share(manifest: &Manifest, wish: &Wish) -> u64 {
    let (census, loaded) = (&manifest.census, Restorable::of(manifest).loaded());
    let only = wish.only(census);
    let is_wanted = |table: &str| match &only.schema {
        Some(schema) => table.starts_with(&format!("{schema}.")),
        None => only.tables.iter().any(|(schema, name)| table == format!("{schema}.{name}")),
    };
    let rows: u64 = census.rows.iter().filter(|(table, _)| is_wanted(table)).map(|(_, rows)| rows).sum();
    let part = u128::from(loaded) * u128::from(rows) / u128::from(census.rows_total().max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// Refuse to restore what is there.
async fn refuse_existing(live: &mut PgConnection, database: &str, wish: &Wish) -> anyhow::Result<()> {
    let text = match wish {
        Wish::Schema(_, into) => {
            let is_used = bring::schema_exists(live, into).await? && !bring::is_empty_schema(live, into).await?;
            is_used.then(|| format!("schema {into} exists in database {database} and is not empty"))
        }
        Wish::Tables(wanted) => {
            let into: Vec<&Named> = wanted.iter().map(|wanted| &wanted.into).collect();
            for schema in into.iter().map(|into| &into.schema) {
                if !bring::schema_exists(live, schema).await? {
                    let text = format!(
                        "database {database} has no schema {schema}: CREATE SCHEMA makes it. Nothing was changed"
                    );
                    return Err(Failure::new(Code::Usage, text).into());
                }
            }
            let there = bring::existing(live, &into).await?;
            let names: Vec<&str> = there.iter().take(NAMED_MAX).map(String::as_str).collect();
            let more = there.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (!there.is_empty()).then(|| format!("database {database} has {}{more} already", names.join(", ")))
        }
    };
    let Some(text) = text else { return Ok(()) };
    let text = format!(
        "{text}. Nothing was changed: say --into NAME to restore it beside under another name (nothing is overwritten), or \
         --database NAME for all of the backup in a database of its own"
    );
    Err(Failure::new(Code::Usage, text).into())
}
