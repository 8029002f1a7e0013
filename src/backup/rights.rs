//! With which rights a backup is loaded: those of the roles that own things in it, and no more.
//!
//! Checks, generated columns, indexes and triggers of a dump are functions that run while it is loaded. As a superuser they
//! could run programs and read files of the server's user (`COPY … TO PROGRAM`, `pg_read_file`), whoever wrote them. So a role
//! is made for the load that is a member of all roles that are no superusers. Extensions, which only a superuser may make
//! sometimes, are made before, while the database holds nothing else. What then still needs a superuser, such as an event
//! trigger, is loaded by one only where this deployment has made the backup and its manifest says that there is such a thing.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::catalog::Origin;
use super::census;
use super::existing::Existing;
use super::feed;
use super::load::{self, Load};
use super::manifest::{Manifest, Properties};
use super::reach::Reach;
use super::tokens::unquoted;
use crate::exit::in_words;
use crate::plan::Secret;
use crate::postgres::provision::identifier;
use crate::postgres::scram;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};
use crate::telemetry::Progress;

/// What the names of roles begin with that are made for a load.
pub const ROLE_START: &str = "tandem_loading_";
/// What PostgreSQL says to a role that may not do something.
const LACKS_RIGHTS: &[&str] =
    &["permission denied", "must be superuser", "must be owner", "must be able to", "must be member", "must have"];
/// Roles that may do no more than their tables say, nor may become one that does.
const ORDINARY: &str = "
    WITH RECURSIVE strong(oid) AS (
        SELECT oid FROM pg_catalog.pg_roles
        WHERE rolsuper OR rolcreaterole OR rolreplication
              OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
        UNION SELECT member FROM pg_catalog.pg_auth_members JOIN strong ON roleid = strong.oid)
    SELECT rolname::text FROM pg_catalog.pg_roles
    WHERE oid NOT IN (SELECT oid FROM strong) AND rolname !~ '^pg_' AND rolname !~ '^tandem_(loading|reading)_' ORDER BY 1";

/// What only a superuser can make of what pg_dump writes of a database.
const NEEDS: &str = include_str!("needs.sql");

/// With which rights something is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Those of ordinary roles.
    Few,
    /// Those of ordinary roles, and where they do not suffice, the superuser's: it is not known what is needed.
    Try,
    /// The superuser's.
    All,
}

impl Rights {
    /// Those that the backup of `manifest` gets; `vouched` says that somebody trusts it without knowing its origin.
    pub fn of(manifest: &Manifest, origin: Origin, vouched: bool) -> Self {
        match (&manifest.needs_superuser, origin) {
            (Some(needs), Origin::Own) if needs.is_empty() && !vouched => Self::Few,
            (Some(needs), _) if !needs.is_empty() && (vouched || origin == Origin::Own) => Self::All,
            (_, Origin::Own) => Self::Try,
            _ if vouched => Self::Try,
            _ => Self::Few,
        }
    }
}

/// What only a superuser can make of what `database` holds; `None` where that cannot be known. Not in the snapshot of a dump,
/// whose locks may be few: what is made in between is refused by a restore and can be vouched for.
///
/// # Errors
/// The server does not answer.
pub async fn needs(reach: &Reach, database: &str) -> anyhow::Result<Option<Vec<String>>> {
    if !reach.is_superuser() {
        return Ok(None);
    }
    let mut session = reach.session(database).await?;
    // The database's owner may have put other operators before PostgreSQL's.
    run(&mut session, "leave the search path", "SET search_path = ''".to_owned()).await?;
    census::names_as_they_are(&mut session).await?;
    let needs = census::sorted(&mut session, "look for what needs a superuser", NEEDS).await?;
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await?;
    Ok(Some(needs))
}

/// The database that is filled.
#[derive(Clone, Copy, Debug)]
pub struct NewDatabase<'a> {
    pub name: &'a str,
    pub owner: &'a str,
    pub properties: Option<&'a Properties>,
}

/// Bring `loading` into the empty database `target`, as a role with few rights, or as the superuser where that is needed and the
/// backup is trusted.
///
/// # Errors
/// The file or the server refused something. The database is incomplete then: drop it.
pub async fn bring_in(
    reach: &Reach,
    loading: &Load,
    target: NewDatabase<'_>,
    progress: &Progress,
) -> anyhow::Result<()> {
    // Not in the new database: a pooler would keep that connection, in which no transaction may write where the role has it so.
    let mut session = reach.aside(target.name).await?;
    let existing = Existing { tablespaces: Some(tablespaces(&mut session).await?), ..Existing::default() };
    if !reach.is_superuser() {
        let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
        return load::load(reach, loading, target.name, &existing, progress).await;
    }
    let ordinary = query_scalar::<_, String>(ORDINARY).fetch_all(&mut session);
    let ordinary = answered(ANSWER_LIMIT, "list the roles", ordinary).await?;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    // What belongs to a superuser only a superuser can give away.
    let is_strong = !ordinary.iter().any(|role| role == target.owner);
    if is_strong && !loading.trusted {
        return Err(NeedsTrust.into());
    }
    if loading.rights != Rights::All && !is_strong {
        let error = match confined(reach, loading, target, (&ordinary, &existing), progress).await {
            Err(error) if needs_more(&error) => error,
            outcome => return outcome,
        };
        // A function of the dump could fail on purpose, to be run with more rights: so this is for older backups alone, and for
        // those that somebody vouches for.
        if loading.rights == Rights::Few {
            return Err(error.context(NeedsTrust));
        }
        tracing::info!("only a superuser can load this: {}", in_words(&error).lines().last().unwrap_or_default());
        load::drop(reach, target.name).await?;
        load::create(reach, target.name, target.owner, target.properties).await?;
    }
    load::load(reach, loading, target.name, &existing, progress).await
}

