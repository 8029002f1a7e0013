//! The server: how one gets in, and what it says of itself.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Error, PgConnection, Row, raw_sql};

use super::questions::{self, Asker};
use super::{DEEP_LIMIT, LOOK_LIMIT, in_time};
use crate::backup::doctor as room;
use crate::backup::reach::Reach;
use crate::config::MigrationRun;
use crate::doctor::facts::{
    Age, Archiver, Connections, Damage, Look, Refused, Revisions, Server, Session, Slot, Unseen,
};
use crate::doctor::subject::Subject;
use crate::exit::{Code, code_of, in_words, sql_state, what_the_server_said};
use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::{binaries, collation, server as own};
use crate::schema::tool::{KnownTool, Tool};
use crate::schema::{self, answered};

/// What our sessions are called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-doctor";
/// How long the server may take to let a session in.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
/// How long all questions may take together.
const SERVER_LIMIT: Duration = Duration::from_secs(30);

/// The server of `subject`, if it runs.
pub async fn server(subject: &Subject, has_server: bool) -> Look<Server> {
    let is_own = subject.is_managed();
    if is_own && !has_server {
        return Err(Unseen::nothing("no server runs"));
    }
    let limit = if subject.deep { DEEP_LIMIT } else { SERVER_LIMIT };
    in_time("the database server", limit, ask(subject, is_own)).await
}

async fn ask(subject: &Subject, is_own: bool) -> Look<Server> {
    let (door, application) = at_the_door(subject).await;
    let silent = || Unseen::nothing("the database does not answer: see the check `database`");
    let answers = application.is_ok();
    let mut as_application = match application {
        Ok(session) => Asker::new(session),
        // Why, the check `database` tells; to repeat it for each question would bury it.
        Err(_) => Asker::nobody(silent()),
    };
    let is_superuser =
        as_application.one("ask for the role's rights", questions::IS_SUPERUSER, |row| row.try_get(0)).await;
    let before = since_epoch();
    let clock = as_application.one("ask for the server's time", questions::CLOCK, |row| row.try_get::<f64, _>(0)).await;
    let clock = clock.map(|server| server - f64::midpoint(before, since_epoch()));
    // Where the server is Tandem's own, its superuser sees more.
    let session = superuser(subject, is_own).await;
    let answers = answers || session.is_some();
    let mut asker = match session {
        Some(session) => {
            as_application.close().await;
            Asker::new(session)
        }
        None => as_application,
    };
    let revisions = if answers { revisions(subject, &mut asker).await } else { Err(silent()) };
    let mut server = of_server(&mut asker, door, is_own).await;
    server.clock = if is_own { Err(Unseen::nothing("the server is on this machine")) } else { clock };
    server.replies_superuser = is_superuser;
    server.revisions = revisions;
    server.damage = match (subject.deep, is_own, asker.session()) {
        (false, ..) => Err(Unseen::nothing("tables and indexes are read with --deep only")),
        (true, false, _) => Err(Unseen::nothing("the server is not Tandem's own")),
        (true, true, Err(why)) => Err(why),
        (true, true, Ok(session)) => damage(session).await,
    };
    server.kept = if answers { kept(subject, is_own).await } else { Err(silent()) };
    asker.close().await;
    Ok(server)
}

fn since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Whether the application's role gets in, and its session.
async fn at_the_door(subject: &Subject) -> (Result<(), Refused>, Look<PgConnection>) {
    let url = match &subject.url {
        Ok(url) => url,
        Err(unseen) => {
            let (Unseen::Nothing(why) | Unseen::Unknown(why)) = unseen;
            return (Err(Refused { sqlstate: None, why: why.clone() }), Err(unseen.clone()));
        }
    };
    let (options, what) = (schema::options(url, APPLICATION_NAME), format!("connect to {url}"));
    match answered(CONNECT_LIMIT, &what, options.connect()).await {
        Ok(session) => (Ok(()), Ok(session)),
        Err(error) => {
            let why = in_words(&error);
            (Err(Refused { sqlstate: sql_state(&error), why: why.clone() }), Err(Unseen::unknown(why)))
        }
    }
}

async fn superuser(subject: &Subject, is_own: bool) -> Option<PgConnection> {
    let home = subject.home.as_ref().ok().filter(|_| is_own)?;
    let port = own::own_running_port(home)?;
    let database = subject.database().unwrap_or_else(|| "postgres".to_owned());
    let opened = async |database: &str| {
        let options = superuser_options(home, port, database).application_name(APPLICATION_NAME);
        answered(CONNECT_LIMIT, "connect as the superuser", options.connect()).await
    };
    match opened(&database).await {
        Ok(session) => Some(session),
        // The server hangs, and would do so once more.
        Err(error) if code_of(&error) == Code::Temporary => None,
        Err(_) => opened("postgres").await.ok(),
    }
}

