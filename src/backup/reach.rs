//! The server that is dumped or restored into: how its sessions and client programs get in.

use std::time::Duration;

use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, raw_sql};

use crate::plan::{CommandLine, DatabaseUrl, Identity, Secret};
use crate::postgres::binaries::Installation;
use crate::postgres::embedded::{self, CommandBuilder};
use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};
use crate::postgres::settings::SUPERUSER;
use crate::process::identity;
use crate::schema::{self, ANSWER_LIMIT};

/// What our sessions are called in `pg_stat_activity`.
pub(super) const APPLICATION_NAME: &str = "tandem-backup";

/// What every server has beside the database `postgres`. A session there keeps others from copying it, so it comes second.
const TEMPLATE: &str = "template1";

/// How long a server may take to let a session in.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

macro_rules! limits {
    () => {
        "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 \
         -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed -c row_security=on"
    };
}
/// What the operator may have set for the server, a role or a database (`ALTER SYSTEM`, `ALTER ROLE`, `ALTER DATABASE`), as the client
/// programs of our own server must have it: what they begin takes as long as it takes.
const OPTIONS: &str = concat!(limits!(), " -c role=none -c session_replication_role=origin");
/// As much of it as any role may set.
const LIMITS: &str = limits!();

/// The way in.
#[derive(Clone, Debug)]
enum Way {
    /// As the superuser over the unix socket, where the server is Tandem's own.
    Socket { home: Home, port: u16 },
    /// As another role over the same socket, with its password.
    Role { home: Home, port: u16, role: String, password: Secret },
    /// As the application's role, where it is somebody else's. `reader` is the user that client programs run as that read what
    /// may come from elsewhere; without one, they run as Tandem's own.
    Url { url: DatabaseUrl, reader: Option<Identity> },
}

/// A running server and the client programs for it.
#[derive(Clone, Debug)]
pub struct Reach {
    way: Way,
    installation: Installation,
}

impl Reach {
    /// The server of `home` on `port`, as its superuser.
    pub fn superuser(home: &Home, port: u16, installation: Installation) -> Self {
        Self { way: Way::Socket { home: home.clone(), port }, installation }
    }

    /// The server at `url`, as the role that the URL names. `home` says which user of this machine PostgreSQL's programs run as.
    pub fn url(url: &DatabaseUrl, home: &Home, installation: Installation) -> Self {
        let reaches = |user: &&Identity| identity::barrier(&installation.bin, user).is_none();
        let reader = home.server.as_ref().filter(reaches).filter(|_| says_all(url) && !has_files()).cloned();
        Self { way: Way::Url { url: url.clone(), reader }, installation }
    }

    /// The same server of Tandem's own, as `role`.
    pub fn with_role(&self, role: &str, password: &Secret) -> Self {
        let way = match &self.way {
            Way::Socket { home, port } | Way::Role { home, port, .. } => {
                Way::Role { home: home.clone(), port: *port, role: role.to_owned(), password: password.clone() }
            }
            Way::Url { url, reader } => {
                let url = DatabaseUrl { user: role.to_owned(), password: Some(password.clone()), ..url.clone() };
                Way::Url { url, reader: reader.clone() }
            }
        };
        Self { way, installation: self.installation.clone() }
    }

    /// The directories of the server, where it is Tandem's own.
    pub fn home(&self) -> Option<&Home> {
        match &self.way {
            Way::Socket { home, .. } | Way::Role { home, .. } => Some(home),
            Way::Url { .. } => None,
        }
    }

    /// The directories and the port of the server, where it is Tandem's own and we are its superuser.
    pub fn own_server(&self) -> Option<(&Home, u16)> {
        match &self.way {
            Way::Socket { home, port } => Some((home, *port)),
            Way::Role { .. } | Way::Url { .. } => None,
        }
    }

    /// Whether all roles and every setting can be read and set.
    pub fn is_superuser(&self) -> bool {
        matches!(self.way, Way::Socket { .. })
    }

    /// A session in `database`.
    ///
    /// # Errors
    /// The server does not answer, or refuses the connection.
    pub async fn session(&self, database: &str) -> anyhow::Result<PgConnection> {
        match &self.way {
            Way::Socket { home, port } => {
                let options = superuser_options(home, *port, database).application_name(APPLICATION_NAME);
                let what = format!("connect to database {database} as the superuser");
                schema::answered(CONNECT_LIMIT, &what, options.connect()).await
            }
            Way::Role { home, port, role, password } => {
                let options = superuser_options(home, *port, database).username(role).password(password.expose());
                let what = format!("connect to database {database} as role {role}");
                schema::answered(CONNECT_LIMIT, &what, options.application_name(APPLICATION_NAME).connect()).await
            }
            Way::Url { url, .. } => {
                schema::session(&DatabaseUrl { database: database.to_owned(), ..url.clone() }, APPLICATION_NAME).await
            }
        }
    }

