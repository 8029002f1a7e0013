//! Connections to a database, without logging a statement or a password.

use std::time::Duration;

use anyhow::{Context, bail};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sea_orm::sqlx::{ConnectOptions, PgConnection};
use sea_orm::{DatabaseConnection, SqlxPostgresConnector};

use crate::plan::{DatabaseUrl, Secret};

/// How long a server may take to accept one connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// SeaORM creates and reads its table through the search path, so this comes first for the migrator alone.
pub(super) const OWN_SCHEMA: &str = "tandem";

/// A pool of at most two connections, shown to the server as `application_name`.
///
/// # Errors
/// When the URL's options are not understood, or nobody answers there within ten seconds.
pub async fn connect(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<DatabaseConnection> {
    pool(url, options(url, application_name)?, 2).await
}

/// The one connection that migrations run on. Dropped in the middle of a statement, it goes at once.
pub(super) struct Migrating(pub DatabaseConnection);

impl Drop for Migrating {
    fn drop(&mut self) {
        // A connection that goes back to an open pool first waits for its statement to end, in a task of its own. The
        // pool is marked as closed here and now; that task runs later, because this thread is the runtime's only one.
        drop(self.0.get_postgres_connection_pool().close());
    }
}

/// Open the connection that migrations run on.
pub(super) async fn migrator(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<Migrating> {
    let options = options(url, application_name)?.options([
        ("search_path", "tandem,public"),
        // A statement whose client has gone would run on, out of sight and no longer under the lock.
        ("client_connection_check_interval", "1000"),
    ]);
    Ok(Migrating(pool(url, options, 1).await?))
}

/// One plain connection, for what belongs to a session.
///
/// # Errors
/// As [`connect`].
pub async fn session(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<PgConnection> {
    let options = options(url, application_name)?;
    tokio::time::timeout(CONNECT_LIMIT, options.connect())
        .await
        .with_context(|| format!("connect to {url}: no answer within {CONNECT_LIMIT:?}"))?
        .with_context(|| format!("connect to {url}"))
}

async fn pool(
    url: &DatabaseUrl,
    options: PgConnectOptions,
    connections_max: u32,
) -> anyhow::Result<DatabaseConnection> {
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(CONNECT_LIMIT)
        // A migration may hold its connection for longer than any pool would let it live.
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .with_context(|| format!("connect to {url}"))?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Options that nothing of this process's environment is in: the driver takes PGHOST, PGSSLMODE and others from there.
/// Its PGOPTIONS cannot be unsaid, so `main` takes that out of the environment.
pub fn blank(database: &str, application_name: &str) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host("localhost").port(5432).password("");
    options
        .ssl_mode(PgSslMode::Prefer)
        .database(database)
        .application_name(application_name)
        .disable_statement_logging()
}

fn options(url: &DatabaseUrl, application_name: &str) -> anyhow::Result<PgConnectOptions> {
    // A host that starts with `/` is a socket directory, to sqlx as to libpq.
    let mut options = blank(&url.database, application_name).host(&url.host).port(url.port).username(&url.user);
    if let Some(password) = url.password.as_ref().map(Secret::expose) {
        options = options.password(password);
    }
    for (name, value) in ::url::form_urlencoded::parse(url.query.as_deref().unwrap_or_default().as_bytes()) {
        options = match name.as_ref() {
            "sslmode" => match value.parse::<PgSslMode>() {
                Ok(mode) => options.ssl_mode(mode),
                Err(_) => {
                    bail!("sslmode={value} in {url} is none of disable, allow, prefer, require, verify-ca, verify-full")
                }
            },
            "sslrootcert" => options.ssl_root_cert(value.as_ref()),
            "sslcert" => options.ssl_client_cert(value.as_ref()),
            "sslkey" => options.ssl_client_key(value.as_ref()),
            // `host` is in `url.host` already; the rest is for other clients.
            _ => options,
        };
    }
    Ok(options)
}
