//! What belongs to a database's name and is in no dump: its grants, settings, connection limit and comment (PostgreSQL
//! documentation, pg_dump, "Notes").

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, query, query_scalar, raw_sql};
use serde::{Deserialize, Serialize};

use super::census::text;
use crate::exit::in_words;
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, answered};

/// Settings whose value is a list of names, each quoted by itself (PostgreSQL's guc.h, GUC_LIST_QUOTE): it is taken as it
/// is kept.
const LISTS: [&str; 5] = [
    "search_path",
    "local_preload_libraries",
    "session_preload_libraries",
    "temp_tablespaces",
    "shared_preload_libraries",
];
const GRANTS: &str = "
    SELECT CASE acl.grantee WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(acl.grantee)::text END,
           acl.privilege_type::text, acl.is_grantable
    FROM pg_catalog.pg_database, pg_catalog.aclexplode(datacl) AS acl WHERE datname = $1";
const SETTINGS: &str = "
    SELECT CASE setrole WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(setrole)::text END, setting
    FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS setting
    WHERE setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = $1)";
const DATABASE: &str = "
    SELECT datacl IS NOT NULL, datconnlimit, pg_catalog.shobj_description(oid, 'pg_database')
    FROM pg_catalog.pg_database WHERE datname = $1";
const OWNER: &str = "SELECT pg_catalog.pg_get_userbyid(datdba)::text FROM pg_catalog.pg_database WHERE datname = $1";

/// Database-level properties, as PostgreSQL calls them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseLevel {
    /// `None`: those that every new database has.
    pub grants: Option<Vec<Grant>>,
    pub settings: Vec<Setting>,
    /// -1: without a limit.
    pub connection_limit: i32,
    pub comment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `None`: PUBLIC.
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// `None`: every role.
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