/// What has the same words on every server.
async fn of_server(asker: &mut Asker, door: Result<(), Refused>, is_own: bool) -> Server {
    let connections = |row: &PgRow| Ok(Connections { used: row.try_get(0)?, max: row.try_get(1)? });
    let age =
        |row: &PgRow| Ok(Age { database: row.try_get(0)?, transactions: row.try_get(1)?, multixacts: row.try_get(2)? });
    let archiver = |row: &PgRow| {
        Ok(Archiver { is_on: row.try_get(0)?, is_failing: row.try_get(1)?, last_failed: row.try_get(2)? })
    };
    let slot = |row: &PgRow| {
        Ok(Slot { name: row.try_get(0)?, is_active: row.try_get(1)?, is_lost: row.try_get(2)?, kept: row.try_get(3)? })
    };
    let text = |row: &PgRow| row.try_get::<String, _>(0);
    let pair = |row: &PgRow| Ok((row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?));
    let settings = asker.all("ask for settings", questions::SETTINGS, pair).await;
    Server {
        door,
        is_own,
        clock: Err(Unseen::nothing("it was not asked for")),
        connections: asker.one("count connections", questions::CONNECTIONS, connections).await,
        sessions: asker.all("look at sessions", questions::SESSIONS, session).await,
        prepared: asker.all("look for prepared transactions", questions::PREPARED, text).await,
        ages: asker.all("ask for the age of databases", questions::AGES, age).await,
        archiver: asker.one("ask the archiver", questions::ARCHIVER, archiver).await,
        slots: asker.all("look at replication slots", questions::SLOTS, slot).await,
        settings: settings.map(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>()),
        pending: asker.all("ask for settings that wait", questions::PENDING, text).await,
        invalid_indexes: asker.all("look for invalid indexes", questions::INVALID_INDEXES, text).await,
        collations: match (is_own, asker.session()) {
            (true, Ok(session)) => collation::look(session).await.map_err(|error| Unseen::unknown(in_words(&error))),
            (true, Err(why)) => Err(why),
            (false, _) => Err(Unseen::nothing("the server is not Tandem's own")),
        },
        damaged_pages: asker.one("ask for damaged pages", questions::DAMAGED_PAGES, |row| row.try_get(0)).await,
        hba: match is_own {
            true => asker.all("ask for the rules of pg_hba.conf", questions::HBA, text).await,
            false => Err(Unseen::nothing("the server is not Tandem's own")),
        },
        revisions: Err(Unseen::nothing("they were not asked for")),
        damage: Err(Unseen::nothing("it was not looked for")),
        replies_superuser: Err(Unseen::nothing("it was not asked for")),
        kept: Err(Unseen::nothing("it was not looked for")),
    }
}

fn session(row: &PgRow) -> Result<Session, Error> {
    Ok(Session {
        pid: row.try_get(0)?,
        role: row.try_get(1)?,
        application: row.try_get(2)?,
        state: row.try_get(3)?,
        age: row.try_get(4)?,
        idle: row.try_get(5)?,
        waits: row.try_get(6)?,
        blockers: row.try_get(7)?,
        command: row.try_get(8)?,
    })
}

/// What the database is at, and what the code knows.
async fn revisions(subject: &Subject, asker: &mut Asker) -> Look<Revisions> {
    let settings = subject.settings.as_ref().map_err(Clone::clone)?;
    let built_in = async || {
        let url = subject.url.as_ref().map_err(Clone::clone)?;
        in_time("the schema's revision", LOOK_LIMIT, async { Ok(schema::status(url).await) }).await
    };
    match &settings.migrations.run {
        MigrationRun::None => Err(Unseen::nothing("there are no migrations (migrations.run)")),
        MigrationRun::SeaOrm => Ok(match built_in().await? {
            Ok(rows) => Revisions { pending: rows.iter().filter(|row| !row.applied).count(), ..Revisions::default() },
            Err(error) => Revisions { refused: Some(in_words(&error)), ..Revisions::default() },
        }),
        MigrationRun::Sql => {
            let (url, dir) = (subject.url.as_ref().map_err(Clone::clone)?, settings.sql_dir());
            let asked = async { Ok(schema::sql_files::status(url, &dir).await) };
            Ok(match in_time("the record of the SQL files", LOOK_LIMIT, asked).await? {
                Ok(files) => {
                    let pending = files.iter().filter(|file| !file.applied).count();
                    Revisions { pending, ..Revisions::default() }
                }
                Err(error) => Revisions { refused: Some(in_words(&error)), ..Revisions::default() },
            })
        }
        MigrationRun::Command(words) if KnownTool::of(words).is_some_and(|known| known.tool == Tool::Alembic) => {
            let dir = settings.migrations_dir().to_owned();
            let known = super::apart("read the project's migrations", move || super::alembic::revisions(&dir)).await?;
            let text = |row: &PgRow| row.try_get::<String, _>(0);
            let is_there = asker.one("look for alembic_version", questions::HAS_ALEMBIC, |row| row.try_get(0)).await?;
            let current = match is_there {
                true => asker.all("ask for the revision", questions::ALEMBIC, text).await?,
                false => Vec::new(),
            };
            Ok(Revisions { current, known, ..Revisions::default() })
        }
        MigrationRun::Command(_) => Err(Unseen::nothing("`tandem migrate status` asks the project's own tool")),
    }
}

