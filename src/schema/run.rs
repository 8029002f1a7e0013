//! Migrate a database up or down, one revision at a time, under the lock.

use std::time::{Duration, Instant};

use anyhow::Context;
use migration::{Migrator, MigratorTrait, REVISIONS};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, TransactionTrait};

use super::connect;
use super::inspect::{SchemaState, inspect};
use super::lock::{APPLICATION_NAME, Lock};
use super::position::{Position, locate, revision_at};
use crate::exit::{Code, Failure, sql_state};
use crate::plan::DatabaseUrl;

/// The result of a run of migrations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationOutcome {
    /// Migrations applied, in order.
    pub applied: Vec<String>,
    /// Migrations rolled back, in order.
    pub rolled_back: Vec<String>,
    /// The revision that Alembic had brought the database to, when our bookkeeping learned it only now.
    pub adopted: Option<String>,
    /// The revision the database is at; `None` before the first.
    pub revision: Option<String>,
    pub duration: Duration,
}

/// One known migration, and whether it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionStatus {
    pub name: String,
    pub revision: String,
    pub applied: bool,
}

/// Which way to go, and how far.
#[derive(Clone, Copy, Debug)]
enum Goal {
    Head,
    Down(usize),
}

/// Bring the database to the newest revision. On a current database this is one connection and two questions.
///
/// Waits at most `lock_limit` for another migration to end, and takes at most `limit` in all. Dropping the future is
/// safe: the connections close, the server rolls back the revision in progress and frees the lock.
///
/// # Errors
/// [`Code::Schema`] when the database is newer than this binary or contradicts itself; [`Code::Temporary`] when a limit
/// has passed; otherwise what the server answered, with the name of the migration that failed.
pub async fn up(url: &DatabaseUrl, lock_limit: Duration, limit: Duration) -> anyhow::Result<MigrationOutcome> {
    within(limit, go(url, Goal::Head, lock_limit)).await
}

/// As [`up`], while an application uses the database: no statement waits for a lock longer than `lock_timeout`.
///
/// # Errors
/// As [`up`]; with the SQLSTATE 55P03 when a lock was not to be had in time: the revision in progress is rolled back.
pub async fn up_beside(
    url: &DatabaseUrl,
    lock_limit: Duration,
    limit: Duration,
    lock_timeout: Duration,
) -> anyhow::Result<MigrationOutcome> {
    within(limit, go_with(url, Goal::Head, lock_limit, Some(lock_timeout))).await
}

/// Roll back the last `steps` revisions. Limits as for [`up`].
///
/// # Errors
/// As [`up`]; [`Code::Usage`] when fewer than `steps` revisions are in.
pub async fn down(
    url: &DatabaseUrl,
    steps: usize,
    lock_limit: Duration,
    limit: Duration,
) -> anyhow::Result<MigrationOutcome> {
    within(limit, go(url, Goal::Down(steps), lock_limit)).await
}

/// Every known migration, oldest first, as `alembic_version` has it. Reads only.
///
/// # Errors
/// As [`up`].
pub async fn status(url: &DatabaseUrl) -> anyhow::Result<Vec<RevisionStatus>> {
    let mut session = connect::session(url, APPLICATION_NAME).await?;
    let position = locate(&inspect(&mut session).await?, REVISIONS)?;
    let statuses = REVISIONS.iter().enumerate().map(|(index, revision)| {
        let name = revision.migration.name();
        RevisionStatus {
            name: name.to_owned(),
            revision: migration::revision(name).to_owned(),
            applied: index < position.applied,
        }
    });
    Ok(statuses.collect())
}

/// What `work` comes to within `limit`.
///
/// # Errors
/// [`Code::Temporary`] when the limit has passed.
pub(super) async fn within(
    limit: Duration,
    work: impl Future<Output = anyhow::Result<MigrationOutcome>>,
) -> anyhow::Result<MigrationOutcome> {
    let started = Instant::now();
    let mut outcome = tokio::time::timeout(limit, work).await.map_err(|_| {
        let message = format!("migrations did not end within {limit:?}; the unfinished one was rolled back");
        Failure::new(Code::Temporary, message)
    })??;
    outcome.duration = started.elapsed();
    Ok(outcome)
}

async fn go(url: &DatabaseUrl, goal: Goal, lock_limit: Duration) -> anyhow::Result<MigrationOutcome> {
    go_with(url, goal, lock_limit, None).await
}

async fn go_with(
    url: &DatabaseUrl,
    goal: Goal,
    lock_limit: Duration,
    lock_timeout: Option<Duration>,
) -> anyhow::Result<MigrationOutcome> {
    let mut session = connect::session(url, APPLICATION_NAME).await?;
    let position = locate(&inspect(&mut session).await?, REVISIONS)?;
    if position.recorded && target(position, goal)? == position.applied {
        return Ok(MigrationOutcome { revision: revision(position.applied), ..MigrationOutcome::default() });
    }
    let mut lock = Lock::take(url, session, lock_limit).await?;
    let result = go_locked(url, goal, &mut lock, lock_timeout).await;
    lock.release().await;
    result
}

