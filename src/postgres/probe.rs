//! One sample of the server's health: does it answer a query, does its postmaster still take connections, and could a
//! worker write?
//!
//! Must not decide what a bad sample means: that is `supervise/` and `health/`.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection};
use sea_orm::sqlx::{self, Row, raw_sql};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::door::Door;
use super::home::Home;
use super::provision::superuser_options;
use super::session::Session;
use super::trouble::{Answer, AnswerSource};
use crate::exit::{own_limit, what_the_server_said};
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::schema;

/// The first packet of a client that asks for TLS: length 8, code 80877103 (PostgreSQL documentation, "SSLRequest").
pub(super) const SSL_REQUEST: [u8; 8] = [0x00, 0x00, 0x00, 0x08, 0x04, 0xd2, 0x16, 0x2f];
/// Pause before another session is opened in place of one that was terminated.
const ENDED_PAUSE: Duration = Duration::from_millis(20);
/// The SQLSTATE of a session that was terminated, as by pg_terminate_backend.
const ADMIN_SHUTDOWN: &str = "57P01";
/// The SQLSTATE of a session in a database that does not exist.
const NO_DATABASE: &str = "3D000";
/// How often a database that was there is looked for again.
const RENAMED_MAX: u32 = 50;
/// How long a server may take to answer after our session ended, before readiness is withdrawn. It takes a millisecond, also
/// to say that it recovers; on a busy machine more, and a restore that swaps databases is no outage there either.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How long opening the session that is watched may take.
const WATCH_LIMIT: Duration = Duration::from_secs(1);
/// Maximum age of the facts that change slowly.
const FACTS_AGE_MAX: Duration = Duration::from_secs(10);
/// Limit for reading them: a lock on `alembic_version` says nothing about the server's health.
const FACTS_LIMIT: Duration = Duration::from_millis(250);

/// The result of one probe.
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
    /// The sample of a server that cannot be asked because of `fault`.
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

/// Why a pause between two samples is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The time has passed.
    Due,
    /// Our own session ended: the server ends all its sessions, or this one was terminated.
    Alarm,
}

/// Takes samples over one session that it keeps, and whose end it notices between two samples.
pub struct Probe {
    options: PgConnectOptions,
    /// The unix socket of a server that Tandem runs; `None`: a server elsewhere.
    socket: Option<PathBuf>,
    session: Option<Session>,
    /// Whether a session in the database has ever answered.
    has_answered: bool,
    /// Whether the postmaster has answered in the sample that is being taken.
    knocked: Rc<Cell<bool>>,
    /// The last alarm after which a new session answered: the server may end idle sessions as a habit, so there is at
    /// most one such alarm in each pause.
    false_alarm: Option<Instant>,
    facts: SlowFacts,
    /// The workers' way in, if it differs from the probe's.
    door: Option<Door>,
    /// The last fault of a server that answers; each is logged once.
    noted: Option<Fault>,
}

