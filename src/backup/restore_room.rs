//! The room that a restore into a database beside the live one takes.

use sea_orm::sqlx::{PgConnection, query_as};

use super::reach::Reach;
use super::{estimate, pitr};
use crate::config::Settings;
use crate::room::Guard;
use crate::schema::{ANSWER_LIMIT, answered};

/// How much WAL may lie in `pg_wal` before a checkpoint, and how much does.
const WAL_SIZE: &str = "SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_wal_size')),
                               (SELECT coalesce(sum(size), 0)::bigint FROM pg_catalog.pg_ls_waldir())";

/// The room that `loaded` bytes of tables and indexes take on the disks of a server of Tandem's own: the files, the WAL of writing
/// them, and the archive of that WAL.
///
/// # Errors
/// The server does not answer.
pub async fn of(session: &mut PgConnection, reach: &Reach, loaded: u64, settings: &Settings) -> anyhow::Result<Guard> {
    let Some(home) = reach.home() else { return Ok(Guard::new("restore", settings.disk.stop_free, None)) };
    let row = query_as::<_, (i64, i64)>(WAL_SIZE).fetch_one(session);
    let (max, present) = answered(ANSWER_LIMIT, "ask how much WAL there is", row).await?;
    let wal = estimate::wal(loaded, max.cast_unsigned(), present.cast_unsigned());
    let guard = Guard::new("restore", settings.disk.stop_free, Some(&home.data));
    let guard = guard.claim(&home.data, loaded).claim(&home.data.join("pg_wal"), wal).advice(
        "Make room (`tandem doctor` shows what of Tandem's can go, `tandem restore --drop-kept` drops what earlier restores \
         replaced)",
    );
    Ok(match settings.backup.pitr.enabled {
        true => guard.claim(pitr::archive(settings, home).dir(), estimate::archived_wal(loaded)),
        false => guard,
    })
}
