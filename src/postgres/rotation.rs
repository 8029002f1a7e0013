//! Another password for the application's role, while it serves.
//!
//! PostgreSQL keeps one password for a role: the moment another one holds, whoever has the old one gets no new session. So for
//! the time of the change workers log in as a second role, [`ROLE`], which acts as the application's from its first statement
//! on. First all of them change over to it, then the password is changed, and then they change back. Each of them has, in
//! every moment, a role and a password that hold.
//!
//! A Tandem that is killed in the middle leaves the second role behind, and no process that uses it: the next start removes it
//! ([`super::provision`]) and gives the application's role the password that is kept.

use anyhow::Context;
use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{AssertSqlSafe, Connection, Row, query, query_scalar, raw_sql};

use super::home::Home;
use super::provision::{close, enter, identifier, run};
use super::scram;
use super::secret::Password;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// The second role. A cluster of Tandem's own has one application, so one name will do.
pub const ROLE: &str = "tandem_rotation";

/// The application's role and database in a server of our own.
#[derive(Clone, Debug)]
pub struct Place {
    pub home: Home,
    pub port: u16,
    pub user: String,
    pub database: String,
}

impl Place {
    async fn enter(&self) -> anyhow::Result<PgConnection> {
        let entered = enter(&self.home, self.port, &self.database).await?;
        entered.with_context(|| format!("the database {} is missing", self.database))
    }

    /// Make the second role, with `password`: it acts as the application's role, under that role's own settings.
    ///
    /// # Errors
    /// The server refuses, or does not answer.
    pub async fn begin(&self, password: &Password) -> anyhow::Result<()> {
        let mut connection = self.enter().await?;
        remove(&mut connection, &self.user).await?;
        let verifier = scram::verifier(password.secret.expose(), password.iterations())?;
        let user = identifier(&self.user);
        let (role, database) = (identifier(ROLE), identifier(&self.database));
        let make = format!("CREATE ROLE {role} LOGIN PASSWORD '{verifier}' IN ROLE {user}");
        let asked = query(
            "SELECT setdatabase <> 0, unnest(setconfig) FROM pg_db_role_setting
             WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = $1)
             AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = $2)) ORDER BY 1",
        )
        .bind(&self.user)
        .bind(&self.database)
        .fetch_all(&mut connection);
        let rows = answered(ANSWER_LIMIT, "ask for the settings of the application's role", asked).await?;
        let made = async {
            let mut whole = connection.begin().await?;
            raw_sql(AssertSqlSafe(make)).execute(&mut *whole).await?;
            for row in rows {
                let (of_database, setting): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
                let Some((name, value)) = setting.split_once('=').filter(|(name, _)| is_copied(name)) else { continue };
                // A list, such as a search path, is one text in the catalog, and would be one name in SET.
                query_scalar::<_, String>("SELECT set_config($1, $2, true)")
                    .bind(name)
                    .bind(value)
                    .fetch_one(&mut *whole)
                    .await?;
                let within = if of_database { format!(" IN DATABASE {database}") } else { String::new() };
                let name = name.split('.').map(identifier).collect::<Vec<_>>().join(".");
                raw_sql(AssertSqlSafe(format!("ALTER ROLE {role}{within} SET {name} FROM CURRENT")))
                    .execute(&mut *whole)
                    .await?;
            }
            // Last: what holds for the transaction holds for its own statements too.
            raw_sql(AssertSqlSafe(format!("ALTER ROLE {role} SET role TO {user}"))).execute(&mut *whole).await?;
            whole.commit().await
        };
        answered(MAKE_LIMIT, "make a second role for the change of the password", made).await?;
        close(connection).await
    }

    /// Give the application's role `password`; sessions that are open go on.
    ///
    /// # Errors
    /// The server refuses, or does not answer.
    pub async fn give(&self, password: &Password) -> anyhow::Result<()> {
        let mut connection = self.enter().await?;
        let verifier = scram::verifier(password.secret.expose(), password.iterations())?;
        run(&mut connection, format!("ALTER ROLE {} LOGIN PASSWORD '{verifier}'", identifier(&self.user))).await?;
        close(connection).await
    }

    /// Remove the second role, which no process uses any more.
    ///
    /// # Errors
    /// It owns something in another database; the server does not answer.
    pub async fn end(&self) -> anyhow::Result<()> {
        let mut connection = self.enter().await?;
        remove(&mut connection, &self.user).await?;
        close(connection).await
    }
}

/// Whether a setting of the application's role is one for the second role too. Which role it acts as is set apart.
fn is_copied(name: &str) -> bool {
    !matches!(name, "role" | "session_authorization")
}

/// Remove the second role, if it is there; whether it was. What it owns in this database, as after `SET SESSION
/// AUTHORIZATION DEFAULT` and `RESET ROLE`, becomes `user`'s.
pub(super) async fn remove(connection: &mut PgConnection, user: &str) -> anyhow::Result<bool> {
    let asked =
        query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)").bind(ROLE).fetch_one(&mut *connection);
    if !answered(ANSWER_LIMIT, "look for a second role", asked).await? {
        return Ok(false);
    }
    let (role, user) = (identifier(ROLE), identifier(user));
    // One exchange is one transaction.
    run(connection, format!("REASSIGN OWNED BY {role} TO {user}; DROP OWNED BY {role}; DROP ROLE {role}")).await?;
    Ok(true)
}