#[derive(Clone, Debug, Default)]
struct SlowFacts {
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
        let (session, false_alarm, door, noted) = (None, None, None, None);
        let (knocked, facts) = (Rc::default(), SlowFacts::default());
        Self { options, socket, session, has_answered: false, knocked, false_alarm, facts, door, noted }
    }

    /// Also check the workers' way in, at `url`.
    pub fn at_the_door(mut self, url: &DatabaseUrl) -> Self {
        self.door = Some(Door::new(url));
        self
    }

    /// Read the slow facts again with the next sample, for example after migrations.
    pub fn refresh(&mut self) {
        self.facts.asked = None;
    }

    /// Wait for `pause`, at most until our own session ends.
    ///
    /// When a backend or an auxiliary process of PostgreSQL dies, the postmaster ends every session and recovers. Behind a
    /// pooler nothing is seen of this: it keeps its clients' sessions while it loses its own.
    pub async fn pause(&mut self, pause: Duration) -> Woken {
        let over = tokio::time::Instant::now() + pause;
        let is_habit = self.false_alarm.is_some_and(|at| at.elapsed() < pause);
        if !is_habit && let Some(session) = &mut self.session {
            match timeout(pause.min(WATCH_LIMIT), session.watch(&self.options)).await {
                Ok(true) => {
                    let ended = tokio::time::timeout_at(over, session.ended()).await.is_ok();
                    return if ended { self.alarm() } else { Woken::Due };
                }
                Ok(false) => return self.alarm(),
                // There may be no more connections to be had: this session stays, and the next sample shows its end.
                Err(_) => {}
            }
        }
        tokio::time::sleep_until(over).await;
        Woken::Due
    }

    fn alarm(&mut self) -> Woken {
        self.session = None;
        Woken::Alarm
    }

    /// Take a sample after an alarm, within `deadline`: a new session tells whether the server serves. `withdraw` gets a
    /// sample that says no if nothing answers at once.
    ///
    /// A server that recovers refuses a session as soon as it is asked for one. A restore that swaps databases makes it wait,
    /// and terminates it as well: that is no outage, so the session may take its time once the postmaster has answered.
    pub async fn sample_after_alarm(&mut self, deadline: Duration, withdraw: impl FnOnce(Sample)) -> Sample {
        let knocked = self.knocked.clone();
        let sample = {
            let mut asked = std::pin::pin!(self.sample(deadline));
            match timeout(AT_ONCE, &mut asked).await {
                Ok(sample) => sample,
                Err(_) => {
                    if !knocked.get() {
                        withdraw(Sample::failed(Fault::SessionEnded));
                    }
                    asked.await
                }
            }
        };
        if sample.available {
            self.false_alarm = Some(Instant::now());
            tracing::debug!("the probe's session was ended; a new one answers");
        }
        sample
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
            // The session is broken or in the middle of an exchange: the next sample opens another.
            self.session = None;
            let said = || match refused.answer.as_ref().map_or(Fault::Unreachable, Answer::fault) {
                // The postmaster took the connection, and ended whoever served it: so it does when one of its own has died.
                Fault::Unreachable if self.knocked.get() => Fault::Starting,
                fault => fault,
            };
            fault = Some(if hung { Fault::Hung(latency) } else { said() });
            if fault == Some(Fault::NoDescriptors) && self.noted != fault {
                tracing::error!("the database is not asked: {}", refused.text);
                self.noted = fault;
            }
        } else {
            let left = deadline.saturating_sub(latency);
            let facts_are_old = self.ask_facts(left.min(FACTS_LIMIT)).await;
            if let Some(door) = &mut self.door {
                fault = fault.or(door.ask(facts_are_old, left).await);
            }
            self.note(fault);
        }
        let SlowFacts { schema_version, tables, max_connections, .. } = self.facts.clone();
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
        self.knocked.set(false);
        if let Some(socket) = &self.socket {
            // Blocks: never, it is tokio's.
            match knock(UnixStream::connect(socket)).await {
                Ok(()) => self.knocked.set(true),
                Err(error) => match own_limit(&error) {
                    // The session that is open can still be asked.
                    Some(_) if self.session.is_some() => {}
                    Some(text) => {
                        let answer = Some(Answer { from: AnswerSource::Own, text: text.clone() });
                        return Err(Refused { text, answer });
                    }
                    None => {
                        let text = format!("the server takes no connections: {error}");
                        return Err(Refused { text, answer: None });
                    }
                },
            }
        }
        if let Some(session) = &mut self.session
            && let Ok(connection) = session.connection().await
            && let Ok(vitals) = vitals(connection).await
        {
            return Ok(vitals);
        }
        // This one session may have been terminated, as a restore does when it swaps databases: ask in a new one.
        self.session = None;
        self.refresh();
        let refused =
            |error: sqlx::Error| Refused { text: what_the_server_said(&error), answer: Some(Answer::of(&error)) };
        let mut renamed = 0;
        loop {
            match self.anew().await {
                // Terminated as well. A server that shuts down lets no session in, so this is a restore. The deadline ends
                // the loop.
                Err(error) if has_code(&error, ADMIN_SHUTDOWN) => sleep(ENDED_PAUSE).await,
                // Between the two renames of a restore, the name that the session looked up belongs to no database.
                Err(error) if self.has_answered && renamed < RENAMED_MAX && has_code(&error, NO_DATABASE) => {
                    renamed += 1;
                    sleep(ENDED_PAUSE).await;
                }
                // It was let in, and terminated before it could ask.
                Err(sqlx::Error::Io(_)) if self.has_answered && renamed < RENAMED_MAX => {
                    renamed += 1;
                    sleep(ENDED_PAUSE).await;
                }
                answer => {
                    self.has_answered |= answer.is_ok();
                    return answer.map_err(refused);
                }
            }
        }
    }

    /// Ask in a new session.
    async fn anew(&mut self) -> Result<Vitals, sqlx::Error> {
        let session = Session::open(&self.options).await?;
        vitals(self.session.insert(session).connection().await?).await
    }

    /// Read the slow facts if they are too old. Returns whether they were.
    async fn ask_facts(&mut self, limit: Duration) -> bool {
        if self.facts.asked.is_some_and(|asked| asked.elapsed() < FACTS_AGE_MAX) {
            return false;
        }
        let Some(session) = &mut self.session else { return false };
        let asked = async { facts(session.connection().await?).await };
        match timeout(limit, asked).await {
            Ok(Ok(facts)) => self.facts = facts,
            // Not worth a log line each second: the old facts are kept.
            Ok(Err(error)) => tracing::debug!("ask for the schema version: {}", what_the_server_said(&error)),
            Err(_) => self.session = None,
        }
        self.facts.asked = Some(Instant::now());
        true
    }
}

/// Open a connection and wait for the answer to one packet. Existing backends go on answering while the postmaster hangs, so
/// only a new connection proves that it works. PostgreSQL logs nothing about a client that leaves after this packet.
pub(super) async fn knock<S>(connecting: impl Future<Output = std::io::Result<S>>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = connecting.await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(|_| ())
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some(code)
}

async fn vitals(connection: &mut PgConnection) -> Result<Vitals, sqlx::Error> {
    // One exchange of the simple protocol: behind a pooler another server process may execute a prepared statement.
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

async fn facts(connection: &mut PgConnection) -> Result<SlowFacts, sqlx::Error> {
    // Without the privilege check, a role that may not read the table would fill the server's log with errors.
    let row = raw_sql(
        "SELECT coalesce(array_agg(relname::text ORDER BY relname), '{}'), current_setting('max_connections')::int,
                coalesce((SELECT relkind = 'r' AND has_table_privilege(oid, 'SELECT') FROM pg_class
                          WHERE oid = to_regclass('public.alembic_version')), false)
         FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
         WHERE nspname = 'public' AND relkind IN ('r', 'p')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (tables, max_connections, readable) = (row.try_get(0)?, row.try_get::<i32, _>(1)?, row.try_get(2)?);
    let schema_version = if readable { schema::copied::alembic_version(connection).await? } else { None };
    let max_connections = u32::try_from(max_connections).ok();
    Ok(SlowFacts { asked: Some(Instant::now()), schema_version, tables, max_connections })
}

#[cfg(test)]
mod tests;