/// What restores left and replaced.
async fn kept(subject: &Subject, is_own: bool) -> Look<Vec<room::Finding>> {
    let (settings, home) = (subject.settings.clone()?, subject.home.clone()?);
    let database = subject.database().unwrap_or_default();
    in_time("look for kept databases", LOOK_LIMIT, async {
        let (source, cache) = (&settings.postgres.source, &settings.cache_dir);
        let programs = binaries::present(source, cache, settings.search_path.as_ref()).await;
        let programs = programs.ok_or_else(|| Unseen::nothing("PostgreSQL is not installed yet"))?;
        let reach = match (is_own, &settings.postgres.url) {
            (false, Some(url)) => Reach::url(url, &home, programs),
            _ => Reach::superuser(&home, port(&home)?, programs),
        };
        room::in_server(&reach, &database).await.map_err(|error| Unseen::unknown(in_words(&error)))
    })
    .await
}

fn port(home: &Home) -> Look<u16> {
    own::own_running_port(home).ok_or_else(|| Unseen::nothing("no server of this state directory runs"))
}

/// Read every table and index by PostgreSQL's own amcheck, which is put into the database for that and rolled back again.
async fn damage(session: &mut PgConnection) -> Look<Damage> {
    const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; CREATE SCHEMA tandem_doctor; \
                         CREATE EXTENSION amcheck SCHEMA tandem_doctor; SAVEPOINT before_one";
    const THERE: &str = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                         WHERE extname = 'amcheck'";
    const ALL: &str = "
        SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname), c.relkind = 'i'
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid
        LEFT JOIN pg_am a ON a.oid = c.relam
        WHERE c.relpersistence = 'p' AND (c.relkind IN ('r', 't', 'm') AND a.amname = 'heap'
              OR c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND i.indisready)
        ORDER BY 1";
    let failed = |error: Error| Unseen::unknown(format!("amcheck: {}", what_the_server_said(&error)));
    let there = raw_sql(THERE).fetch_optional(&mut *session).await.map_err(failed)?;
    let there: Option<String> = there.map(|row| row.try_get(0)).transpose().map_err(failed)?;
    let begin = if there.is_some() { "BEGIN; SET LOCAL lock_timeout = '1s'; SAVEPOINT before_one" } else { BEGIN };
    let schema = there.unwrap_or_else(|| "tandem_doctor".to_owned());
    if let Err(error) = raw_sql(begin).execute(&mut *session).await {
        let _ended = raw_sql("ROLLBACK").execute(&mut *session).await;
        return Err(failed(error));
    }
    let all = raw_sql(ALL).fetch_all(&mut *session).await.map_err(failed)?;
    let mut damage = Damage { looked_at: all.len(), found: Vec::new() };
    for row in &all {
        let (oid, name, is_index): (i64, String, bool) =
            (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
        let schema = identifier(&schema);
        let question = match is_index {
            true => format!("SELECT {schema}.bt_index_check({oid}::oid::regclass)::text"),
            false => {
                format!("SELECT msg FROM {schema}.verify_heapam({oid}::oid::regclass, on_error_stop => true) LIMIT 1")
            }
        };
        match raw_sql(AssertSqlSafe(question)).fetch_all(&mut *session).await {
            Ok(rows) if is_index || rows.is_empty() => {}
            Ok(rows) => {
                let why = rows[0].try_get::<String, _>(0).unwrap_or_default();
                damage.found.push(format!("{name}: {why}"));
            }
            Err(error) => {
                if is_damage(&error) {
                    damage.found.push(format!("{name}: {}", what_the_server_said(&error)));
                }
                raw_sql("ROLLBACK TO before_one").execute(&mut *session).await.map_err(failed)?;
            }
        }
    }
    raw_sql("ROLLBACK").execute(&mut *session).await.map_err(failed)?;
    Ok(damage)
}

/// Whether the server's answer tells of damaged or missing files, and not of a lock that was not to be had, say
/// (PostgreSQL documentation, appendix A: classes XX and 58).
fn is_damage(error: &Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("XX") || code.starts_with("58"))
}

/// The settings of the server that differ from PostgreSQL's defaults, for a report.
pub async fn changed_settings(subject: &Subject) -> Look<Vec<String>> {
    let session = match superuser(subject, subject.is_managed()).await {
        Some(session) => session,
        None => at_the_door(subject).await.1?,
    };
    let mut asker = Asker::new(session);
    let all = asker.all("ask for settings", questions::CHANGED_SETTINGS, |row| row.try_get::<String, _>(0)).await;
    asker.close().await;
    all
}