impl DatabaseLevel {
    /// Those of `database`.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn of(session: &mut PgConnection, database: &str) -> anyhow::Result<Self> {
        let row = query(DATABASE).bind(database).fetch_one(&mut *session);
        let row = answered(ANSWER_LIMIT, "look at the database", row).await?;
        let rows = query(GRANTS).bind(database).fetch_all(&mut *session);
        let grants = answered(ANSWER_LIMIT, "read the grants", rows).await?.into_iter().map(|row| {
            let (grantee, privilege, grantable) = (text(&row, 0)?, row.try_get(1)?, row.try_get(2)?);
            anyhow::Ok(Grant { grantee, privilege, grantable })
        });
        let grants = grants.collect::<anyhow::Result<Vec<_>>>()?;
        let rows = query(SETTINGS).bind(database).fetch_all(&mut *session);
        let settings = answered(ANSWER_LIMIT, "read the settings", rows).await?.into_iter().map(|row| {
            let setting = text(&row, 1)?.unwrap_or_default();
            let (name, value) = setting.split_once('=').context("understand a setting")?;
            anyhow::Ok(Setting { role: text(&row, 0)?, name: name.to_owned(), value: value.to_owned() })
        });
        Ok(Self {
            grants: row.try_get::<bool, _>(0)?.then_some(grants),
            settings: settings.collect::<anyhow::Result<_>>()?,
            connection_limit: row.try_get(1)?,
            comment: text(&row, 2)?,
        })
    }

    /// The statements that give them to `database`.
    pub fn statements(&self, database: &str) -> Vec<String> {
        let target = identifier(database);
        let mut statements = vec![format!("ALTER DATABASE {target} CONNECTION LIMIT {}", self.connection_limit)];
        if let Some(comment) = &self.comment {
            statements.push(format!("COMMENT ON DATABASE {target} IS {}", literal(comment)));
        }
        if let Some(grants) = &self.grants {
            statements.push(format!("REVOKE ALL ON DATABASE {target} FROM PUBLIC"));
            statements.extend(grants.iter().map(|Grant { grantee, privilege, grantable }| {
                let grantee = grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
                let option = if *grantable { " WITH GRANT OPTION" } else { "" };
                format!("GRANT {privilege} ON DATABASE {target} TO {grantee}{option}")
            }));
        }
        statements.extend(self.settings.iter().map(|Setting { role, name, value }| {
            let value = if LISTS.contains(&name.as_str()) { value.clone() } else { literal(value) };
            // A setting of an extension has a dot in its name, which parts two names.
            let name = name.split('.').map(identifier).collect::<Vec<_>>().join(".");
            match role {
                None => format!("ALTER DATABASE {target} SET {name} TO {value}"),
                Some(role) => format!("ALTER ROLE {} IN DATABASE {target} SET {name} TO {value}", identifier(role)),
            }
        }));
        statements
    }

    /// The same where the database belongs to the role `new`, and not to `old`.
    fn owned_by(&self, old: &str, new: &str) -> Self {
        let mut level = self.clone();
        let grantees = level.grants.iter_mut().flatten().map(|grant| &mut grant.grantee);
        let roles = level.settings.iter_mut().map(|setting| &mut setting.role);
        for role in grantees.chain(roles).filter(|role| role.as_deref() == Some(old)) {
            *role = Some(new.to_owned());
        }
        level
    }

    /// Give what belonged to a database of `owner` to `new`, which is to be called `database`. What the server refuses, such as
    /// a grant to a role that it does not have, is told: the rows are worth more.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn give(
        &self,
        session: &mut PgConnection,
        owner: &str,
        (new, database): (&str, &str),
    ) -> anyhow::Result<()> {
        let now = query_scalar::<_, String>(OWNER).bind(new).fetch_one(&mut *session);
        let level = self.owned_by(owner, &answered(ANSWER_LIMIT, "ask for the database's owner", now).await?);
        for (statement, named) in level.statements(new).into_iter().zip(level.statements(database)) {
            let given = raw_sql(AssertSqlSafe(statement)).execute(&mut *session);
            if let Err(refused) = answered(ANSWER_LIMIT, "give a database what it had", given).await {
                tracing::warn!(
                    "this server refused `{named}`, as it was where the backup was made: {}",
                    in_words(&refused)
                );
            }
        }
        Ok(())
    }
}

/// `text` as SQL writes it.
pub fn literal(text: &str) -> String {
    // With a backslash in it, a text means the same whatever standard_conforming_strings says.
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_keep_quotes_and_backslashes() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }

    #[test]
    fn what_the_owner_had_is_the_new_owners() {
        let [old, other] = ["old", "other"].map(|name| Some(name.to_owned()));
        let grant = |grantee: &Option<String>| Grant {
            grantee: grantee.clone(),
            privilege: "CONNECT".to_owned(),
            grantable: grantee.is_some(),
        };
        let setting = |role: &Option<String>, name: &str, value: &str| Setting {
            role: role.clone(),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let level = DatabaseLevel {
            grants: Some(vec![grant(&old), grant(&other), grant(&None)]),
            settings: vec![setting(&old, "a.b", "it's"), setting(&None, "search_path", "\"$user\", public")],
            connection_limit: 7,
            comment: None,
        };
        let wanted = [
            r#"ALTER DATABASE "d" CONNECTION LIMIT 7"#,
            r#"REVOKE ALL ON DATABASE "d" FROM PUBLIC"#,
            r#"GRANT CONNECT ON DATABASE "d" TO "new" WITH GRANT OPTION"#,
            r#"GRANT CONNECT ON DATABASE "d" TO "other" WITH GRANT OPTION"#,
            r#"GRANT CONNECT ON DATABASE "d" TO PUBLIC"#,
            r#"ALTER ROLE "new" IN DATABASE "d" SET "a"."b" TO 'it''s'"#,
            r#"ALTER DATABASE "d" SET "search_path" TO "$user", public"#,
        ];
        assert_eq!(level.owned_by("old", "new").statements("d"), wanted);
    }
}
