//! Put one database in another's place: both renames in one transaction, and what belongs to the name carried over.
//!
//! Owner, grants and settings of a database are not in its dump (PostgreSQL documentation, pg_dump, "Notes").

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, NaiveDateTime, Utc};
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, PgConnection, query_scalar, raw_sql};
use tokio::time::{Instant, sleep};

use super::database_level::DatabaseLevel;
use super::reach::Reach;
use crate::exit::{Code, Failure, in_words, is_broken_off};
use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::settings::SUPERUSER;
use crate::schema::{ANSWER_LIMIT, answered};

/// How long the renames may wait for sessions to end: they finish what they cannot interrupt.
const SWAP_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at sessions that end.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Longest name, in bytes (NAMEDATALEN - 1).
const NAME_MAX: usize = 63;
const TIME: &str = "%Y%m%d_%H%M%S";
const TIME_LENGTH: usize = "20260102_150405".len();
/// The size of a database; nothing of one that was dropped a moment ago, or that this role may not look into.
const SIZE: &str = "SELECT pg_catalog.pg_database_size(oid) FROM pg_catalog.pg_database
                    WHERE datname = $1 AND pg_catalog.has_database_privilege(oid, 'CONNECT')";
/// Between two attempts to get into a server that recovers.
const BROKEN_OFF_POLL: Duration = Duration::from_millis(200);
/// A session, by its process and when it began: the number alone may soon be another's.
const ITSELF: &str = "SELECT pid || ' of ' || backend_start FROM pg_catalog.pg_stat_activity
                      WHERE pid = pg_catalog.pg_backend_pid()";
const END_ITSELF: &str = "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity
                          WHERE pid || ' of ' || backend_start = $1";
/// How long each of the two renames may take in the server, where a limit counts for every statement by itself. Both together
/// take less than [`SWAP_LIMIT`], so that none goes on that was given up here.
const RENAME_LIMIT: Duration = Duration::from_secs(12);
const _: () = assert!(2 * RENAME_LIMIT.as_secs() < SWAP_LIMIT.as_secs());

const OWNER: &str = "SELECT pg_catalog.pg_get_userbyid(datdba)::text FROM pg_catalog.pg_database WHERE datname = $1";

/// The databases may be swapped or not.
#[derive(Debug, thiserror::Error)]
#[error("whether database {live} was replaced is not known ({why}): it was if there is a database {kept}")]
pub struct NotKnown {
    live: String,
    kept: String,
    why: String,
}

/// What stands between a database's name and a time, in the name of another that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belonging {
    /// A restore has replaced it.
    Kept,
    /// A restore fills it.
    New,
}

impl Belonging {
    fn between(self) -> &'static str {
        match self {
            Self::Kept => "_before_restore_",
            Self::New => "_restoring_",
        }
    }

    /// The name for `time`, with the database's own cut so that PostgreSQL does not cut the whole by itself.
    pub fn name(self, database: &str, time: DateTime<Utc>) -> String {
        format!("{}{}", self.start(database), time.format(TIME))
    }

    fn start(self, database: &str) -> String {
        let mut length = database.len().min(NAME_MAX - self.between().len() - TIME_LENGTH);
        while !database.is_char_boundary(length) {
            length -= 1;
        }
        format!("{}{}", &database[..length], self.between())
    }

    /// Whether `name` is such a name: with a time, and nothing but a time, at its end. Another database may begin like it.
    fn is(self, name: &str, database: &str) -> bool {
        let time =
            name.strip_prefix(&self.start(database)).and_then(|time| NaiveDateTime::parse_from_str(time, TIME).ok());
        time.is_some_and(|time| self.name(database, time.and_utc()) == name)
    }

    /// All of these that `database` has, the oldest first.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn all(self, session: &mut PgConnection, database: &str) -> anyhow::Result<Vec<String>> {
        let names = query_scalar::<_, String>("SELECT datname::text FROM pg_catalog.pg_database");
        let mut names = answered(ANSWER_LIMIT, "list the databases", names.fetch_all(session)).await?;
        names.retain(|name| self.is(name, database));
        names.sort();
        Ok(names)
    }

    /// The same, with how many bytes each takes.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn sizes(self, session: &mut PgConnection, database: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let mut sizes = Vec::new();
        for name in self.all(session, database).await? {
            let size = query_scalar::<_, i64>(SIZE).bind(&name).fetch_optional(&mut *session);
            let size = answered(ANSWER_LIMIT, "ask a database's size", size).await?;
            sizes.push((name, size.map_or(0, i64::cast_unsigned)));
        }
        Ok(sizes)
    }
}

