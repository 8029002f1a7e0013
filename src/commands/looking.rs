//! Sessions of commands that look into a server which runs.

use sea_orm::sqlx::postgres::PgSslMode;
use sea_orm::sqlx::{ConnectOptions, PgConnection, raw_sql};

use crate::commands::open;
use crate::config::{PostgresMode, Settings};
use crate::postgres::home::Home;
use crate::postgres::server;
use crate::postgres::settings::SUPERUSER;
use crate::schema::{self, ANSWER_LIMIT, answered, blank};

/// A session in the application's database, called `application`. On a server of Tandem's own it is the superuser's, which sees
/// everything and gets in when all other connections are taken; as another user of this machine than the server accepts, and
/// on a server elsewhere, it is the application's role's.
///
/// # Errors
/// The server is stopped, does not answer, or refuses.
pub async fn session(settings: &Settings, home: &Home, application: &str) -> anyhow::Result<PgConnection> {
    if settings.postgres.mode == PostgresMode::Managed {
        open::refuse_stopped(settings, home)?;
        if let Some(port) = server::own_running_port(home)
            && let Ok(session) = superuser(settings, home, port, application).await
        {
            return Ok(session);
        }
    }
    schema::session(&open::url(settings, home)?, application).await
}

/// A session of the superuser in the server of `home`. Unlike those that work there, it sets nothing for itself but its search
/// path, and so sees the settings that others get.
///
/// # Errors
/// The server does not answer, or takes this user for no superuser.
pub async fn superuser(settings: &Settings, home: &Home, port: u16, application: &str) -> anyhow::Result<PgConnection> {
    let options = blank(&settings.postgres.database, application).socket(&home.socket_dir).port(port);
    let options = options.username(SUPERUSER).ssl_mode(PgSslMode::Disable);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL as its superuser", options.connect()).await?;
    // Whoever owns the database may put functions and operators before PostgreSQL's.
    let path = raw_sql("SET search_path = pg_catalog, pg_temp").execute(&mut session);
    answered(ANSWER_LIMIT, "leave the search path", path).await?;
    Ok(session)
}
