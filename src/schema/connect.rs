//! Connections to a database, without logging a statement or a password.

use std::time::Duration;

use anyhow::{Context, bail};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sea_orm::sqlx::{self, ConnectOptions, Connection, PgConnection, Row, raw_sql};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use crate::exit::{Code, Failure};
use crate::plan::{DatabaseUrl, Secret};

/// How long a server may take to accept one connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long a server may take to answer what costs it no work.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a server may take for what writes files: to make a database, a role or an extension.
pub const MAKE_LIMIT: Duration = Duration::from_secs(120);

/// SeaORM creates and reads its table through the search path, so this comes first for the migrator alone.
pub(super) const OWN_SCHEMA: &str = "tandem";

/// SQLSTATE of a statement that `statement_timeout` ended (PostgreSQL documentation, appendix A).
const QUERY_CANCELED: &str = "57014";

/// What a server, a role or a database may set for everybody, and what would cut our own work short. With plain SET
/// first: the limit may be too short for more. What not every version knows is asked for by name.
const UNLIMITED: &str = "
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
    SET default_transaction_read_only = off;
    SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
    WHERE name IN ('idle_session_timeout', 'transaction_timeout')";

/// Not as options of the connection, which a pooler drops or refuses. A statement whose client has gone would run on, out
/// of sight and no longer under the lock.
const MIGRATING: &str = "
    SET search_path = tandem, public;
    SELECT set_config(name, '1000', false) FROM pg_catalog.pg_settings WHERE name = 'client_connection_check_interval'";

/// The name of the database, and no limit on an idle session any more.
const LOOKED_AT: &str = "
    SELECT current_database()::text, (SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
                                      WHERE name = 'idle_session_timeout' AND setting <> '0')";

/// How often two sessions are asked which server process they have.
const POOLER_LOOKS: usize = 3;

/// A pool of at most two connections, shown to the server as `application_name`.
///
/// # Errors
/// The server does not answer within ten seconds, or refuses the connection.
pub async fn connect(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<DatabaseConnection> {
    pool(url, options(url, application_name), 2, None).await
}

/// The one connection that migrations run on. When dropped in the middle of a statement, it closes at once.
pub(super) struct Migrating(pub DatabaseConnection);

impl Drop for Migrating {
    fn drop(&mut self) {
        // A connection that goes back to an open pool first waits for its statement to end, in a task of its own. The
        // pool is marked as closed here and now; that task runs later, because this thread is the runtime's only one.
        drop(self.0.get_postgres_connection_pool().close());
    }
}

/// Open the connection that migrations run on.
///
/// Its statements wait for a lock at most for `lock_timeout`.
pub(super) async fn migrator(
    url: &DatabaseUrl,
    application_name: &str,
    lock_timeout: Option<Duration>,
) -> anyhow::Result<Migrating> {
    let timeout = lock_timeout.map_or(0, |limit| limit.as_millis().max(1));
    let more = format!("{MIGRATING}; SET lock_timeout = {timeout}");
    Ok(Migrating(pool(url, options(url, application_name), 1, Some(more)).await?))
}

/// One plain connection, for what belongs to a session.
///
/// # Errors
/// As [`connect`].
pub async fn session(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<PgConnection> {
    answered(CONNECT_LIMIT, &format!("connect to {url}"), options(url, application_name).connect()).await
}

/// What the server answers to `asked` within `limit`. `what` is asked, in words.
///
/// # Errors
/// [`Code::Temporary`] when there is no answer within `limit`: the server hangs. Otherwise what the server says.
pub async fn answered<T>(
    limit: Duration,
    what: &str,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(limit, asked).await.map_err(|_| {
        Failure::new(Code::Temporary, format!("{what}: no answer within {limit:?}, the database server hangs"))
    })?;
    answer.with_context(|| what.to_owned())
}

/// As [`answered`], for what costs the server no work and may be asked twice. Where server, role or
/// database set a limit of a few milliseconds, a busy machine may take longer even for the statement that lifts it: it is
/// asked again.
pub(super) async fn answered_at_last<T>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, sqlx::Error>,
) -> anyhow::Result<T> {
    let asked = async {
        loop {
            match ask().await {
                Err(error) if is_cut(&error) => {}
                answer => return answer,
            }
        }
    };
    answered(limit, what, asked).await
}

fn is_cut(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(QUERY_CANCELED))
}

/// Free `session` from the limits that server, role or database set: for work that takes as long as it takes.
///
/// # Errors
/// The connection is lost, or the server does not answer.
pub async fn unlimited(session: &mut PgConnection) -> anyhow::Result<()> {
    let set = async || raw_sql(UNLIMITED).execute(&mut *session).await;
    answered_at_last(ANSWER_LIMIT, "free the session from limits", set).await.map(drop)
}

