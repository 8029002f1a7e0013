//! What the superuser does with the databases of a throwaway server: clone, look at, close, drop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgPool, PgPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, query, query_as, query_scalar, raw_sql};
use tokio::time::{Instant, sleep};

use super::footprint::Footprint;
use crate::exit::in_words;
use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::settings::SUPERUSER;
use crate::schema::{MAKE_LIMIT, answered};

/// Connections that make clones, that watch what belongs to the whole server, and for all else: what waits for a backend's
/// end must hold up no clone.
const MAKING_MAX: u32 = 2;
const WATCHING_MAX: u32 = 1;
const KEEPING_MAX: u32 = 2;
/// How long such a connection may take to come about: a server that is started again needs less.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend whose client has gone may take to end by itself, before it is told to.
pub const LEAVE_LIMIT: Duration = Duration::from_millis(30);
/// How long backends may take to end then: they finish what they cannot interrupt.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks: pg_terminate_backend's own waiting, and that of DROP DATABASE, have steps of 100 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// What the form of values read as text depends on; a test may have changed it for the superuser too.
const PLAIN: [(&str, &str); 3] = [("datestyle", "ISO"), ("timezone", "UTC"), ("standard_conforming_strings", "on")];

/// Whether a database holds unlogged tables or sequences.
pub const UNLOGGED: &str = "SELECT EXISTS (SELECT FROM pg_class WHERE relpersistence = 'u')";

/// What a database that is only read is set to, as PostgreSQL keeps it.
pub const READ_ONLY: &str = "default_transaction_read_only=on";

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
pub struct Superuser {
    home: Home,
    port: u16,
    /// Owner of all clones.
    owner: String,
    /// The databases that were made here, and how each was then; `None` where that cannot be compared later.
    made: Mutex<BTreeMap<String, Option<Original>>>,
    /// Templates with unlogged relations.
    unlogged: Mutex<Vec<String>>,
    making: PgPool,
    watching: PgPool,
    keeping: PgPool,
}

/// A clone as it was made.
struct Original {
    number: i64,
    /// Its row of pg_database.
    row: String,
    files: Footprint,
}

/// A database's row, without what VACUUM notes in it.
macro_rules! row {
    () => {
        "(to_jsonb(d) - 'datfrozenxid' - 'datminmxid')::text"
    };
}
const ROW: &str = row!();
/// Of the databases with these names, those that look unchanged. The counts only spare most of the checkpoints: whoever resets them
/// or counts nothing is seen by the files.
const UNCHANGED: &str = concat!(
    "SELECT d.datname::text, d.oid::int8, ",
    row!(),
    " FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
     WHERE d.datname = ANY($1) AND tup_inserted + tup_updated + tup_deleted = 0 AND s.stats_reset IS NULL
     AND NOT EXISTS (SELECT FROM pg_shdescription WHERE classoid = 'pg_database'::regclass AND objoid = d.oid)
     AND NOT EXISTS (SELECT FROM pg_shseclabel WHERE classoid = 'pg_database'::regclass AND objoid = d.oid)
     AND NOT EXISTS (SELECT FROM pg_subscription WHERE subdbid = d.oid)
     AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE database = d.datname)
     AND NOT EXISTS (SELECT FROM pg_prepared_xacts WHERE database = d.datname)"
);

impl Superuser {
    /// Of the server in `home` on `port`, with its databases that are called `known`. Nothing is connected yet; must be called
    /// within the runtime.
    pub fn new(home: &Home, port: u16, owner: &str, known: &[&str], unlogged: Vec<String>) -> Self {
        let options = superuser_options(home, port, SUPERUSER).application_name("tandem-test").options(PLAIN);
        let pool = |max| {
            let pool = PgPoolOptions::new().max_connections(max).acquire_timeout(CONNECT_LIMIT);
            // Kept: tests that are superusers may use up every connection there is.
            pool.idle_timeout(None).max_lifetime(None).test_before_acquire(false).connect_lazy_with(options.clone())
        };
        Self {
            home: home.clone(),
            port,
            owner: owner.to_owned(),
            made: Mutex::new(known.iter().map(|&name| (name.to_owned(), None)).collect()),
            unlogged: Mutex::new(unlogged),
            making: pool(MAKING_MAX),
            watching: pool(WATCHING_MAX),
            keeping: pool(KEEPING_MAX),
        }
    }

