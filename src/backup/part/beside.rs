//! The whole backup as another database, beside the live one.

use std::time::Instant;

use anyhow::Context;
use chrono::Utc;
use sea_orm::sqlx::{AssertSqlSafe, raw_sql};
use serde::Serialize;

use super::super::catalog::{BackupEntry, Catalog};
use super::super::estimate::Restorable;
use super::super::reach::Reach;
use super::super::restore::{Restoring, give_up};
use super::super::restore_room;
use super::super::swap::{self, Belonging};
use super::wish::check_name;
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::postgres::provision::identifier;
use crate::schema::{MAKE_LIMIT, answered};
use crate::telemetry;

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredBeside {
    pub backup: String,
    pub database: String,
    pub rows: u64,
    pub tables: usize,
    pub duration_ms: u64,
}

impl Restoring {
    /// Restore `entry` of `catalog` as the new database `name`, with what belongs to the live `database`: its owner, grants and
    /// settings.
    ///
    /// # Errors
    /// There is such a database, or what failed; none is made then.
    pub async fn beside(
        &mut self,
        reach: &Reach,
        (catalog, entry): (&Catalog, &BackupEntry),
        settings: &Settings,
        (database, name): (&str, &str),
    ) -> anyhow::Result<RestoredBeside> {
        let began = Instant::now();
        let manifest = entry.manifest.as_ref().map_err(|problem| anyhow::anyhow!("{}: {problem}", entry.name))?;
        check_name(name)
            .map_err(|error| Failure::new(Code::Usage, format!("--database: {error}. Nothing was changed")))?;
        if swap::exists(&mut self.session, name).await? {
            let text = format!("there is a database {name}: say another name, or drop it. Nothing was changed");
            return Err(Failure::new(Code::Usage, text).into());
        }
        let new = Belonging::New.name(database, Utc::now());
        let loaded = Restorable::of(manifest).loaded();
        let room = restore_room::of(&mut self.session, reach, loaded, settings).await?;
        room.check().with_context(|| format!("{}: nothing was changed", entry.name))?;
        let progress = telemetry::progress(format!("restoring {}", entry.name));
        let limit = settings.backup.limit;
        let filling = self.fill(reach, catalog, (entry, manifest), settings, (database, &new), &progress);
        let filled = tokio::time::timeout(limit, room.hold(filling)).await.unwrap_or_else(|_| {
            Err(Failure::new(Code::Temporary, format!("it took longer than backup.limit, {limit:?}")).into())
        });
        let named = match filled {
            Ok(()) => {
                let rename = format!("ALTER DATABASE {} RENAME TO {}", identifier(&new), identifier(name));
                let renamed = raw_sql(AssertSqlSafe(rename)).execute(&mut self.session);
                answered(MAKE_LIMIT, "name the database", renamed).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = named {
            give_up(reach, &new).await;
            return Err(error.context(format!("{}: there is no database {name} of it", entry.name)));
        }
        Ok(RestoredBeside {
            backup: entry.name.to_string(),
            database: name.to_owned(),
            rows: manifest.census.rows_total(),
            tables: manifest.census.rows.len(),
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }
}
