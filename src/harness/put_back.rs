//! Look at what belongs to the whole server, and put back what tests changed of it: the shell around [`super::shared_objects`].
//!
//! Rows of the shared catalogs are written as they were, with their numbers, so that everything about them comes back, a
//! role that was dropped included; whoever refers to it by number finds it. On a server for tests nothing can be lost by that.

use std::collections::BTreeSet;
use std::time::Duration;

use sea_orm::sqlx::postgres::PgPool;
use sea_orm::sqlx::{AssertSqlSafe, query_as, query_scalar, raw_sql};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::shared_objects::{Hold, Kind, Ledger, Snapshot, Undo};
use super::superuser::Superuser;
use crate::exit::in_words;
use crate::postgres::conf;
use crate::postgres::provision::identifier;
use crate::schema::{MAKE_LIMIT, answered};

/// All there is: kind, key, value, and the database it is about, if it is about one; but not of the pool's databases, which
/// come and go.
const ALL: &str = "
    SELECT kind, key, value, about FROM (
    SELECT 'role' AS kind, oid::text AS key, r::text AS value, NULL AS about FROM pg_authid r
    UNION ALL SELECT 'tablespace', oid::text, t::text, NULL FROM pg_tablespace t
    UNION ALL SELECT 'member', m::text, m::text, NULL FROM pg_auth_members m
    UNION ALL SELECT 'setting', s::text, s::text, datname::text
        FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = setdatabase
    UNION ALL SELECT 'parameter', p::text, p::text, NULL FROM pg_parameter_acl p
    UNION ALL SELECT 'comment', c::text, c::text, datname::text
        FROM pg_shdescription c LEFT JOIN pg_database d ON classoid = 'pg_database'::regclass AND d.oid = objoid
    UNION ALL SELECT 'label', l::text, l::text, datname::text
        FROM pg_shseclabel l LEFT JOIN pg_database d ON classoid = 'pg_database'::regclass AND d.oid = objoid
    UNION ALL SELECT 'dependency', s::text, s::text, datname::text
        FROM pg_shdepend s LEFT JOIN pg_database d ON classid = 'pg_database'::regclass AND d.oid = objid WHERE dbid = 0
    UNION ALL SELECT 'database', oid::text, jsonb_build_object('name', datname, 'owner', datdba, 'template', datistemplate,
        'open', datallowconn, 'limit', datconnlimit, 'acl', datacl::text)::text, datname::text FROM pg_database
    UNION ALL SELECT 'slot', slot_name::text, '', NULL FROM pg_replication_slots WHERE database IS NULL
    UNION ALL SELECT 'origin', roname, '', NULL FROM pg_replication_origin
    UNION ALL SELECT 'held', database::text, '', NULL FROM pg_prepared_xacts
    UNION ALL SELECT 'held', database::text, '', NULL FROM pg_replication_slots WHERE database IS NOT NULL
    ) AS all_of_it WHERE NOT EXISTS (SELECT FROM unnest($1) AS made(name) WHERE name = about)";
/// What a role is called that cannot be dropped yet because a database that is kept refers to it; with its number.
const LEFT: &str = "tandem_left_";
/// How long a session that was left open may hold a row up.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// How long a changed configuration may take to reach new sessions, and between two looks.
const RELOAD_LIMIT: Duration = Duration::from_secs(2);
const RELOAD_POLL: Duration = Duration::from_millis(2);

/// Who has which database, and what tests changed of the server.
#[derive(Debug, Default)]
pub struct SharedObjects(Mutex<Ledger>);

impl SharedObjects {
    /// The database `name` is handed out now: what happened before was not its test's doing.
    pub async fn given(&self, catalog: &Superuser, name: &str, hold: Hold) {
        let mut ledger = self.0.lock().await;
        settle(&mut ledger, catalog, None).await;
        ledger.given(name, hold);
    }