    /// Open all connections, before the tests have taken what the server offers.
    pub async fn connect(&self) {
        let (making, keeping) = (&self.making, &self.keeping);
        // At once, or the second of a pool would be the first again.
        let opened = tokio::join!(
            making.acquire(),
            making.acquire(),
            keeping.acquire(),
            keeping.acquire(),
            self.watching.acquire()
        );
        let (one, two, three, four, five) = opened;
        for error in [one, two, three, four, five].into_iter().filter_map(Result::err) {
            tracing::debug!("connect to the tests' server: {error}");
        }
    }

    /// The one connection over which what belongs to the whole server is watched.
    pub fn watching(&self) -> &PgPool {
        &self.watching
    }

    /// Where the server's files are.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Whether the database `name` was made here.
    pub fn made(&self, name: &str) -> bool {
        self.originals().contains_key(name)
    }

    /// The names of all databases that were made here.
    pub fn all_made(&self) -> Vec<String> {
        self.originals().keys().cloned().collect()
    }

    /// Connect to the template once. The first connection to a database writes a cache of its catalogs (relcache.c,
    /// `pg_internal.init`), which takes as long as all the rest of connecting, and which clones then come with.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn warm(&self, template: &str) -> anyhow::Result<()> {
        let name = identifier(template);
        self.run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await?;
        let options = superuser_options(&self.home, self.port, template);
        let connected = async { options.connect().await?.close().await };
        let warmed = answered(MAKE_LIMIT, "connect to the template", connected).await;
        // A superuser among the tests could change it.
        self.run(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await?;
        warmed?;
        self.end_backends(template).await
    }