    /// A session outside of `database`, from where that can be made, renamed and dropped, however long it takes.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub async fn aside(&self, database: &str) -> anyhow::Result<PgConnection> {
        let place = if database == SUPERUSER { TEMPLATE } else { SUPERUSER };
        let mut session = match self.session(place).await {
            // A server of somebody else's need not have it, or let this role in.
            Err(error) if place == SUPERUSER && database != TEMPLATE && !self.is_superuser() => {
                self.session(TEMPLATE).await.map_err(|_| error)?
            }
            opened => opened?,
        };
        schema::unlimited(&mut session).await?;
        Ok(session)
    }

    /// Refuse to hold a lock with `session` where that would be void: behind a pooler in transaction mode.
    ///
    /// # Errors
    /// There is one, or the connection is lost.
    pub async fn refuse_pooler(&self, session: &mut PgConnection) -> anyhow::Result<()> {
        match &self.way {
            Way::Socket { .. } | Way::Role { .. } => Ok(()),
            Way::Url { url, .. } => schema::refuse_shared_sessions(url, APPLICATION_NAME, session).await,
        }
    }

    /// Let our role write into `database` even where transactions are read-only by default, or take that back. For
    /// pg_restore elsewhere, which cannot be told to set it (on our own server the options of its connection do): what a role has set for one database wins over all else. Not as an option
    /// of its connection, which a pooler refuses; and from outside, so that no session of a pool has the old default.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub async fn let_write(&self, database: &str, lets: bool) -> anyhow::Result<()> {
        if !matches!(self.way, Way::Url { .. }) {
            return Ok(());
        }
        let change =
            if lets { "SET default_transaction_read_only = off" } else { "RESET default_transaction_read_only" };
        let statement = format!("ALTER ROLE CURRENT_USER IN DATABASE {} {change}", identifier(database));
        let mut session = self.aside(database).await?;
        let changed = raw_sql(AssertSqlSafe(statement)).execute(&mut session);
        schema::answered(ANSWER_LIMIT, "let transactions write", changed).await?;
        schema::answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
    }

    /// A client program as it was built, which gets in where its arguments do not say otherwise. The password travels in the
    /// environment, which other users cannot read.
    pub fn client(&self, builder: &impl CommandBuilder) -> CommandLine {
        // What a person's shell says of connections, `process` has taken out.
        let command = embedded::command(&self.installation, builder).dir("/");
        let command = command.env("PGAPPNAME", APPLICATION_NAME).env_remove("PSQLRC");
        match &self.way {
            Way::Socket { home, port } => {
                let command = command.env("PGHOST", &home.socket_dir).env("PGPORT", port.to_string());
                command.env("PGUSER", SUPERUSER).env("PGOPTIONS", OPTIONS)
            }
            Way::Role { home, port, role, password } => {
                let command = command.env("PGHOST", &home.socket_dir).env("PGPORT", port.to_string());
                command.env("PGUSER", role).env("PGPASSWORD", password.expose()).env("PGOPTIONS", LIMITS)
            }
            Way::Url { url, .. } => {
                let command = command.env("PGHOST", &url.host).env("PGPORT", url.port.to_string());
                let command = match &url.password {
                    Some(password) => command.env("PGPASSWORD", password.expose()),
                    None => command,
                };
                let named = url.variables().into_iter();
                named.fold(command.env("PGUSER", &url.user), |command, (name, value)| command.env(name, value))
            }
        }
    }

    /// As [`Self::client`], for a program that reads what may come from elsewhere: it gains no rights, and runs as the server's user
    /// and never as root, unless the way to a server elsewhere needs what only Tandem's own user has. It finds no file of Tandem's; what it reads comes through its standard input.
    pub fn reader(&self, builder: &impl CommandBuilder) -> CommandLine {
        let command = self.client(builder).no_new_privs(true);
        match &self.way {
            // Without a home directory to look for passwords and certificates in.
            Way::Socket { home, .. } | Way::Role { home, .. } => {
                command.identity(home.server.clone()).env_remove("HOME")
            }
            Way::Url { reader: Some(reader), .. } => command.identity(Some(reader.clone())).env_remove("HOME"),
            // Certificates, keys and passwords are for Tandem's own user to read, and a socket asks who that is.
            Way::Url { reader: None, .. } => command,
        }
    }

    /// Where the client programs are from.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The version of the client programs.
    pub fn version(&self) -> &str {
        &self.installation.version
    }
}

/// Whether the URL alone says how to get in: libpq reads no certificate and no key, and the server asks for nothing but the
/// password.
fn says_all(url: &DatabaseUrl) -> bool {
    let is_plain = |(name, value): &(String, String)| match name.as_str() {
        "sslmode" => !value.starts_with("verify"),
        name => !name.starts_with("ssl") && !name.starts_with("gss") && !name.starts_with("krb") && name != "passfile",
    };
    !url.host.starts_with('/') && url.password.is_some() && url.parameters.iter().all(is_plain)
}

/// Whether Tandem's user has certificates that libpq finds by itself (PostgreSQL documentation, "SSL Support").
fn has_files() -> bool {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective());
    user.ok().flatten().is_some_and(|user| user.dir.join(".postgresql").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_that_needs_no_file_is_reached_as_another_user() {
        for (url, says) in [
            ("postgresql://app:secret@db.example:5432/app", true),
            ("postgresql://app:secret@db.example/app?sslmode=require&application_name=x", true),
            ("postgresql://app@db.example/app", false),
            ("postgresql://app:secret@/app?host=/run/postgresql", false),
            ("postgresql://app:secret@db.example/app?sslmode=verify-full", false),
            ("postgresql://app:secret@db.example/app?sslcert=/nowhere/app.crt&sslkey=/nowhere/app.key", false),
        ] {
            assert_eq!(says_all(&DatabaseUrl::parse(url).unwrap()), says, "{url}");
        }
    }
}