async fn go_locked(
    url: &DatabaseUrl,
    goal: Goal,
    lock: &mut Lock,
    lock_timeout: Option<Duration>,
) -> anyhow::Result<MigrationOutcome> {
    // The previous holder of the lock may have done all or part of it.
    let found = inspect(lock.session()).await?;
    let position = locate(&found, REVISIONS)?;
    let target = target(position, goal)?;
    let migrating = connect::migrator(url, APPLICATION_NAME, lock_timeout).await?;
    let database = &migrating.0;
    let result = async {
        let adopted = record(database, &found, position)
            .await
            .map_err(|error| rights(url, error.context("write down which migrations are in"), Right::Schema))?;
        let mut outcome = MigrationOutcome { adopted, ..MigrationOutcome::default() };
        let stepped = step(database, lock, position.applied, target, &mut outcome).await;
        stepped.map_err(|error| rights(url, error, Right::Tables))?;
        outcome.revision = revision(target);
        Ok(outcome)
    }
    .await;
    // A failed revision is rolled back before the lock is free.
    let _closed = database.close_by_ref().await;
    result
}

/// A right that the migrating role needs.
#[derive(Clone, Copy, Debug)]
enum Right {
    /// To make Tandem's own schema.
    Schema,
    /// To make and change tables.
    Tables,
}

/// `error`, or what the role lacks where that is the reason, with the statement that gives it.
fn rights(url: &DatabaseUrl, error: anyhow::Error, right: Right) -> anyhow::Error {
    // insufficient_privilege
    if sql_state(&error).as_deref() != Some("42501") {
        return error;
    }
    let (user, database) = (&url.user, &url.database);
    let [role, name] = [user, database].map(|name| format!("\"{}\"", name.replace('"', "\"\"")));
    let message = match right {
        Right::Schema => format!(
            "role {user} may not create a schema in database {database}: GRANT CREATE ON DATABASE {name} TO {role}"
        ),
        Right::Tables => format!(
            "role {user} may not migrate database {database}: let it own the database and its tables (ALTER DATABASE \
             {name} OWNER TO {role}; ALTER TABLE … OWNER TO {role}), or GRANT CREATE ON SCHEMA public TO {role}"
        ),
    };
    error.context(Failure::new(Code::Config, message))
}

/// How many revisions shall be in.
fn target(position: Position, goal: Goal) -> Result<usize, Failure> {
    match goal {
        Goal::Head => Ok(REVISIONS.len()),
        Goal::Down(steps) => position.applied.checked_sub(steps).ok_or_else(|| {
            let message = format!("cannot roll back {steps} revisions: only {} are applied", position.applied);
            Failure::new(Code::Usage, message)
        }),
    }
}

fn revision(applied: usize) -> Option<String> {
    revision_at(REVISIONS, applied).map(str::to_owned)
}

/// Make SeaORM's bookkeeping say what `alembic_version` says. Returns the revision if it was news.
async fn record(
    database: &DatabaseConnection,
    found: &SchemaState,
    position: Position,
) -> anyhow::Result<Option<String>> {
    if position.recorded {
        return Ok(None);
    }
    let names: Vec<String> =
        REVISIONS[..position.applied].iter().map(|revision| revision.migration.name().to_owned()).collect();
    let transaction = database.begin().await?;
    if found.recorded.is_none() {
        // Asked for only when needed: even IF NOT EXISTS wants the right to create schemas.
        transaction.execute_unprepared(&format!("CREATE SCHEMA IF NOT EXISTS {}", connect::OWN_SCHEMA)).await?;
        Migrator::install(&transaction).await?;
    }
    let backend = transaction.get_database_backend();
    for sql in [
        "DELETE FROM tandem.seaql_migrations WHERE version <> ALL ($1)",
        "INSERT INTO tandem.seaql_migrations (version, applied_at) \
         SELECT name, extract(epoch FROM now())::bigint FROM unnest($1) AS name ON CONFLICT DO NOTHING",
    ] {
        transaction.execute_raw(Statement::from_sql_and_values(backend, sql, [names.clone().into()])).await?;
    }
    transaction.commit().await?;
    let adopted = revision(position.applied);
    if let Some(revision) = &adopted {
        tracing::info!(schema.revision = revision, "adopted the revision that Alembic had brought the database to");
    }
    Ok(adopted)
}

/// Apply or roll back one revision after the other, from `applied` to `target` of them.
async fn step(
    database: &DatabaseConnection,
    lock: &mut Lock,
    applied: usize,
    target: usize,
    outcome: &mut MigrationOutcome,
) -> anyhow::Result<()> {
    for migrated in REVISIONS.iter().take(target).skip(applied) {
        let (name, started) = (migrated.migration.name(), Instant::now());
        lock.check().await?;
        Migrator::up(database, Some(1)).await.with_context(|| format!("apply migration {name}"))?;
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(migration.name = name, duration_ms, "applied migration {name}");
        outcome.applied.push(name.to_owned());
    }
    for migrated in REVISIONS.iter().take(applied).skip(target).rev() {
        let (name, started) = (migrated.migration.name(), Instant::now());
        lock.check().await?;
        Migrator::down(database, Some(1)).await.with_context(|| format!("roll back migration {name}"))?;
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(migration.name = name, duration_ms, "rolled back migration {name}");
        outcome.rolled_back.push(name.to_owned());
    }
    Ok(())
}