/// What restores have replaced in the server of `home`, the oldest first, and how many bytes each takes.
///
/// # Errors
/// The server does not answer.
pub async fn kept_databases(home: &Home, port: u16, database: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let options = superuser_options(home, port, SUPERUSER);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL", options.connect()).await?;
    let kept = Belonging::Kept.sizes(&mut session, database).await;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    kept
}

/// Whether there is a database called `name`.
///
/// # Errors
/// The connection is lost.
pub async fn exists(session: &mut PgConnection, name: &str) -> anyhow::Result<bool> {
    let there = query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)").bind(name);
    answered(ANSWER_LIMIT, "look for a database", there.fetch_one(session)).await
}

/// Refuse to replace a database in which transactions are prepared: it can be neither renamed nor dropped.
///
/// # Errors
/// [`Failure`] that names them.
pub async fn refuse_prepared(session: &mut PgConnection, database: &str) -> anyhow::Result<()> {
    let prepared =
        "SELECT pg_catalog.quote_literal(gid) || ' of role ' || owner || ', since ' || prepared::timestamptz(0)
                    FROM pg_catalog.pg_prepared_xacts WHERE database = $1 ORDER BY prepared";
    let prepared = query_scalar::<_, String>(prepared).bind(database).fetch_all(session);
    let prepared = answered(ANSWER_LIMIT, "look for prepared transactions", prepared).await?;
    if prepared.is_empty() {
        return Ok(());
    }
    let message = format!(
        "database {database} has a prepared transaction, with which it cannot be replaced: {}. In `tandem psql`, COMMIT PREPARED \
         or ROLLBACK PREPARED ends it",
        prepared.join("; ")
    );
    bail!(Failure::new(Code::Failed, message))
}

/// `error` of a statement, with what the server says beside it: who is in the way, for one.
fn with_detail(error: sqlx::Error) -> anyhow::Error {
    let detail = match &error {
        sqlx::Error::Database(said) => {
            said.try_downcast_ref::<PgDatabaseError>().and_then(|said| said.detail()).map(str::to_owned)
        }
        _ => None,
    };
    match detail {
        Some(detail) => anyhow::Error::new(error).context(detail),
        None => error.into(),
    }
}

/// Give `to` the owner, grants, settings, connection limit and comment of `from`.
///
/// # Errors
/// The server refuses.
pub async fn carry_over(session: &mut PgConnection, from: &str, to: &str) -> anyhow::Result<()> {
    let owner = query_scalar::<_, String>(OWNER).bind(from).fetch_one(&mut *session);
    let owner = answered(ANSWER_LIMIT, "ask for the database's owner", owner).await?;
    let level = DatabaseLevel::of(session, from).await?;
    let mut statements = vec![format!("ALTER DATABASE {} OWNER TO {}", identifier(to), identifier(&owner))];
    statements.extend(level.statements(to));
    for statement in statements {
        let what = format!("run {statement}");
        answered(ANSWER_LIMIT, &what, raw_sql(AssertSqlSafe(statement)).execute(&mut *session)).await?;
    }
    Ok(())
}