/// Refuse a connection pooler that hands one server process to several clients: what belongs to a session, as the lock of
/// migrations does, would belong to all of them. `first` is a session at `url`.
///
/// # Errors
/// [`Code::Config`] for such a pooler; otherwise as [`connect`].
pub async fn refuse_shared_sessions(
    url: &DatabaseUrl,
    application_name: &str,
    first: &mut PgConnection,
) -> anyhow::Result<()> {
    let database = looked_at(first).await?;
    let mut second = session(&DatabaseUrl { database, ..url.clone() }, application_name).await?;
    looked_at(&mut second).await?;
    let mut seen = None;
    for _ in 0..POOLER_LOOKS {
        let (one, other) = (server_process(first).await?, server_process(&mut second).await?);
        // A direct connection has one process for life, and keeps it to itself.
        if one == other || *seen.get_or_insert(one) != one {
            bail!(Failure::new(
                Code::Config,
                format!(
                    "{url} leads to a connection pooler in transaction mode (two sessions there shared server process \
                     {one}), through which no lock can keep two migrations or restores apart: let postgres.url or \
                     DATABASE_URL lead to the server itself, or to a pool in session mode; or set migrations.run = \
                     \"none\" and migrate from elsewhere"
                )
            ));
        }
    }
    let _closed = tokio::time::timeout(ANSWER_LIMIT, second.close()).await;
    Ok(())
}

/// The database that `session` is in, which is looked at: the look must not be cut short. Nothing is set where nothing
/// limits: it would stay in a pooler's sessions.
async fn looked_at(session: &mut PgConnection) -> anyhow::Result<String> {
    let ask = async || raw_sql(LOOKED_AT).fetch_one(&mut *session).await;
    Ok(answered_at_last(ANSWER_LIMIT, "ask for the database", ask).await?.try_get(0)?)
}

async fn server_process(session: &mut PgConnection) -> anyhow::Result<i32> {
    // In one exchange: a prepared statement may be unknown to the process that its execution goes to.
    let ask = async || raw_sql("SELECT pg_catalog.pg_backend_pid()").fetch_one(&mut *session).await;
    let row = answered_at_last(ANSWER_LIMIT, "ask for the server process", ask).await?;
    Ok(row.try_get(0)?)
}

async fn pool(
    url: &DatabaseUrl,
    options: PgConnectOptions,
    connections_max: u32,
    more: Option<String>,
) -> anyhow::Result<DatabaseConnection> {
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(CONNECT_LIMIT)
        // A migration may hold its connection for longer than any pool would let it live.
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(move |session, _| {
            let more = more.clone();
            Box::pin(async move {
                while let Err(error) = raw_sql(UNLIMITED).execute(&mut *session).await {
                    if !is_cut(&error) {
                        return Err(error);
                    }
                }
                match more {
                    Some(more) => raw_sql(sqlx::AssertSqlSafe(more)).execute(session).await.map(drop),
                    None => Ok(()),
                }
            })
        })
        .connect_with(options)
        .await
        .with_context(|| format!("connect to {url}"))?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Options without anything from this process's environment, where the driver reads PGHOST, PGSSLMODE and others.
/// PGOPTIONS cannot be reset here, so `main` removes it from the environment.
pub fn blank(database: &str, application_name: &str) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host("localhost").port(5432).password("");
    options
        .ssl_mode(PgSslMode::Prefer)
        .database(database)
        .application_name(application_name)
        // Nothing here prints a float, and poolers refuse to be asked.
        .extra_float_digits(None)
        .disable_statement_logging()
}

/// How our own sessions get in, part by part: the driver's reader of URLs differs from ours.
pub fn options(url: &DatabaseUrl, application_name: &str) -> PgConnectOptions {
    // A host that starts with `/` is a socket directory, to sqlx as to libpq.
    let mut options = blank(&url.database, application_name).host(&url.host).port(url.port).username(&url.user);
    if let Some(password) = url.password.as_ref().map(Secret::expose) {
        options = options.password(password);
    }
    if let Some(mode) = url.parameter("sslmode").and_then(|mode| mode.parse::<PgSslMode>().ok()) {
        options = options.ssl_mode(mode);
    }
    if let Some(path) = url.parameter("sslrootcert") {
        options = options.ssl_root_cert(path);
    }
    if let Some(path) = url.parameter("sslcert") {
        options = options.ssl_client_cert(path);
    }
    if let Some(path) = url.parameter("sslkey") {
        options = options.ssl_client_key(path);
    }
    let settings = url.session_settings();
    if settings.is_empty() { options } else { options.options(settings) }
}