    /// The database `name` was given back: what its test changed is put back.
    pub async fn returned(&self, catalog: &Superuser, name: &str) {
        let mut ledger = self.0.lock().await;
        ledger.returned(name);
        settle(&mut ledger, catalog, Some(name)).await;
    }
}

async fn settle(ledger: &mut Ledger, catalog: &Superuser, returned: Option<&str>) {
    let now = match look_free(catalog, returned).await {
        Ok(now) => now,
        Err(error) => return tracing::debug!("look at the server's roles: {}", in_words(&error)),
    };
    let due = ledger.look(now.all);
    if due.is_empty() {
        return;
    }
    if let Err(error) = put_back(catalog, &due).await {
        let changed: BTreeSet<String> = due.iter().map(|undo| format!("{:?}", undo.key.0).to_lowercase()).collect();
        let changed = changed.into_iter().collect::<Vec<_>>().join(", ");
        tracing::warn!("what a test changed of the server stays ({changed}): {}", in_words(&error));
        ledger.give_up(&due);
    }
    match look(catalog).await {
        Ok(now) => ledger.undone(now.all),
        Err(error) => tracing::debug!("look at the server's roles: {}", in_words(&error)),
    }
}

/// What a look shows.
struct Seen {
    all: Snapshot,
    /// Databases with prepared transactions or logical slots, whose names are the whole server's.
    held: BTreeSet<String>,
}

/// Look when the database that was `returned` holds nothing any more: the next test may use the same names.
async fn look_free(catalog: &Superuser, returned: Option<&str>) -> anyhow::Result<Seen> {
    let seen = look(catalog).await?;
    match returned.filter(|&name| seen.held.contains(name)) {
        None => Ok(seen),
        Some(name) => {
            catalog.release(&[name.to_owned()]).await?;
            look(catalog).await
        }
    }
}

async fn look(catalog: &Superuser) -> anyhow::Result<Seen> {
    let asked = query_as(ALL).bind(catalog.all_made()).fetch_all(catalog.watching());
    let rows: Vec<(String, String, String, Option<String>)> = answered(MAKE_LIMIT, "look at the roles", asked).await?;
    // Again, for one that was begun meanwhile.
    let rows = rows.into_iter().filter(|(.., about)| about.as_ref().is_none_or(|name| !catalog.made(name)));
    let (held, rows): (Vec<_>, Vec<_>) = rows.partition(|(kind, ..)| kind == "held");
    let held = held.into_iter().map(|(_, name, ..)| name).collect();
    let mut all: Snapshot = rows.into_iter().map(|(kind, key, value, _)| ((kind_of(&kind), key), value)).collect();
    for (name, value) in conf::altered(&catalog.home().data) {
        all.insert((Kind::System, name), value);
    }
    Ok(Seen { all, held })
}

fn kind_of(word: &str) -> Kind {
    match word {
        "role" => Kind::Role,
        "tablespace" => Kind::Tablespace,
        "member" => Kind::Member,
        "setting" => Kind::Setting,
        "parameter" => Kind::Parameter,
        "comment" => Kind::Comment,
        "label" => Kind::Label,
        "dependency" => Kind::Dependency,
        "database" => Kind::Database,
        "slot" => Kind::Slot,
        _ => Kind::Origin,
    }
}

async fn put_back(catalog: &Superuser, due: &[Undo]) -> anyhow::Result<()> {
    for undo in due {
        before(catalog, undo).await?;
    }
    let statements = rows(due);
    if !statements.is_empty() {
        let limit = LOCK_LIMIT.as_millis();
        let all = format!("BEGIN; SET LOCAL lock_timeout = {limit}; {statements} COMMIT");
        if let Err(error) = run(catalog.watching(), all).await {
            let _ = run(catalog.watching(), "ROLLBACK".to_owned()).await;
            return Err(error);
        }
    }
    for undo in due.iter().filter(|undo| undo.key.0 == Kind::Tablespace && undo.was.is_none()) {
        drop_tablespace(catalog, &undo.key.1).await?;
    }
    if due.iter().any(|undo| undo.key.0 == Kind::System) {
        alter_system(catalog, due).await?;
    }
    Ok(())
}

