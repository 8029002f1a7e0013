//! What the superuser does with the databases of a throwaway server: clone, look at, close, drop.

use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::postgres::{PgPool, PgPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, query_as, query_scalar, raw_sql};

use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::settings::SUPERUSER;

/// Where every sequence stands, as one text: a test that only took numbers changed no row.
pub const SEQUENCES: &str = "SELECT coalesce(string_agg(format('%I.%I=%s', schemaname, sequencename, last_value), ','
                             ORDER BY schemaname, sequencename), '') FROM pg_sequences";
/// Connections that make, look at and drop databases.
const CONNECTIONS_MAX: u32 = 4;
/// How long such a connection may take to come about: a server that is started again needs less.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long backends may take to end, in milliseconds: they finish what they cannot interrupt.
const BACKENDS_LIMIT_MS: i64 = 5_000;

/// The statement that clones `template` as `name`, for `owner`.
///
/// FILE_COPY takes half the time of WAL_LOG where nothing is flushed (PostgreSQL documentation, CREATE DATABASE).
pub fn clone_statement(name: &str, template: &str, owner: &str) -> String {
    let [name, template, owner] = [name, template, owner].map(identifier);
    format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {owner} STRATEGY file_copy")
}

/// A way in for the superuser.
pub struct Catalog {
    home: Home,
    port: u16,
    /// Owner of all clones.
    owner: String,
    /// Where the template's sequences stand.
    sequences: String,
    connections: PgPool,
}

impl Catalog {
    /// Of the server in `home` on `port`. Nothing is connected yet; must be called within the runtime.
    pub fn new(home: &Home, port: u16, owner: &str, sequences: String) -> Self {
        let options = superuser_options(home, port, SUPERUSER).application_name("tandem-test");
        let connections = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_LIMIT)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Self { home: home.clone(), port, owner: owner.to_owned(), sequences, connections }
    }

    /// Connect to the template once. The first connection to a database writes a cache of its catalogs (relcache.c,
    /// `pg_internal.init`), which takes as long as all the rest of connecting, and which clones then come with.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn warm(&self, template: &str) -> anyhow::Result<()> {
        let options = superuser_options(&self.home, self.port, template);
        options.connect().await?.close().await?;
        self.end_backends(template).await
    }

    /// Make the empty database `name` (no template's tables), owned by the application's role.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn create_empty(&self, name: &str) -> anyhow::Result<()> {
        self.clone_as(name, "template0").await
    }

    /// End all connections to the database `name`, and let nobody change it any more.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn freeze(&self, name: &str) -> anyhow::Result<()> {
        self.end_backends(name).await?;
        self.run(format!("ALTER DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false", identifier(name))).await
    }

    /// Drop the database `name`, whoever uses it.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn destroy(&self, name: &str) -> anyhow::Result<()> {
        let database = identifier(name);
        // A template cannot be dropped.
        let _ = self.run(format!("ALTER DATABASE {database} IS_TEMPLATE false")).await;
        self.end_backends(name).await?;
        self.run(format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await
    }

    /// Clone `template` as `name`.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn clone_as(&self, name: &str, template: &str) -> anyhow::Result<()> {
        self.run(clone_statement(name, template, &self.owner)).await
    }

    /// End the connections to the database `name`; whether it is as it was cloned.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn clean(&self, name: &str) -> anyhow::Result<bool> {
        self.end_backends(name).await?;
        // A backend tells its counts before it leaves the list of backends.
        let changes = "SELECT tup_inserted + tup_updated + tup_deleted FROM pg_stat_database WHERE datname = $1";
        let rows: Option<i64> = query_scalar(changes).bind(name).fetch_optional(&self.connections).await?;
        let settings = "SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = $1)";
        let settings: i64 = query_scalar(settings).bind(name).fetch_one(&self.connections).await?;
        if rows != Some(0) || settings != 0 {
            return Ok(false);
        }
        let mut inside = superuser_options(&self.home, self.port, name).connect().await?;
        let sequences: String = query_scalar(SEQUENCES).fetch_one(&mut inside).await?;
        inside.close().await?;
        self.end_backends(name).await?;
        Ok(sequences == self.sequences)
    }

    /// End all connections to the database `name`, and wait until they have gone: a drop would wait in steps of 100 ms.
    async fn end_backends(&self, name: &str) -> anyhow::Result<()> {
        let end = "SELECT pid, pg_terminate_backend(pid, $2) FROM pg_stat_activity WHERE datname = $1";
        let ended: Vec<(i32, bool)> = query_as(end)
            .bind(name)
            .bind(BACKENDS_LIMIT_MS)
            .fetch_all(&self.connections)
            .await
            .with_context(|| format!("end the connections to {name}"))?;
        if let Some((pid, _)) = ended.iter().find(|(_, gone)| !gone) {
            tracing::debug!("backend {pid} of {name} does not end");
        }
        Ok(())
    }

    /// Run one statement of Tandem's own making.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn run(&self, statement: String) -> anyhow::Result<()> {
        let what = statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        raw_sql(AssertSqlSafe(statement)).execute(&self.connections).await.with_context(|| format!("run {what}"))?;
        Ok(())
    }
}