    /// Make the empty database `name` (no template's tables), owned by the application's role.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn create_empty(&self, name: &str) -> anyhow::Result<()> {
        self.originals().insert(name.to_owned(), None);
        execute(&self.making, clone_statement(name, "template0", &self.owner)).await
    }

    /// End all connections to the database `name`, and let no session change it any more.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn freeze(&self, name: &str) -> anyhow::Result<()> {
        self.release(&[name.to_owned()]).await?;
        let mut inside = enter(&self.home, self.port, name).await?;
        // So that who only reads a clone writes no hint into its pages, see `untouched`.
        let vacuumed = raw_sql("VACUUM (FREEZE)").execute(&mut inside);
        answered(MAKE_LIMIT, "vacuum the template", vacuumed).await?;
        let asked = query_scalar(UNLOGGED).fetch_one(&mut inside);
        if answered(MAKE_LIMIT, "look for unlogged tables", asked).await? {
            self.unlogged.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
        }
        answered(MAKE_LIMIT, "close the connection", inside.close()).await?;
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
        if let Err(error) = self.release(&[name.to_owned()]).await {
            tracing::debug!("end what holds {name}: {}", in_words(&error));
        }
        self.run(format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await?;
        self.originals().remove(name);
        Ok(())
    }

    /// Clone `template` as `name`.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn clone_as(&self, name: &str, template: &str) -> anyhow::Result<()> {
        self.originals().insert(name.to_owned(), None);
        execute(&self.making, clone_statement(name, template, &self.owner)).await?;
        if self.unlogged.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|unlogged| unlogged == template) {
            return Ok(());
        }
        let statement = format!("SELECT oid::int8, {ROW} FROM pg_database d WHERE datname = $1");
        let asked = query_as(AssertSqlSafe(statement)).bind(name).fetch_one(&self.making);
        let (number, row): (i64, String) = answered(MAKE_LIMIT, "look at the clone", asked).await?;
        match self.files(vec![number]).await.remove(&number) {
            Some(files) => drop(self.originals().insert(name.to_owned(), Some(Original { number, row, files }))),
            None => tracing::debug!("the files of {name} cannot be read"),
        }
        Ok(())
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

    /// Roll back the prepared transactions in the databases `names`, and drop their logical slots and subscriptions: none of
    /// them ends with its session, they hold locks, and they keep a database from being dropped. Those that had any count as
    /// changed.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn release(&self, names: &[String]) -> anyhow::Result<()> {
        let held =
            "SELECT database::text, ARRAY[format('ROLLBACK PREPARED %L', gid)] FROM pg_prepared_xacts WHERE database = ANY($1)
             UNION ALL SELECT database::text, ARRAY[format('SELECT pg_drop_replication_slot(%L)', slot_name)]
                 FROM pg_replication_slots WHERE database = ANY($1)
             UNION ALL SELECT datname::text, ARRAY[format('ALTER SUBSCRIPTION %I DISABLE', subname),
                     format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subname), format('DROP SUBSCRIPTION %I', subname)]
                 FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = ANY($1)";
        let asked = query_as(held).bind(names).fetch_all(&self.keeping);
        let held: Vec<(String, Vec<String>)> = answered(MAKE_LIMIT, "see what holds the databases", asked).await?;
        for (name, statements) in &held {
            self.originals().insert(name.clone(), None);
            // Only from within its database.
            self.run(format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", identifier(name))).await?;
            let mut inside = enter(&self.home, self.port, name).await?;
            for statement in statements {
                let ended = raw_sql(AssertSqlSafe(statement.clone())).execute(&mut inside);
                answered(MAKE_LIMIT, &format!("end what holds {name}"), ended).await?;
            }
            answered(MAKE_LIMIT, "close the connection", inside.close()).await?;
        }
        Ok(())
    }

    /// Those of the databases `names`, none of which has a connection, that are as they were cloned: their rows in the
    /// catalogs of the whole server are, and no file of theirs was written.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn untouched(&self, names: &[String]) -> anyhow::Result<Vec<String>> {
        let unchanged =
            format!("{UNCHANGED} AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid)");
        let asked = query_as(AssertSqlSafe(unchanged)).bind(names).fetch_all(&self.keeping);
        let found = answered(MAKE_LIMIT, "see what was changed", asked).await?;
        let names = self.unwritten(found).await?;
        for name in &names {
            self.end_backends(name).await?;
        }
        Ok(names)
    }

    /// The names of those that were `found` whose rows are as they were cloned, and of which no file was written.
    async fn unwritten(&self, mut found: Vec<(String, i64, String)>) -> anyhow::Result<Vec<String>> {
        found.retain(|(name, number, row)| {
            self.originals()
                .get(name)
                .and_then(Option::as_ref)
                .is_some_and(|original| (original.number, &original.row) == (*number, row))
        });
        if found.is_empty() {
            return Ok(Vec::new());
        }
        // What is changed in memory alone reaches its file.
        self.run("CHECKPOINT".to_owned()).await?;
        let files = self.files(found.iter().map(|(_, number, _)| *number).collect()).await;
        found.retain(|(name, number, _)| {
            let originals = self.originals();
            let original = originals.get(name).and_then(Option::as_ref);
            original.is_some_and(|original| files.get(number) == Some(&original.files))
        });
        Ok(found.into_iter().map(|(name, ..)| name).collect())
    }

    /// Whether the database `name` still refuses to be written to and nobody has written to it: as with other databases, its
    /// files tell, where they can.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn is_read_only(&self, name: &str) -> anyhow::Result<bool> {
        let unchanged = format!(
            "{UNCHANGED}
             AND EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole = 0 AND setconfig = ARRAY[$2])
             AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid AND setrole <> 0)"
        );
        let names = [name.to_owned()];
        let asked = query_as(AssertSqlSafe(unchanged)).bind(&names[..]).bind(READ_ONLY).fetch_all(&self.keeping);
        let found: Vec<_> = answered(MAKE_LIMIT, "look at the shared database", asked).await?;
        let is_known = matches!(self.originals().get(name), Some(Some(_)));
        Ok(if is_known { !self.unwritten(found).await?.is_empty() } else { !found.is_empty() })
    }

    /// The files of the databases with these numbers, as far as they can be read.
    async fn files(&self, numbers: Vec<i64>) -> BTreeMap<i64, Footprint> {
        let base: PathBuf = self.home.data.join("base");
        let look = move || {
            let of = |number: i64| Some((number, Footprint::of(&base.join(number.to_string())).ok()?));
            numbers.into_iter().filter_map(of).collect()
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
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

    fn originals(&self) -> MutexGuard<'_, BTreeMap<String, Option<Original>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
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