/// What is no row, and what must be gone before its role can be.
async fn before(catalog: &Superuser, undo: &Undo) -> anyhow::Result<()> {
    let pool = catalog.watching();
    match (&undo.key, &undo.was) {
        ((Kind::Database, number), None) => {
            // One that is in use is another process's, and a template is what others are made from: they go with the server.
            let unused = "SELECT datname::text FROM pg_database d WHERE oid = $1::oid AND NOT datistemplate
                 AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE datid = d.oid)";
            let asked = query_scalar(unused).bind(number).fetch_optional(pool);
            let name: Option<String> = answered(MAKE_LIMIT, "look at a test's database", asked).await?;
            match name {
                Some(name) if !catalog.made(&name) => catalog.destroy(&name).await,
                _ => Ok(()),
            }
        }
        ((Kind::Slot, name), None) => run(pool, format!("SELECT pg_drop_replication_slot({})", literal(name))).await,
        ((Kind::Origin, name), None) => {
            run(pool, format!("SELECT pg_replication_origin_drop({})", literal(name))).await
        }
        _ => Ok(()),
    }
}

/// The statements that write the catalogs' rows as they were: first away with what is new, then back with what was, roles
/// first.
fn rows(due: &[Undo]) -> String {
    let mut statements = Vec::new();
    for undo in due.iter().rev() {
        let (Some(table), Some(is)) = (table(undo.key.0), &undo.is) else { continue };
        match (undo.key.0, &undo.was) {
            (Kind::Role, None) => statements.push(drop_role(&undo.key.1)),
            (Kind::Tablespace, None) | (Kind::Database, _) => {}
            _ => statements.push(format!("DELETE FROM {table} t WHERE t::text = {}", literal(is))),
        }
    }
    for undo in due {
        let (Some(table), Some(was)) = (table(undo.key.0), &undo.was) else { continue };
        match (undo.key.0, &undo.is) {
            // Its files are gone.
            (Kind::Tablespace | Kind::Database, None) => {}
            (Kind::Database, Some(_)) => statements.push(database(&undo.key.1, was)),
            _ => {
                let row = format!("{}::{table}", literal(was));
                statements.push(format!("INSERT INTO {table} SELECT (row).* FROM (SELECT {row} AS row) AS was"));
            }
        }
    }
    statements.into_iter().fold(String::new(), |all, statement| all + &statement + "; ")
}

fn table(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Role => "pg_authid",
        Kind::Tablespace => "pg_tablespace",
        Kind::Member => "pg_auth_members",
        Kind::Setting => "pg_db_role_setting",
        Kind::Parameter => "pg_parameter_acl",
        Kind::Comment => "pg_shdescription",
        Kind::Label => "pg_shseclabel",
        Kind::Dependency => "pg_shdepend",
        Kind::Database => "pg_database",
        Kind::Slot | Kind::Origin | Kind::System => return None,
    })
}

/// Drop the role with this number. Where a database still refers to it, its name becomes free at least, and it goes later.
fn drop_role(number: &str) -> String {
    format!(
        "DO $tandem$ DECLARE named text; BEGIN
             SELECT rolname INTO named FROM pg_authid WHERE oid = {number} AND NOT EXISTS
                 (SELECT FROM pg_stat_activity WHERE usesysid = {number});
             IF named IS NOT NULL THEN
                 BEGIN EXECUTE format('DROP ROLE %I', named);
                 EXCEPTION WHEN OTHERS THEN
                     UPDATE pg_authid SET rolname = '{LEFT}{number}', rolcanlogin = false WHERE oid = {number};
                 END;
             END IF;
         END $tandem$"
    )
}

fn database(number: &str, was: &str) -> String {
    let was = literal(was);
    format!(
        "UPDATE pg_database SET datname = (was->>'name')::name, datdba = (was->>'owner')::oid,
             datistemplate = (was->>'template')::bool, datallowconn = (was->>'open')::bool,
             datconnlimit = (was->>'limit')::int, datacl = (was->>'acl')::aclitem[]
         FROM (SELECT {was}::jsonb AS was) AS was WHERE oid = {number}"
    )
}

