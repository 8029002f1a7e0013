//! One sample of the server's health: does it answer a query, does its postmaster still take connections, and could a
//! worker write?
//!
//! Must not decide what a bad sample means: that is `supervise/` and `health/`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, ConnectOptions, Row, raw_sql};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::door::Door;
use super::home::Home;
use super::provision::superuser_options;
use super::trouble::Answer;
use crate::exit::what_the_server_said;
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::schema;

/// The first packet of a client that asks for TLS: length 8, code 80877103 (PostgreSQL documentation, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0x00, 0x00, 0x00, 0x08, 0x04, 0xd2, 0x16, 0x2f];
/// Until the next session is opened in place of one that somebody ended.
const ENDED_PAUSE: Duration = Duration::from_millis(20);
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
    /// `None` until the server was asked.
    pub max_connections: Option<u32>,
    /// Why it is not available.
    pub error: Option<String>,
    /// The same, as it was said.
    pub answer: Option<Answer>,
    /// Why workers cannot use it, though it may be available.
    pub fault: Option<Fault>,
}

impl Sample {
    /// There is no server to ask, because of `fault`.
    pub fn failed(fault: Fault) -> Self {
        Self {
            available: false,
            hung: false,
            latency: Duration::ZERO,
            schema_version: None,
            tables: Vec::new(),
            connections: 0,
            max_connections: None,
            error: Some(fault.to_string()),
            answer: None,
            fault: Some(fault),
        }
    }

    /// Whether workers can use it.
    pub fn serves(&self) -> bool {
        self.available && self.fault.is_none()
    }
}

/// Takes samples over one connection that it keeps.
pub struct Probe {
    options: PgConnectOptions,
    /// The unix socket of a server that Tandem runs; `None`: a server elsewhere.
    socket: Option<PathBuf>,
    connection: Option<PgConnection>,
    facts: Facts,
    /// Where the workers get in, where that is another way than ours.
    door: Option<Door>,
    /// The last fault of a server that answers, so that each is logged once.
    noted: Option<Fault>,
}

#[derive(Clone, Debug, Default)]
struct Facts {
    asked: Option<Instant>,
    schema_version: Option<String>,
    tables: Vec<String>,
    max_connections: Option<u32>,
}

/// What each sample asks.
#[derive(Clone, Copy, Debug, Default)]
struct Vitals {
    connections: u32,
    fault: Option<Fault>,
}

