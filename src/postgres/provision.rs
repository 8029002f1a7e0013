//! Create what the application needs in the cluster: its role, its database, `pg_stat_statements`.
//!
//! Idempotent: if nothing is missing, this costs one connection and one query.

use anyhow::{Context, bail};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, query_as, query_scalar, raw_sql};

use super::collation;
use super::home::Home;
use super::rotation;
use super::scram;
use super::secret::Password;
use super::settings::SUPERUSER;
use super::trouble::{self, Lasting};
use crate::exit::{Code, Failure, in_words, is_broken_off, is_disk_full, sql_state};
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered, blank};

/// What the application needs.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The application's role, owner of the database.
    pub user: &'a str,
    pub password: &'a Password,
    pub database: &'a str,
    /// Whether the role sees what all sessions do.
    pub reads_all_stats: bool,
}

/// What the server already has.
#[derive(Debug)]
struct Present {
    durable: bool,
    role: Option<PresentRole>,
    owner: Option<String>,
    statements: bool,
    /// Whether there is the second role of a change of the password.
    second_role: bool,
    /// Whether the role was granted the right to see what all sessions do.
    reads_all_stats: bool,
}

#[derive(Debug)]
struct PresentRole {
    can_login: bool,
    verifier: Option<String>,
}

/// Settings of the server, a role or a database that could interrupt Tandem's own statements, or have them find something else,
/// with values that do not: whoever owns a database may put functions and operators before PostgreSQL's in its search path.
const OWN: [(&str, &str); 6] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("search_path", ""),
];

/// How the superuser gets into `database` of the server in `home`: over the unix socket, without a password.
pub fn superuser_options(home: &Home, port: u16, database: &str) -> PgConnectOptions {
    let options = blank(database, "tandem").socket(&home.socket_dir).port(port).options(OWN);
    options.username(SUPERUSER).ssl_mode(PgSslMode::Disable)
}

/// Create or change what is `wanted` in the running server of `home`; `fresh` says that the cluster was just created.
///
/// # Errors
/// When the server refuses; [`Failure`] with [`Code::Config`] when it runs without fsync or full_page_writes.
pub async fn provision(home: &Home, port: u16, wanted: &Wanted<'_>, fresh: bool) -> anyhow::Result<()> {
    if !fresh && let Some(mut connection) = enter(home, port, wanted.database).await? {
        let present = look(&mut connection, wanted).await?;
        complete(&mut connection, wanted, &present).await?;
        collation::warn(&mut connection).await;
        return close(connection).await;
    }
    let mut connection = enter(home, port, SUPERUSER).await?.context("the database `postgres` is missing")?;
    let present = look(&mut connection, wanted).await?;
    role(&mut connection, wanted, present.role.as_ref()).await?;
    statistics(&mut connection, wanted, &present).await?;
    let (database, owner) = (identifier(wanted.database), identifier(wanted.user));
    if wanted.database == SUPERUSER {
        // initdb has made it. Only its owner may create schemas and tables in it.
        run(&mut connection, format!("ALTER DATABASE {database} OWNER TO {owner}")).await?;
    } else {
        run(&mut connection, format!("CREATE DATABASE {database} OWNER {owner}")).await?;
        close(connection).await?;
        connection = enter(home, port, wanted.database).await?.context("the database that was just made is missing")?;
    }
    statements(&mut connection).await?;
    close(connection).await
}

/// Connect to `database`; `None` when there is no such database.
pub(super) async fn enter(home: &Home, port: u16, database: &str) -> anyhow::Result<Option<PgConnection>> {
    // A power cut in the next 0.2 s may take back what is not flushed at once; the next start makes it again. CREATE
    // DATABASE flushes by itself, so nothing can be in the database without it.
    let options = superuser_options(home, port, database).options([("synchronous_commit", "off")]);
    match answered(ANSWER_LIMIT, "connect to PostgreSQL as its superuser", options.connect()).await {
        Ok(connection) => Ok(Some(connection)),
        // invalid_catalog_name
        Err(error) if sql_state(&error).as_deref() == Some("3D000") => Ok(None),
        Err(error) => match trouble::of_locale(&format!("database {database}: {}", error.root_cause())) {
            Some(Lasting { code, why }) => Err(error.context(Failure::new(code, why))),
            None => Err(error),
        },
    }
}

pub(super) async fn close(connection: PgConnection) -> anyhow::Result<()> {
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", connection.close()).await
}

async fn look(connection: &mut PgConnection, wanted: &Wanted<'_>) -> anyhow::Result<Present> {
    type Row = (bool, Option<bool>, Option<String>, Option<String>, bool, bool, bool);
    let asked = query_as(
        "SELECT current_setting('fsync')::bool AND current_setting('full_page_writes')::bool,
                role.rolcanlogin, role.rolpassword,
                (SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $2),
                EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements'),
                EXISTS (SELECT FROM pg_roles WHERE rolname = $3),
                EXISTS (SELECT FROM pg_auth_members WHERE member = role.oid AND roleid = 'pg_read_all_stats'::regrole)
         FROM (SELECT 1) AS always LEFT JOIN pg_authid AS role ON role.rolname = $1",
    )
    .bind(wanted.user)
    .bind(wanted.database)
    .bind(rotation::ROLE)
    .fetch_one(connection);
    let row: Row = answered(ANSWER_LIMIT, "ask PostgreSQL what it holds", asked).await?;
    let (durable, can_login, verifier, owner, statements, second_role, reads_all_stats) = row;
    let role = can_login.map(|can_login| PresentRole { can_login, verifier });
    let present = Present { durable, role, owner, statements, second_role, reads_all_stats };
    if !present.durable {
        let message = "PostgreSQL runs without fsync or full_page_writes: a power cut would destroy this data";
        let ways = "remove them from [postgres.settings], and from postgresql.auto.conf (ALTER SYSTEM RESET)";
        bail!(Failure::new(Code::Config, format!("{message}; {ways}")));
    }
    Ok(present)
}