/// The databases in a tablespace that a test made are its test's, and changed for that: they would have been dropped anyway.
async fn drop_tablespace(catalog: &Superuser, number: &str) -> anyhow::Result<()> {
    let inside = "SELECT datname::text FROM pg_tablespace_databases($1::oid) AS n(oid) JOIN pg_database USING (oid)";
    let asked = query_scalar(inside).bind(number).fetch_all(catalog.watching());
    let names: Vec<String> = answered(MAKE_LIMIT, "look into a tablespace", asked).await?;
    for name in names.into_iter().filter(|name| catalog.made(name)) {
        catalog.destroy(&name).await?;
    }
    let named = "SELECT spcname::text FROM pg_tablespace WHERE oid = $1::oid";
    let asked = query_scalar(named).bind(number).fetch_optional(catalog.watching());
    let name: Option<String> = answered(MAKE_LIMIT, "look at a tablespace", asked).await?;
    match name {
        Some(name) => run(catalog.watching(), format!("DROP TABLESPACE {}", identifier(&name))).await,
        None => Ok(()),
    }
}

/// Take back what ALTER SYSTEM set, and wait until a new session sees it.
async fn alter_system(catalog: &Superuser, due: &[Undo]) -> anyhow::Result<()> {
    let pool = catalog.watching();
    for undo in due {
        let (Kind::System, name) = &undo.key else { continue };
        let name = identifier(name);
        let statement = match &undo.was {
            None => format!("ALTER SYSTEM RESET {name}"),
            Some(was) => format!("ALTER SYSTEM SET {name} = {}", literal(was)),
        };
        run(pool, statement).await?;
    }
    let loaded = async || {
        let asked = query_scalar("SELECT pg_conf_load_time()::text").fetch_one(pool);
        answered::<String>(MAKE_LIMIT, "ask for the configuration's age", asked).await
    };
    let (before, began) = (loaded().await?, Instant::now());
    run(pool, "SELECT pg_reload_conf()".to_owned()).await?;
    // The postmaster, which new sessions are forked from, reads it before it tells our session.
    while loaded().await? == before && began.elapsed() < RELOAD_LIMIT {
        sleep(RELOAD_POLL).await;
    }
    Ok(())
}

/// `text` as SQL's literal, whatever is in it.
fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

async fn run(pool: &PgPool, statement: String) -> anyhow::Result<()> {
    let asked = raw_sql(AssertSqlSafe(statement)).execute(pool);
    answered(MAKE_LIMIT, "put back what a test changed of the server", asked).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo(kind: Kind, was: Option<&str>, is: Option<&str>) -> Undo {
        let key: super::super::shared_objects::Key = (kind, "7".into());
        Undo { key, was: was.map(str::to_owned), is: is.map(str::to_owned) }
    }

    #[test]
    fn what_is_new_goes_before_what_was_comes_back_and_roles_come_first() {
        let due = [
            undo(Kind::Role, Some("(old)"), None),
            undo(Kind::Role, None, Some("(new)")),
            undo(Kind::Member, Some("(is 'r')"), Some("(is \\)")),
            undo(Kind::Slot, None, Some("")),
            undo(Kind::Database, Some("{}"), Some("{\"acl\": null}")),
            undo(Kind::Database, Some("{}"), None),
        ];
        let text = rows(&due);
        let places = [
            "DELETE FROM pg_auth_members t WHERE t::text = E'(is \\\\)'",
            "DROP ROLE",
            "'(old)'::pg_authid",
            "'(is ''r'')'::pg_auth_members",
            "UPDATE pg_database",
        ];
        let places: Vec<usize> =
            places.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"))).collect();
        assert!(places.is_sorted() && text.matches("pg_database").count() == 1, "{text}");
    }
}
