//! One sample of the server's health: does it answer a query, and does its postmaster still take connections?
//!
//! Must not decide what a bad sample means: that is `supervise/` and `health/`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, ConnectOptions, Row, raw_sql};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::home::Home;
use super::provision::superuser_options;
use crate::exit::what_the_server_said;
use crate::plan::DatabaseUrl;
use crate::schema;

/// The first packet of a client that asks for TLS: length 8, code 80877103 (PostgreSQL documentation, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0x00, 0x00, 0x00, 0x08, 0x04, 0xd2, 0x16, 0x2f];
/// How old the facts that change slowly may be.
const FACTS_AGE_MAX: Duration = Duration::from_secs(10);
/// How long asking for them may take: a lock on `alembic_version` says nothing about the server's health.
const FACTS_LIMIT: Duration = Duration::from_millis(250);

/// What one look at the server found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub available: bool,
    /// Nothing came back before the deadline, as from a stopped process.
    pub hung: bool,
    /// From the question to the answer, or to the failure.
    pub latency: Duration,
    /// `alembic_version`, when there is such a table with something in it.
    pub schema_version: Option<String>,
    /// The tables of the schema `public`.
    pub tables: Vec<String>,
    /// Client connections, over all databases.
    pub connections: u32,
    pub max_connections: u32,
    pub error: Option<String>,
}

/// Takes samples over one connection that it keeps.
pub struct Probe {
    options: PgConnectOptions,
    /// The unix socket of a server that Tandem runs; `None`: a server elsewhere.
    socket: Option<PathBuf>,
    connection: Option<PgConnection>,
    facts: Facts,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    asked: Option<Instant>,
    schema_version: Option<String>,
    tables: Vec<String>,
    max_connections: u32,
}

impl Probe {
    /// A probe of the server that Tandem runs in `home`.
    pub fn managed(home: &Home, port: u16, database: &str) -> Self {
        Self::new(superuser_options(home, port, database), Some(home.socket(port)))
    }

    /// A probe of the server at `url`. It makes no fresh connections: across a network they cost, and fill its log.
    pub fn attached(url: &DatabaseUrl) -> Self {
        Self::new(schema::options(url, "tandem"), None)
    }

    fn new(options: PgConnectOptions, socket: Option<PathBuf>) -> Self {
        Self { options, socket, connection: None, facts: Facts::default() }
    }

    /// Ask for the slow facts with the next sample, because they have changed: after migrations, say.
    pub fn refresh(&mut self) {
        self.facts.asked = None;
    }

    /// Take a sample within `deadline`.
    pub async fn sample(&mut self, deadline: Duration) -> Sample {
        let begun = Instant::now();
        let answer = timeout(deadline, self.ask()).await;
        let latency = begun.elapsed();
        let (connections, hung, error) = match answer {
            Ok(Ok(connections)) => (connections, false, None),
            Ok(Err(error)) => (0, false, Some(error)),
            Err(_) => (0, true, Some(format!("no answer within {deadline:?}: the server hangs"))),
        };
        if error.is_some() {
            // In the middle of an exchange, or broken: the next sample starts anew.
            self.connection = None;
        } else {
            self.ask_facts(deadline.saturating_sub(latency).min(FACTS_LIMIT)).await;
        }
        let Facts { schema_version, tables, max_connections, .. } = self.facts.clone();
        let available = error.is_none();
        Sample { available, hung, latency, schema_version, tables, connections, max_connections, error }
    }

    /// The number of client connections, once both the postmaster and a backend have answered.
    async fn ask(&mut self) -> Result<u32, String> {
        if let Some(socket) = &self.socket {
            knock(socket).await.map_err(|error| format!("the server takes no connections: {error}"))?;
        }
        if let Some(connection) = &mut self.connection
            && let Ok(count) = clients(connection).await
        {
            return Ok(count);
        }
        // Somebody may have ended this one session, as a restore does when it swaps databases: a new one tells.
        self.connection = None;
        self.refresh();
        let connection = self.options.connect().await.map_err(|error| what_the_server_said(&error))?;
        clients(self.connection.insert(connection)).await.map_err(|error| what_the_server_said(&error))
    }

    async fn ask_facts(&mut self, limit: Duration) {
        if self.facts.asked.is_some_and(|asked| asked.elapsed() < FACTS_AGE_MAX) {
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        match timeout(limit, facts(connection)).await {
            Ok(Ok(facts)) => self.facts = facts,
            // Not worth a word each second: the old facts stand.
            Ok(Err(error)) => tracing::debug!("ask for the schema version: {}", what_the_server_said(&error)),
            Err(_) => self.connection = None,
        }
        self.facts.asked = Some(Instant::now());
    }
}

/// Connect anew and have the answer to one packet. A backend that is there already goes on answering when the postmaster
/// hangs; only a new connection proves that it lives. PostgreSQL logs nothing about a client that leaves after this.
async fn knock(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(|_| ())
}

async fn clients(connection: &mut PgConnection) -> Result<u32, sqlx::Error> {
    // In one exchange, as all that a probe asks: behind a pooler a prepared statement may be unknown where it is executed.
    let row = raw_sql("SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'client backend'")
        .fetch_one(connection)
        .await?;
    let count: i64 = row.try_get(0)?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

async fn facts(connection: &mut PgConnection) -> Result<Facts, sqlx::Error> {
    // A role without the right to read it would fill the server's log with its tries.
    let row = raw_sql(
        "SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}'), current_setting('max_connections')::int,
                coalesce(has_table_privilege(to_regclass('public.alembic_version'), 'SELECT'), false)
         FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
         WHERE nspname = 'public' AND relkind IN ('r', 'p')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (tables, max_connections, readable) = (row.try_get(0)?, row.try_get::<i32, _>(1)?, row.try_get(2)?);
    let schema_version = if readable {
        raw_sql("SELECT string_agg(version_num, ', ' ORDER BY version_num) FROM public.alembic_version")
            .fetch_one(connection)
            .await?
            .try_get(0)?
    } else {
        None
    };
    let max_connections = u32::try_from(max_connections).unwrap_or_default();
    Ok(Facts { asked: Some(Instant::now()), schema_version, tables, max_connections })
}

#[cfg(test)]
mod tests;
