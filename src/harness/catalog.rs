//! What the superuser does with the databases of a throwaway server: clone, look at, close, drop.

use std::time::Duration;

use sea_orm::sqlx::postgres::{PgPool, PgPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, query, query_scalar, raw_sql};
use tokio::time::{Instant, sleep};

use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::settings::SUPERUSER;
use crate::schema::{MAKE_LIMIT, answered};

/// Where every sequence stands, as one text: a test that only took numbers changed no row.
pub const SEQUENCES: &str = "SELECT coalesce(string_agg(format('%I.%I=%s', schemaname, sequencename, last_value), ','
                             ORDER BY schemaname, sequencename), '') FROM pg_sequences";
/// Connections that make clones, and connections for all else: what waits for a backend's end must hold up no clone.
const MAKING_MAX: u32 = 2;
const KEEPING_MAX: u32 = 2;
/// How long such a connection may take to come about: a server that is started again needs less.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend whose client has gone may take to end by itself, before it is told to.
pub const LEAVE_LIMIT: Duration = Duration::from_millis(30);
/// How long backends may take to end then: they finish what they cannot interrupt.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks: pg_terminate_backend's own waiting, and that of DROP DATABASE, have steps of 100 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The statement that clones `template` as `name`, for `owner`.
///
/// FILE_COPY takes half the time of WAL_LOG where nothing is flushed (PostgreSQL documentation, CREATE DATABASE).
pub fn clone_statement(name: &str, template: &str, owner: &str) -> String {
    let [name, template, owner] = [name, template, owner].map(identifier);
    format!("CREATE DATABASE {name} TEMPLATE {template} OWNER {owner} STRATEGY file_copy")
}

/// Whether anything was made in the database that `inside` is in, beside what every new one has.
///
/// # Errors
/// It cannot be asked.
pub async fn holds_anything(inside: &mut PgConnection) -> anyhow::Result<bool> {
    // What initdb makes has lower numbers (PostgreSQL's source, `FirstNormalObjectId`).
    let statement = "SELECT EXISTS (SELECT FROM pg_class WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_type WHERE oid >= 16384)
                         OR EXISTS (SELECT FROM pg_proc WHERE oid >= 16384) OR EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384)
                         OR EXISTS (SELECT FROM pg_extension WHERE oid >= 16384)
                         OR EXISTS (SELECT FROM pg_largeobject_metadata)";
    let asked = query_scalar(statement).fetch_one(inside);
    answered(MAKE_LIMIT, "look for what the migrations made", asked).await
}

/// A way in for the superuser.
pub struct Catalog {
    home: Home,
    port: u16,
    /// Owner of all clones.
    owner: String,
    /// Where the template's sequences stand.
    sequences: String,
    making: PgPool,
    keeping: PgPool,
}

impl Catalog {
    /// Of the server in `home` on `port`. Nothing is connected yet; must be called within the runtime.
    pub fn new(home: &Home, port: u16, owner: &str, sequences: String) -> Self {
        let options = superuser_options(home, port, SUPERUSER).application_name("tandem-test");
        let pool = |max| {
            let pool = PgPoolOptions::new().max_connections(max).acquire_timeout(CONNECT_LIMIT);
            pool.test_before_acquire(false).connect_lazy_with(options.clone())
        };
        let (making, keeping) = (pool(MAKING_MAX), pool(KEEPING_MAX));
        Self { home: home.clone(), port, owner: owner.to_owned(), sequences, making, keeping }
    }

    /// Connect to the template once. The first connection to a database writes a cache of its catalogs (relcache.c,
    /// `pg_internal.init`), which takes as long as all the rest of connecting, and which clones then come with.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn warm(&self, template: &str) -> anyhow::Result<()> {
        let options = superuser_options(&self.home, self.port, template);
        let connected = async { options.connect().await?.close().await };
        answered(MAKE_LIMIT, "connect to the template", connected).await?;
        self.end_backends(template).await
    }

    /// Make the empty database `name` (no template's tables), owned by the application's role.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn create_empty(&self, name: &str) -> anyhow::Result<()> {
        self.clone_as(name, "template0").await
    }

    /// End all connections to the database `name`, and let no session change it any more.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn freeze(&self, name: &str) -> anyhow::Result<()> {
        self.end_backends(name).await?;
        self.run(format!("ALTER DATABASE {} IS_TEMPLATE true ALLOW_CONNECTIONS false", identifier(name))).await
    }

    /// Drop the database `name`, even while it is in use.
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
        execute(&self.making, clone_statement(name, template, &self.owner)).await
    }

    /// Those of the databases `names` that have connections.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn busy(&self, names: &[String]) -> anyhow::Result<Vec<String>> {
        let busy = "SELECT DISTINCT datname::text FROM pg_stat_activity WHERE datname = ANY($1)";
        let asked = query_scalar(busy).bind(names).fetch_all(&self.keeping);
        answered(MAKE_LIMIT, "see who is connected", asked).await
    }

    /// End the connections to the databases `names`.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn disconnect(&self, names: &[String]) -> anyhow::Result<()> {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY($1)";
        answered(MAKE_LIMIT, "end connections", query(end).bind(names).execute(&self.keeping)).await.map(drop)
    }

    /// Those of the databases `names`, none of which has a connection, that are as they were cloned.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn untouched(&self, names: &[String]) -> anyhow::Result<Vec<String>> {
        // A backend tells its counts before it leaves the list of backends.
        let unchanged = "SELECT datname::text FROM pg_stat_database WHERE datname = ANY($1)
                         AND tup_inserted + tup_updated + tup_deleted = 0
                         AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = datid)";
        let asked = query_scalar(unchanged).bind(names).fetch_all(&self.keeping);
        let mut found: Vec<String> = answered(MAKE_LIMIT, "see what was changed", asked).await?;
        for place in (0..found.len()).rev() {
            let options = superuser_options(&self.home, self.port, &found[place]);
            let asked = async {
                let mut inside = options.connect().await?;
                let sequences: String = query_scalar(SEQUENCES).fetch_one(&mut inside).await?;
                inside.close().await.map(|()| sequences)
            };
            let sequences = answered(MAKE_LIMIT, "read the sequences", asked).await?;
            if sequences != self.sequences {
                found.remove(place);
            }
        }
        for name in &found {
            self.end_backends(name).await?;
        }
        Ok(found)
    }

    /// Wait until the connections to the database `name` have gone; those that stay are ended.
    async fn end_backends(&self, name: &str) -> anyhow::Result<()> {
        let (began, names) = (Instant::now(), [name.to_owned()]);
        let mut told = false;
        while !self.busy(&names).await?.is_empty() && began.elapsed() < END_LIMIT {
            if !told && began.elapsed() > LEAVE_LIMIT {
                told = true;
                self.disconnect(&names).await?;
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Run one statement of Tandem's own making.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn run(&self, statement: String) -> anyhow::Result<()> {
        execute(&self.keeping, statement).await
    }
}

/// A session of the superuser's in `database`.
///
/// # Errors
/// The server refuses, or does not answer.
pub async fn enter(home: &Home, port: u16, database: &str) -> anyhow::Result<PgConnection> {
    let what = format!("connect to database {database} as the superuser");
    answered(MAKE_LIMIT, &what, superuser_options(home, port, database).connect()).await
}

async fn execute(pool: &PgPool, statement: String) -> anyhow::Result<()> {
    let what = statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let asked = raw_sql(AssertSqlSafe(statement)).execute(pool);
    answered(MAKE_LIMIT, &format!("run {what}"), asked).await.map(drop)
}
