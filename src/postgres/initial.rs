//! A new cluster in which scripts of the operator's still have to run: the mark that says so, and the rights that they get.
//!
//! The mark comes with the cluster itself and goes when every script has succeeded, so no cluster in which only some of them
//! ran is ever taken for a complete one. No worker and no migration runs before the mark is gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::query;

use super::files::write_whole;
use super::home::Home;
use super::provision::{close, enter, identifier, run};
use super::settings::SUPERUSER;
use crate::durable;
use crate::plan::Identity;
use crate::schema::answered;

/// Lies in the data directory as long as scripts of its first start have to run. PostgreSQL leaves it alone.
const MARK: &str = "tandem.initializing";
/// What a person who finds the mark reads.
const TEXT: &str = "The scripts of postgres.init_scripts have not all run in this cluster. No application has used it yet.\n\
                    The next start of Tandem removes it and begins anew. To keep it as it is, remove this file.\n";
/// How long the checkpoint after the last script may take: it writes out all that the scripts brought in.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3600);

fn mark_in(data: &Path) -> PathBuf {
    data.join(MARK)
}

/// Mark the new cluster in `data`, which has not got its final name yet.
///
/// # Errors
/// The mark cannot be written.
pub(super) fn mark(data: &Path, owner: Option<&Identity>) -> anyhow::Result<()> {
    write_whole(&mark_in(data), TEXT, 0o600, owner)
}

/// Whether scripts still have to run in the cluster of `home`.
///
/// # Errors
/// It cannot be looked at: then it is not known.
pub fn is_unfinished(home: &Home) -> anyhow::Result<bool> {
    let mark = mark_in(&home.data);
    mark.try_exists().with_context(|| format!("look at {}", mark.display()))
}

/// Make `user`, the application's role, a superuser as long as scripts run: what they make then belongs to it, as in
/// docker-library/postgres, whose `POSTGRES_USER` is a superuser for good.
///
/// # Errors
/// The server refuses.
pub async fn lend_rights(home: &Home, port: u16, user: &str) -> anyhow::Result<()> {
    set_superuser(home, port, user, "SUPERUSER").await
}

/// All scripts have succeeded: take the rights of `user` back, write everything out, and only then remove the mark.
///
/// # Errors
/// One of these fails. The mark is there then, or its removal may not survive a power cut.
pub async fn finish(home: &Home, port: u16, user: &str) -> anyhow::Result<()> {
    set_superuser(home, port, user, "NOSUPERUSER").await?;
    let mut connection = enter(home, port, SUPERUSER).await?.context("the database `postgres` is missing")?;
    // A script may have turned synchronous_commit off: without the mark the cluster counts as complete.
    let checkpoint = query("CHECKPOINT").execute(&mut connection);
    answered(CHECKPOINT_LIMIT, "write out what the scripts made", checkpoint).await?;
    close(connection).await?;
    let mark = mark_in(&home.data);
    // Blocks: for boot jobs, which run elsewhere. If the removal were lost in a power cut, the next start would remove a cluster
    // that has served.
    durable::remove(&mark)
        .and_then(|()| durable::sync_parent(&mark))
        .with_context(|| format!("remove {}", mark.display()))
}

async fn set_superuser(home: &Home, port: u16, user: &str, right: &str) -> anyhow::Result<()> {
    if user == SUPERUSER {
        return Ok(());
    }
    let mut connection = enter(home, port, SUPERUSER).await?.context("the database `postgres` is missing")?;
    run(&mut connection, format!("ALTER ROLE {} {right}", identifier(user))).await?;
    close(connection).await
}
