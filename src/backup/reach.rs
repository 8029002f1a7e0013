//! The server that is dumped or restored into: how its sessions and client programs get in.

use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::{ConnectOptions, PgConnection};

use crate::plan::{CommandLine, DatabaseUrl};
use crate::postgres::binaries::Installation;
use crate::postgres::home::Home;
use crate::postgres::provision::superuser_options;
use crate::postgres::settings::SUPERUSER;
use crate::schema;

/// What our sessions are called in `pg_stat_activity`.
const APPLICATION_NAME: &str = "tandem-backup";

/// How long a server may take to let a session in.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// The way in.
#[derive(Clone, Debug)]
enum Way {
    /// As the superuser over the unix socket, where the server is Tandem's own.
    Socket { home: Home, port: u16 },
    /// As the application's role, where it is somebody else's.
    Url(DatabaseUrl),
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

    /// The server at `url`, as the role that the URL names.
    pub fn url(url: &DatabaseUrl, installation: Installation) -> Self {
        Self { way: Way::Url(url.clone()), installation }
    }

    /// Whether all roles and every setting can be read and set.
    pub fn is_superuser(&self) -> bool {
        matches!(self.way, Way::Socket { .. })
    }

    /// A session in `database`.
    ///
    /// # Errors
    /// Nobody answers, or lets us in.
    pub async fn session(&self, database: &str) -> anyhow::Result<PgConnection> {
        match &self.way {
            Way::Socket { home, port } => {
                let options = superuser_options(home, *port, database).application_name(APPLICATION_NAME);
                tokio::time::timeout(CONNECT_LIMIT, options.connect())
                    .await
                    .with_context(|| format!("connect to database {database}: no answer within {CONNECT_LIMIT:?}"))?
                    .with_context(|| format!("connect to database {database} as the superuser"))
            }
            Way::Url(url) => {
                schema::session(&DatabaseUrl { database: database.to_owned(), ..url.clone() }, APPLICATION_NAME).await
            }
        }
    }

    /// A program of PostgreSQL's that takes `--dbname`, connected to `database`. The password travels in the environment,
    /// which other users cannot read.
    pub fn client(&self, tool: &str, database: &str) -> CommandLine {
        self.program(tool).arg(match &self.way {
            // A database's name with `=` in it would be read as a connection string.
            Way::Socket { .. } => {
                format!("--dbname=dbname='{}'", database.replace('\\', r"\\").replace('\'', r"\'"))
            }
            Way::Url(url) => {
                let place =
                    DatabaseUrl { database: database.to_owned(), password: None, ..url.with_scheme("postgresql") };
                format!("--dbname={}", place.expose().expose())
            }
        })
    }

    /// A program of PostgreSQL's that gets in where its arguments do not say otherwise.
    pub fn program(&self, tool: &str) -> CommandLine {
        // What a person's shell says of connections, `process` has taken out.
        let command = self.installation.command(tool).dir("/").env("PGAPPNAME", APPLICATION_NAME).env_remove("PSQLRC");
        match &self.way {
            Way::Socket { home, port } => {
                command.env("PGHOST", &home.socket_dir).env("PGPORT", port.to_string()).env("PGUSER", SUPERUSER)
            }
            Way::Url(url) => match &url.password {
                Some(password) => command.env("PGPASSWORD", password.expose()),
                None => command,
            },
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