/// Rename `live` to `kept` and `new` to `live`, both or neither. Transactions that are open in `live` get `patience` to
/// end, then they are ended. What remained open is cut.
///
/// # Errors
/// A session does not end, or the server refuses; everything is as it was then, unless the chain holds [`NotKnown`].
pub async fn swap(reach: &Reach, live: &str, new: &str, kept: &str, patience: Duration) -> anyhow::Result<Duration> {
    // Not in the one that is renamed: its sessions are ended.
    let mut session = reach.aside(live).await?;
    let mut ending = reach.aside(live).await?;
    wait_for_transactions(&mut session, live, patience).await?;
    let limit = format!("SET statement_timeout = '{}s'", RENAME_LIMIT.as_secs());
    answered(ANSWER_LIMIT, "set a limit for the renames", raw_sql(AssertSqlSafe(limit)).execute(&mut session)).await?;
    let itself = query_scalar::<_, String>(ITSELF).fetch_one(&mut session);
    let itself = answered(ANSWER_LIMIT, "ask for the server process", itself).await?;
    let began = Instant::now();
    let [live_id, new_id, kept_id] = [live, new, kept].map(identifier);
    let renames = format!(
        "BEGIN; ALTER DATABASE {live_id} RENAME TO {kept_id}; ALTER DATABASE {new_id} RENAME TO {live_id}; COMMIT"
    );
    // From the first rename on nobody gets in any more; whoever is in must go, and sessions may come until then.
    let renamed = AtomicBool::new(false);
    let renaming = async {
        let renaming = raw_sql(AssertSqlSafe(renames)).execute(&mut session).await;
        renaming.map_err(with_detail).context("rename the databases")?;
        renamed.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    // Its last question is answered before it is closed: else the server's log has the error of a client that is lost.
    let clearing = async {
        while !renamed.load(Ordering::Relaxed) {
            end_sessions(&mut ending, &[live, new]).await?;
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    end_sessions_until_gone(reach, live).await?;
    let both = async { tokio::try_join!(renaming, clearing).map(drop) };
    let outcome = tokio::time::timeout(SWAP_LIMIT, both).await.unwrap_or_else(|_| {
        let message = format!("the databases {live} and {new} could not be renamed within {SWAP_LIMIT:?}");
        Err(Failure::new(Code::Temporary, message).into())
    });
    if let Err(error) = outcome {
        // A connection that is lost, or has no answer, in the very commit says nothing of it: the names do.
        match is_swapped(reach, live, &itself, kept).await {
            Ok(true) => tracing::warn!("the databases are swapped, though: {}", in_words(&error)),
            Ok(false) => return Err(error),
            Err(why) => {
                let (live, kept, why) = (live.to_owned(), kept.to_owned(), in_words(&why));
                return Err(error.context(NotKnown { live, kept, why }));
            }
        }
    }
    let took = began.elapsed();
    let _closed = tokio::time::timeout(ANSWER_LIMIT, async { tokio::join!(session.close(), ending.close()) }).await;
    Ok(took)
}

/// Whether the databases are swapped, once the session that did it has ended: until then it may still commit.
async fn is_swapped(reach: &Reach, live: &str, itself: &str, kept: &str) -> anyhow::Result<bool> {
    let deadline = Instant::now() + SWAP_LIMIT;
    let mut session = loop {
        match reach.aside(live).await {
            // The server recovers from a crash.
            Err(error) if is_broken_off(&error) && Instant::now() < deadline => sleep(BROKEN_OFF_POLL).await,
            opened => break opened?,
        }
    };
    loop {
        let ended = query_scalar::<_, i64>(END_ITSELF).bind(itself).fetch_one(&mut session);
        if answered(ANSWER_LIMIT, "end the session that renames", ended).await? == 0 {
            break;
        }
        if Instant::now() >= deadline {
            bail!("the server process {itself}, which renames them, does not end");
        }
        sleep(LOOK_AGAIN).await;
    }
    let swapped = exists(&mut session, kept).await;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    swapped
}

/// Wait until no transaction is open in `database`, at most `patience`.
async fn wait_for_transactions(session: &mut PgConnection, database: &str, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let open = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = $1 AND pid <> pg_catalog.pg_backend_pid() \
                AND backend_type = 'client backend' AND state <> 'idle'";
    while Instant::now() < deadline {
        let count: i64 =
            answered(ANSWER_LIMIT, "look at sessions", query_scalar(open).bind(database).fetch_one(&mut *session))
                .await?;
        if count == 0 {
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Tell all sessions in `databases` to end; how many there were.
async fn end_sessions(session: &mut PgConnection, databases: &[&str]) -> anyhow::Result<i64> {
    let end = "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
               WHERE datname = ANY($1) AND pid <> pg_catalog.pg_backend_pid()";
    let databases: Vec<String> = databases.iter().map(|&name| name.to_owned()).collect();
    answered(ANSWER_LIMIT, "end sessions", query_scalar(end).bind(databases).fetch_one(session)).await
}

/// The rename looks every 100 ms only: when it begins, the sessions that are there now are to be gone.
async fn end_sessions_until_gone(reach: &Reach, database: &str) -> anyhow::Result<()> {
    let mut session = reach.aside(database).await?;
    let deadline = Instant::now() + Duration::from_millis(100);
    while end_sessions(&mut session, &[database]).await? > 0 && Instant::now() < deadline {
        sleep(LOOK_AGAIN).await;
    }
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> DateTime<Utc> {
        "2026-01-02T15:04:05Z".parse().unwrap()
    }

    #[test]
    fn names_are_cut_where_postgresql_would_cut_them_elsewhere_and_are_known_again() {
        assert_eq!(Belonging::Kept.name("app", at()), "app_before_restore_20260102_150405");
        let odd = "ß".repeat(31);
        for database in ["app", "it's = 50 % \"big\"", &odd] {
            for belonging in [Belonging::Kept, Belonging::New] {
                let name = belonging.name(database, at());
                assert!(name.len() <= NAME_MAX && belonging.is(&name, database), "{name}");
            }
        }
    }

    #[test]
    fn databases_that_only_begin_alike_are_nobodys() {
        for name in [
            "app",
            "app_restoring_",
            "app_restoring_notes",
            "app_restoring_2026",
            "app_restoring_20260102_150405_more",
            "app_restoring_20261302_150405",
            "app2_restoring_20260102_150405",
            "app_before_restore_20260102_150405",
        ] {
            assert!(!Belonging::New.is(name, "app"), "{name}");
        }
    }
}