/// The tablespaces of a server.
async fn tablespaces(session: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let names = query_scalar::<_, String>("SELECT spcname::text FROM pg_catalog.pg_tablespace").fetch_all(session);
    answered(ANSWER_LIMIT, "list the tablespaces", names).await
}

/// A backup that is not trusted needs more rights than it gets.
#[derive(Debug, thiserror::Error)]
#[error(
    "it needs the rights of a superuser, which only a backup gets that this deployment made of its own database: say --trust if \
     you know what is in it"
)]
pub struct NeedsTrust;

/// Whether a role with more rights could do what failed.
fn needs_more(error: &anyhow::Error) -> bool {
    let words = in_words(error);
    LACKS_RIGHTS.iter().any(|lack| words.contains(lack))
}

async fn confined(
    reach: &Reach,
    loading: &Load,
    target: NewDatabase<'_>,
    (ordinary, there): (&[String], &Existing),
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut session = reach.session(target.name).await?;
    let (role, password) = make_role(&mut session, ordinary).await?;
    let confined = reach.with_role(&role, &password);
    let outcome = async {
        let made = extensions(&mut session, reach, loading, &role).await?;
        let existing = Existing { tablespaces: there.tablespaces.clone(), ..made };
        load::load(&confined, loading, target.name, &existing, progress).await?;
        // Objects for which the dump names no owner belong to the database's owner.
        let leave = format!("REASSIGN OWNED BY {} TO {}", identifier(&role), identifier(target.owner));
        run(&mut session, "give away what the loading role owns", leave).await?;
        run(&mut session, "take back the loading role's rights", format!("DROP OWNED BY {}", identifier(&role))).await
    }
    .await;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    // It may own things in a database that failed to load, and is dropped together with it.
    if outcome.is_err() {
        load::drop(reach, target.name).await?;
    }
    let mut aside = reach.aside(target.name).await?;
    run(&mut aside, "drop the loading role", format!("DROP ROLE IF EXISTS {}", identifier(&role))).await?;
    let _closed = answered(ANSWER_LIMIT, "close", aside.close()).await;
    outcome
}

/// Do `work`, which changes nothing where it fails, in the live `database`: as a role that may what ordinary roles may and reads all
/// rows, and where that does not suffice and `rights` allow more, as the superuser.
///
/// # Errors
/// What `work` says.
pub async fn in_live(
    reach: &Reach,
    database: &str,
    (rights, trusted): (Rights, bool),
    work: impl AsyncFn(&Reach) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !reach.is_superuser() {
        return work(reach).await;
    }
    let mut session = reach.session(database).await?;
    run(&mut session, "leave the search path", "SET search_path = ''".to_owned()).await?;
    let ordinary = query_scalar::<_, String>(ORDINARY).fetch_all(&mut session);
    let ordinary = answered(ANSWER_LIMIT, "list the roles", ordinary).await?;
    if ordinary.is_empty() {
        // All is a superuser's.
        return if trusted { work(reach).await } else { Err(NeedsTrust.into()) };
    }
    let (name, password) = make_role(&mut session, &ordinary).await?;
    let role = identifier(&name);
    // Of a table that keeps its rows even from its owner, all are counted.
    run(&mut session, "let the loading role see all rows", format!("ALTER ROLE {role} BYPASSRLS")).await?;
    let outcome = work(&reach.with_role(&name, &password)).await;
    if let Err(left) =
        run(&mut session, "drop the loading role", format!("DROP OWNED BY {role}; DROP ROLE {role}")).await
    {
        tracing::warn!("role {name} stays until the next restore: {}", in_words(&left));
    }
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    match outcome {
        Err(error) if needs_more(&error) && rights == Rights::Few => Err(error.context(NeedsTrust)),
        Err(error) if needs_more(&error) => {
            tracing::info!("only a superuser can load this: {}", in_words(&error).lines().last().unwrap_or_default());
            work(reach).await
        }
        outcome => outcome,
    }
}

/// Make a role whose name begins with `start`, with these `attributes`, and a password that nobody else knows.
///
/// # Errors
/// The server refuses.
pub async fn make_login(session: &mut PgConnection, start: &str, attributes: &str) -> anyhow::Result<(String, Secret)> {
    let random = || -> anyhow::Result<String> {
        let mut bits = [0; 32];
        SysRng.try_fill_bytes(&mut bits).context("ask the system for randomness")?;
        Ok(URL_SAFE_NO_PAD.encode(bits))
    };
    let (role, password) = (format!("{start}{}", &random()?[..16]), random()?);
    // Only the verifier crosses: a password in a statement would stand in the server's log.
    let verifier = scram::verifier(&password, scram::ITERATIONS_GENERATED)?;
    let make = format!("CREATE ROLE {} PASSWORD '{verifier}' {attributes}", identifier(&role));
    run(session, &format!("make a role called {start}…"), make).await?;
    Ok((role, Secret::new(password)))
}