/// Why [`Probe::ask`] got no answer.
struct Refused {
    text: String,
    answer: Option<Answer>,
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
        Self { options, socket, connection: None, facts: Facts::default(), door: None, noted: None }
    }

    /// Ask at the workers' door too, which is at `url`.
    pub fn at_the_door(mut self, url: &DatabaseUrl) -> Self {
        self.door = Some(Door::new(url));
        self
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
        let (vitals, hung, refused) = match answer {
            Ok(Ok(vitals)) => (vitals, false, None),
            Ok(Err(refused)) => (Vitals::default(), false, Some(refused)),
            Err(_) => {
                let text = format!("no answer within {deadline:?}: the server hangs");
                (Vitals::default(), true, Some(Refused { text, answer: None }))
            }
        };
        let mut fault = vitals.fault;
        if let Some(refused) = &refused {
            // In the middle of an exchange, or broken: the next sample starts anew.
            self.connection = None;
            let said = || refused.answer.as_ref().map_or(Fault::Unreachable, Answer::fault);
            fault = Some(if hung { Fault::Hung(latency) } else { said() });
        } else {
            let left = deadline.saturating_sub(latency);
            let facts_are_old = self.ask_facts(left.min(FACTS_LIMIT)).await;
            if let Some(door) = &mut self.door {
                fault = fault.or(door.ask(facts_are_old, left).await);
            }
            self.note(fault);
        }
        let Facts { schema_version, tables, max_connections, .. } = self.facts.clone();
        let available = refused.is_none();
        let (error, answer) = refused.map_or((None, None), |refused| (Some(refused.text), refused.answer));
        let connections = vitals.connections;
        Sample { available, hung, latency, schema_version, tables, connections, max_connections, error, answer, fault }
    }

    /// Log a new fault of a server that answers, and the end of one.
    fn note(&mut self, fault: Option<Fault>) {
        if fault == self.noted {
            return;
        }
        match fault {
            Some(fault) => tracing::warn!("the database answers, but is not ready: {fault}"),
            None => tracing::info!("the database is ready for workers again"),
        }
        self.noted = fault;
    }

    /// The number of client connections and whether one can write, once both the postmaster and a backend have answered.
    async fn ask(&mut self) -> Result<Vitals, Refused> {
        if let Some(socket) = &self.socket {
            // Blocks: never, it is tokio's.
            knock(UnixStream::connect(socket)).await.map_err(|error| {
                let text = format!("the server takes no connections: {error}");
                Refused { text, answer: None }
            })?;
        }
        if let Some(connection) = &mut self.connection
            && let Ok(vitals) = vitals(connection).await
        {
            return Ok(vitals);
        }
        // Somebody may have ended this one session, as a restore does when it swaps databases: a new one tells.
        self.connection = None;
        self.refresh();
        let refused =
            |error: sqlx::Error| Refused { text: what_the_server_said(&error), answer: Some(Answer::of(&error)) };
        loop {
            match self.anew().await {
                // Ended as well: a server that shuts down would not have let it in. The deadline ends this.
                Err(error) if is_ended_by_somebody(&error) => sleep(ENDED_PAUSE).await,
                answer => return answer.map_err(refused),
            }
        }
    }

    /// Ask in a new session.
    async fn anew(&mut self) -> Result<Vitals, sqlx::Error> {
        let connection = self.options.connect().await?;
        vitals(self.connection.insert(connection)).await
    }

    /// Whether the facts were old enough to be asked for.
    async fn ask_facts(&mut self, limit: Duration) -> bool {
        if self.facts.asked.is_some_and(|asked| asked.elapsed() < FACTS_AGE_MAX) {
            return false;
        }
        let Some(connection) = &mut self.connection else { return false };
        match timeout(limit, facts(connection)).await {
            Ok(Ok(facts)) => self.facts = facts,
            // Not worth a word each second: the old facts stand.
            Ok(Err(error)) => tracing::debug!("ask for the schema version: {}", what_the_server_said(&error)),
            Err(_) => self.connection = None,
        }
        self.facts.asked = Some(Instant::now());
        true
    }
}

/// Connect anew and have the answer to one packet. A backend that is there already goes on answering when the postmaster
/// hangs; only a new connection proves that it lives. PostgreSQL logs nothing about a client that leaves after this.
pub(super) async fn knock<S>(connecting: impl Future<Output = std::io::Result<S>>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = connecting.await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(|_| ())
}

/// Whether somebody ended the session (admin_shutdown, as pg_terminate_backend does).
fn is_ended_by_somebody(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("57P01")
}

async fn vitals(connection: &mut PgConnection) -> Result<Vitals, sqlx::Error> {
    // In one exchange, as all that a probe asks: behind a pooler a prepared statement may be unknown where it is executed.
    let row = raw_sql(
        "SELECT count(*), pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool
         FROM pg_stat_get_activity(NULL) WHERE backend_type = 'client backend'",
    )
    .fetch_one(connection)
    .await?;
    let (count, in_recovery, read_only): (i64, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let fault = if in_recovery { Some(Fault::Standby) } else { read_only.then_some(Fault::ReadOnly) };
    Ok(Vitals { connections: u32::try_from(count).unwrap_or(u32::MAX), fault })
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
    let max_connections = u32::try_from(max_connections).ok();
    Ok(Facts { asked: Some(Instant::now()), schema_version, tables, max_connections })
}

#[cfg(test)]
mod tests;
