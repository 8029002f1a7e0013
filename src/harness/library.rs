//! The harness as a library, for tests in Rust.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::sync::{OnceCell, oneshot};

use super::client::{Client, VARIABLE};
use super::cluster::{Cluster, Wish};
use super::databases::{Databases, Lease};
use super::endpoint::NewDatabase;
use super::of_test::Census;
use super::shared_objects::Hold;
use super::template::Recipe;
use crate::config::{self, Flag, MigrationRun, Purpose, Source};
use crate::plan::DatabaseUrl;
use crate::postgres::settings::SUPERUSER;

/// What a server is to hold.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The project's directory, where `tandem.toml` is looked for; `None`: the working directory.
    pub directory: Option<PathBuf>,
    /// What brings the template's schema about; `None`: what the configuration says, or the project is found to have.
    pub migrations: Option<MigrationRun>,
    /// SQL files and Python callables, beside those of the configuration.
    pub seeds: Vec<String>,
    /// Keys of the configuration with their values, such as `("test.pool", "4")`; `postgres.mode` is always `managed`.
    pub set: Vec<(String, String)>,
}

/// A throwaway server of this process. Dropped, it ends in the background.
#[derive(Debug)]
pub struct Server {
    shared: Shared,
    /// Dropped, it ends the thread that the server's life hangs on.
    _end: Sender<()>,
    _thread: JoinHandle<()>,
}

/// What is known of a server.
#[derive(Clone)]
struct Shared {
    databases: Databases,
    socket_dir: PathBuf,
    bin: PathBuf,
    log: PathBuf,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("socket_dir", &self.socket_dir).finish_non_exhaustive()
    }
}

/// A database of the caller's own. Dropping it drops the database; in a panic, it is kept while its server runs.
#[derive(Debug)]
pub struct Database {
    lease: Lease,
    from: From,
}

#[derive(Clone)]
enum From {
    Here(Databases),
    /// The harness whose socket this is.
    Elsewhere(PathBuf),
}

impl std::fmt::Debug for From {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Here(_) => "Here",
            Self::Elsewhere(_) => "Elsewhere",
        })
    }
}

/// A fresh database: of the `tandem test` that this process runs under, or of a server that is started for this process.
///
/// # Errors
/// What kept the server from starting, or the database from being made.
pub async fn database() -> anyhow::Result<Database> {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let source = Source::of_process(None, Vec::new())?;
    if let Some(socket) = source.environment.get(VARIABLE) {
        let lease = Client::new(socket).new_database(&NewDatabase::default()).await?;
        return Ok(Database { lease, from: From::Elsewhere(socket.into()) });
    }
    SERVER.get_or_try_init(|| Server::start(Options::default())).await?.database().await
}

impl Server {
    /// Start a server on a thread of its own, whatever runtime calls this.
    ///
    /// # Errors
    /// What kept it from starting: a wrong configuration, a failing migration, no room.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let (started, answer) = oneshot::channel();
        let (end, ended) = channel();
        let thread = std::thread::Builder::new().name("tandem-harness".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            tokio::task::LocalSet::new().block_on(&runtime, async {
                match start(options).await {
                    Ok((cluster, shared)) => {
                        if started.send(Ok(shared)).is_ok() {
                            // The end of the channel, which nothing is ever sent on.
                            let _ = tokio::task::spawn_blocking(move || ended.recv()).await;
                        }
                        drop(cluster);
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        });
        let thread = thread.context("start a thread")?;
        let shared = answer.await.context("the harness's thread ended")??;
        Ok(Self { shared, _end: end, _thread: thread })
    }

    /// A fresh database: a clone of the template.
    ///
    /// # Errors
    /// Clones cannot be made, and why.
    pub async fn database(&self) -> anyhow::Result<Database> {
        let databases = self.shared.databases.clone();
        Ok(Database { lease: databases.fresh(Hold::Test).await?, from: From::Here(databases) })
    }

    /// The one database of the server that read-only tests share; it refuses to be written to.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn shared_database(&self) -> anyhow::Result<Database> {
        let databases = self.shared.databases.clone();
        Ok(Database { lease: databases.shared().await?, from: From::Here(databases) })
    }

    /// Where the database of the configuration is, a clone of the template too.
    pub fn url(&self) -> &DatabaseUrl {
        self.shared.databases.session_url()
    }

    /// How the superuser `postgres` gets into `database`: over the unix socket, where this process's user needs no password.
    pub fn superuser_url(&self, database: &str) -> DatabaseUrl {
        DatabaseUrl {
            user: SUPERUSER.to_owned(),
            password: None,
            host: self.shared.socket_dir.display().to_string(),
            database: database.to_owned(),
            ..self.url().with_scheme("postgresql")
        }
    }

    /// How many databases there are, and which were kept.
    pub fn census(&self) -> Census {
        self.shared.databases.census()
    }

    /// The directory of the unix socket, over which this process's user is the superuser `postgres` without a password.
    pub fn socket_dir(&self) -> &std::path::Path {
        &self.shared.socket_dir
    }

    /// The directory of PostgreSQL's programs.
    pub fn bin(&self) -> &std::path::Path {
        &self.shared.bin
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read(&self.shared.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }
}

async fn start(options: Options) -> anyhow::Result<(Cluster, Shared)> {
    let flag = |(key, value): &(String, String)| Flag { key: key.clone(), value: value.clone(), name: key.clone() };
    let managed = Flag { key: "postgres.mode".into(), value: "managed".into(), name: "harness".into() };
    let flags = options.set.iter().map(flag).chain([managed]).collect();
    let mut source = Source { purpose: Purpose::Test, ..Source::of_process(None, flags)? };
    // Whatever it names, tests get a database of their own; it need not even be PostgreSQL's.
    source.environment.remove("DATABASE_URL");
    if let Some(directory) = options.directory {
        source.cwd = directory;
    }
    let mut settings = config::load(&source)?.settings;
    if settings.test.url_scheme == "auto" {
        // SQLAlchemy's schemes mean nothing to drivers in Rust.
        settings.test.url_scheme = "postgresql".to_owned();
    }
    let migrations = options.migrations.unwrap_or_else(|| settings.migrations.run.clone());
    let recipe = Recipe::gather(settings, migrations, &options.seeds).await?;
    let cluster = Cluster::start(&recipe, Wish::default()).await?;
    let shared = Shared {
        databases: cluster.databases.clone(),
        socket_dir: cluster.home.socket_dir.clone(),
        bin: recipe.installation.bin.clone(),
        log: super::postmaster::log(&cluster.home),
    };
    Ok((cluster, shared))
}

impl Database {
    pub fn name(&self) -> &str {
        &self.lease.name
    }

    /// Where it is, password included.
    pub fn url(&self) -> &str {
        &self.lease.url
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        match &self.from {
            From::Here(databases) => drop(databases.give_back(&self.lease.name, failed)),
            // Without a runtime, which may be shutting down; the answer is not waited for.
            From::Elsewhere(socket) => {
                let query = if failed { "?failed=1" } else { "" };
                let request = format!("DELETE /databases/{}{query} HTTP/1.0\r\n\r\n", self.lease.name);
                let _ = UnixStream::connect(socket).and_then(|mut stream| stream.write_all(request.as_bytes()));
            }
        }
    }
}