/// Make a role that is a member of `ordinary`, and nothing else.
async fn make_role(session: &mut PgConnection, ordinary: &[String]) -> anyhow::Result<(String, Secret)> {
    let (role, password) = make_login(session, ROLE_START, "LOGIN").await?;
    let members: Vec<String> = ordinary.iter().map(|name| identifier(name)).collect();
    let grant = format!("GRANT {} TO {} WITH INHERIT TRUE, SET TRUE", members.join(", "), identifier(&role));
    run(session, "grant the roles to the one that loads", grant).await?;
    for place in tablespaces(session).await?.into_iter().filter(|place| !place.starts_with("pg_")) {
        let grant = format!("GRANT CREATE ON TABLESPACE {} TO {}", identifier(&place), identifier(&role));
        run(session, "open a tablespace to the role that loads", grant).await?;
    }
    Ok((role, password))
}

/// Drop the roles that interrupted loads left.
///
/// # Errors
/// The server refuses.
pub async fn sweep(session: &mut PgConnection) -> anyhow::Result<()> {
    let left =
        query_scalar::<_, String>("SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname ~ '^tandem_loading_'");
    for role in answered(ANSWER_LIMIT, "list the roles", left.fetch_all(&mut *session)).await? {
        // A role that stays does no harm: its password is not kept.
        let drop = format!("DROP OWNED BY {0}; DROP ROLE {0}", identifier(&role));
        if let Err(left) = run(session, "drop it", drop).await {
            tracing::warn!("role {role}, which an interrupted restore left, stays: {}", in_words(&left));
        }
    }
    Ok(())
}

/// Make the extensions that the dump will ask for: nothing of the dump is in the database yet that could take the place of
/// something that their scripts use. A schema that is to hold one is the loading role's until the dump gives it away.
async fn extensions(session: &mut PgConnection, reach: &Reach, loading: &Load, role: &str) -> anyhow::Result<Existing> {
    let (archive, stream) = load::sql(reach, loading)?.into_parts();
    let head = tokio::task::spawn_blocking(move || feed::head(stream)).await?;
    // Enough was read of what it writes.
    drop(archive);
    let mut existing = Existing::default();
    for feed::Extension { written, schema } in head.extensions {
        let in_schema = head.schemas.iter().find(|written| Some(unquoted(written)) == schema);
        if let Some(written) = in_schema.filter(|written| !existing.schemas.contains(written)) {
            let schema = identifier(&unquoted(written));
            let make = format!("CREATE SCHEMA {schema} AUTHORIZATION {}", identifier(role));
            run(session, "make the schema of an extension", make).await?;
            existing.schemas.push(written.clone());
        }
        let name = unquoted(&written);
        let schema = schema.map(|schema| format!(" SCHEMA {}", identifier(&schema))).unwrap_or_default();
        let make = format!("CREATE EXTENSION IF NOT EXISTS {}{schema} CASCADE", identifier(&name));
        run(session, &format!("make extension {name}"), make).await?;
        existing.extensions.push(written);
    }
    run(session, "read texts as the standard has it", "SET standard_conforming_strings = on".to_owned()).await?;
    for (name, text) in head.comments {
        let comment = format!("COMMENT ON EXTENSION {} IS {text}", identifier(&name));
        run(session, &format!("comment on extension {name}"), comment).await?;
    }
    Ok(existing)
}

/// Run a statement that takes a moment.
///
/// # Errors
/// The server refuses.
pub async fn run(session: &mut PgConnection, what: &str, statement: String) -> anyhow::Result<()> {
    answered(MAKE_LIMIT, what, raw_sql(AssertSqlSafe(statement)).execute(session)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superuser_loads_only_what_this_deployment_has_declared_or_somebody_vouches_for() {
        let manifest = |needs: Option<&[&str]>| {
            let needs = needs.map(|needs| needs.iter().map(|&it| it.to_owned()).collect());
            Manifest { needs_superuser: needs, ..super::super::manifest::sample() }
        };
        for (needs, origin, vouched, rights) in [
            (Some(&[][..]), Origin::Own, false, Rights::Few),
            (Some(&["event trigger x"][..]), Origin::Own, false, Rights::All),
            // An older Tandem has declared nothing.
            (None, Origin::Own, false, Rights::Try),
            (Some(&["event trigger x"][..]), Origin::Unknown, false, Rights::Few),
            (Some(&["event trigger x"][..]), Origin::Unknown, true, Rights::All),
            (None, Origin::Imported, false, Rights::Few),
            (None, Origin::Imported, true, Rights::Try),
        ] {
            assert_eq!(Rights::of(&manifest(needs), origin, vouched), rights, "{needs:?} {origin:?} {vouched}");
        }
    }
}