/// The database exists: change what differs from `wanted`.
async fn complete(connection: &mut PgConnection, wanted: &Wanted<'_>, present: &Present) -> anyhow::Result<()> {
    role(connection, wanted, present.role.as_ref()).await?;
    heal(connection, wanted, present).await;
    statistics(connection, wanted, present).await?;
    if let Some(owner) = present.owner.as_deref().filter(|&owner| owner != wanted.user) {
        let (database, user) = (wanted.database, wanted.user);
        if database == SUPERUSER && owner == SUPERUSER {
            // Every cluster has this database from the start, and nothing uses it.
            let (database, user) = (identifier(database), identifier(user));
            run(connection, format!("ALTER DATABASE {database} OWNER TO {user}")).await?;
            return finish(connection, present).await;
        }
        tracing::warn!("database {database} belongs to {owner}, not to {user}, who may lack rights on what is in it");
    }
    finish(connection, present).await
}

/// Remove what a change of the password left that was interrupted. No process uses the role: all that did ended with the Tandem
/// that was killed.
async fn heal(connection: &mut PgConnection, wanted: &Wanted<'_>, present: &Present) {
    if !present.second_role {
        return;
    }
    let role = rotation::ROLE;
    match rotation::remove(connection, wanted.user).await {
        Ok(_) => tracing::warn!(
            "a change of the password was interrupted: role {role}, which it had made, is removed, and role {} has the password \
             that is kept",
            wanted.user
        ),
        Err(error) => tracing::warn!(
            "a change of the password was interrupted, and role {role}, which it had made, cannot be removed: {}",
            in_words(&error)
        ),
    }
}

async fn finish(connection: &mut PgConnection, present: &Present) -> anyhow::Result<()> {
    if present.statements { Ok(()) } else { statements(connection).await }
}

/// Create the application's role, or give it the configured password.
async fn role(connection: &mut PgConnection, wanted: &Wanted<'_>, present: Option<&PresentRole>) -> anyhow::Result<()> {
    let password = wanted.password.secret.expose();
    let verb = match present {
        None => "CREATE",
        Some(PresentRole { can_login: true, verifier: Some(verifier) }) if scram::matches(verifier, password) => {
            return Ok(());
        }
        Some(_) => {
            tracing::info!("giving role {} the configured password", wanted.user);
            "ALTER"
        }
    };
    // Only the verifier crosses: a password in a statement would stand in the server's log and statistics.
    let verifier = scram::verifier(password, wanted.password.iterations())?;
    let user = identifier(wanted.user);
    run(connection, format!("{verb} ROLE {user} LOGIN PASSWORD '{verifier}'")).await
}

/// Let the application's role see what all sessions do, or take that back.
async fn statistics(connection: &mut PgConnection, wanted: &Wanted<'_>, present: &Present) -> anyhow::Result<()> {
    let user = identifier(wanted.user);
    match (wanted.reads_all_stats, present.reads_all_stats) {
        // The superuser sees everything, and can be the application's role too.
        (true, false) if wanted.user != SUPERUSER => {
            run(connection, format!("GRANT pg_read_all_stats TO {user}")).await
        }
        (false, true) => {
            tracing::info!("role {} may no longer see what other sessions do (postgres.read_all_stats)", wanted.user);
            run(connection, format!("REVOKE pg_read_all_stats FROM {user}")).await
        }
        (true, _) | (false, false) => Ok(()),
    }
}

/// Whether pg_stat_statements is missing in the database, can be had, and has a schema to be in.
const LACKS_STATEMENTS: &str = "
    SELECT EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name OPERATOR(pg_catalog.=) 'pg_stat_statements')
           AND EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'public')
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_extension
                           WHERE extname OPERATOR(pg_catalog.=) 'pg_stat_statements')";

/// Make pg_stat_statements in the database of the superuser's session `connection`, where it is missing.
///
/// A PostgreSQL without contrib has none, and is used without. So is a database whose schema `public` was dropped, or in which
/// the names of the extension's objects are taken.
///
/// # Errors
/// The server does not answer.
pub async fn statements(connection: &mut PgConnection) -> anyhow::Result<()> {
    let asked = query_scalar(LACKS_STATEMENTS).fetch_one(&mut *connection);
    if answered(ANSWER_LIMIT, "ask for pg_stat_statements", asked).await? {
        let made =
            run(connection, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements WITH SCHEMA public".to_owned()).await;
        match made {
            Err(error) if sql_state(&error).is_some() && !is_broken_off(&error) && !is_disk_full(&error) => {
                tracing::warn!(
                    "statements are not counted, as pg_stat_statements cannot be made: {}",
                    in_words(&error)
                );
            }
            made => return made,
        }
    }
    Ok(())
}

/// Run one statement that this file has composed.
pub(super) async fn run(connection: &mut PgConnection, statement: String) -> anyhow::Result<()> {
    let what = statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let asked = raw_sql(AssertSqlSafe(statement)).execute(connection);
    answered(MAKE_LIMIT, &format!("run {what}"), asked).await.map(drop)
}

/// `name` as SQL's delimited identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests;
