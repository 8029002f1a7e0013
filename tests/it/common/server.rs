//! A throwaway PostgreSQL 16 without migrations, and its client programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem::config::MigrationRun;
use tandem::harness::{Options, Server};
use tandem::plan::{CommandLine, DatabaseUrl};
use tandem::process::{self, Finished};

/// The role that owns every database of a [`TestServer`]; not a superuser.
pub const APP_ROLE: &str = "ffe_user";

const CLIENT_LIMIT: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops the server at once and removes its directory.
pub struct TestServer {
    server: Server,
}

impl TestServer {
    /// Start a server with no tables in it.
    pub async fn start() -> Self {
        super::leftovers::go_at_the_end();
        let options = Options {
            directory: Some(std::env::temp_dir()),
            migrations: Some(MigrationRun::None),
            set: vec![
                ("postgres.user".into(), APP_ROLE.into()),
                ("postgres.source".into(), "package".into()),
                ("test.superuser".into(), "false".into()),
            ],
            ..Options::default()
        };
        Self { server: Server::start(options).await.unwrap() }
    }

    /// A new database called `name`, owned by [`APP_ROLE`], as that role reaches it.
    pub async fn database(&self, name: &str) -> DatabaseUrl {
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {APP_ROLE}")).await;
        self.url(name)
    }

    /// `database` as [`APP_ROLE`] reaches it.
    fn url(&self, database: &str) -> DatabaseUrl {
        DatabaseUrl { database: database.into(), ..self.server.url().clone() }
    }

    /// The directory of the server's unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.server.socket_dir().to_owned()
    }

    /// Run `sql` in `database` as the superuser, and bring back what psql printed: rows alone, `|` between columns.
    pub async fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(&self.server.superuser_url(database), &["-c", sql]).await
    }

    /// As [`TestServer::sql`], as [`APP_ROLE`].
    pub async fn sql_as_owner(&self, database: &str, sql: &str) -> String {
        self.psql(&self.url(database), &["-c", sql]).await
    }

    /// Run the SQL file at `path` in `database` as [`APP_ROLE`].
    pub async fn sql_file(&self, database: &str, path: &Path) {
        self.psql(&self.url(database), &["-f", path.to_str().unwrap()]).await;
    }

    async fn psql(&self, url: &DatabaseUrl, args: &[&str]) -> String {
        let psql = self.client("psql", url).args(["-XAtq", "-v", "ON_ERROR_STOP=1"]).args(args);
        succeed(&psql, CLIENT_LIMIT).await.stdout.trim_end().to_owned()
    }

    /// `pg_dump` of `database` with `options`, without what changes from run to run and from release to release.
    pub async fn dump(&self, database: &str, options: &[&str]) -> String {
        let dump = self.client("pg_dump", &self.server.superuser_url(database)).args(options);
        comparable(&succeed(&dump, CLIENT_LIMIT).await.stdout)
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.server.log()
    }

    /// A client program of this PostgreSQL, for `url`.
    fn client(&self, name: &str, url: &DatabaseUrl) -> CommandLine {
        CommandLine::new(self.server.bin().join(name)).dir("/").args(["-d", url.expose().expose()])
    }
}

/// `dump` without the random `\restrict` token and the versions.
pub fn comparable(dump: &str) -> String {
    let noise = ["\\restrict", "\\unrestrict", "-- Dumped"];
    let lines = dump.lines().filter(|line| !noise.iter().any(|start| line.starts_with(start)));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Run `command`, which must succeed.
pub async fn succeed(command: &CommandLine, limit: Duration) -> Finished {
    let finished = process::run(command, limit).await.unwrap();
    assert!(finished.exit.success(), "{command:?}: {}\n{}{}", finished.exit, finished.stdout, finished.stderr);
    finished
}

/// The programs of the PostgreSQL 16 that `tandem install` would fetch.
pub async fn binaries() -> PathBuf {
    let root = nix::unistd::Uid::effective().is_root();
    let home = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().dir;
    let cache = if root { PathBuf::from("/var/cache/tandem") } else { home.join(".cache/tandem") };
    let source = tandem::config::BinarySource::Package;
    let found = tandem::postgres::binaries::ensure(&source, &cache, "python3", "".as_ref()).await.unwrap();
    found.bin.parent().unwrap().to_owned()
}
